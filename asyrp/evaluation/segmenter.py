"""Segmentation models for --evaluate: a TorchScript file of one's own, or one of torchvision's by name."""

import difflib
import warnings
from pathlib import Path

import torch
from torchvision.models import get_model, get_model_weights, list_models, segmentation

from utils import tensors
from utils.errors import UserError


def find_segmenter(name):
    """--segmenter as given -> Path of a file, or a name of torchvision's. Raises UserError when it is neither."""
    if Path(name).is_file():
        return Path(name)
    known = list_models(module=segmentation)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"the nearest of torchvision's is {near[0]}" if near else f"torchvision has {', '.join(known)}"
    raise UserError(f"--segmenter {name}: neither a file nor one of torchvision's segmentation models; {hint}")


def open_segmenter(found, device):
    """What `find_segmenter` returns -> function: images (B, 3, H, W) in [-1, 1] -> label maps (B, h, w).

    A file is called with images in [-1, 1] and gives scores (B, segments, h, w), plain or as "out" of a dict; torchvision's
    models get images as their weights ask for them. Raises UserError for a file that is no such model, and for weights of
    torchvision that cannot be fetched.
    """
    if isinstance(found, Path):
        model, prepare = _torchscript(found, device), torch.nn.Identity()
    else:
        model, transform = _torchvision(found, device)

        def prepare(images):
            return transform((images.clamp(-1, 1) + 1) / 2)

    @torch.no_grad()
    def segment(images):
        try:
            scores = model(prepare(images))
            scores = scores["out"] if isinstance(scores, dict) else scores
            return scores.argmax(1)
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            line = str(error).strip().splitlines()[-1]
            raise UserError(f"the segmenter {found} cannot read images of {tuple(images.shape[1:])} ({line})") from error

    return segment


def _torchscript(path, device):
    if not path.is_file():
        raise UserError(f"the segmenter {path} is missing: give another with --segmenter")
    try:
        with warnings.catch_warnings():  # torch calls TorchScript deprecated; it is the form that carries its own code
            warnings.simplefilter("ignore")
            return torch.jit.load(path, map_location=device).eval()
    except tensors.UNREADABLE as error:
        raise UserError(f"the segmenter {path} is no TorchScript file: write one with torch.jit.save") from error


def _torchvision(name, device):
    weights = get_model_weights(name).DEFAULT
    try:
        model = get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network; a file that broke off
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of torchvision's {name} could not be fetched: check the network, or save {weights.url} in {folder}"
        ) from error
    return model.eval().requires_grad_(False).to(device), weights.transforms()
