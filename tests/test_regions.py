"""Edits that stay in a region: the blending itself, and regions as a user names them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import NAME, TEST, TRAIN, open_tiny, pixels, settings, smooth_images, tensors_equal, write_segmenter
from tiny_world import directions as directions_in

import asyrp
from asyrp import blending, hspace, process, regions, training
from asyrp.evaluation.segmenter import open_segmenter

TIMESTEPS = process.timesteps(4, 999)
RIGHT = torch.zeros(1, 1, 16, 16)
RIGHT[..., 8:] = 1


@pytest.fixture
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture
def edit(model):
    """A direction strong enough to be seen."""
    delta = torch.randn(1, model.unet.h_ch, 8, 8, generator=torch.Generator().manual_seed(3))
    return hspace.Edit([hspace.GivenDirection({None: delta})], [1.0])


@pytest.fixture
def x_T():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))


# ---- the blending -----------------------------------------------------------------------------------------------------------


def test_nothing_and_everything_are_the_plain_and_the_whole_edit(model, edit, x_T):
    plain, whole = model.run(x_T, TIMESTEPS), model.run(x_T, TIMESTEPS, edit)
    assert torch.equal(model.run(x_T, TIMESTEPS, edit, mask=0 * RIGHT), plain)
    assert torch.allclose(model.run(x_T, TIMESTEPS, edit, mask=torch.ones(1, 1, 16, 16)), whole, atol=1e-5)
    assert not torch.allclose(plain, whole, atol=1e-2)


def test_step_blends_P_and_leaves_D(model, edit, x_T):
    """m P(eps~) + (1 - m) P(eps) with the frozen eps in D, written out."""
    t, t_next = TIMESTEPS[-1], TIMESTEPS[-2]
    frozen = process.frozen_branch(model.unet, x_T, t)
    eps_edit = process.edited_branch(model.unet, frozen, edit, t)
    P_edit, P_plain = (process.predict_x0(x_T, eps, t, model.schedule) for eps in (eps_edit, frozen.eps))
    soft = blending.smoothed(RIGHT, 2)
    P = soft * P_edit + (1 - soft) * P_plain
    alpha_bar = model.schedule.alpha_bar(t_next)
    expected = alpha_bar**0.5 * P + (1 - alpha_bar) ** 0.5 * frozen.eps

    seen = {}
    model.run(x_T, TIMESTEPS, edit, mask=soft, callback=lambda i, t, x_t, P_t: seen.update({i: (x_t, P_t)}))
    assert torch.allclose(seen[0][1], P, rtol=1e-4, atol=1e-3)
    assert torch.allclose(seen[1][0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(seen[0][1][..., :6], P_plain[..., :6])  # outside, exactly


def test_mask_needs_no_extra_passes(run_learned, results, monkeypatch):
    passes = []
    frozen = process.frozen_branch
    monkeypatch.setattr(process, "frozen_branch", lambda *args: passes.append(1) or frozen(*args))
    Image.fromarray((RIGHT[0, 0].numpy() * 255).astype(np.uint8)).save("mask.png")
    counts = []
    for region in ((), ("--edit_mask", "mask.png")):
        assert run_learned(*TEST, "--bs_test", "2", "--delta_interpolation", "--num_delta", "3", *region) == 0
        counts.append(len(passes))
        passes.clear()
    assert counts[0] == counts[1] > 0


def test_mask_by_image(model, edit, x_T):
    both = torch.cat([RIGHT, 1 - RIGHT])
    made = model.run(x_T, TIMESTEPS, edit, mask=both)
    for i in range(2):
        alone = model.run(x_T[i : i + 1], TIMESTEPS, edit, mask=both[i : i + 1])
        assert torch.allclose(made[i : i + 1], alone, atol=1e-4)


def test_dilation_and_smoothing():
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    wide = blending.dilated(dot, 2)
    assert wide.sum() == 25 and wide[..., 2:7, 2:7].all()
    soft = blending.smoothed(wide, 1)
    assert soft.max() == pytest.approx(1) and 0 < soft[0, 0, 1, 4] < soft[0, 0, 2, 4] < 1 and soft[0, 0, 0, 0] == 0
    assert torch.equal(blending.smoothed(blending.dilated(dot, 0), 0), dot)


def test_segments_are_picked_by_number_and_enlarged_to_the_images_size():
    labels = torch.tensor([[[0, 1], [2, 3]]])
    mask = blending.of_segments(labels, [1, 2], 4, 0, 0)
    assert mask[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_largest_changes():
    plain, edited = torch.zeros(2, 3, 10, 10), torch.zeros(2, 3, 10, 10)
    edited[0, :, 0, :5], edited[1, :, 3:5] = 1, -2
    mask = blending.largest_changes(0.9, 0)(plain, edited)
    assert mask[1].sum() == 20 and mask[1, 0, 3:5].all()
    assert blending.largest_changes(0.96, 0)(plain, edited)[0].sum() == 5


# ---- as a user names them ---------------------------------------------------------------------------------------------------


def half(path, value=255):
    grey = np.zeros((32, 32), np.uint8)
    grey[:, 16:] = value
    Image.fromarray(grey).save(path)


def test_mask_image_restricts_the_edit(run_learned, results, model):
    half("mask.png")
    place = results / "test_images" / "4" / "000000.png"
    flags = (*TEST, "--save_x_origin", "--hs_coeff_delta_h", "3")
    assert run_learned(*flags, "--edit_mask", "mask.png") == 0
    inside = pixels(place)
    assert run_learned(*flags) == 0
    everywhere = pixels(place)
    assert (inside != everywhere).any()
    assert settings(results, "test")["flags"]["edit_mask"] is None
    mask = regions.from_picture("mask.png", 16).mask_of(None)
    assert torch.equal(mask, RIGHT)


@pytest.mark.parametrize(("name", "said"), [("nowhere.png", "cannot be read as an image"), ("black.png", "is all black")])
def test_invalid_mask_images(run_learned, name, said):
    half("black.png", 0)
    error = run_learned.error(*TEST, "--edit_mask", name)
    assert f"--edit_mask {name} " in error and said in error


def test_segments_by_name_and_by_number(run_learned, results):
    write_segmenter("named.pt")
    write_segmenter("silent.pt", None)
    place, made = results / "test_images" / "4" / "000000.png", []
    for segmenter, region in (("named.pt", "bright"), ("silent.pt", "1"), ("named.pt", "dark bright")):
        assert run_learned(*TEST, "--edit_region", region, "--segmenter", segmenter, "--hs_coeff_delta_h", "3") == 0
        made.append(pixels(place))
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()
    decided = settings(results, "test")["decided"]["region"]
    assert decided == {"segments": "dark bright", "segmenter": "named.pt", "dilation": 1, "smoothing": 1}
    assert "has no segment hair: its segments are dark, bright" in run_learned.error(
        *TEST, "--edit_region", "hair", "--segmenter", "named.pt"
    )
    assert "its segments have no names: give their numbers" in run_learned.error(
        *TEST, "--edit_region", "hair", "--segmenter", "silent.pt"
    )
    assert "--edit_region needs a segmenter: give --segmenter" in run_learned.error(*TEST, "--edit_region", "hair")


def test_image_without_the_segment_is_reported(tmp_path, caplog):
    write_segmenter(tmp_path / "segmenter.pt")
    region = regions.from_segments("bright", tmp_path / "segmenter.pt", "cpu", 8, 0, 0)
    mask = region.mask_of(torch.stack([torch.ones(3, 8, 8), -torch.ones(3, 8, 8)]))
    assert mask.flatten(1).mean(1).tolist() == [1, 0]
    assert [r.getMessage() for r in caplog.records] == ["1 of 2 images contain no bright and are not edited"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--edit_mask", "a.png", "--edit_region", "hair"), "both choose where to edit"),
        (("--region_dilation", "1"), "--region_dilation needs --edit_region"),
        (("--edit_mask", "a.png", "--region_smoothing", "1"), "needs --edit_region or --edit_threshold"),
        (("--edit_threshold", "1.5"), "--edit_threshold 1.5"),
    ],
)
def test_flags_that_do_not_fit(run, flags, said):
    assert said in run.error(*TEST, *flags)


def test_region_needs_an_edit(run):
    assert "--edit_mask restricts an edit" in run.error("--just_precompute", "--edit_mask", "a.png")


def test_shipped_segmenter_names_its_segments():
    segment = open_segmenter(asyrp.config.ROOT / "pretrained/avatar/segmenter.pt", "cpu")
    assert segment.names == ["background", "skin", "clothes", "hair", "beard", "mouth", "eyes", "brows"]


def test_invalid_segment_names_are_ignored(tmp_path):
    write_segmenter(tmp_path / "s.pt", {"a": 1})
    assert open_segmenter(tmp_path / "s.pt", "cpu").names == []


# ---- in training ------------------------------------------------------------------------------------------------------------


def test_training_in_a_region_is_noted_in_the_record(run, results, capsys):
    write_segmenter("segmenter.pt")
    inside = ("--edit_region", "bright", "--segmenter", "segmenter.pt")
    assert run(*TRAIN) == 0
    everywhere = directions_in()
    assert "was trained with region None, but this run has {" in run.error(*TRAIN, *inside)
    assert run(*TRAIN, *inside, "--retrain", "1") == 0
    assert not tensors_equal(everywhere, directions_in())
    record = torch.load(f"checkpoint/{NAME}_0.pth", weights_only=True)["record"]
    assert record["training"]["region"] == {"segments": "bright", "segmenter": "segmenter.pt", "dilation": 1, "smoothing": 1}
    capsys.readouterr()
    assert run(*TEST) == 0
    assert "was trained in a region" in capsys.readouterr().err
    assert run(*TEST, *inside) == 0
    assert "was trained in a region" not in capsys.readouterr().err


def test_no_gradient_outside_the_region(model, tiny):
    """Gradients reach the direction through the region alone: none inside an empty one."""
    images = smooth_images(2)
    settings = {"n_steps": 4, "t_edit": 500, "batch_size": 2, "clip": str(tiny.clip), "kind": "delta_h", "l1_w": 0}
    nowhere = asyrp.train_direction(model, images, "face", "smiling face", mask_of=lambda images: 0 * RIGHT, **settings)
    assert all(not delta.any() for _, delta in nowhere.function.items())
    region = regions.Region({"mask": "the right half"}, lambda images: RIGHT)
    right = asyrp.train_direction(model, images, "face", "smiling face", mask_of=region, **settings)
    assert right.record["training"]["region"] == region.about
    assert "lambda" in nowhere.record["training"]["region"]["mask_of"]
    assert any(delta.any() for _, delta in right.function.items())
    assert training.SETTINGS.keys() >= settings.keys() - {"clip", "kind"}


def test_library_edits_inside_a_mask(model, x_T):
    direction = asyrp.directions.Direction(
        hspace.GivenDirection({None: torch.ones(1, model.unet.h_ch, 8, 8)}), {"t_edit": 0, "n_train_step": 4}, "ones"
    )
    inside = model.edit(x_T, direction, n_steps=4, mask=RIGHT)
    assert torch.equal(model.edit(x_T, direction, n_steps=4, mask=0 * RIGHT), model.generate(x_T, 4))
    assert not torch.equal(inside, model.edit(x_T, direction, n_steps=4))
    assert json.dumps(direction.record)
