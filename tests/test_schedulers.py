"""The steps and the loops of process.py against the schedulers of the diffusers library."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler

from asyrp.process import END, Schedule, ddim_step, ddpm_step, generate, invert, learned_log_variance

TOLERANCE = 1e-5  # diffusers computes its alphas in float32
STEPS = 25
SHAPE = (2, 3, 8, 8)
NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # what diffusers calls them


@pytest.fixture(params=[(kind, T) for kind in NAMES for T in (1000, 250)], ids=lambda param: f"{param[0]}-{param[1]}")
def world(request):
    """A schedule, its timesteps, and `scheduler(Class, **settings)` -> that scheduler of diffusers, set to the same."""
    kind, T = request.param
    ours = getattr(Schedule, kind)(T=T)
    steps = [i * T // STEPS for i in range(STEPS)]

    def scheduler(kind_of, **settings):
        same = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": NAMES[kind]}
        theirs = kind_of(**same, clip_sample=False, **settings)
        theirs.set_timesteps(STEPS)
        return theirs

    return SimpleNamespace(schedule=ours, steps=steps, scheduler=scheduler, T=T)


class Network:
    """A smooth prediction of the noise that depends on x and t, edited by what is added to h, with channels of variance."""

    def __init__(self, T):
        self.T = T

    def encode(self, x, t):
        return torch.tanh(x), (x,), t[:, None, None, None] / self.T

    def decode(self, h, skips, emb):
        eps = 0.6 * skips[0] + 0.5 * torch.sin(3 * h + emb)
        return torch.cat([eps, torch.cos(5 * h + emb)], dim=1)

    def __call__(self, x, t):
        return self.decode(*self.encode(x, t))


def predictions(network, x, t, edit=None):
    """-> (eps, variance channels), of the edited h where there is an edit."""
    h, skips, emb = network.encode(x, torch.full((len(x),), t))
    return network.decode(h if edit is None else edit(h, emb, t), skips, emb).chunk(2, dim=1)


def edit(h, emb, t):
    return h + 0.3 * h.flip(-1)


def draw(seed, n=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=g, dtype=torch.float64)


def noise(i, shape):
    return draw(100 + i)[0]


def near(found, expected):
    return float((found - expected).norm() / expected.norm()) < TOLERANCE


def downward(steps):
    return list(pairwise([*reversed(steps), END]))


# ---- single steps -----------------------------------------------------------------------------------------------------------


def test_alpha_bars(world):
    """Where the cosine schedule ends, at 2e-9, float32 has no more digits."""
    theirs = world.scheduler(DDIMScheduler).alphas_cumprod.double().numpy()
    assert np.allclose(world.schedule.alpha_bars, theirs, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_ddim_step(world, eta):
    theirs, (x, eps, z) = world.scheduler(DDIMScheduler), draw(0, 3)
    assert theirs.timesteps.tolist() == world.steps[::-1]
    for t, t_next in downward(world.steps):
        expected = theirs.step(eps, t, x, eta=eta, variance_noise=z)
        found = ddim_step(x, eps, t, t_next, world.schedule, eta=eta, noise=z)
        assert near(found[0], expected.prev_sample), t
        assert near(found[1], expected.pred_original_sample), t


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_every_ancestral_step(world, variance):
    theirs, (x, eps) = world.scheduler(DDPMScheduler, variance_type=variance), draw(0, 2)
    channels = torch.tanh(draw(1)[0])
    for t, t_next in downward(world.steps):
        given, log_variance = eps, None
        if variance == "learned_range":
            given = torch.cat([eps, channels], dim=1)
            log_variance = learned_log_variance(channels, t, t_next, world.schedule) if t_next != END else None
        expected = theirs.step(given, t, x, generator=torch.Generator().manual_seed(t))
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        found = ddpm_step(x, eps, t, t_next, world.schedule, noise=z, log_variance=log_variance)
        assert near(found[0], expected.prev_sample), t
        assert near(found[1], expected.pred_original_sample), t


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_inversion(world):
    """The scheduler's own first step goes from alpha_bar = 1 to t = 0, where ours begins."""
    network, theirs = Network(world.T), world.scheduler(DDIMInverseScheduler)
    x = x_0 = draw(2)[0]
    for t, t_next in pairwise(world.steps):
        x = theirs.step(predictions(network, x, t)[0], t_next, x).prev_sample
    assert near(invert(network, x_0, world.schedule, world.steps), x)


def test_plain_generation(world):
    network, theirs, x_T = Network(world.T), world.scheduler(DDIMScheduler), draw(3)[0]
    x = x_T
    for t in theirs.timesteps.tolist():
        x = theirs.step(predictions(network, x, t)[0], t, x).prev_sample
    assert near(generate(network, x_T, world.schedule, world.steps), x)


@pytest.mark.parametrize("intervals", ["apart", "overlapping"])
def test_asymmetric_process(world, intervals):
    """P from the edited branch, D from the frozen one, noise below t_boost: eq. 7 on the scheduler's own steps.

    Both t_edit and t_boost are timesteps of the run, so that it matters on which side of them they lie.
    """
    network, theirs, x_T = Network(world.T), world.scheduler(DDIMScheduler), draw(4)[0]
    t_edit, t_boost = world.steps[12], world.steps[5 if intervals == "apart" else 16]
    x = x_T
    for i, t in enumerate(theirs.timesteps.tolist()):
        eps, eta = predictions(network, x, t)[0], 1.0 if t < t_boost else 0.0
        plain = theirs.step(eps, t, x, eta=eta, variance_noise=noise(i, SHAPE))
        x_next = plain.prev_sample
        if t >= t_edit:
            edited = theirs.step(predictions(network, x, t, edit)[0], t, x).pred_original_sample
            t_next = t - world.T // STEPS
            x_next = x_next + math.sqrt(world.schedule.alpha_bar(max(t_next, END))) * (edited - plain.pred_original_sample)
        x = x_next
    found = generate(network, x_T, world.schedule, world.steps, edit=edit, t_edit=t_edit, t_boost=t_boost, noise=noise)
    assert near(found, x)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_ancestral_sampling(world, variance):
    network, x_T = Network(world.T), draw(5)[0]
    theirs = world.scheduler(DDPMScheduler, variance_type=variance)
    x = x_T
    for i, t in enumerate(theirs.timesteps.tolist()):
        eps, channels = predictions(network, x, t)
        given = torch.cat([eps, channels], dim=1) if variance == "learned_range" else eps
        x = theirs.step(given, t, x, generator=torch.Generator().manual_seed(100 + i)).prev_sample

    def learned_or_not(h, skips, emb):
        output = Network.decode(network, h, skips, emb)
        return output if variance == "learned_range" else output[:, :3]

    network.decode = learned_or_not
    assert near(generate(network, x_T, world.schedule, world.steps, sample_type="ddpm", noise=noise), x)
