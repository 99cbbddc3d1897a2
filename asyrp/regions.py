"""Where an edit acts, as the user chooses it: a mask image, segments of each image, or where the change is largest."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from asyrp import blending
from asyrp.blending import MaskOf, MaskOfChange
from asyrp.data.datasets import DAMAGED
from asyrp.evaluation.segmenter import open_segmenter
from utils.digests import digest
from utils.errors import UserError
from utils.files import shown
from utils.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """about: a description as plain data, for a direction's record. mask_of: function of images (B, 3, H, W) in [-1, 1] -> a
    mask for `blending.InRegion`."""

    about: dict[str, Any]
    mask_of: MaskOf = field(compare=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor | MaskOfChange:
        return self.mask_of(images)


def region_of(mask_of: MaskOf | None) -> dict[str, Any] | None:
    """The entry `region` of a record: what a Region says of itself; of another function, its name."""
    if mask_of is None:
        return None
    return getattr(mask_of, "about", None) or {"mask_of": getattr(mask_of, "__qualname__", type(mask_of).__name__)}


def choose(size, device, mask=None, segments=None, threshold=None, segmenter=None, dilation=None, smoothing=None):
    """The Region of a mask (path), of segments (names in one string) or of a threshold (a quantile), whichever is given, or
    None.

    segmenter: function without arguments -> what `find_segmenter` returns. dilation, smoothing: in pixels, by default 1/32 of
    the image size. Raises UserError as the functions below.
    """
    dilation, smoothing = (max(1, size // 32) if pixels is None else pixels for pixels in (dilation, smoothing))
    if mask:
        return from_picture(mask, size)
    if segments:
        return from_segments(segments, segmenter(), device, size, dilation, smoothing)
    return None if threshold is None else from_changes(threshold, smoothing)


def from_picture(path, size):
    """A mask image: white where the edit acts, black where it does not, grey in between. Raises UserError if it cannot be read
    or is all black."""
    try:
        with Image.open(path) as picture:
            grey = picture.convert("L").resize((size, size), Image.Resampling.BOX)
    except DAMAGED as error:
        raise UserError(f"--edit_mask {path} cannot be read as an image ({one_line(error)}): check the path") from error
    mask = pil_to_tensor(grey).float().unsqueeze(0) / 255
    if not mask.any():
        raise UserError(f"--edit_mask {path} is all black, so nothing would be edited: paint white where the edit should act")
    return Region({"mask": digest(mask)}, lambda images: mask)


def from_segments(names, segmenter, device, size, dilation, smoothing):
    """The segments `names` of every image (names known to the segmenter, or numbers; several in one string).

    segmenter: what `find_segmenter` returns. Raises UserError if there is none, or if it has no such segment.
    """
    if segmenter is None:
        raise UserError("--edit_region needs a segmenter: give --segmenter, a TorchScript file or a torchvision model name")
    segment = open_segmenter(segmenter, device)
    wanted = [segment.number(name) for name in names.split()]

    def mask_of(images):
        mask = blending.of_segments(segment(images.to(device)), wanted, size, dilation, smoothing)
        if missing := int((mask.flatten(1).amax(1) == 0).sum()):
            log.warning("%d of %d images contain no %s and are not edited", missing, len(images), names)
        return mask

    about = {"segments": names, "segmenter": shown(segmenter), "dilation": dilation, "smoothing": smoothing}
    return Region(about, mask_of)


def from_changes(quantile, smoothing):
    """Where the edit changes the prediction most, decided at each step: above this quantile, 0 to 1."""
    mask = blending.largest_changes(quantile, smoothing)
    return Region({"threshold": quantile, "smoothing": smoothing}, lambda images: mask)
