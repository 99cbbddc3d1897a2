"""Edit-friendly noise maps: an exact inversion for the stochastic process (eta = 1).

Paper: Huberman-Spiegelglas, Kulikov, Michaeli, "An Edit Friendly DDPM Noise Space: Inversion and Manipulations", CVPR 2024
(arXiv 2304.06140). Pure functions, like those of process.py: `process.generate` takes the maps as its noise, and so do edits.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from asyrp import process
from utils.devices import to_device


@torch.no_grad()
def noise_maps(
    unet: process.Prediction,
    x_0: torch.Tensor,
    schedule: process.Schedule,
    timesteps: Sequence[int],
    noise: process.Noise,
    dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise z_t that each step of the process must add to end at a given image.

    Noisy versions of the image, with noise n_t drawn independently for each timestep,

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n_t

    and, from t down to the next timestep s, what a step of eta = 1 must add to its mean to get there:

        mu_t = sqrt(alpha_bar_s) P_t + sqrt(1 - alpha_bar_s - sigma_t^2) eps(x_t)
        z_t  = (x_s - mu_t) / sigma_t

    Then x_s is replaced by mu_t + sigma_t z_t, so that errors do not add up: each z corrects the rounding of the one before it,
    and half precision is enough. The last step has sigma = 0 and z = 0; the only error left is that of P_t at the lowest
    timestep.

    x_0 (B, 3, H, W) in [-1, 1]; `timesteps` ascending ints; `noise(i, shape)` -> n of the i-th highest timestep. dtype: of z.
    -> x_T (B, 3, H, W) at timesteps[-1], and z (B, len(timesteps), 3, H, W), from the highest timestep down.
    """
    down = timesteps[::-1]

    def state(i: int) -> torch.Tensor:
        alpha_bar = schedule.alpha_bar(down[i])
        return math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * to_device(noise(i, x_0.shape), x_0.device)

    x_t = x_T = state(0)
    z = x_0.new_zeros((len(x_0), len(down), *x_0.shape[1:]), dtype=dtype)
    for i, (t, t_next) in enumerate(pairwise(down)):
        eps, _ = process.split_prediction(unet(x_t, process.time_batch(x_t, t)))
        mean, _ = process.ddim_step(x_t, eps, t, t_next, schedule, eta=1.0, noise=0.0)
        z[:, i] = (state(i + 1) - mean) / process.ddim_sigma(t, t_next, schedule, eta=1.0)
        x_t, _ = process.ddim_step(x_t, eps, t, t_next, schedule, eta=1.0, noise=z[:, i].float())
    return x_T, z


def replayed(z: torch.Tensor | None, timesteps: Sequence[int]) -> dict[str, Any]:
    """The arguments that make `process.generate` add z instead of drawing noise; {} if z is None.

    z: from `noise_maps` over the same timesteps, on any device.
    """
    if z is None:
        return {}
    # With t_boost above the highest timestep, every step has eta = 1.
    return {"t_boost": timesteps[-1] + 1, "noise": lambda i, shape: z[:, i].float()}
