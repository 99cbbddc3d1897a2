"""A cache on disk: latents, plain trajectories, plain samples, mean directions and LPIPS curves are computed once and reused.

Every entry has a key that depends on everything its content depends on. All keys are defined here:

    latent        model, precision, timesteps and fixed-point iterations of the inversion, pixels
    noise_maps    model, precision, timesteps, pixels, and the seed and number of the image, which its noise is drawn from
    sample        model, precision, timesteps, x_T
    trajectory    model, precision, timesteps, dtype, x_T
    mean          model, precision, settings of the process, content of the direction, strengths, images
    curve         model, precision, timesteps, pixels, and the name given to the curve
    noise         shape and number of the image, but not the seed
    clip          paths, sizes and modification times of its files
    cosine        CLIP, two prompts

"model" is `Model.identity`: weights, architecture and schedule. "pixels" are digests of images, "x_T" is a tensor, "CLIP" is
`ClipLoss.identity`, the entry of kind "clip".

Files are written atomically, with a checksum. A file that is damaged, truncated, of another shape or not finite is removed
with a warning, and its content is recomputed.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils import tensors
from utils.digests import digest
from utils.errors import UserError
from utils.terminal import line_of
from utils.text import one_line

if TYPE_CHECKING:
    from asyrp.model import Model

log = logging.getLogger(__name__)

FORMAT = 1  # version of keys and files; changing it invalidates the cache
ROOT = Path("precomputed")
FOLDERS = {"mean": Path("checkpoint_latent")}  # all other kinds have a folder under the root


def key(kind: str, **parts: Any) -> str:
    """The key of an entry: a digest of its kind and of everything its content depends on (see `utils.digests.digest`)."""
    return digest(kind, FORMAT, parts)


def latent_key(model: "Model", timesteps: list[int], pixels: str, iterations: int = 0) -> str:
    """pixels: the digest of the image. iterations: fixed-point iterations of a step of the inversion."""
    parts = {"timesteps": timesteps, "pixels": pixels} | ({"iterations": iterations} if iterations else {})
    return key("latent", model=model.identity, precision=model.precision, **parts)


def noise_maps_key(model: "Model", timesteps: list[int], pixels: str, seed: int, number: int) -> str:
    """pixels: the digest of the image; number: its position in the dataset."""
    parts = {"timesteps": timesteps, "pixels": pixels, "seed": seed, "number": number}
    return key("noise_maps", model=model.identity, precision=model.precision, **parts)


def sample_key(model: "Model", timesteps: list[int], x_T: torch.Tensor) -> str:
    return key("sample", model=model.identity, precision=model.precision, timesteps=timesteps, x_T=x_T)


def trajectory_key(model: "Model", timesteps: list[int], dtype: torch.dtype, x_T: torch.Tensor) -> str:
    """P_plain at the highest timesteps, from x_T downward. The number of timesteps in the file is not part of the key."""
    return key("trajectory", model=model.identity, precision=model.precision, timesteps=timesteps, dtype=str(dtype), x_T=x_T)


def mean_key(
    model: "Model",
    process: list,
    directions: list[str],
    coefficients: list[float],
    origin: float,
    t_edit: int,
    over_timesteps: bool,
    images: list[str],
) -> str:
    """process: all settings of inversion and reverse process, as plain data. directions: their digests. images: digests of
    the pixels, in order."""
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


def curve_key(model: "Model", timesteps: list[int], images: list[str], name: str) -> str:
    """images: digests of the pixels, in order. name: the name given to the curve; two names are two curves."""
    return key("curve", model=model.identity, precision=model.precision, timesteps=timesteps, images=images, name=name)


def noise_key(shape: Sequence[int], number: int) -> str:
    return key("noise", shape=list(shape), number=number)


def clip_key(files: list[list[str | int]]) -> str:
    """files: [[path, size in bytes, modification time in ns], ...]"""
    return key("clip", files=files)


def cosine_key(clip: str, src: str, trg: str) -> str:
    """clip: the identity of a CLIP."""
    return key("cosine", clip=clip, src=src, trg=trg)


Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, Sequence[int | None]]


class NoRoom(UserError):
    """A file of the store cannot be written; the message says which, and what to do."""


class NotFinite(UserError):
    """An entry to be written contains inf or nan; the message says what to do."""


class Store:
    """Tensors under keys, one file per key: <root>/<kind>/<first two digits>/<key>.safetensors."""

    def __init__(self, root: Path | str = ROOT) -> None:
        self.root = Path(root)

    def folder(self, kind: str) -> Path:
        return FOLDERS.get(kind, self.root / kind)

    def path(self, kind: str, key: str) -> Path:
        return self.folder(kind) / key[:2] / f"{key}.safetensors"

    def read(self, kind: str, key: str, shapes: Shapes | None = None) -> Tensors | None:
        """{name: tensor}, or None if there is no valid entry (a damaged file is removed with a warning).

        shapes: {name: shape} that the tensors must have, with None for a dimension of any size.
        """
        path = self.path(kind, key)
        if not path.exists():
            return None
        try:
            found, metadata = tensors.load(path), tensors.metadata_of(path)
        except UserError:  # its message is about files that the user supplies
            fault: str | None = "it cannot be read"
        except OSError as error:
            fault = one_line(error)
        else:
            whole = metadata == _metadata(kind, key, found, metadata.get("about"))
            fault = _fault(found, shapes) if whole else "its checksum is wrong"
        if fault is None:
            return found
        self._remove(path, fault)
        return None

    def about(self, kind: str, key: str) -> dict[str, Any]:
        """The metadata stored with the tensors, {name: plain data}."""
        return json.loads(tensors.metadata_of(self.path(kind, key)).get("about", "{}"))

    def write(self, kind: str, key: str, found: Tensors, about: dict[str, Any] | None = None) -> None:
        """Store {name: tensor} under a key, with metadata about = {name: plain data}. Raises NoRoom and NotFinite."""
        path = self.path(kind, key)
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        if fault := _fault(found):
            raise NotFinite(f"the computed {kind} is invalid, {fault}: check the weights, or use --precision fp32")
        try:
            tensors.save_safetensors(found, path, _metadata(kind, key, found, json.dumps(about or {})))
        except OSError as error:
            raise NoRoom(line_of(error)) from error

    def newest(self, kind: str, wanted: Callable[[dict[str, Any]], bool]) -> str | None:
        """The key of the newest valid entry of a kind whose metadata satisfies `wanted(about)`, or None."""
        paths = [path for path in self.folder(kind).glob("??/*.safetensors") if path.exists()]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if self.read(kind, path.stem) is not None and wanted(self.about(kind, path.stem)):
                return path.stem
        return None

    def size(self, kind: str) -> int:
        """Bytes used by the files of a kind."""
        return sum(path.stat().st_size for path in self.folder(kind).glob("??/*.safetensors"))

    def _remove(self, path: Path, fault: str) -> None:
        log.warning("%s is damaged (%s): it was removed and will be recomputed", path, fault)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _metadata(kind: str, key: str, found: Tensors, about: str | None) -> dict[str, Any]:
    """The metadata of a file. The checksum covers everything that is read back and the key, so that a renamed file is detected
    too."""
    return {"kind": kind, "checksum": digest(kind, key, found, about), "about": about}


def _fault(found: Tensors, shapes: Shapes | None = None) -> str | None:
    """A description of what is wrong with tensors, or None."""
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
