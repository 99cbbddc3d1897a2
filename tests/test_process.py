import math

import pytest
import torch
from golden_unets import MANIFEST, golden_arrays, golden_unet, relative_l2

from asyrp.process import (
    END,
    ITERATIONS,
    Schedule,
    ddim_sigma,
    ddim_step,
    ddpm_step,
    frozen_branch,
    generate,
    image_noise,
    invert,
    learned_log_variance,
    predict_x0,
    time_batch,
    timesteps,
)

TOLERANCE = 5e-4
SCHEDULE = Schedule.linear()
BOTH = pytest.mark.parametrize("name", ["ddpm", "iddpm"])


def delta_edit(name, strength=1.0):
    """edit(h, emb, t) -> h + strength * delta_h of the first golden block."""
    block = golden_unet(name)[1][0]
    return lambda h, emb, t: h + strength * block(h, emb)


def trajectory(name, x_T, n, **kwargs):
    """Run `generate` -> (states after every step, P_t of every step), stacked."""
    starts, predicted = [], []
    x_0 = generate(
        golden_unet(name)[0],
        x_T,
        SCHEDULE,
        timesteps(n, 999),
        callback=lambda i, t, x_t, P_t: (starts.append(x_t), predicted.append(P_t)),
        **kwargs,
    )
    return torch.stack([*starts[1:], x_0]), torch.stack(predicted)


class Counting:
    """A U-Net that counts its passes."""

    def __init__(self, unet):
        self.unet, self.encoded, self.decoded = unet, 0, 0

    def encode(self, x, t):
        self.encoded += 1
        return self.unet.encode(x, t)

    def decode(self, *args):
        self.decoded += 1
        return self.unet.decode(*args)


class EditedThroughout:
    """A U-Net whose only prediction is the edited one, so that both P and D use it."""

    def __init__(self, unet, edit):
        self.unet, self.edit = unet, edit

    def encode(self, x, t):
        return self.unet.encode(x, t)

    def decode(self, h, skips, emb):
        return self.unet.decode(self.edit(h, emb, None), skips, emb)


# ---- golden numbers ---------------------------------------------------------------------------------------------------------


@BOTH
def test_golden_inversion(name):
    golden, case = golden_arrays(f"process_{name}"), MANIFEST["cases"][f"{name}/processes"]
    states = []
    x_T = invert(
        golden_unet(name)[0],
        golden["x0"],
        SCHEDULE,
        timesteps(case["n_inv"], case["t_0"]),
        lambda i, t, x_t, P_t: states.append(x_t),
    )
    assert torch.equal(states[0], golden["x0"])
    assert relative_l2(torch.stack([*states[1:], x_T]), golden["inversion/x"]) < TOLERANCE


@BOTH
@pytest.mark.parametrize("label", ["generate", "edit", "boost", "edit16"])
def test_golden_generation(name, label):
    golden, case = golden_arrays(f"process_{name}"), MANIFEST["cases"][f"{name}/processes"]
    n, kwargs = case["n_gen"], {}
    if label != "generate":
        kwargs = {"edit": delta_edit(name), "t_edit": case["t_edit"]}
    if label == "boost":
        kwargs |= {"t_boost": case["t_boost"], "noise": lambda i, shape: golden["boost/noise"][i]}
    if label == "edit16":
        n = case["edit16"]["n"]
        kwargs["edit"] = delta_edit(name, case["edit16"]["hs_coeff"][1])
    states, predicted = trajectory(name, golden["inversion/x"][-1], n, **kwargs)
    for found, expected in ((states, golden[f"{label}/x"]), (predicted, golden[f"{label}/x0_t"])):
        assert max(relative_l2(a, b) for a, b in zip(found, expected, strict=True)) < TOLERANCE


@BOTH
def test_golden_ddpm_step(name):
    golden, t = golden_arrays(f"process_{name}"), MANIFEST["cases"][f"{name}/processes"]["ddpm_step"]["t"]
    x_t, z = golden["inversion/x"][-1], golden["ddpm_step/noise"]
    with torch.no_grad():
        frozen = frozen_branch(golden_unet(name)[0], x_t, t)
    # The 2023 release took the variance channels for the log variance itself, a standard deviation near 1 at every t; the step
    # is compared with that, and `generate` reads them as they were learned.
    x_next, _ = ddpm_step(x_t, frozen.eps, t, t - 1, SCHEDULE, noise=z, log_variance=frozen.variance)
    assert relative_l2(x_next, golden["ddpm_step/x"]) < TOLERANCE


# ---- schedule and timesteps -------------------------------------------------------------------------------------------------


