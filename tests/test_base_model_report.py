"""scripts/avatar/base_model_report.py: each figure on what is known, and a whole report of a tiny model."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_world import smooth_images
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "avatar"))

import base_model_report

from asyrp.process import Schedule


def knowing(images, off_by):
    """A model that knows x_0 of each batch of two, and predicts it `off_by` too bright."""
    schedule, calls = Schedule.linear(), []

    def unet(x_t, t):
        start = 2 * len(calls) % len(images)
        calls.append(start)
        a = schedule.alpha_bar(int(t[0]))
        return (x_t - a**0.5 * (images[start : start + 2] + off_by)) / (1 - a) ** 0.5

    return SimpleNamespace(schedule=schedule, unet=unet, device="cpu", T=1000)


@pytest.mark.parametrize("off_by", [0.0, 0.25, -0.5])
def test_mean_colour_is_off_by_what_the_prediction_is(off_by):
    images = smooth_images(4)
    errors = base_model_report.colour_errors(knowing(images, off_by), images, batch_size=2)
    assert list(errors) == [999, 900, 800, 700, 500, 300]
    assert [mean for mean, _ in errors.values()] == pytest.approx([abs(off_by)] * 6, abs=1e-3)
    assert [rms for _, rms in errors.values()] == pytest.approx([abs(off_by)] * 6, abs=1e-3)


def test_spread_is_the_mean_distance_of_colours_from_their_mean():
    images = torch.zeros(4, 3, 2, 2)
    images[:2, 0] = 0.6  # red of two images, elsewhere 0
    assert base_model_report.colour_spread(images) == pytest.approx((0.3 / 3, 0.3 / 3**0.5))


class Bright(nn.Module):
    """A judge by brightness; its features are the colours of the upper left pixels."""

    labels = {"light": ("dark", "bright")}

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()

    def read(self, images):
        red = self.features(images[:, :, :2, :2].flatten(1))[:, :1]
        return {"light": torch.cat([-red, red], 1)}


def test_shares_of_labels_and_distances_are_those_of_samples_and_data():
    real = smooth_images(16)
    samples = smooth_images(8, seed=1)
    samples[:, 0, 0, 0] = 1.0
    found = base_model_report.judge_samples(Bright(), samples, real)
    bright = 100 * (real[:, 0, 0, 0] > 0).double().mean().item()
    assert found["labels"]["light"]["bright"] == {"samples": 100.0, "data": pytest.approx(bright)}
    assert found["largest_difference"] == pytest.approx(100 - bright)
    assert 0 < bright < 100
    same = base_model_report.judge_samples(Bright(), real[8:], real)
    assert same["frechet"] == pytest.approx(same["frechet_real"])
    assert found["frechet"] != pytest.approx(same["frechet"], rel=0.01)


def test_report_of_a_model_without_a_judge(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_model_report, "SAMPLE_STEPS", 3)
    monkeypatch.setattr(base_model_report, "RECONSTRUCTION_STEPS", 3)
    flags = ["--config", tiny.folder / "ddpm.yml", "--weights", tiny.folder / "ddpm.pt", "--train", tiny.train]
    flags += ["--test", tiny.test, "--n", "3", "--batch_size", "2", "--out", tmp_path, "--device", "cpu"]
    assert base_model_report.main([str(flag) for flag in flags]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["colour"]["n"], report["reconstruction"]["n"]) == (4, 4)
    assert list(report["colour"]["off_by"]) == ["999", "900", "800", "700", "500", "300"]
    assert all(report["colour"]["off_by_rms"][t] >= mean > 0 for t, mean in report["colour"]["off_by"].items())
    assert "samples" not in report
    assert (tmp_path / "samples.png").is_file()
    assert (tmp_path / "report.md").read_text() in capsys.readouterr().out


def test_errors_of_the_report_are_one_line(tiny, tmp_path, capsys):
    for flags, told in ((["--n", "1"], "--n 1: must be 2 or more"), (["--weights", "no.pt"], "no.pt: no such file")):
        assert base_model_report.main(["--config", str(tiny.folder / "ddpm.yml"), *flags]) == 2
        assert told in capsys.readouterr().err
    flags = ["--config", "avatar.yml", "--train", str(tiny.train), "--test", str(tiny.test), "--out", str(tmp_path)]
    assert base_model_report.main([*flags, "--n", "3"]) == 2
    assert "has 4 images, and two sets of 3 are compared" in capsys.readouterr().err
