"""What is computed once and found again: latents, plain trajectories, plain samples, mean directions, LPIPS curves.

Every thing lies under a key that changes with everything its content depends on. The keys are made here, and nowhere else:

    latent        model, precision, timesteps of the inversion, pixels
    noise_maps    model, precision, timesteps, pixels, and what their noise is drawn from: seed and the image's number
    sample        model, precision, timesteps, x_T
    trajectory    model, precision, timesteps, dtype, x_T
    mean          model, precision, the whole process, direction and strengths by content, the images
    curve         model, precision, timesteps, pixels, and the name it was measured under
    noise         what a kept draw is called: its shape and the image's number, whatever the seed
    clip          its files: their places, sizes and times of change
    cosine        CLIP, two prompts

"model" is `Model.identity`: weights by content, architecture and schedule. "pixels" are digests of images, "x_T" is a tensor,
"CLIP" is `ClipLoss.identity`, which is what lies under "clip".

A file is written whole, with a checksum. One that is damaged, truncated, of another shape or not finite is removed with a line,
and what was in it is computed again.
"""

import json
import logging
import shutil
from pathlib import Path

import torch

from utils import tensors
from utils.digests import digest
from utils.errors import UserError
from utils.terminal import line_of
from utils.text import one_line

log = logging.getLogger(__name__)

FORMAT = 1  # of the keys and files; another number finds nothing of before
ROOT = Path("precomputed")
FOLDERS = {"mean": Path("checkpoint_latent")}  # the others lie in folders of their own under the root


def key(kind, **parts):
    """The name of a thing: a digest of its kind and of everything that its content depends on (see `utils.digests.digest`)."""
    return digest(kind, FORMAT, parts)


def latent_key(model, timesteps, pixels):
    """pixels: the digest of the image."""
    return key("latent", model=model.identity, precision=model.precision, timesteps=timesteps, pixels=pixels)


def noise_maps_key(model, timesteps, pixels, seed, number):
    """pixels: the digest of the image; number: its place in the data set."""
    parts = {"timesteps": timesteps, "pixels": pixels, "seed": seed, "number": number}
    return key("noise_maps", model=model.identity, precision=model.precision, **parts)


def sample_key(model, timesteps, x_T):
    return key("sample", model=model.identity, precision=model.precision, timesteps=timesteps, x_T=x_T)


def trajectory_key(model, timesteps, dtype, x_T):
    """Of P_plain at the highest timesteps, from x_T downward; how many of them the file has is not part of the key."""
    return key("trajectory", model=model.identity, precision=model.precision, timesteps=timesteps, dtype=str(dtype), x_T=x_T)


def mean_key(model, process, directions, coefficients, origin, t_edit, over_timesteps, images):
    """process: everything that decides inversion and reverse process, as plain data. directions: their digests. images:
    digests of the pixels, in order."""
    return key(
        "mean",
        model=model.identity,
        precision=model.precision,
        process=process,
        directions=directions,
        coefficients=coefficients,
        origin=origin,
        t_edit=t_edit,
        over_timesteps=over_timesteps,
        images=images,
    )


def curve_key(model, timesteps, images, name):
    """images: digests of the pixels, in order. name: what the curve is asked for by; two names are two curves."""
    return key("curve", model=model.identity, precision=model.precision, timesteps=timesteps, images=images, name=name)


def noise_key(shape, number):
    return key("noise", shape=list(shape), number=number)


def clip_key(files):
    """files: [[path, size in bytes, time of change in ns], ...]"""
    return key("clip", files=files)


def cosine_key(clip, src, trg):
    """clip: the identity of a CLIP."""
    return key("cosine", clip=clip, src=src, trg=trg)


class NoRoom(UserError):
    """A file of the store cannot be written; the message names the place and what to do."""


class NotFinite(UserError):
    """What is to be kept is infinite or not a number; the message says what to do."""


class Store:
    """Tensors under keys, a file each: <root>/<kind>/<first two digits>/<key>.safetensors."""

    def __init__(self, root=ROOT):
        self.root = Path(root)

    def folder(self, kind):
        return FOLDERS.get(kind, self.root / kind)

    def path(self, kind, key):
        return self.folder(kind) / key[:2] / f"{key}.safetensors"

    def read(self, kind, key, shapes=None):
        """-> {name: tensor}, or None when there is none, or none that is whole (it is removed then, with a line).

        shapes: {name: shape} that the tensors must have, with None for a dimension of any size.
        """
        path = self.path(kind, key)
        if not path.exists():
            return None
        try:
            found, metadata = tensors.load(path), tensors.metadata_of(path)
        except UserError:  # its words are about files that users give
            return self._remove(path, "it cannot be read")
        except OSError as error:
            return self._remove(path, one_line(error))
        if metadata != _metadata(kind, key, found, metadata.get("about")):
            return self._remove(path, "its checksum is wrong")
        if fault := _fault(found, shapes):
            return self._remove(path, fault)
        return found

    def about(self, kind, key):
        """What was noted beside the tensors, {name: plain data}."""
        return json.loads(tensors.metadata_of(self.path(kind, key)).get("about", "{}"))

    def write(self, kind, key, found, about=None):
        """Keep {name: tensor} under a key. about: {name: plain data} to be noted beside them. Raises NoRoom and NotFinite."""
        path = self.path(kind, key)
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        if fault := _fault(found):
            raise NotFinite(f"nothing of use to keep as {kind}: {fault}; check the weights, or give --precision fp32")
        try:
            tensors.save_safetensors(found, path, _metadata(kind, key, found, json.dumps(about or {})))
        except OSError as error:
            raise NoRoom(line_of(error)) from error

    def newest(self, kind, wanted):
        """The key of the newest whole file of a kind for whose notes `wanted(about)` is true, or None."""
        paths = [path for path in self.folder(kind).glob("??/*.safetensors") if path.exists()]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if self.read(kind, path.stem) is not None and wanted(self.about(kind, path.stem)):
                return path.stem
        return None

    def size(self, kind):
        """Bytes that the files of a kind take."""
        return sum(path.stat().st_size for path in self.folder(kind).glob("??/*.safetensors"))

    def _remove(self, path, fault):
        log.warning("%s is damaged (%s): removed, what was in it is computed again", path, fault)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _metadata(kind, key, found, about):
    """What stands beside the tensors. The checksum covers all that is read back, and the key: a file under another one's name
    is found out as well."""
    return {"kind": kind, "checksum": digest(kind, key, found, about), "about": about}


def _fault(found, shapes=None):
    """What is wrong with tensors, or None."""
    for name, shape in (shapes or {}).items():
        if name not in found:
            return f"it has no {name}"
        have = tuple(found[name].shape)
        if len(have) != len(shape) or any(b is not None and a != b for a, b in zip(have, shape, strict=True)):
            return f"its {name} is {' x '.join(map(str, have))}"
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"its {name} is not finite"
    return None
