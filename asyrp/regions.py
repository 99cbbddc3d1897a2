"""Where an edit acts, as a user names it: a picture, a segment of every image, or where the edit changes most."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from asyrp import blending
from asyrp.data.datasets import DAMAGED
from asyrp.evaluation.segmenter import open_segmenter
from utils.digests import digest
from utils.errors import UserError
from utils.files import shown
from utils.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """about: what it is, as plain data, for a direction's record. mask_of: function of images (B, 3, H, W) in [-1, 1] -> what
    `blending.InRegion` takes."""

    about: dict
    mask_of: Callable = field(compare=False)


def choose(size, device, mask=None, segments=None, threshold=None, segmenter=None, dilation=None, smoothing=None):
    """The Region of a mask (path), segments (names in one string) or a threshold (a quantile), whichever is given, or None.

    segmenter: function without arguments -> what `find_segmenter` returns. dilation, smoothing: in pixels, by default 1/32 of
    the image's side. Raises UserError as those below.
    """
    dilation, smoothing = (max(1, size // 32) if pixels is None else pixels for pixels in (dilation, smoothing))
    if mask:
        return from_picture(mask, size)
    if segments:
        return from_segments(segments, segmenter(), device, size, dilation, smoothing)
    return None if threshold is None else from_changes(threshold, smoothing)


def from_picture(path, size):
    """A picture: white where the edit acts, black where it does not, grey between. Raises UserError when it cannot be read."""
    try:
        with Image.open(path) as picture:
            grey = picture.convert("L").resize((size, size), Image.Resampling.BOX)
    except DAMAGED as error:
        raise UserError(f"--edit_mask {path} cannot be read as a picture ({one_line(error)}): check the path") from error
    mask = pil_to_tensor(grey).float().unsqueeze(0) / 255
    if not mask.any():
        raise UserError(f"--edit_mask {path} is black: nothing would be edited; paint white where the edit should act")
    return Region({"mask": digest(mask)}, lambda images: mask)


def from_segments(names, segmenter, device, size, dilation, smoothing):
    """The segments `names` (of the segmenter, or their numbers; several in one string) of every image.

    segmenter: what `find_segmenter` returns. Raises UserError when there is none, or it has no such segment.
    """
    if segmenter is None:
        raise UserError("--edit_region needs a segmenter: give --segmenter, a TorchScript file or a name of torchvision's")
    segment = open_segmenter(segmenter, device)
    wanted = [segment.number(name) for name in names.split()]

    def mask_of(images):
        mask = blending.of_segments(segment(images.to(device)), wanted, size, dilation, smoothing)
        if missing := int((mask.flatten(1).amax(1) == 0).sum()):
            log.warning("%d of %d images show no %s: they are not edited", missing, len(images), names)
        return mask

    about = {"segments": names, "segmenter": shown(segmenter), "dilation": dilation, "smoothing": smoothing}
    return Region(about, mask_of)


def from_changes(quantile, smoothing):
    """Where the edit changes the prediction most, at each step anew: above this quantile, 0 to 1."""
    mask = blending.largest_changes(quantile, smoothing)
    return Region({"threshold": quantile, "smoothing": smoothing}, lambda images: mask)
