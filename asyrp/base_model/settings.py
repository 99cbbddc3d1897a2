"""How a base model is trained: the settings, and the loss weights and the learning rate that follow from them.

The objective is DDPM eq. 14, the mean squared error of the predicted noise, each timestep weighted as `loss_weights` says.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError

WEIGHTINGS = ("simple", "p2", "snr")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")


@dataclass(frozen=True)
class Settings:
    """How a base model is trained. Raises UserError for a value that no training could use."""

    total_images: int = 5_000_000  # to see in all, images seen before included; the learning rate ends there
    minutes: float | None = None  # of training in all, where that comes first
    images_seen: int = 0  # before this training began
    batch_size: int = 64
    lr: float = 3e-4  # at its peak
    lr_schedule: str = "cosine"
    warmup: float = 0.02  # share of the training
    betas: tuple = (0.9, 0.99)  # of AdamW
    clip_norm: float = 1.0  # largest norm of the gradients
    ema: float = 0.999  # decay, per step
    loss_weighting: str = "simple"
    p2_gamma: float = 1.0
    snr_power: float = 0.5
    snr_bounds: tuple = (0.6, 15.0)
    flip: bool = False  # mirror half of the images
    precision: str = "fp32"
    compile: bool = False
    memory_format: str = "auto"
    save_minutes: float = 10.0
    workers: int = 2
    seed: int = 0

    def __post_init__(self):
        low, high = self.snr_bounds
        wanted = {
            "total_images": (self.total_images > self.images_seen, f"more than the {self.images_seen:,} images seen before"),
            "minutes": (self.minutes is None or self.minutes > 0, "more than 0"),
            "images_seen": (self.images_seen >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "more than 0"),
            "lr_schedule": (self.lr_schedule in SCHEDULES, " or ".join(SCHEDULES)),
            "warmup": (0 <= self.warmup < 1, "a share of the training, 0 or more and less than 1"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers, 0 or more and less than 1"),
            "clip_norm": (self.clip_norm > 0, "more than 0"),
            "ema": (0 <= self.ema < 1, "0 or more and less than 1"),
            "loss_weighting": (self.loss_weighting in WEIGHTINGS, ", ".join(WEIGHTINGS)),
            "snr_bounds": (0 <= low <= high < math.inf and high > 0, "the smaller one, then the larger one, 0 or more"),
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            "memory_format": (self.memory_format in MEMORY_FORMATS, ", ".join(MEMORY_FORMATS)),
            "save_minutes": (self.save_minutes >= 0, "0 or more"),
            "workers": (self.workers >= 0, "0 or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (good, range_) in wanted.items():
            if not good:
                value = getattr(self, name)
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise UserError(f"--{name} {shown}: must be {range_}")


def loss_weights(schedule, weighting="simple", p2_gamma=1.0, snr_power=0.5, snr_bounds=(0.6, 15.0)):
    """What the squared error of eps counts at each timestep -> float32 tensor (T,).

    With SNR_t = alpha_bar_t / (1 - alpha_bar_t):
    simple: 1, DDPM eq. 14.
    p2: (1 + SNR_t)^-gamma, P2 (Choi et al. 2022) eq. 8 with k = 1.
    snr: SNR_t^-power, held within the bounds, then divided by its mean over t. The squared error of P_t is that of eps divided
    by SNR_t: power 0 is the loss in eps, 1 the loss in x_0, and 0.5 lies between them.
    """
    alpha_bars = schedule.alpha_bars
    if weighting == "p2":
        weights = (1 - alpha_bars) ** p2_gamma
    elif weighting == "snr":
        weights = (((1 - alpha_bars) / alpha_bars) ** snr_power).clip(*snr_bounds)
        weights = weights / weights.mean()
    else:
        weights = np.ones_like(alpha_bars)
    return torch.from_numpy(weights).float()


def learning_rate(peak, progress, warmup, schedule="cosine"):
    """Linear warm-up over the share `warmup` of a training, then a cosine to zero, or the peak to the end; progress: 0..1."""
    if progress < warmup:
        return peak * progress / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
