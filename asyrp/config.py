"""A model's YAML file -> checked settings."""

from pathlib import Path
from types import SimpleNamespace

import yaml

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
REQUIRED = {"data": ("dataset", "category", "image_size"), "model": ("type",)}
DIFFUSION = {"beta_start": 1e-4, "beta_end": 2e-2, "num_diffusion_timesteps": 1000}


def find_config(name):
    """`--config` as given -> path: an existing file, or a name under configs/ with or without .yml."""
    candidates = [Path(name), CONFIGS / name, CONFIGS / f"{name}.yml"]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yml")))
    raise UserError(f"--config {name}: no such file; give a path, or one of {known}")


def load_config(name):
    """Name under configs/ or path -> namespace with `data`, `model`, `diffusion` and `path` (the file it came from).

    Raises UserError for a missing file, broken YAML, or a section that lacks a key.
    """
    path = find_config(name)
    try:
        sections = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sections, dict):
        raise UserError(f"{path} holds no sections; compare configs/celeba.yml")
    for section, keys in REQUIRED.items():
        given = sections.get(section)
        missing = [key for key in keys if not isinstance(given, dict) or key not in given]
        if missing:
            raise UserError(f"{path}: section '{section}' lacks {', '.join(missing)}; compare configs/celeba.yml")
    sections["diffusion"] = {**DIFFUSION, **(sections.get("diffusion") or {})}
    config = SimpleNamespace(**{key: to_namespace(value) for key, value in sections.items()})
    config.path = path
    return config


def to_namespace(value):
    """Nested dicts as nested namespaces; anything else as it is."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: to_namespace(item) for key, item in value.items()})
    return value


def to_dict(value):
    """The reverse of `to_namespace`; paths become strings, so that the result can be written as YAML or JSON."""
    if isinstance(value, SimpleNamespace):
        return {key: to_dict(item) for key, item in vars(value).items()}
    return str(value) if isinstance(value, Path) else value
