"""Asyrp: editing images in the semantic latent space (h-space) of a frozen diffusion model.

    import asyrp
    model = asyrp.open_model("avatar.yml")
    smiling = asyrp.load_direction("smiling", model)
    images = asyrp.read_folder("my_pictures", model.image_size)  # (N, 3, H, W) in [-1, 1]
    x_T = model.invert(images)
    edited = model.edit(x_T, [smiling], strengths=[1.0])

The library does not depend on the command line's flags. Each name is imported when it is first used.
"""

import importlib
from typing import Any

# name -> module that defines it
_PUBLIC = {
    "open_model": "asyrp.model",
    "Model": "asyrp.model",
    "load_direction": "asyrp.directions",
    "Direction": "asyrp.directions",
    "train_direction": "asyrp.training",
    "calibrate": "asyrp.calibrating",
    "Session": "asyrp.session",
    "read_image": "asyrp.data.datasets",
    "read_folder": "asyrp.data.datasets",
    "labelled_grid": "asyrp.report.pictures",
    "UserError": "utils.errors",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `main.py --help` needs none of it.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module asyrp has no attribute {name}")
