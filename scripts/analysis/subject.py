"""What the claims are measured on: images with latents, directions, variants of the process, and scores."""

import math
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from asyrp import hspace, process
from asyrp.evaluation import metrics
from asyrp.ranks import ALONE

MOST_CERTAIN = 1e-6  # probabilities are clamped to [MOST_CERTAIN, 1 - MOST_CERTAIN]
NOISE_LEVELS = (50, 100, 200, 300)  # timesteps for the denoising error
FIXED = -1  # step index of `process.image_noise` for a random direction


@torch.no_grad()
def walk(unet, x_T, schedule, timesteps, predict, t_edit, callback=None):
    """Like `process.generate`, but with a free choice of D: predict(frozen, t) -> (eps for P, eps for D) while t >= t_edit,
    then plain DDIM.

    callback(t, P_t) is called at every step. -> x_0 (B, 3, H, W).
    """
    x_t = x_T
    for t, t_next in pairwise([*reversed(timesteps), process.END]):
        frozen = process.frozen_branch(unet, x_t, t)
        eps_P, eps_D = predict(frozen, t) if t >= t_edit else (frozen.eps, frozen.eps)
        x_t, P_t = process.ddim_step(x_t, eps_D, t, t_next, schedule, eps_edit=eps_P)
        if callback is not None:
            callback(t, P_t)
    return x_t


def rms(tensor):
    """(n, ...) -> root mean square per image (n,)."""
    return tensor.flatten(1).square().mean(1).sqrt()


def with_rms_of(noise, pattern):
    """noise (n, ...) scaled per image to the root mean square of `pattern` (n, ...)."""
    return noise * (rms(pattern) / rms(noise)).view(-1, *[1] * (noise.ndim - 1))


class JudgeScore:
    """The judge's probability of the target class; graded: log-odds, an unbounded scale."""

    def __init__(self, judge, label, wanted, kept):
        self.judge, self.label, self.wanted = judge, label, judge.labels[label].index(wanted)
        self.others = [name for name in kept if name != label]
        self.name = f"the judge's probability of {label} = {wanted}"
        self.graded_name = "its log-odds"

    def _read(self, images):
        device = next(self.judge.parameters()).device
        return self.judge.read(images.to(device))[self.label].cpu()

    def __call__(self, images, reference):
        """images, reference (the unedited results): (n, 3, H, W) -> (n,)."""
        return self._read(images)[:, self.wanted]

    def graded(self, images, reference):
        return self(images, reference).double().clamp(MOST_CERTAIN, 1 - MOST_CERTAIN).logit()

    def lacking(self, images):
        """Which images do not yet have the attribute (list of bool)."""
        return (self._read(images).argmax(1) != self.wanted).tolist()

    def kept(self, images, originals):
        """The fraction of other labels that are unchanged per image -> (n,)."""
        device = next(self.judge.parameters()).device
        before, after = (self.judge.names(some.to(device)) for some in (originals, images))
        same = [[a == b for a, b in zip(before[label], after[label], strict=True)] for label in self.others]
        return torch.tensor(same, dtype=torch.float64).mean(0)


class ClipScore:
    """S_dir: the cosine of CLIP's image difference (unedited -> edited result) with the direction of the prompts."""

    kept = None  # only a judge knows labels

    def __init__(self, clip, src, trg):
        self.clip, self.direction = clip, clip.direction(src, trg)
        self.name = f'S_dir, reconstruction to edited, "{src}" to "{trg}"'
        self.graded_name = "the same"

    @torch.no_grad()
    def __call__(self, images, reference):
        before, after = (self.clip.encode_images(some) for some in (reference, images))
        return metrics.s_dir(before, after, self.direction).cpu()

    graded = __call__

    def lacking(self, images):
        return [True] * len(images)


class Attribute(NamedTuple):
    """A direction, its t_edit, the coefficient for strength 1, and the score of its effect."""

    name: str
    direction: torch.nn.Module
    t_edit: int
    scale: float
    score: object


class Images(NamedTuple):
    """indices (list of ints), x_0 and x_T (n, 3, H, W)."""

    indices: list
    x_0: torch.Tensor
    x_T: torch.Tensor


class Recorder:
    """Wraps a direction and keeps the delta_h of every image, {t: (B, C, h, w)}."""

    def __init__(self, direction):
        self.direction, self.deltas = direction, {}

    def __call__(self, h, emb, t):
        self.deltas[t] = self.direction(h, emb, t).expand_as(h)
        return self.deltas[t]


class RandomDirection:
    """One random pattern per image, the same at every timestep, scaled to the norm of another direction's delta_h.

    noise: from `process.image_noise`.
    """

    def __init__(self, direction, noise):
        self.direction, self.noise = direction, noise

    def __call__(self, h, emb, t):
        return with_rms_of(self.noise(FIXED, h.shape).to(h), self.direction(h, emb, t).expand_as(h))


