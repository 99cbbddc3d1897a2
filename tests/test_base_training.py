"""Training a base model, as the library does it: loss, learning rate, moving average, and going on."""

import copy
import math

import numpy as np
import pytest
import torch
import yaml
from golden_unets import needs_channels_last
from tiny_base import T, settings, trained, write_config
from tiny_world import smooth_images, tensors_equal

from asyrp.base_model.files import model_sections
from asyrp.base_model.settings import Settings, learning_rate, loss_weights
from asyrp.base_model.trainer import COLD_STEPS, Trainer, antithetic_timesteps
from asyrp.config import load_config
from asyrp.process import Schedule


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config(write_config(tmp_path_factory.mktemp("base") / "tiny.yml"))


# ---- loss and learning rate -------------------------------------------------------------------------------------------------


def test_snr_weights_are_those_of_the_formula():
    schedule = Schedule.linear()
    weights = loss_weights(schedule, Settings(loss_weighting="snr"))
    raw = [min(max(math.sqrt((1 - a) / a), 0.6), 15.0) for a in schedule.alpha_bars]
    np.testing.assert_allclose(weights, np.array(raw) / (sum(raw) / len(raw)), rtol=1e-5)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert (weights[999] / weights[0]).item() == pytest.approx(15 / 0.6, rel=1e-5)
    other = loss_weights(schedule, Settings(loss_weighting="snr", snr_power=1.0, snr_bounds=(1.0, 4.0)))
    assert (other[999] / other[0]).item() == pytest.approx(4, rel=1e-5)


def test_p2_weights_and_simple_ones():
    schedule = Schedule.linear()
    weights = loss_weights(schedule, Settings(loss_weighting="p2", p2_gamma=0.5))
    np.testing.assert_allclose(weights, np.sqrt(1 - schedule.alpha_bars), rtol=1e-6)
    assert torch.equal(loss_weights(schedule, Settings()), torch.ones(1000))


def test_loss_is_weighted(config, monkeypatch):
    monkeypatch.setattr("asyrp.base_model.trainer.antithetic_timesteps", lambda n, T, device: torch.full((n,), T - 1))
    plain, weighted = (trained(config, 1, loss_weighting=kind) for kind in ("simple", "snr"))
    weight = loss_weights(Schedule.of(config.diffusion), settings(loss_weighting="snr"))[-1].item()
    assert weight > 1.5
    assert weighted.loss.item() == pytest.approx(weight * plain.loss.item(), rel=1e-5)


def test_loss_of_a_perfect_prediction_is_zero(config):
    trainer = trained(config, 0)
    x_0, alpha_bars = smooth_images(4), torch.from_numpy(Schedule.of(config.diffusion).alpha_bars).float()

    def perfect(x_t, t):
        a = alpha_bars[t][:, None, None, None]
        return (x_t - a.sqrt() * x_0) / (1 - a).sqrt() + 0 * trainer.unet(x_t, t)

    trainer.forward = perfect
    trainer.step(x_0)
    assert trainer.loss.item() < 1e-8


def test_learning_rate_rises_and_then_falls_or_stays():
    cosine = Settings(lr=1.0, warmup=0.2)
    rates = [learning_rate(cosine, progress) for progress in (0, 0.1, 0.2, 0.6, 1, 1.5)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    constant = Settings(lr=1.0, warmup=0.2, lr_schedule="constant")
    assert [learning_rate(constant, progress) for progress in (0.1, 0.2, 1)] == pytest.approx([0.5, 1, 1])


def test_each_step_takes_its_learning_rate(config):
    trainer = trained(config, 3, lr=0.1, warmup=0.5)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.08 / 0.5)  # 8 of 100 images before the last step


def test_minutes_end_a_training(config):
    trainer = trained(config, 0, minutes=2)
    trainer.seconds = 60
    assert trainer.progress == pytest.approx(0.5)


def test_timesteps_come_in_pairs():
    t = antithetic_timesteps(7, T, "cpu")
    assert t.shape == (7,)
    assert ((t >= 0) & (t < T)).all()
    assert (t[:3] + t[4:] == T - 1).all()


