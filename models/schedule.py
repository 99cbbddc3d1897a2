"""The noise schedule a network was trained with: settings and betas. Importing this module does not import torch."""

from dataclasses import dataclass

import numpy as np

from utils.sections import setting

END = -1  # the "timestep" after the last generation step, which has no noise


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The `diffusion` section. The cosine schedule does not use beta_start and beta_end."""

    beta_schedule: str = setting("linear", choices=("linear", "cosine", "scaled_linear"))
    beta_start: float = setting(1e-4, above=0, below=1)
    beta_end: float = setting(2e-2, above=0, below=1)
    num_diffusion_timesteps: int = setting(1000, at_least=2, at_most=1_000_000)


@dataclass(frozen=True)
class Schedule:
    """Variance schedule of T steps: betas and alpha_bars, float64 arrays (T,)."""

    betas: np.ndarray
    alpha_bars: np.ndarray

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Schedule":
        """alpha_bar_t = prod_{s<=t} (1 - beta_s)."""
        return cls(betas, np.cumprod(1.0 - betas))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 2e-2, T: int = 1000) -> "Schedule":
        """Linear betas (DDPM section 4)."""
        return cls.from_betas(np.linspace(beta_start, beta_end, T, dtype=np.float64))

    @classmethod
    def scaled_linear(cls, beta_start: float = 1e-4, beta_end: float = 2e-2, T: int = 1000) -> "Schedule":
        """Betas whose square roots are linear (latent diffusion; `scaled_linear` of the diffusers library)."""
        return cls.from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T, dtype=np.float64) ** 2)

    @classmethod
    def cosine(cls, T: int = 1000) -> "Schedule":
        """The cosine schedule (Nichol & Dhariwal 2021 eq. 17, s = 0.008), with betas of at most 0.999."""
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(1.0 - f[1:] / f[:-1], 0.999))

    @classmethod
    def of(cls, diffusion: Diffusion) -> "Schedule":
        """The schedule of a `diffusion` section (an object with the attributes of Diffusion)."""
        if diffusion.beta_schedule == "cosine":
            return cls.cosine(diffusion.num_diffusion_timesteps)
        kind = {"linear": cls.linear, "scaled_linear": cls.scaled_linear}[diffusion.beta_schedule]
        return kind(diffusion.beta_start, diffusion.beta_end, diffusion.num_diffusion_timesteps)

    def alpha_bar(self, t: int) -> float:
        """alpha_bar_t as a float; 1.0 at t = -1."""
        return 1.0 if t == END else float(self.alpha_bars[t])
