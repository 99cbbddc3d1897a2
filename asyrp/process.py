"""The equations: noise schedule, DDIM and DDPM steps, inversion, and the asymmetric reverse process.

Paper: Kwon, Jeong, Uh, "Diffusion Models already have a Semantic Latent Space", ICLR 2023 (arXiv 2210.10960); DDIM is Song et
al. 2021 (arXiv 2010.02502), DDPM is Ho et al. 2020 (arXiv 2006.11239). Pure functions: no flags, no files, no printing.

Timesteps are Python ints and coefficients Python floats, so that no step of the loop waits for the device. Throughout,
alpha_bar_{-1} = 1 is the noiseless end.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch

from models.schedule import END
from models.schedule import Schedule as Schedule  # part of this module's interface
from utils.devices import to_device

# Value of --inversion -> fixed-point iterations per step, see `invert`. With two, the error of 40 steps is not visible.
ITERATIONS = {"ddim": 0, "fixed_point": 2}

Noise = Callable[[int, Sequence[int]], torch.Tensor]  # noise(step index, shape)
EditOfH = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # edit(h, emb, t) -> edited h
Observer = Callable[[int, int, torch.Tensor, torch.Tensor], None]  # callback(i, t, x_t, P_t)
Prediction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # unet(x_t, t) -> its output


class Halves(Protocol):
    """A U-Net that is split at its bottleneck. Only the U-Net reads the skips."""

    def encode(self, x: torch.Tensor, t: torch.Tensor, /) -> tuple[torch.Tensor, tuple, torch.Tensor]: ...

    def decode(self, h: torch.Tensor, skips: tuple, emb: torch.Tensor, /) -> torch.Tensor: ...


class Network(Halves, Protocol):
    """A U-Net that can also be called as a whole."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor, /) -> torch.Tensor: ...


def timesteps(n: int, t_0: int) -> list[int]:
    """`n` timesteps from 0 to `t_0`, evenly spaced, ascending ints; n = 0 means every timestep."""
    if n == 0:
        return list(range(t_0 + 1))
    # 1e-6 keeps a product such as 0.9999999 * t_0 from being rounded down.
    return [int(v + 1e-6) for v in np.linspace(0, 1, n) * t_0]


def predict_x0(x_t: torch.Tensor, eps: torch.Tensor, t: int, schedule: Schedule) -> torch.Tensor:
    """P_t, the predicted x_0 (DDIM eq. 12, first term), not clipped. Tensors (B, 3, H, W)."""
    alpha_bar = schedule.alpha_bar(t)
    return (x_t - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def ddim_sigma(t: int, t_next: int, schedule: Schedule, eta: float) -> float:
    """Standard deviation of the noise added between t and t_next (DDIM eq. 16); eta 0 is DDIM, 1 is DDPM."""
    a_t, a_s = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
    return eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)