def test_gradients_are_clipped(config):
    trainer = trained(config, 1, clip_norm=1e-3)
    norm = torch.stack([p.grad.norm() for p in trainer.unet.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("flip", [True, False])
def test_flip_mirrors_half_of_the_images(config, flip):
    trainer, seen = trained(config, 0, flip=flip), []
    trainer.alpha_bars.fill_(1)  # x_t is x_0
    trainer.forward = lambda x_t, t: seen.append(x_t) or trainer.unet(x_t, t)
    x_0 = smooth_images(16)
    trainer.step(x_0)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(seen[0], x_0, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(seen[0], x_0, strict=True)]
    assert sum(mirrored) + sum(kept) == 16
    assert 2 < sum(mirrored) < 14 if flip else not any(mirrored)


def test_settings_of_precision_and_compilation_are_followed(config, monkeypatch):
    monkeypatch.setattr(
        torch, "compile", lambda unet: lambda x, t: calls.append(torch.is_autocast_enabled("cpu")) or unet(x, t)
    )
    calls = []
    trained(config, 1, compile=True, precision="bf16")
    trained(config, 1, compile=True)
    trained(config, 1, precision="bf16")
    assert calls == [True, False]
    assert trained(config, 0).unet.conv_in.weight.is_contiguous()


@needs_channels_last
def test_the_layout_is_the_one_that_was_asked_for(config):
    weights = {kind: trained(config, 0, memory_format=kind).unet.conv_in.weight for kind in ("contiguous", "channels_last")}
    assert weights["contiguous"].is_contiguous()
    assert weights["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert not weights["channels_last"].is_contiguous()


def test_unreadable_images_are_reported_once(config, monkeypatch, caplog):
    trainer, x_0 = trained(config, 0, total_images=12), smooth_images(4)
    # As several processes tell it, each of them once.
    monkeypatch.setattr(trainer, "loader", lambda dataset: [(x_0, ["a", "b", "a"]), (x_0, ["a"]), (x_0, ["c"])])
    trainer.run(None, save=lambda: None)
    assert [line.getMessage() for line in caplog.records] == [f"skipped: {name}" for name in "abc"]


# ---- the moving average -----------------------------------------------------------------------------------------------------


def test_average_follows_the_weights_faster_at_first(config):
    trainer = trained(config, 1, lr=0.05, ema=0.9, warmup=0)
    for seen, decay in ((4, 5 / 44), (36, 37 / 76), (4000, 0.9)):
        trainer.images_seen = seen
        before = copy.deepcopy(trainer.ema.state_dict())
        trainer.step(smooth_images(4))
        after = trainer.unet.state_dict()
        for key, value in trainer.ema.state_dict().items():
            torch.testing.assert_close(value, decay * before[key] + (1 - decay) * after[key])
        assert not tensors_equal(before, trainer.ema.state_dict())


def test_state_keeps_weights_and_average_apart(config):
    trainer = trained(config, 3, lr=0.05, warmup=0)
    again = Trainer(config, settings(), state=copy.deepcopy(trainer.state()))
    assert tensors_equal(dict(again.unet.state_dict()), dict(trainer.unet.state_dict()))
    assert tensors_equal(dict(again.ema.state_dict()), dict(trainer.ema.state_dict()))
    assert not tensors_equal(dict(again.ema.state_dict()), dict(again.unet.state_dict()))


# ---- going on ---------------------------------------------------------------------------------------------------------------


def test_resume_keeps_moments_and_uses_given_betas(config):
    trainer = trained(config, 2)
    again = Trainer(config, settings(betas=(0.5, 0.7)), state=copy.deepcopy(trainer.state()))
    moments = [s.optimizer.state_dict()["state"][0]["exp_avg"] for s in (trainer, again)]
    assert torch.equal(*moments)
    assert moments[0].abs().max() > 0
    assert [s.optimizer.param_groups[0]["betas"] for s in (trainer, again)] == [(0.9, 0.99), (0.5, 0.7)]


def test_resume_uses_new_reproducible_random_numbers(config):
    def draw(images_seen, seed=0):
        state = None if images_seen == 0 else {**trained(config, 0).state(), "images_seen": images_seen}
        Trainer(config, settings(seed=seed), state=state)
        return tuple(torch.rand(3).tolist())

    draws = [draw(0), draw(8), draw(12), draw(8, seed=1)]
    assert len(set(draws)) == 4
    assert draw(8) == draws[1]


def test_new_optimizer_warms_up_on_trained_weights(config, tmp_path):
    torch.save(trained(config, 0).averaged_weights(), tmp_path / "w.pt")
    state = copy.deepcopy(trained(config, 1).state())
    without = {key: value for key, value in state.items() if key != "optimizer"}
    late = {"lr": 1.0, "images_seen": 50, "lr_schedule": "constant"}
    for init, state_, cold in (
        (tmp_path / "w.pt", None, True),
        (None, without, True),
        (None, state, False),
        (None, None, False),
    ):
        trainer = Trainer(config, settings(**late), "cpu", init, state_)
        trainer.images_seen = 50  # far behind the warm-up
        assert trainer.rate() == pytest.approx(1 / (COLD_STEPS + 1) if cold else 1)
    trainer = Trainer(config, settings(**late), "cpu", tmp_path / "w.pt")
    rates = []
    for _ in range(3):
        rates.append(trainer.rate())
        trainer.step(smooth_images(4))
    assert rates == pytest.approx([1 / 101, 2 / 101, 3 / 101])


def test_model_of_a_state_is_plain_data(config):
    assert yaml.safe_load(yaml.safe_dump(model_sections(config)))["model"]["ch_mult"] == [1, 2]
