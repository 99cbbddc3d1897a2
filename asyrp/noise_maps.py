"""Edit-friendly noise maps: an inversion for the noisy process (eta = 1) from which the image comes back.

Paper: Huberman-Spiegelglas, Kulikov, Michaeli, "An Edit Friendly DDPM Noise Space: Inversion and Manipulations", CVPR 2024
(arXiv 2304.06140). Pure functions, like those of process.py: `process.generate` walks with the maps as it is, and so does every
edit.
"""

import math
from itertools import pairwise

import torch

from asyrp import process
from utils.devices import to_device


@torch.no_grad()
def noise_maps(unet, x_0, schedule, timesteps, noise, dtype=torch.float16):
    """The noise z_t that each step of the process adds on its way to an image.

    States of the image, with noise n_t drawn for each timestep independently of the others,

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n_t

    and, from t down to its next timestep s, what has to be added to the mean of a step of eta = 1 to get there:

        mu_t = sqrt(alpha_bar_s) P_t + sqrt(1 - alpha_bar_s - sigma_t^2) eps(x_t)
        z_t  = (x_s - mu_t) / sigma_t

    Then x_s is replaced by mu_t + sigma_t z_t, so that errors do not add up: each z makes up for the rounding of the one before
    it, and half precision is enough. The last step has no noise, sigma = 0: its z is 0, and its error is all that remains, that
    of P_t at the lowest timestep.

    x_0 (B, 3, H, W) in [-1, 1]; `timesteps` ascending ints; `noise(i, shape)` -> n of the i-th timestep from above. dtype: what
    z is kept in. -> x_T (B, 3, H, W) at timesteps[-1], and z (B, len(timesteps), 3, H, W), downward.
    """
    down = timesteps[::-1]

    def state(i):
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


def replayed(z, timesteps):
    """The arguments with which `process.generate` adds z at its steps instead of drawing noise; none where z is None.

    z: from `noise_maps` over the same timesteps, on any device.
    """
    if z is None:
        return {}
    # Boosting (eta = 1) below a timestep above all of them is eta = 1 throughout.
    return {"t_boost": timesteps[-1] + 1, "noise": lambda i, shape: z[:, i].float()}
