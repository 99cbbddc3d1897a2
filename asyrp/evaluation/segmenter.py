"""Segmentation models, for metrics and regions: a TorchScript file of one's own, or one of torchvision's by name."""

import difflib
import json
import warnings
from pathlib import Path

import torch
from torchvision.models import get_model, get_model_weights, list_models, segmentation

from utils import tensors
from utils.errors import UserError

NAMES = "segments.json"  # in a TorchScript file: the names of its segments


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


def segmenter_of(settings):
    """The segmenter of a run, as `find_segmenter` returns it: the flag's, else the config's; None where there is neither."""
    return find_segmenter(settings.segmenter) if settings.segmenter else settings.config.segmenter_path()


class Segmenter:
    """A segmentation model: `segmenter(images)`, (B, 3, H, W) in [-1, 1] -> label maps (B, h, w).

    names: of the segments, in the order of their numbers; [] where the model does not tell.
    """

    def __init__(self, found, model, prepare, names):
        self.found, self.model, self.prepare, self.names = found, model, prepare, names

    @torch.no_grad()
    def __call__(self, images):
        try:
            scores = self.model(self.prepare(images))
            scores = scores["out"] if isinstance(scores, dict) else scores
            return scores.argmax(1)
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            line = str(error).strip().splitlines()[-1]
            raise UserError(f"the segmenter {self.found} cannot read images of {tuple(images.shape[1:])} ({line})") from error

    def number(self, name):
        """A segment's name, or its number as a text -> its number. Raises UserError when there is none."""
        if name in self.names:
            return self.names.index(name)
        if name.isdecimal() and (not self.names or int(name) < len(self.names)):
            return int(name)
        known = f"its segments are {', '.join(self.names)}" if self.names else "it names none: give their numbers"
        raise UserError(f"the segmenter {self.found} has no segment {name}: {known}")


def open_segmenter(found, device):
    """What `find_segmenter` returns -> Segmenter.

    A file is called with images in [-1, 1] and gives scores (B, segments, h, w), plain or as "out" of a dict; the names of its
    segments are a JSON list in its extra file NAMES, if there is one. torchvision's models get images as their weights ask for
    them. Raises UserError for a file that is no such model, and for weights of torchvision that cannot be fetched.
    """
    if isinstance(found, Path):
        model, names = _torchscript(found, device)
        return Segmenter(found, model, torch.nn.Identity(), names)
    model, weights = _torchvision(found, device)
    transform = weights.transforms()
    return Segmenter(found, model, lambda x: transform((x.clamp(-1, 1) + 1) / 2), list(weights.meta.get("categories", [])))


def _torchscript(path, device):
    if not path.is_file():
        raise UserError(f"the segmenter {path} is missing: give another with --segmenter")
    extra = {NAMES: ""}
    try:
        with warnings.catch_warnings():  # torch calls TorchScript deprecated; it is the form that carries its own code
            warnings.simplefilter("ignore")
            model = torch.jit.load(path, map_location=device, _extra_files=extra).eval()
        names = json.loads(extra[NAMES] or "[]")
    except tensors.UNREADABLE as error:
        raise UserError(f"the segmenter {path} is no TorchScript file: write one with torch.jit.save") from error
    return model, [str(name) for name in names] if isinstance(names, list) else []


def _torchvision(name, device):
    weights = get_model_weights(name).DEFAULT
    try:
        model = get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network; a file that broke off
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of torchvision's {name} could not be fetched: check the network, or save {weights.url} in {folder}"
        ) from error
    return model.eval().requires_grad_(False).to(device), weights
