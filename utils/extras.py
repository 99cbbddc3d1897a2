"""Optional packages: the extras of pyproject.toml."""

import importlib

from utils.errors import UserError
from utils.text import one_line

# name of the package in imports -> the extra that installs it
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
    """The command that installs an extra, to be run in the repository."""
    return f'pip install -e ".[{extra}]"'


def load(module, what):
    """Import a module of an optional package -> the module.

    module: full name, such as "torchmetrics.image.fid". what: the feature that needs it, for the message.
    Raises UserError with the command that installs the package if it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{what} needs {package} ({one_line(error)}): {install(EXTRAS[package])}") from error
