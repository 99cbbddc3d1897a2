"""(image, latent) pairs: x_0 with its x_T, from an inversion or from noise. Latents are kept in the store."""

import logging
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from asyrp import process, store
from asyrp.acceleration.overlap import prefetched
from asyrp.data.datasets import load_batch
from asyrp.data.pixels import PixelIndex
from asyrp.noise_maps import noise_maps
from asyrp.ranks import ALONE
from utils.digests import digest
from utils.errors import UserError

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Images and their latents: indices (list of ints), names, x_0 (or None) and x_T (B, 3, H, W) on the CPU; z, the noise
    maps, if there are any (see asyrp/noise_maps.py). counts: False for a placeholder whose gradients have no weight (see
    `parts`)."""

    indices: list[int]
    names: list[str]
    x_0: torch.Tensor | None
    x_T: torch.Tensor
    z: torch.Tensor | None = None
    counts: bool = True

    def part(self, rows: slice) -> "Batch":
        """The images of a slice -> Batch."""
        entries = self._asdict().items()
        columns: dict[str, Any] = {name: column[rows] for name, column in entries if isinstance(column, list | torch.Tensor)}
        return self._replace(**columns)


def parts(load, indices, size, ranks):
    """The batches of a training shared by several processes, `size` images per process -> yields this one's Batch.

    load: function of indices -> Batch, or None if none of the images can be read. A process without an image in a batch gets
    that of another process with counts=False, so that all take the same steps. Yields None if no image of a batch can be
    read.
    """
    for start in range(0, len(indices), size * ranks.world):
        whole = indices[start : start + size * ranks.world]
        own = ranks.share(whole)
        batch = load(own) if own else None
        if batch is None:
            others = (load([i]) for i in whole if i not in own)
            batch = next((other._replace(counts=False) for other in others if other), None)
        yield batch


def inverted_in_memory(model, images, batch_size, n_steps, t_0=None):
    """Images (N, 3, H, W) in [-1, 1] -> yields Batches, each inverted when it is asked for."""
    for some in torch.arange(len(images)).split(batch_size):
        names = [f"image {i}" for i in some.tolist()]
        yield Batch(some.tolist(), names, images[some].cpu(), model.invert(images[some], n_steps, t_0).cpu())


class DDIM:
    """DDIM inversion, whose latent is x_T. iterations: see `process.invert`."""

    kind = "latent"  # in the store

    def __init__(self, model, timesteps, iterations=0):
        self.model, self.timesteps, self.iterations = model, timesteps, iterations
        self.shapes = {"x_T": (3, model.image_size, model.image_size)}

    def key(self, index, pixels):
        return store.latent_key(self.model, self.timesteps, pixels, self.iterations)

    def name_of_content(self, index, pixels):
        """The digest of an image for keys and records."""
        return pixels

    def latents(self, indices, x_0):
        """Images (B, 3, H, W) on the model's device -> {name: tensor (B, ...)}."""
        x_T = process.invert(self.model.unet, x_0, self.model.schedule, self.timesteps, iterations=self.iterations)
        return {"x_T": x_T}


class NoiseMaps:
    """Edit-friendly noise maps, whose latent is x_T and z. The noise is seeded per image by the seed and the image's number."""

    kind = "noise_maps"

    def __init__(self, model, timesteps, seed):
        self.model, self.timesteps, self.seed = model, timesteps, seed
        image = (3, model.image_size, model.image_size)
        self.shapes = {"x_T": image, "z": (len(timesteps), *image)}

    def key(self, index, pixels):
        return store.noise_maps_key(self.model, self.timesteps, pixels, self.seed, index)

    def name_of_content(self, index, pixels):
        return digest(pixels, index)

    def latents(self, indices, x_0):
        noise = process.image_noise(self.seed, indices)
        x_T, z = noise_maps(self.model.unet, x_0, self.model.schedule, self.timesteps, noise)
        return {"x_T": x_T, "z": z}