def ddim_step(
    x_t: torch.Tensor,
    eps: torch.Tensor,
    t: int,
    t_next: int,
    schedule: Schedule,
    eps_edit: torch.Tensor | None = None,
    eta: float = 0.0,
    noise: torch.Tensor | float | None = None,
    dt_lambda: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step t -> t_next of the (asymmetric) process, paper eq. 3 and 6:

        x_s = sqrt(alpha_bar_s) P_t(eps~) + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z

    P takes the edited prediction `eps_edit` (or `eps` without an edit), D always the frozen `eps`. Also steps upward for
    inversion. `noise` is z, needed when eta > 0. `dt_lambda` multiplies eps in the direction term.

    -> (x_next, P_t), both (B, 3, H, W).
    """
    P_t = predict_x0(x_t, eps if eps_edit is None else eps_edit, t, schedule)
    a_s = schedule.alpha_bar(t_next)
    sigma = ddim_sigma(t, t_next, schedule, eta) if eta else 0.0
    x_next = math.sqrt(a_s) * P_t + dt_lambda * math.sqrt(1 - a_s - sigma**2) * eps
    if sigma:
        assert noise is not None, "a step with eta above 0 needs noise"
        x_next = x_next + sigma * noise
    return x_next, P_t


def ddpm_step(
    x_t: torch.Tensor,
    eps: torch.Tensor,
    t: int,
    t_next: int,
    schedule: Schedule,
    eps_edit: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    log_variance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One ancestral step t -> t_next: the posterior mean of DDPM eq. 7, written as eq. 12 of DDIM with eta = 1, so that
    the asymmetric edit and a stride above 1 carry over.

    `log_variance` of the noise: a tensor (B, 3, H, W) where it is learned, see `learned_log_variance`; None for the small
    fixed one. -> (x_next, P_t).
    """
    mean, P_t = ddim_step(x_t, eps, t, t_next, schedule, eps_edit, eta=1.0, noise=0.0)
    if t_next == END:
        return mean, P_t
    assert noise is not None, "only the last step adds no noise"
    if log_variance is None:
        return mean + ddim_sigma(t, t_next, schedule, eta=1.0) * noise, P_t
    return mean + torch.exp(0.5 * log_variance) * noise, P_t


def learned_log_variance(channels: torch.Tensor, t: int, t_next: int, schedule: Schedule) -> torch.Tensor:
    """The network's last three channels (B, 3, H, W), in [-1, 1], between the smallest and the largest log variance of the
    step t -> t_next (Nichol & Dhariwal 2021 eq. 15)."""
    smallest = 2 * math.log(ddim_sigma(t, t_next, schedule, eta=1.0))
    largest = math.log(1 - schedule.alpha_bar(t) / schedule.alpha_bar(t_next))
    fraction = (channels + 1) / 2
    return fraction * largest + (1 - fraction) * smallest


def split_prediction(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """U-Net output (B, 3 or 6, H, W) -> (eps (B, 3, H, W), variance channels or None)."""
    return output[:, :3], output[:, 3:] if output.shape[1] == 6 else None


def time_batch(x: torch.Tensor, t: int) -> torch.Tensor:
    """The int t as the (B,) tensor that a U-Net takes, on the device of x."""
    return torch.full((x.shape[0],), t, device=x.device)


class Frozen(NamedTuple):
    """The output of the frozen branch at one step; runs that start from the same x_T can share the first one."""

    h: torch.Tensor
    skips: tuple
    emb: torch.Tensor
    eps: torch.Tensor
    variance: torch.Tensor | None


def frozen_branch(unet: Halves, x_t: torch.Tensor, t: int) -> Frozen:
    """The U-Net's own prediction at timestep t (int), with its bottleneck features for the edited branch -> Frozen."""
    h, skips, emb = unet.encode(x_t, time_batch(x_t, t))
    return Frozen(h, skips, emb, *split_prediction(unet.decode(h, skips, emb)))


def edited_branch(unet: Halves, frozen: Frozen, edit: EditOfH, t: int) -> torch.Tensor:
    """eps~ of paper eq. 6: decode the edited h with the skips of the frozen branch."""
    return split_prediction(unet.decode(edit(frozen.h, frozen.emb, t), frozen.skips, frozen.emb))[0]


def both_branches(unet: Halves, x_t: torch.Tensor, edit: EditOfH, t: int) -> tuple[Frozen, torch.Tensor]:
    """`frozen_branch` and `edited_branch` in one decoder pass over twice the batch -> (Frozen, eps~).

    Faster for small batches that do not fill the device; not for more than a few images.
    """
    h, skips, emb = unet.encode(x_t, time_batch(x_t, t))
    twice = tuple(torch.cat([skip, skip]) for skip in skips)
    output = unet.decode(torch.cat([h, edit(h, emb, t)]), twice, torch.cat([emb, emb]))
    plain, edited = output.chunk(2)
    return Frozen(h, skips, emb, *split_prediction(plain)), split_prediction(edited)[0]


@torch.no_grad()
def invert(
    unet: Prediction,
    x_0: torch.Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    callback: Observer | None = None,
    iterations: int = 0,
) -> torch.Tensor:
    """DDIM inversion (DDIM eq. 13-14, eta 0): len(timesteps) - 1 steps upward, with x_0 as the state at timesteps[0].

    Plain DDIM inversion evaluates eps at the state where a step starts; the step down evaluates it at the other end, so that
    few steps do not lead back to the image. Each of `iterations` fixed-point iterations evaluates eps at the end of the step
    instead (Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative Diffusion Inversion"), for one more
    U-Net call per step.

    x_0 (B, 3, H, W) in [-1, 1]; `timesteps` ascending ints. `callback(i, t, x_t, P_t)` is called at each step, with x_t the
    state the step started from. -> x_T (B, 3, H, W) at timesteps[-1].
    """
    x_t = x_0
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        eps, _ = split_prediction(unet(x_t, time_batch(x_t, t)))
        x_next, P_t = ddim_step(x_t, eps, t, t_next, schedule)
        if callback is not None:
            callback(i, t, x_t, P_t)
        for _ in range(iterations):
            eps, _ = split_prediction(unet(x_next, time_batch(x_next, t_next)))
            x_next, _ = ddim_step(x_t, eps, t, t_next, schedule)
        x_t = x_next
    return x_t


@torch.no_grad()
def generate(
    unet: Halves,
    x_T: torch.Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    edit: EditOfH | None = None,
    t_edit: int = 0,
    t_boost: int = 0,
    noise: Noise | None = None,
    sample_type: str = "ddim",
    dt_lambda: float = 1.0,
    first: Frozen | None = None,
    paired: bool = False,
    callback: Observer | None = None,
) -> torch.Tensor:
    """The reverse process over three intervals (paper eq. 7):

        t >= t_edit            asymmetric: P from the edited branch, D from the frozen one
        t_boost <= t < t_edit  plain DDIM
        t < t_boost            plain DDIM with eta = 1 (quality boosting)

    Each condition is tested independently, so the intervals may overlap. Below t_edit one decoder pass is enough.

    x_T: (B, 3, H, W). timesteps: ascending ints, walked downward, ending at alpha_bar = 1. edit: `edit(h, emb, t)` -> edited
    h, or None for plain generation. noise: `noise(step index, shape)` -> tensor, needed if noise is added.
    sample_type: "ddim", or "ddpm" for ancestral steps throughout. dt_lambda: scales eps in the direction term of the step
    that starts at the schedule's last timestep. first: the `Frozen` of the first step, if another run from the same x_T has
    computed it. paired: both branches of a step in one decoder pass. callback(i, t, x_t, P_t) is called at each step, with
    x_t the state it started from.

    -> x_0 (B, 3, H, W), in [-1, 1] up to overshoot.
    """
    x_t = x_T
    down = list(reversed(timesteps))
    for i, (t, t_next) in enumerate(zip(down, [*down[1:], END], strict=True)):
        acting = edit if t >= t_edit else None
        known = first if i == 0 else None
        eps_edit: torch.Tensor | None = None
        if paired and acting is not None and known is None:
            frozen, eps_edit = both_branches(unet, x_t, acting, t)
        else:
            frozen = known or frozen_branch(unet, x_t, t)
            eps_edit = None if acting is None else edited_branch(unet, frozen, acting, t)
        boosted = t < t_boost
        z = None
        if boosted or sample_type == "ddpm":
            assert noise is not None, "steps that add noise need it"
            z = to_device(noise(i, x_t.shape), x_t.device)
        if sample_type == "ddpm":
            log_variance = None
            if frozen.variance is not None and t_next != END:
                log_variance = learned_log_variance(frozen.variance, t, t_next, schedule)
            x_next, P_t = ddpm_step(x_t, frozen.eps, t, t_next, schedule, eps_edit, z, log_variance)
        else:
            scale = dt_lambda if t >= len(schedule.betas) - 1 else 1.0
            x_next, P_t = ddim_step(x_t, frozen.eps, t, t_next, schedule, eps_edit, float(boosted), z, scale)
        if callback is not None:
            callback(i, t, x_t, P_t)
        x_t = x_next
    return x_t


def image_noise(seed: int, indices: Sequence[int]) -> Noise:
    """Noise seeded per image -> `noise(step index, shape)` for the images `indices` (ints), standard normal, on the CPU.

    Every (seed, image, step) has its own generator, so that neither the batch size nor the order changes a result.
    Step index -1 is for x_T itself.
    """

    def draw(step: int, shape: Sequence[int]) -> torch.Tensor:
        rows = []
        for index in indices:
            # numpy's SeedSequence hashes the tuple without collisions; torch takes a 63-bit int.
            entropy = np.random.SeedSequence((seed, index, step + 1)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
            rows.append(torch.randn(tuple(shape[1:]), generator=generator))
        return torch.stack(rows)

    return draw
