"""Segmentation models for metrics and regions: your own TorchScript file, or a torchvision model by name."""

import difflib
import json
import warnings
from pathlib import Path

import torch
from torchvision.models import get_model, get_model_weights, list_models, segmentation

from utils import tensors
from utils.errors import UserError

NAMES = "segments.json"  # extra file in a TorchScript archive with the names of the segments


def find_segmenter(name):
    """The value of --segmenter -> Path of a file, or a torchvision model name. Raises UserError if it is neither."""
    if Path(name).is_file():
        return Path(name)
    known = list_models(module=segmentation)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"torchvision has {', '.join(known)}"
    raise UserError(f"--segmenter {name}: neither a file nor a segmentation model of torchvision; {hint}")


def segmenter_of(settings):
    """The segmenter of a run, as `find_segmenter` returns it: the flag's, else the config's, else None."""
    return find_segmenter(settings.segmenter) if settings.segmenter else settings.config.segmenter_path()


class Segmenter:
    """A segmentation model: `segmenter(images)`, (B, 3, H, W) in [-1, 1] -> label maps (B, h, w).

    names: names of the segments by number; [] if the model has none.
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
        """A segment's name, or its number as a string -> its number. Raises UserError if there is no such segment."""
        if name in self.names:
            return self.names.index(name)
        if name.isdecimal() and (not self.names or int(name) < len(self.names)):
            return int(name)
        known = f"its segments are {', '.join(self.names)}" if self.names else "its segments have no names: give their numbers"
        raise UserError(f"the segmenter {self.found} has no segment {name}: {known}")


def open_segmenter(found, device):
    """Open a segmenter, given as `find_segmenter` returns it -> Segmenter.

    A TorchScript model takes images in [-1, 1] and returns scores (B, segments, h, w), plain or as "out" of a dict; the names
    of its segments are a JSON list in the extra file NAMES, if there is one. torchvision models use the transforms of their
    weights. Raises UserError for an invalid file, and if torchvision weights cannot be downloaded.
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
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is the only format that includes the model's code
            warnings.simplefilter("ignore")
            model = torch.jit.load(path, map_location=device, _extra_files=extra).eval()
        names = json.loads(extra[NAMES] or "[]")
    except tensors.UNREADABLE as error:
        if tensors.is_torchscript(path):
            raise UserError(
                f"the segmenter {path} cannot be read by torch {torch.__version__}: if a newer one wrote it, upgrade torch, "
                "else it is damaged"
            ) from error
        raise UserError(f"the segmenter {path} is not a TorchScript file: write one with torch.jit.save") from error
    return model, [str(name) for name in names] if isinstance(names, list) else []


def _torchvision(name, device):
    weights = get_model_weights(name).DEFAULT
    try:
        model = get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network, or an incomplete file
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the torchvision weights of {name} could not be downloaded: check the network, or save {weights.url} in {folder}"
        ) from error
    return model.eval().requires_grad_(False).to(device), weights
