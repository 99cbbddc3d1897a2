"""Noise schedules against formulas and a library that are not ours."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import DDPMScheduler

from asyrp.config import Diffusion
from asyrp.process import Schedule


def alpha_bar(t, T, s=0.008):
    """Nichol & Dhariwal 2021 eq. 17, for t of T."""
    f = [math.cos((u / T + s) / (1 + s) * math.pi / 2) ** 2 for u in (t, 0)]
    return f[0] / f[1]


@pytest.mark.parametrize("T", [50, 1000, 4000])
def test_cosine_is_the_published_formula(T):
    schedule = Schedule.cosine(T)
    assert schedule.betas.shape == schedule.alpha_bars.shape == (T,)
    assert schedule.betas.dtype == schedule.alpha_bars.dtype == np.float64
    # Only the last betas are clipped; before them alpha_bar is the formula itself, one step on.
    free = int((schedule.betas < 0.999).sum())
    assert T - 3 < free < T
    np.testing.assert_allclose(schedule.alpha_bars[:free], [alpha_bar(t + 1, T) for t in range(free)], rtol=1e-9)
    assert schedule.betas.max() == 0.999
    assert schedule.alpha_bars[-1] > 0


@pytest.mark.parametrize("T", [50, 1000])
def test_schedules_are_those_of_diffusers(T):
    theirs = DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(Schedule.cosine(T).betas, theirs.betas.numpy(), rtol=2e-5, atol=1e-7)
    theirs = DDPMScheduler(num_train_timesteps=T, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    np.testing.assert_allclose(Schedule.linear(T=T).alpha_bars, theirs.alphas_cumprod.numpy(), rtol=2e-5)


def test_schedule_of_a_section():
    linear = Schedule.of(Diffusion(beta_start=1e-3, beta_end=0.03, num_diffusion_timesteps=100))
    np.testing.assert_array_equal(linear.betas, Schedule.linear(1e-3, 0.03, 100).betas)
    section = SimpleNamespace(beta_schedule="cosine", beta_start=1e-4, beta_end=0.02, num_diffusion_timesteps=100)
    np.testing.assert_array_equal(Schedule.of(section).alpha_bars, Schedule.cosine(100).alpha_bars)
    assert Schedule.of(section).alpha_bar(-1) == 1.0
