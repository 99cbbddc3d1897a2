"""Packages that only some features need: the extras of pyproject.toml."""

import importlib

from utils.errors import UserError
from utils.text import one_line

# package, as it is imported -> the extra that installs it
EXTRAS = {
    "torchmetrics": "evaluation",
    "torch_fidelity": "evaluation",
    "diffusers": "diffusers",
    "dicebear": "avatar",
    "resvg_py": "avatar",
    "gradio": "app",
    "face_alignment": "align",
}


def install(extra):
    """The command that installs an extra, in the repository's folder."""
    return f'pip install -e ".[{extra}]"'


def load(module, what):
    """Import a module of an optional package -> the module. Raises UserError that says how to install it.

    module: its full name, such as "torchmetrics.image.fid". what: needs it, in words.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{what} needs {package} ({one_line(error)}): {install(EXTRAS[package])}") from error