class Subject:
    """One attribute, or two to be combined, and n images without them.

    images: those whose edits are measured; donors: as many others, from which delta_h is taken. steps: ascending timesteps.
    distance: LPIPS, (B, 3, H, W) twice -> (B, 1, 1, 1). t_boost: the chosen one. Functions of `rows` are called once per batch
    with the slice of its images. ranks: processes that share the batches; all get all results.
    """

    def __init__(
        self, unet, schedule, steps, attributes, images, donors, distance, t_boost=0, seed=0, batch_size=32, ranks=ALONE
    ):
        self.unet, self.schedule, self.steps = unet, schedule, steps
        self.attributes, self.images, self.donors = attributes, images, donors
        self.distance, self.t_boost, self.seed, self.ranks = distance, t_boost, seed, ranks
        self.batch_size = min(batch_size, math.ceil(len(images.indices) / ranks.world))  # at least one batch per process
        self.name = " + ".join(attribute.name for attribute in attributes)
        self.t_edit = max(attribute.t_edit for attribute in attributes)
        self.n = len(images.indices)

    @property
    def device(self):
        return next(self.unet.parameters()).device

    def noise(self, rows):
        return process.image_noise(self.seed, self.images.indices[rows])

    def batched(self, run, images):
        """Call run(x_T, rows) for each batch -> the results (n, 3, H, W) on the CPU."""
        slices = [slice(i, i + self.batch_size) for i in range(0, len(images.indices), self.batch_size)]
        return self.together([run(images.x_T[rows].to(self.device), rows).cpu() for rows in self.ranks.share(slices)])

    def together(self, own):
        """Tensors of this process's batches -> those of all batches, concatenated."""
        return torch.cat(self.ranks.gather(own))

    def generate(self, edit=None, t_edit=None, t_boost=0, images=None):
        """`process.generate` -> x_0. edit(rows) -> an edit; None: plain generation."""
        t_edit = self.t_edit if t_edit is None else t_edit

        def run(x_T, rows):
            noise = self.noise(rows) if t_boost else None
            made = edit and edit(rows)
            return process.generate(self.unet, x_T, self.schedule, self.steps, made, t_edit, t_boost, noise)

        return self.batched(run, images or self.images)

    def walk(self, predict, callback=None):
        """The function `walk` for all images -> x_0. predict(rows) -> its `predict`."""

        def run(x_T, rows):
            return walk(self.unet, x_T, self.schedule, self.steps, predict(rows), self.t_edit, callback)

        return self.batched(run, self.images)

    def edit(self, direction=None, strength=1.0):
        """The edit by `direction`, by default that of the attribute."""
        [attribute] = self.attributes
        return hspace.Edit([direction or attribute.direction], [strength * attribute.scale])

    @cached_property
    def plain(self):
        """The reconstructions: plain DDIM."""
        return self.generate()

    @cached_property
    def edited(self):
        """The edit at strength 1, without boosting."""
        return self.generate(lambda rows: self.edit())

    @cached_property
    def donated(self):
        """The donors' delta_h along their own edits, {t: (n, C, h, w)} on the CPU."""
        recorders = []

        def record(rows):
            recorders.append(Recorder(self.attributes[0].direction))
            return self.edit(recorders[-1])

        self.generate(record, images=self.donors)
        deltas = self.ranks.gather([{t: delta.cpu() for t, delta in recorder.deltas.items()} for recorder in recorders])
        return {t: torch.cat([of_batch[t] for of_batch in deltas]) for t in deltas[0]}

    def score(self, images, attribute=None):
        return (attribute or self.attributes[0]).score(images, self.plain)

    def lpips(self, images, reference):
        """LPIPS per image (n,)."""
        pairs = list(zip(images.split(self.batch_size), reference.split(self.batch_size), strict=True))
        with torch.no_grad():
            own = [self.distance(a.to(self.device), b.to(self.device)).flatten().cpu() for a, b in self.ranks.share(pairs)]
            return self.together(own)

    def denoising_error(self, images):
        """How unlikely images are under the diffusion model -> (n,): RMS of P_t - x_0 after adding noise at a few levels, with
        the same noise for all compared images. It is a term of the likelihood bound (DDPM eq. 14)."""

        def run(x_0, rows):
            errors = []
            for i, t in enumerate(NOISE_LEVELS):
                z = self.noise(rows)(i, x_0.shape).to(x_0)
                x_t, _ = process.ddim_step(x_0, z, process.END, t, self.schedule)
                eps = process.frozen_branch(self.unet, x_t, t).eps
                errors.append(rms(process.predict_x0(x_t, eps, t, self.schedule) - x_0))
            return torch.stack(errors).mean(0)

        with torch.no_grad():
            return self.batched(run, self.images._replace(x_T=images))
