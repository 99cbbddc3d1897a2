"""Settings for training a base model, and the loss weights and learning rate that follow from them.

The objective is DDPM eq. 14, the mean squared error of the predicted noise, with timesteps weighted by `loss_weights`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import SettingsError
from utils.sections import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a training, validated by `utils.sections.checked`. Each is a flag of scripts/train_base_model.py with `text`
    as its help.

    Raises SettingsError for values that contradict each other.
    """

    total_images: int = setting(
        5_000_000, at_least=1, text="images to train on in total; the learning rate schedule ends there"
    )
    minutes: float | None = setting(None, above=0, text="stop after this many minutes of training, if that comes first")
    images_seen: int = setting(0, at_least=0, text="images that the weights of --init were trained on")
    loss_weighting: str = setting(
        "simple",
        choices=("simple", "p2", "snr"),
        text="simple: DDPM; p2: Choi et al. 2022; snr: between the losses in eps and in x_0, for better large timesteps",
    )
    p2_gamma: float = setting(1.0, at_least=0, text="exponent of p2")
    snr_power: float = setting(0.5, text="exponent of snr: 0 is the loss in eps, 1 the loss in x_0")
    snr_bounds: tuple[float, float] = setting(
        (0.6, 15.0), above=0, text="smallest and largest weight of snr, before normalising by the mean"
    )
    batch_size: int = setting(64, at_least=1, text="images per step, over all processes")
    lr: float = setting(3e-4, above=0, text="peak learning rate of AdamW")
    lr_schedule: str = setting(
        "cosine", choices=("cosine", "constant"), text="after the warm-up: cosine decay to zero, or constant"
    )
    warmup: float = setting(0.02, at_least=0, below=1, text="fraction of the training for the linear warm-up")
    betas: tuple[float, float] = setting((0.9, 0.99), at_least=0, below=1, text="betas of AdamW")
    clip_norm: float = setting(1.0, above=0, text="clip gradients to this norm")
    ema: float = setting(0.999, at_least=0, below=1, text="decay of the moving average per step")
    flip: bool = setting(False, text="flip images horizontally with probability 1/2")
    seed: int = setting(0, at_least=0, text="random seed, combined with the number of images seen")
    precision: str = setting("fp32", choices=("fp32", "bf16"), text="precision of the network's layers")
    compile: bool = setting(False, text="compile the U-Net (takes a minute or two once)")
    memory_format: str = setting(
        "auto",
        choices=("auto", "contiguous", "channels_last"),
        text="memory format; auto: contiguous on a CPU, channels_last on CUDA",
    )
    workers: int = setting(2, at_least=0, text="worker processes for loading images")
    save_minutes: float = setting(10.0, at_least=0, text="save weights, state and samples every N minutes")

    def __post_init__(self):
        if self.total_images <= self.images_seen:
            raise SettingsError(f"--total_images {self.total_images}: must be more than --images_seen {self.images_seen}")
        if self.snr_bounds[0] > self.snr_bounds[1]:
            raise SettingsError(f"--snr_bounds {self.snr_bounds[0]} {self.snr_bounds[1]}: give the smaller one first")


def loss_weights(schedule, settings):
    """The weight of the squared error of eps at each timestep -> float32 tensor (T,).

    With SNR_t = alpha_bar_t / (1 - alpha_bar_t):
    simple: 1, DDPM eq. 14.
    p2: (1 + SNR_t)^-gamma, P2 (Choi et al. 2022) eq. 8 with k = 1.
    snr: SNR_t^-power, clamped to the bounds, then divided by its mean over t. The squared error of P_t is that of eps divided
    by SNR_t, so power 0 is the loss in eps, 1 the loss in x_0, and 0.5 is in between.
    """
    alpha_bars = schedule.alpha_bars
    if settings.loss_weighting == "p2":
        weights = (1 - alpha_bars) ** settings.p2_gamma
    elif settings.loss_weighting == "snr":
        weights = (((1 - alpha_bars) / alpha_bars) ** settings.snr_power).clip(*settings.snr_bounds)
        weights = weights / weights.mean()
    else:
        weights = np.ones_like(alpha_bars)
    return torch.from_numpy(weights).float()


def learning_rate(settings, progress):
    """Linear warm-up, then cosine decay to zero, or constant. progress: fraction of the training done, 0 to 1."""
    s = settings
    if progress < s.warmup:
        return s.lr * progress / s.warmup
    if s.lr_schedule == "constant":
        return s.lr
    return s.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - s.warmup) / (1 - s.warmup))))
