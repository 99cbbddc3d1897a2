"""Equal steps: the change of a picture by strength, its inverse, and what strips make of it."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import DELTA_H, TEST, TRAIN, Distance, call, names, open_tiny, settings, smooth_images

import asyrp
from asyrp import calibrating, directions
from asyrp.calibration import STRENGTHS, Calibration, strength_at
from asyrp.directions import Direction
from asyrp.evaluation import gauges
from asyrp.hspace import GivenDirection
from utils.errors import UserError

RESULTS = Path("runs/smile_LC_CUSTOM_t999_ninv4_ngen4")
CHECKPOINT = Path("checkpoint/smile_LC_CUSTOM_t999_ninv4_ngen4_0.pth")
LINE = {"measure": "lpips", "strengths": [-1, 0, 1], "changes": [-2, 0, 2], "saturates": [None, None]}


def of(function, strengths=STRENGTHS):
    return Calibration.of(strengths, [function(s) for s in strengths], "lpips")


# ---- the curve --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [abs, lambda s: s**2, lambda s: math.tanh(abs(s))], ids=["line", "square", "tanh"])
def test_strength_is_the_inverse_of_change(function):
    found = of(function)
    for s in np.linspace(-2.5, 2.5, 41):
        assert found.strength(found.change(s)) == pytest.approx(s, abs=1e-9)
    for s in STRENGTHS:
        assert found.change(s) == pytest.approx(math.copysign(function(s), s))


def test_steps_are_equal_in_change_and_keep_the_ends():
    found = of(lambda s: s**2)
    strip = found.spaced(-1, 2, 7)
    assert (strip[0], strip[-1], len(strip)) == (-1.0, 2.0, 7)
    assert np.ptp(np.diff([found.change(s) for s in strip])) < 1e-9
    assert np.ptp(np.diff(strip)) > 0.1  # and not in strength
    assert found.spaced(2, -1, 7) == pytest.approx(strip[::-1])


def test_slider_moves_in_equal_steps_of_a_calibrated_direction():
    found = of(lambda s: s**2)
    at = [strength_at({"calibration": found.record()}, "smiling", position, 1.5) for position in np.linspace(-1.5, 1.5, 7)]
    assert (at[0], at[3], at[-1]) == pytest.approx((-1.5, 0, 1.5))
    assert np.ptp(np.diff([found.change(s) for s in at])) < 1e-9
    assert np.ptp(np.diff(at)) > 0.1
    assert [strength_at({}, "smiling", position, 1.5) for position in (-1, 0, 0.5)] == [-1, 0, 0.5]
    with pytest.raises(UserError, match="the calibration of smiling is damaged"):
        strength_at({"calibration": {}}, "smiling", 1, 1.5)


def test_linear_calibration_does_not_change_a_strip():
    assert of(abs).spaced(-1, 2, 7) == pytest.approx(np.linspace(-1, 2, 7))


def test_strengths_with_falling_change_are_dropped():
    found = Calibration.of([0.5, 1.0, 1.5, 2.0], [0.2, 0.1, 0.2, 0.5], "lpips")
    assert (found.strengths, found.changes) == ((0.0, 0.5, 2.0), (0.0, 0.2, 0.5))


def test_saturation():
    assert of(abs).saturates == (None, None)
    assert of(lambda s: min(abs(s), 0.75)).saturates == (-0.75, 0.75)
    assert of(lambda s: min(s, 1.0) if s > 0 else s**2).saturates == (None, 1.0)
    assert of(lambda s: min(abs(s), 0.75)).beyond(-0.5, 1.5) == [0.75]
    assert of(lambda s: min(abs(s), 0.75)).beyond(-0.5, 0.5) == []


def test_direction_that_changes_nothing():
    with pytest.raises(UserError, match="no measurable effect"):
        of(lambda s: 0.0)


# ---- in a record ------------------------------------------------------------------------------------------------------------


def test_calibration_in_a_record():
    found = of(lambda s: s**2)
    read = Calibration.of_record({"calibration": json.loads(json.dumps(found.record()))}, "x")
    assert read == found
    assert Calibration.of_record({}, "x") is None
    assert Calibration.of_record({"calibration": LINE | {"n_images": 3}}, "x").about == {"n_images": 3}


@pytest.mark.parametrize(
    "damage",
    [
        {"strengths": [-1, 1, 0]},
        {"strengths": [-1, 0]},
        {"changes": [-1, 0.1, 2]},
        {"changes": [-1, 0, float("inf")]},
        {"changes": ["a", 0, 1]},
        {"measure": "ssim"},
        {"saturates": [1]},
        {"saturates": None},
        {"strengths": 3},
        None,
    ],
    ids=str,
)
def test_damaged_calibration_is_a_one_line_error(damage):
    entry = "text" if damage is None else LINE | damage
    with pytest.raises(UserError, match=r"calibration of smile\.pth is damaged: measure it again with --calibrate"):
        Calibration.of_record({"calibration": entry}, "smile.pth")


# ---- measured ---------------------------------------------------------------------------------------------------------------


class Shift:
    """A gauge whose change is how much brighter the first image is; the reconstruction has 0.1 already."""

    def before(self, original, plain):
        pass

    def after(self, label, images):
        change = images.mean((1, 2, 3))
        return {"S_dir": change + 0.1, "LPIPS to the reconstruction": change.abs()}


@pytest.mark.parametrize("measure", ["lpips", "s_dir"])
def test_means_are_over_images_and_not_over_batches(measure):
    measuring = calibrating.Measuring(measure, Shift(), "cpu", strengths=(-1.0, 1.0))
    for shifts in ([0.1, 0.2, 0.3], [0.6]):
        plain = torch.zeros(len(shifts), 3, 4, 4)
        edited = torch.tensor(shifts)[:, None, None, None].expand_as(plain)
        measuring.add(plain, plain, [-edited, edited])
    found = measuring.result(t_edit=500)
    assert found.changes == pytest.approx((-0.3, 0.0, 0.3))
    assert found.about == {"n_images": 4, "t_edit": 500}


@pytest.fixture(autouse=True)
def distance(monkeypatch):
    monkeypatch.setattr(gauges, "load_lpips", Distance)


def strengths_of(mode="test"):
    return [float(label) for label in settings(RESULTS, mode)["strengths"]]


def test_calibrated_direction_has_strips_of_equal_change(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, "--run_train", *DELTA_H, "--do_test", "0", "--lr_training", "50") == 0
    before = torch.load(CHECKPOINT, weights_only=True)
    strip = ("--delta_interpolation", "--min_delta", "0", "--max_delta", "2", "--num_delta", "4")
    assert call(tiny, "--run_test", *DELTA_H, *strip) == 0
    assert strengths_of() == pytest.approx([0, 0.67, 1.3, 2], abs=0.04)

    assert call(tiny, "--calibrate", *DELTA_H, "--n_calibrate_img", "3") == 0
    after = torch.load(CHECKPOINT, weights_only=True)
    record = after["record"].pop("calibration")
    assert record["n_images"] == 3 and record["t_edit"] == 500 and record["measure"] == "lpips"
    assert after["record"] == before["record"] and after.keys() == before.keys()
    assert all(torch.equal(before[t], after[t]) for t in ("999", "666"))

    # The images that it was calibrated on.
    images = ("--custom_test_dataset_dir", tiny.train, "--n_test_img", "3")
    assert call(tiny, "--run_test", "--evaluate", *DELTA_H, *strip, *images) == 0
    spaced = strengths_of()
    assert spaced != pytest.approx([0, 0.67, 1.3, 2], abs=0.04)
    summary = json.loads((RESULTS / "evaluation.json").read_text())["summary"]
    edits = [columns for label, columns in summary.items() if label != "reconstruction"]
    steps = [b - a for a, b in pairwise(columns["LPIPS to the reconstruction"]["mean"] for columns in edits)]
    assert len(steps) == 3 and max(steps) < 1.5 * min(steps)
    assert call(tiny, "--run_test", *DELTA_H, *strip, "--equal_steps", "0") == 0
    assert strengths_of() == pytest.approx([0, 0.67, 1.3, 2], abs=0.04)


def test_training_and_calibrating_in_one_command(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *TRAIN, "--calibrate", "s_dir", "--n_iter", "2", "--n_calibrate_img", "1") == 0
    last = CHECKPOINT.with_name(CHECKPOINT.name.replace("_0.pth", "_1.pth"))
    assert "calibration" not in torch.load(CHECKPOINT, weights_only=True)["record"]
    assert torch.load(last, weights_only=True)["record"]["calibration"]["measure"] == "s_dir"
    assert call(tiny, *TRAIN, "--n_iter", "3") == 0  # a calibration is no reason not to go on
    assert names(Path("checkpoint"))[-1].endswith("_2.pth")


def test_boosting_does_not_count_as_change(tiny):
    """The plain pictures are boosted with the same noise: a direction that does nothing changes nothing."""
    model, images = open_tiny(tiny), smooth_images(2, seed=5)
    size = (1, model.unet.h_ch, model.unet.h_size, model.unet.h_size)
    nothing = Direction(GivenDirection({None: torch.zeros(size)}), {"n_train_step": 4, "t_edit": 500}, "nothing")
    with pytest.raises(UserError, match="no measurable effect"):
        asyrp.calibrate(model, nothing, images, n_steps=4, t_boost=700)
    with pytest.raises(UserError, match="unknown measure ssim: use lpips or s_dir"):
        asyrp.calibrate(model, nothing, images, "ssim", n_steps=4)


def test_finished_training_keeps_calibration_and_mean_has_none(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    learn = ("--run_train", *DELTA_H, "--do_test", "0", "--lr_training", "50")
    assert call(tiny, *learn) == call(tiny, "--calibrate", *DELTA_H) == 0
    strip = ("--delta_interpolation", "--num_delta", "3", "--max_delta", "2")
    assert call(tiny, *learn[:-4], "--do_test", "1", "--lr_training", "50", *strip) == 0
    assert strengths_of() != pytest.approx([0, 1, 2], abs=0.02)
    assert call(tiny, "--run_test", *DELTA_H, *strip, "--num_mean_of_delta_hs", "2") == 0
    assert strengths_of() == pytest.approx([0, 1, 2], abs=0.02)
    assert "was calibrated with" not in capsys.readouterr().err
    assert call(tiny, "--run_test", *DELTA_H, *strip, "--edit_threshold", "0.5") == 0
    assert "was calibrated with region None, but here it is {'threshold': 0.5" in capsys.readouterr().err


def test_shipped_directions_are_not_overwritten(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *TRAIN) == 0
    shipped = tmp_path / "shipped" / "smile.pth"
    shipped.parent.mkdir()
    CHECKPOINT.rename(shipped)
    monkeypatch.setattr(directions, "SHIPPED", shipped.parent)
    before = shipped.read_bytes()
    assert call(tiny, "--calibrate", "--manual_checkpoint_name", shipped, "--n_calibrate_img", "1") == 0
    assert shipped.read_bytes() == before
    assert "calibration" in directions.read(Path("checkpoint/smile.pth")).record


def test_library_calibrates_and_saves(tiny, tmp_path):
    model = open_tiny(tiny)
    images = smooth_images(3, seed=5)
    direction = asyrp.train_direction(
        model, images, "face", "smiling face", clip=tiny.clip, n_steps=4, t_edit=500, lr=20.0, clip_w=1.0
    )
    found = asyrp.calibrate(model, direction, images, n_steps=4, batch_size=2)
    assert found.change(2) > found.change(1) > 0 > found.change(-1)
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        directions.save(direction, path)
        read = asyrp.load_direction(path, model)
        assert Calibration.of_record(read.record, path) == found
        directions.write_record(path, read.record | {"t_edit": 700})
        again = asyrp.load_direction(path, model)
        assert again.record["t_edit"] == 700 and again.digest() == direction.digest()
    with pytest.raises(UserError, match="no images"):
        asyrp.calibrate(model, direction, images[:0])
    boosted = [asyrp.calibrate(model, direction, images, n_steps=4, t_boost=700, batch_size=n).changes for n in (1, 3)]
    assert boosted[0] == pytest.approx(boosted[1], rel=1e-3)  # noise is seeded per image


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--n_calibrate_img", "3", *TEST), "--n_calibrate_img needs --calibrate"),
        (("--equal_steps", "0", *TEST), "--equal_steps sets the spacing of a strip"),
        (("--calibrate", "--multiple_attr", "a b"), "leave out --multiple_attr"),
        (("--calibrate", "--fit_direction", "h_pca"), "fit first"),
        (("--calibrate", "ssim"), "invalid choice"),
    ],
)
def test_contradicting_flags_exit_2(tiny, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *flags) == 2
    assert said in capsys.readouterr().err