def test_schedule():
    assert SCHEDULE.betas.dtype == SCHEDULE.alpha_bars.dtype == "float64"
    assert (SCHEDULE.betas[0], SCHEDULE.betas[-1]) == (1e-4, 2e-2)
    assert SCHEDULE.alpha_bar(END) == 1.0
    assert SCHEDULE.alpha_bar(0) == pytest.approx(1 - 1e-4)
    product = math.prod(1 - (1e-4 + (2e-2 - 1e-4) * i / 999) for i in range(501))
    assert SCHEDULE.alpha_bar(500) == pytest.approx(product)


def test_timesteps():
    assert timesteps(8, 999) == [0, 142, 285, 428, 570, 713, 856, 999]
    assert timesteps(2, 700) == [0, 700]
    assert timesteps(0, 999) == list(range(1000))
    assert timesteps(1000, 999) == list(range(1000))
    forty = timesteps(40, 999)
    assert (len(forty), forty[0], forty[-1]) == (40, 0, 999)
    assert forty == sorted(set(forty))
    assert all(type(t) is int for t in forty)


# ---- single steps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensors():
    """x_t, eps, eps_edit, z: float64, so that identities hold to rounding."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 2, 3, 8, 8, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("t", "t_next"), [(1, 0), (500, 499), (500, 475), (999, 713)])
def test_ddpm_step_is_the_textbook_posterior(tensors, t, t_next):
    x_t, eps, _, z = tensors
    a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t_next)
    alpha = a_t / a_s  # of the whole stride; 1 - beta_t where it is 1
    if t - t_next == 1:
        assert 1 - alpha == pytest.approx(SCHEDULE.betas[t])
    mean = (x_t - (1 - alpha) / math.sqrt(1 - a_t) * eps) / math.sqrt(alpha)  # DDPM eq. 11
    beta_tilde = (1 - a_s) / (1 - a_t) * (1 - alpha)  # DDPM eq. 7
    found, P_t = ddpm_step(x_t, eps, t, t_next, SCHEDULE, noise=z)
    assert torch.allclose(found, mean + math.sqrt(beta_tilde) * z, rtol=0, atol=1e-10)
    assert torch.equal(P_t, predict_x0(x_t, eps, t, SCHEDULE))
    for channels, bound in ((-1.0, beta_tilde), (1.0, 1 - alpha), (0.0, math.sqrt(beta_tilde * (1 - alpha)))):
        log_variance = learned_log_variance(torch.full_like(x_t, channels), t, t_next, SCHEDULE)
        found, _ = ddpm_step(x_t, eps, t, t_next, SCHEDULE, noise=z, log_variance=log_variance)
        assert torch.allclose(found, mean + math.sqrt(bound) * z, rtol=0, atol=1e-10)


def test_steps_end_at_P_t(tensors):
    x_t, eps, eps_edit, z = tensors
    for step, kwargs in ((ddim_step, {"eta": 1.0}), (ddpm_step, {}), (ddpm_step, {"log_variance": torch.zeros_like(x_t)})):
        x_0, P_t = step(x_t, eps, 20, END, SCHEDULE, eps_edit=eps_edit, noise=z, **kwargs)
        assert torch.allclose(x_0, P_t, rtol=0, atol=1e-12)
        assert torch.equal(P_t, predict_x0(x_t, eps_edit, 20, SCHEDULE))


def test_edit_enters_P_and_not_D(tensors):
    x_t, eps, eps_edit, z = tensors
    for step in (ddim_step, ddpm_step):
        plain, P = step(x_t, eps, 500, 475, SCHEDULE, noise=z)
        edited, P_edit = step(x_t, eps, 500, 475, SCHEDULE, eps_edit=eps_edit, noise=z)
        assert torch.allclose(edited - plain, math.sqrt(SCHEDULE.alpha_bar(475)) * (P_edit - P), rtol=0, atol=1e-10)
        assert (edited - plain).abs().max() > 0.1


def test_ddim_step_with_noise_and_dt_lambda(tensors):
    """DDIM eq. 12 and 16, written out; eta 1 is the ancestral step."""
    x_t, eps, _, z = tensors
    a_t, a_s = SCHEDULE.alpha_bar(500), SCHEDULE.alpha_bar(475)
    sigma = 0.7 * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
    assert ddim_sigma(500, 475, SCHEDULE, 0.7) == pytest.approx(sigma)
    P_t = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    expected = math.sqrt(a_s) * P_t + 1.1 * math.sqrt(1 - a_s - sigma**2) * eps + sigma * z
    found, _ = ddim_step(x_t, eps, 500, 475, SCHEDULE, eta=0.7, noise=z, dt_lambda=1.1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    ancestral, _ = ddpm_step(x_t, eps, 500, 475, SCHEDULE, noise=z)
    assert torch.allclose(ddim_step(x_t, eps, 500, 475, SCHEDULE, eta=1.0, noise=z)[0], ancestral, rtol=0, atol=1e-12)


def test_step_up_and_down_again_returns(tensors):
    x_t, eps, _, _ = tensors
    up, _ = ddim_step(x_t, eps, 475, 500, SCHEDULE)
    assert torch.allclose(ddim_step(up, eps, 500, 475, SCHEDULE)[0], x_t, rtol=0, atol=1e-10)


# ---- Theorem 1 --------------------------------------------------------------------------------------------------------------


def test_theorem_1_for_one_step(tensors):
    """Editing P and D alike nearly cancels, the more so the shorter the step."""
    x_t, eps, eps_edit, _ = tensors
    for t_next, most in ((499, 0.01), (475, 0.15)):
        plain, _ = ddim_step(x_t, eps, 500, t_next, SCHEDULE)
        P_only, _ = ddim_step(x_t, eps, 500, t_next, SCHEDULE, eps_edit=eps_edit)
        both, _ = ddim_step(x_t, eps_edit, 500, t_next, SCHEDULE)
        assert (both - plain).norm() < most * (P_only - plain).norm()


def test_theorem_1_for_the_whole_process():
    """The edits add up where P alone has them, and largely cancel where D has them too (0.44 of it here, 0.29 in 40 steps)."""
    unet, x_T, edit = golden_unet("ddpm")[0], golden_arrays("process_ddpm")["inversion/x"][-1], delta_edit("ddpm")
    plain = generate(unet, x_T, SCHEDULE, timesteps(20, 999))
    P_only = generate(unet, x_T, SCHEDULE, timesteps(20, 999), edit=edit)
    both = generate(EditedThroughout(unet, edit), x_T, SCHEDULE, timesteps(20, 999))
    assert (P_only - plain).norm() > 0.1 * plain.norm()
    assert (both - plain).norm() < 0.5 * (P_only - plain).norm()


# ---- the loops --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t_edit", "edited_steps"), [(0, 8), (500, 4), (570, 4), (571, 3), (1000, 0)])
def test_second_decoder_runs_in_the_editing_interval_only(t_edit, edited_steps):
    x_T, unet = golden_arrays("process_ddpm")["inversion/x"][-1][:1], Counting(golden_unet("ddpm")[0])
    seen = []

    def edit(h, emb, t):
        seen.append(t)
        return h

    generate(unet, x_T, SCHEDULE, timesteps(8, 999), edit=edit, t_edit=t_edit)
    assert (unet.encoded, unet.decoded) == (8, 8 + edited_steps)
    assert seen == [999, 856, 713, 570, 428, 285, 142, 0][:edited_steps]


@BOTH
def test_shared_first_step_changes_nothing_and_saves_a_pass(name):
    x_T, edit = golden_arrays(f"process_{name}")["inversion/x"][-1], delta_edit(name)
    unet = Counting(golden_unet(name)[0])
    first = frozen_branch(unet, x_T, 999)
    alone = generate(unet, x_T, SCHEDULE, timesteps(8, 999), edit=edit, t_edit=500)
    unet.encoded = unet.decoded = 0
    shared = generate(unet, x_T, SCHEDULE, timesteps(8, 999), edit=edit, t_edit=500, first=first)
    assert torch.equal(shared, alone)
    assert (unet.encoded, unet.decoded) == (7, 7 + 4)


def test_edit_that_does_nothing_is_plain_generation():
    x_T = golden_arrays("process_ddpm")["inversion/x"][-1]
    plain, _ = trajectory("ddpm", x_T, 4)
    edited, _ = trajectory("ddpm", x_T, 4, edit=lambda h, emb, t: h)
    assert torch.equal(plain, edited)


def test_noise_is_drawn_below_t_boost_only():
    x_T, asked = golden_arrays("process_ddpm")["inversion/x"][-1], []

    def noise(i, shape):
        asked.append((i, tuple(shape)))
        return torch.zeros(shape)

    trajectory("ddpm", x_T, 8, t_boost=300, noise=noise)
    assert asked == [(i, (2, 3, 32, 32)) for i in (5, 6, 7)]
    asked.clear()
    trajectory("ddpm", x_T, 8, sample_type="ddpm", noise=noise)
    assert [i for i, _ in asked] == list(range(8))


def test_intervals_may_overlap():
    """t_boost above t_edit: the steps between are edited and boosted."""
    x_T, g = golden_arrays("process_ddpm")["inversion/x"][-1], torch.Generator().manual_seed(0)
    z = torch.randn(x_T.shape, generator=g)
    kwargs = {"t_boost": 600, "noise": lambda i, shape: z}
    boosted, _ = trajectory("ddpm", x_T, 8, **kwargs)
    edited, _ = trajectory("ddpm", x_T, 8, edit=delta_edit("ddpm"), t_edit=500, **kwargs)
    late, _ = trajectory("ddpm", x_T, 8, edit=delta_edit("ddpm"), t_edit=600, **kwargs)
    assert relative_l2(edited[3], late[3]) > 1e-3  # the step from 570
    assert relative_l2(edited[0], boosted[0]) > 1e-3


@pytest.mark.parametrize("T", [1000, 250])
def test_dt_lambda_acts_on_the_first_step_only(T):
    x_T, unet, schedule = golden_arrays("process_ddpm")["inversion/x"][-1], golden_unet("ddpm")[0], Schedule.linear(T=T)
    steps, states = timesteps(4, T - 1), []

    def scaled(steps, dt_lambda):
        states.clear()
        x_0 = generate(unet, x_T, schedule, steps, dt_lambda=dt_lambda, callback=lambda i, t, x_t, P_t: states.append(x_t))
        return [*states[1:], x_0]

    found, plain = scaled(steps, 1.1), scaled(steps, 1.0)
    with torch.no_grad():
        eps = unet(x_T, time_batch(x_T, T - 1))
        first, _ = ddim_step(x_T, eps, T - 1, steps[2], schedule, dt_lambda=1.1)
        second, _ = ddim_step(first, unet(first, time_batch(first, steps[2])), steps[2], steps[1], schedule)
    assert relative_l2(found[0], first) < 1e-6
    assert relative_l2(found[1], second) < 1e-5
    assert relative_l2(plain[0], first) > 1e-3
    # A process that starts lower has no such step.
    lower = timesteps(4, T - 2)
    assert torch.equal(scaled(lower, 1.1)[-1], scaled(lower, 1.0)[-1])


def test_ancestral_sampling_with_a_learned_variance():
    x_T = golden_arrays("process_iddpm")["inversion/x"][-1]
    noise = image_noise(0, [0, 1])
    states, _ = trajectory("iddpm", x_T, 4, sample_type="ddpm", noise=noise)
    with torch.no_grad():
        frozen = frozen_branch(golden_unet("iddpm")[0], x_T, 999)
        log_variance = learned_log_variance(frozen.variance, 999, 666, SCHEDULE)
        first, _ = ddpm_step(x_T, frozen.eps, 999, 666, SCHEDULE, noise=noise(0, x_T.shape), log_variance=log_variance)
    assert relative_l2(states[0], first) < 1e-6
    assert states.isfinite().all()


# ---- noise that belongs to images -------------------------------------------------------------------------------------------


def test_image_noise_does_not_depend_on_the_batch():
    together = image_noise(1234, [3, 5, 8])(2, (3, 3, 4, 4))
    alone = torch.cat([image_noise(1234, [i])(2, (1, 3, 4, 4)) for i in (3, 5, 8)])
    assert torch.equal(together, alone)
    assert torch.equal(image_noise(1234, [8, 3])(2, (2, 3, 4, 4)), together[[2, 0]])


def test_image_noise_differs_by_seed_image_and_step():
    draws = [
        image_noise(seed, [image])(step, (1, 3, 16, 16)).flatten() for seed in (1, 2) for image in (0, 1) for step in (-1, 0, 1)
    ]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlations.abs().max() < 0.2
    assert torch.stack(draws).std() == pytest.approx(1, abs=0.03)


def test_global_seed_is_not_changed():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    image_noise(0, [0, 1])(0, (2, 3, 4, 4))
    assert torch.equal(torch.rand(1), expected)


class OfGaussians:
    """The exact eps for images whose pixels are independent Gaussians with standard deviation 0.3, as a U-Net."""

    def encode(self, x, t):
        alpha_bar = SCHEDULE.alpha_bar(int(t[0]))
        return x * (1 - alpha_bar) ** 0.5 / (0.09 * alpha_bar + 1 - alpha_bar), (), None

    def decode(self, h, skips, emb):
        return h

    def __call__(self, x, t):
        return self.encode(x, t)[0]


def test_fixed_point_inversion_is_undone_by_generation():
    images = 0.3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    unet, steps = OfGaussians(), timesteps(40, 999)

    def lost(iterations):
        x_T = invert(unet, images, SCHEDULE, steps, iterations=iterations)
        return (generate(unet, x_T, SCHEDULE, steps) - images).abs().max().item()

    assert lost(ITERATIONS["fixed_point"]) < lost(ITERATIONS["ddim"]) / 5
    # What is left is the last step, which ends at alpha_bar 1 and not where inversion began.
    assert lost(60) < 0.02
