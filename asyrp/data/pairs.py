"""The cache of latents: image x_0 -> x_T by DDIM inversion, computed once.

One small file an image, written beside and renamed, so that a killed run goes on from the last finished image and two
processes cannot harm each other. A file's name is a hash of the image's pixels, its folder's name a hash of the weights and the
settings of the inversion: other images, weights, or steps never find each other's latents.
"""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from asyrp import checkpoints, process
from asyrp.data.datasets import load_batch
from utils.errors import UserError
from asyrp.acceleration.overlap import prefetched, to_device


class Batch(NamedTuple):
    """Images and their latents: indices (list of ints), names, x_0 (or None) and x_T (B, 3, H, W) on the CPU."""

    indices: list
    names: list
    x_0: torch.Tensor | None
    x_T: torch.Tensor


log = logging.getLogger(__name__)


def digest(*parts):
    """Sixteen hexadecimal digits that change with any part; tensors count by their bytes, the rest by their text."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        h.update(part.contiguous().numpy().tobytes() if isinstance(part, torch.Tensor) else str(part).encode())
        h.update(b"\0")
    return h.hexdigest()


def cache_folder(root, category, what, weights, schedule, timesteps, *more):
    """The folder of what a U-Net gives over `timesteps` (ascending); its name changes with the weights and all settings."""
    key = digest(weights, torch.from_numpy(schedule.betas), timesteps, *more)
    return Path(root) / f"{category}_t{timesteps[-1]}_{what}{len(timesteps)}_{key}"


class Latents:
    """The (image, latent) pairs of a dataset, remembered under `folder`/<category>_t<t_0>_ninv<n>_<hash>/.

    weights: the digest of the U-Net's weights, and of whatever else its numbers depend on.
    """

    def __init__(self, dataset, folder, category, unet, weights, schedule, timesteps, device):
        self.dataset, self.unet, self.schedule, self.timesteps, self.device = dataset, unet, schedule, timesteps, device
        self.folder = cache_folder(folder, category, "ninv", weights, schedule, timesteps)
        self.skipped = set()

    def path(self, x_0):
        return self.folder / f"{digest(x_0)}.pt"

    def fill(self, indices, batch_size, again=False):
        """Invert the images that have no latent yet (all of them when `again`), `batch_size` at a time."""
        todo = []
        images = prefetched((load_batch(self.dataset, [i]) for i in indices), batch_size)
        for n, (_, x_0, messages) in enumerate(tqdm(images, desc="inverting", total=len(indices), unit="img"), start=1):
            self._skip(messages)
            if x_0 is not None and (again or not self.path(x_0[0]).exists()):
                todo.append(x_0[0])
            if todo and (len(todo) == batch_size or n == len(indices)):
                self._invert(torch.stack(todo))
                todo = []
        if len(self.skipped) == len(indices):
            raise UserError(f"{self.dataset.folder}: none of the {len(indices)} images could be read; check the files")
        if self.skipped:
            log.warning("%d of %d images could not be read and are left out", len(self.skipped), len(indices))

    def _invert(self, x_0):
        x_T = process.invert(self.unet, to_device(x_0, self.device), self.schedule, self.timesteps).cpu()
        for image, latent in zip(x_0, x_T, strict=True):
            checkpoints.save(latent.clone(), self.path(image))

    def _skip(self, messages):
        for message in messages:
            if message not in self.skipped:
                log.warning("left out: %s", message)
                self.skipped.add(message)

    def batches(self, indices, batch_size):
        """Batches of up to `batch_size` images with latents, in the order of `indices`; `fill` comes first."""
        return prefetched(self._batches(indices, batch_size))

    def _batches(self, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            good, x_0, messages = load_batch(self.dataset, indices[start : start + batch_size])
            self._skip(messages)
            if good:
                x_T = torch.stack([self._read(self.path(image)) for image in x_0])
                yield Batch(good, [self.dataset.name(i) for i in good], x_0, x_T)

    def _read(self, path):
        latent = checkpoints.load(path)
        if not isinstance(latent, torch.Tensor):
            raise UserError(f"{path} is no latent; delete it and start again")
        return latent


class SampledLatents:
    """x_T drawn from noise instead of inverted; the "real image" is then the plain sample (never a grey image).

    Image i's noise depends on the seed and i alone. sample: function of x_T (B, 3, H, W) -> x_0, the plain process. images:
    folder in which the samples are remembered, one file an image, whose name must change with everything they depend on besides
    x_T; None: nobody wants them, and x_0 is None. keep: folder in which the draw is kept and found again whatever the seed
    (`--saved_random_noise`), or None.
    """

    def __init__(self, seed, shape, sample, images, keep=None):
        self.seed, self.shape, self.sample, self.images = seed, shape, sample, images
        self.keep = Path(keep) if keep else None

    def fill(self, indices):
        """Draw the latents that are to be kept; without a folder to keep them in there is nothing to do."""
        for i in indices if self.keep else []:
            self.draw(i)

    def draw(self, i):
        path = self.keep and self.keep / f"{i:06d}.pt"
        if path and path.exists():
            return checkpoints.load(path)
        x_T = process.image_noise(self.seed, [i])(-1, (1, *self.shape))[0]
        if path:
            checkpoints.save(x_T, path)
        return x_T

    def batches(self, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            x_T = torch.stack([self.draw(i) for i in some])
            yield Batch(some, [f"noise {i}" for i in some], self._sampled(x_T) if self.images else None, x_T)

    def _sampled(self, x_T):
        paths = [self.images / f"{digest(x)}.pt" for x in x_T]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if missing:
            for i, x_0 in zip(missing, self.sample(x_T[missing]).cpu(), strict=True):
                checkpoints.save(x_0.clone(), paths[i])
        return torch.stack([checkpoints.load(path) for path in paths])