class InvertedPairs:
    """The pairs of a dataset. Each image is inverted once over `timesteps` (ascending); its latent is keyed by its pixels.

    inversion: a DDIM (by default with the iterations of `model.inversion`) or NoiseMaps over the same timesteps. kept: Store.
    """

    def __init__(self, dataset, model, timesteps, kept, inversion=None):
        self.dataset, self.model, self.timesteps, self.store = dataset, model, timesteps, kept
        self.inversion = inversion or DDIM(model, timesteps, process.ITERATIONS[model.inversion])
        self.pixels = PixelIndex(dataset, kept.root / "pixels")
        self.skipped = set()

    def fill(self, indices, batch_size, again=False, ranks=ALONE):
        """Invert the images that have no valid latent yet (all of them if `again`) -> the number of readable images.

        Images are grouped by their position in `indices` and each group is inverted as one batch, so that a latent does not
        depend on how far a killed run had got, or on the number of processes. The images of a group that has all its latents
        are not decoded.
        """
        groups, seen = ranks.batches(indices, batch_size), []
        loaded = prefetched((None if not again and self._ready(group) else self._load(group) for group in groups), 2)
        with tqdm(desc="inverting", total=sum(map(len, groups)), unit="img") as bar:
            for group, found in zip(groups, loaded, strict=True):
                if found is None:
                    seen.append((len(group), len(group), []))
                else:
                    good, x_0, pixels, messages = found
                    self._skip(messages)
                    seen.append((len(group), len(good), messages))
                    missing = [again or self._found(*one) is None for one in zip(good, pixels, strict=True)]
                    if any(missing):
                        self._invert(good, x_0, pixels, missing)
                bar.update(len(group))
        wanted = readable = 0
        for n, good, messages in ranks.gather(seen):
            wanted, readable = wanted + n, readable + good
            self._skip(messages)
        if ranks.joined:
            self.pixels.refresh()
        if wanted and not readable:
            raise UserError(f"{self.dataset.folder}: none of the {wanted} images could be read: check the files")
        if readable < wanted:
            log.warning("%d of %d images could not be read and were skipped", wanted - readable, wanted)
        return readable

    def _ready(self, group):
        """Whether all these images have valid latents, without decoding them."""
        known = [self.pixels.get(index) for index in group]
        return all(known) and all(self._found(*one) is not None for one in zip(group, known, strict=True))

    def _load(self, group):
        """(indices that could be read, images or None, digests of their pixels, messages about the others)."""
        good, x_0, messages = load_batch(self.dataset, group)
        pixels = [digest(image) for image in (x_0 if good else [])]
        self.pixels.add(good, pixels)
        return good, x_0, pixels, messages

    def _invert(self, indices, x_0, pixels, missing):
        latents = self.inversion.latents(indices, x_0.to(self.model.device))
        latents = {name: tensor.cpu() for name, tensor in latents.items()}
        if not all(tensor.isfinite().all() for tensor in latents.values()):
            raise UserError("inversion gave inf or nan: use --precision fp32, and check the weights")
        for i, (index, one, lacks) in enumerate(zip(indices, pixels, missing, strict=True)):
            if lacks:
                own, key = {name: tensor[i] for name, tensor in latents.items()}, self.inversion.key(index, one)
                self.store.write(self.inversion.kind, key, own, {"timesteps": self.timesteps})

    def _found(self, index, pixels):
        """{name: tensor} of an image's latent, or None."""
        return self.store.read(self.inversion.kind, self.inversion.key(index, pixels), self.inversion.shapes)

    def _skip(self, messages):
        for message in messages:
            if message not in self.skipped:
                log.warning("skipped: %s", message)
                self.skipped.add(message)

    def names_of_content(self, indices):
        """Digests of the readable images, for keys and records; for DDIM those of their pixels."""
        names = []
        for index in indices:
            pixels = self.pixels.get(index)
            if pixels is None:
                _, _, found, messages = self._load([index])
                self._skip(messages)
                names += [self.inversion.name_of_content(index, one) for one in found]
            else:
                names.append(self.inversion.name_of_content(index, pixels))
        return names

    def batches(self, indices, batch_size):
        """Batches of up to `batch_size` images with latents, in the order of `indices`. Call `fill` first."""
        return (batch for batch in self.parts(indices, batch_size) if batch)

    def parts(self, indices, batch_size, ranks=ALONE):
        """This process's parts of the batches, up to `batch_size` images each: see the function `parts`."""
        return prefetched(parts(self.load, indices, batch_size, ranks))

    def load(self, indices):
        """The Batch of these images, or None if none of them can be read."""
        good, x_0, pixels, messages = self._load(indices)
        self._skip(messages)
        if not good:
            return None
        images = list(zip(good, pixels, strict=True))
        found = [self._found(*one) for one in images]
        missing = [latent is None for latent in found]
        if any(missing):  # damaged or removed since `fill`
            self._invert(good, x_0, pixels, missing)
            found = [self._found(*one) for one in images]
        latents = {name: torch.stack([latent[name] for latent in found]) for name in self.inversion.shapes}
        return Batch(good, [self.dataset.name(i) for i in good], x_0, **latents)

    def batch(self, indices, batch_size):
        """All of these images as one Batch; those without latents are inverted first, `batch_size` at a time."""
        self.fill(indices, batch_size)
        return next(self.batches(indices, len(indices)))


class SampledPairs:
    """x_T drawn from noise instead of inverted; the "real image" is then the unedited sample.

    The noise of image i depends only on the seed and i. images: whether x_0 is needed; otherwise it is None. keep: whether the
    noise is stored and reused, whatever the seed (`--saved_random_noise`).
    """

    def __init__(self, seed, model, timesteps, kept, images=True, keep=False):
        self.seed, self.model, self.timesteps, self.store = seed, model, timesteps, kept
        self.images, self.keep = images, keep
        self.shape = (3, model.image_size, model.image_size)

    def fill(self, indices, batch_size=1, again=False, ranks=ALONE):
        """Draw and store the noise if it is to be kept -> the number of images."""
        own = ranks.share(indices)
        for i in own if self.keep else []:
            self.draw(i)
        return len(ranks.gather(own))

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
        return self.parts(indices, batch_size)

    def parts(self, indices, batch_size, ranks=ALONE):
        return parts(self.load, indices, batch_size, ranks)

    def load(self, indices):
        x_T = torch.stack([self.draw(i) for i in indices])
        return Batch(indices, [f"noise {i}" for i in indices], self._sampled(x_T) if self.images else None, x_T)

    def _sampled(self, x_T):
        keys = [store.sample_key(self.model, self.timesteps, x) for x in x_T]
        found = [self.store.read("sample", key, {"x_0": self.shape}) for key in keys]
        missing = [i for i, sample in enumerate(found) if sample is None]
        if missing:
            for i, x_0 in zip(missing, self.model.run(x_T[missing], self.timesteps).cpu(), strict=True):
                found[i] = {"x_0": x_0}
                self.store.write("sample", keys[i], found[i])
        return torch.stack([sample["x_0"] for sample in found])
