"""(image, latent) pairs: x_0 and its x_T, by DDIM inversion or drawn from noise. Both lie in the store."""

import logging
from typing import NamedTuple

import torch
from tqdm import tqdm

from asyrp import process, store
from asyrp.acceleration.overlap import prefetched
from asyrp.data.datasets import load_batch
from utils.digests import digest
from utils.errors import UserError

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Images and their latents: indices (list of ints), names, x_0 (or None) and x_T (B, 3, H, W) on the CPU."""

    indices: list
    names: list
    x_0: torch.Tensor | None
    x_T: torch.Tensor


class InvertedPairs:
    """The pairs of a dataset: every image is inverted once over `timesteps` (ascending), and found again by its pixels."""

    def __init__(self, dataset, model, timesteps, kept):
        self.dataset, self.model, self.timesteps, self.store = dataset, model, timesteps, kept
        self.skipped = set()
        self.pixels = {}  # index -> digest of the image, of those that were looked at

    def fill(self, indices, batch_size, again=False):
        """Invert the images that have no whole latent yet (all of them when `again`).

        Images are grouped by their place in `indices`, and a group is inverted as a whole, so that a latent does not depend on
        which of them a killed run had finished.
        """
        groups, readable = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)], 0
        loaded = prefetched((load_batch(self.dataset, group) for group in groups), 2)
        with tqdm(desc="inverting", total=len(indices), unit="img") as bar:
            for group, (good, x_0, messages) in zip(groups, loaded, strict=True):
                self._skip(messages)
                readable += len(good)
                if good:
                    missing = [again or self._found(image) is None for image in x_0]
                    if any(missing):
                        self._invert(x_0, missing)
                    self.pixels.update((index, digest(image)) for index, image in zip(good, x_0, strict=True))
                bar.update(len(group))
        if not readable:
            raise UserError(f"{self.dataset.folder}: none of the {len(indices)} images could be read; check the files")
        if readable < len(indices):
            log.warning("%d of %d images could not be read and are left out", len(indices) - readable, len(indices))

    def _invert(self, x_0, missing):
        x_T = process.invert(self.model.unet, x_0.to(self.model.device), self.model.schedule, self.timesteps).cpu()
        if not x_T.isfinite().all():
            raise UserError("inversion gave numbers that are not finite: the weights are damaged, or give --precision fp32")
        for image, latent, lacks in zip(x_0, x_T, missing, strict=True):
            if lacks:
                self.store.write("latent", self._key(image), {"x_T": latent}, {"timesteps": self.timesteps})

    def _key(self, image):
        return store.latent_key(self.model, self.timesteps, image)

    def _found(self, image):
        found = self.store.read("latent", self._key(image), {"x_T": image.shape})
        return found and found["x_T"]

    def _skip(self, messages):
        for message in messages:
            if message not in self.skipped:
                log.warning("left out: %s", message)
                self.skipped.add(message)

    def names_of_content(self, indices):
        """What stands for the images in keys and records: the digests of their pixels, of those that can be read."""
        for index in indices:
            if index not in self.pixels:
                _, x_0, messages = load_batch(self.dataset, [index])
                self._skip(messages)
                self.pixels[index] = None if x_0 is None else digest(x_0[0])
        return [name for index in indices if (name := self.pixels[index])]

    def batches(self, indices, batch_size):
        """Batches of up to `batch_size` images with latents, in the order of `indices`; `fill` comes first."""
        return prefetched(self._batches(indices, batch_size))

    def _batches(self, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            good, x_0, messages = load_batch(self.dataset, indices[start : start + batch_size])
            self._skip(messages)
            if not good:
                continue
            found = [self._found(image) for image in x_0]
            missing = [x_T is None for x_T in found]
            if any(missing):  # damaged since `fill`, or removed by somebody
                self._invert(x_0, missing)
                found = [self._found(image) for image in x_0]
            yield Batch(good, [self.dataset.name(i) for i in good], x_0, torch.stack(found))


class SampledPairs:
    """x_T drawn from noise instead of inverted; the "real image" is then the plain sample (never a grey image).

    Image i's noise depends on the seed and i alone. images: whether somebody wants x_0; otherwise it is None. keep: whether the
    draw is kept, and found again whatever the seed (`--saved_random_noise`).
    """

    def __init__(self, seed, model, timesteps, kept, images=True, keep=False):
        self.seed, self.model, self.timesteps, self.store = seed, model, timesteps, kept
        self.images, self.keep = images, keep
        self.shape = (3, model.image_size, model.image_size)

    def fill(self, indices, batch_size=1, again=False):
        """Draw the latents that are to be kept; otherwise there is nothing to do."""
        for i in indices if self.keep else []:
            self.draw(i)

    def draw(self, i):
        key = store.noise_key(self.shape, i)
        if self.keep and (found := self.store.read("noise", key, {"x_T": self.shape})):
            return found["x_T"]
        x_T = process.image_noise(self.seed, [i])(-1, (1, *self.shape))[0]
        if self.keep:
            self.store.write("noise", key, {"x_T": x_T}, {"seed": self.seed, "number": i})
        return x_T

    def names_of_content(self, indices):
        return [digest(self.draw(i)) for i in indices]

    def batches(self, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            x_T = torch.stack([self.draw(i) for i in some])
            yield Batch(some, [f"noise {i}" for i in some], self._sampled(x_T) if self.images else None, x_T)

    def _sampled(self, x_T):
        keys = [store.sample_key(self.model, self.timesteps, x) for x in x_T]
        found = [self.store.read("sample", key, {"x_0": self.shape}) for key in keys]
        missing = [i for i, sample in enumerate(found) if sample is None]
        if missing:
            for i, x_0 in zip(missing, self.model.run(x_T[missing], self.timesteps).cpu(), strict=True):
                found[i] = {"x_0": x_0}
                self.store.write("sample", keys[i], found[i])
        return torch.stack([sample["x_0"] for sample in found])
