"""A model as the library opens it: its identity, and what invert, generate and edit promise."""

import subprocess
import sys

import pytest
import torch
import yaml
from tiny_world import DEVICE, SIZE, open_tiny, smooth_images

import asyrp
from asyrp import hspace, process, training
from asyrp.config import load_config
from asyrp.data.datasets import to_unit_range
from asyrp.directions import Direction
from utils.errors import UserError
from utils.files import ROOT


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture(scope="module")
def x_T(model):
    return model.invert(smooth_images(2), 4)


def new_direction(model, seed=0, **record):
    function = training.new_function(model, seed=seed)
    made = training.new_record(model, "delta_block", False, ("face", "sad face"), 500, [0, 333, 666, 999], 4, {})
    return Direction(function, made | record, f"direction {seed}").requires_grad_(False)


# ---- opening ----------------------------------------------------------------------------------------------------------------


def test_model_attributes(model, tiny):
    config = load_config(tiny.folder / "ddpm.yml")
    assert model.image_size == SIZE
    assert model.T == len(model.schedule.betas) == 1000
    assert model.device == torch.device(DEVICE) or model.device.type == torch.device(DEVICE).type
    assert (model.config, model.precision) == (config, "fp32")
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert model.identity.startswith("ddpm-16-")


def test_config_by_name_by_path_or_as_it_is(model, tiny):
    config = load_config(tiny.folder / "ddpm.yml")
    for given in (config, tiny.folder / "ddpm.yml", str(tiny.folder / "ddpm.yml")):
        assert asyrp.open_model(given, tiny.folder / "ddpm.pt", DEVICE).identity == model.identity
    assert asyrp.open_model("avatar.yml", device=DEVICE).identity.startswith("ddpm-32-")


@pytest.mark.subprocess
def test_library_is_loaded_when_it_is_used():
    code = "import sys, asyrp; assert 'torch' not in sys.modules; asyrp.open_model; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="module asyrp has no attribute open_modle"):
        asyrp.open_modle  # noqa: B018


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": "nowhere.yml"}, "--config nowhere.yml: no such file"),
        ({"weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"device": "tpu"}, "--device tpu is not available"),
    ],
)
def test_open_model_errors(tiny, changed, message):
    with pytest.raises(UserError, match=message):
        asyrp.open_model(**{"config": tiny.folder / "ddpm.yml", "weights": tiny.folder / "ddpm.pt", "device": DEVICE} | changed)


# ---- identity ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tiny, tmp_path):
    """opened(change of a section, ...) -> the tiny model with that change."""

    def new(weights=None, **sections):
        config = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
        for section, change in sections.items():
            config[section] = config.get(section, {}) | change
        (tmp_path / "changed.yml").write_text(yaml.safe_dump(config))
        return asyrp.open_model(tmp_path / "changed.yml", weights or tiny.folder / "ddpm.pt", DEVICE)

    return new


def test_identity_is_of_content(model, opened, tiny, tmp_path):
    """Neither of the files' names nor of their form."""
    weights = torch.load(tiny.folder / "ddpm.pt", weights_only=True)
    torch.save({"state_dict": {f"module.{key}": value for key, value in reversed(weights.items())}}, tmp_path / "copy.ckpt")
    again = opened(tmp_path / "copy.ckpt")
    assert (again.identity, again.architecture) == (model.identity, model.architecture)
    named = opened(data={"category": "mine", "credit": "me"}, editing={"lr_training": 0.1})
    assert named.identity == model.identity


def test_one_number_of_the_weights_changes_the_identity(model, opened, tiny, tmp_path):
    weights = torch.load(tiny.folder / "ddpm.pt", weights_only=True)
    weights["conv_out.bias"][0] += 1e-6
    torch.save(weights, tmp_path / "other.pt")
    other = opened(tmp_path / "other.pt")
    assert other.identity != model.identity
    assert other.architecture == model.architecture


@pytest.mark.parametrize(
    "diffusion",
    [{"beta_end": 0.03}, {"beta_start": 1e-5}, {"num_diffusion_timesteps": 4000}, {"beta_schedule": "cosine"}],
    ids=lambda diffusion: next(iter(diffusion)),
)
def test_schedule_is_part_of_the_identity(model, opened, diffusion):
    other = opened(diffusion=diffusion)
    assert other.identity != model.identity
    assert other.architecture == model.architecture


@pytest.mark.parametrize("change", [{"attn_resolutions": [8], "norm_groups": 16}, {"resamp_with_conv": True, "norm_groups": 8}])
def test_settings_that_change_no_shape_change_the_architecture(model, opened, change):
    """The same tensors fit, and the network is another one."""
    other = opened(model=change)
    assert other.architecture != model.architecture
    assert other.identity != model.identity


def test_precision_is_no_part_of_the_identity(model, tiny):
    """It is a part of keys on its own; a direction learned in one serves in the other."""
    assert open_tiny(tiny, precision="bf16").identity == model.identity


# ---- timesteps --------------------------------------------------------------------------------------------------------------


def test_timesteps(model, opened):
    assert model.timesteps(4) == [0, 333, 666, 999]
    assert model.timesteps(4, 900) == [0, 300, 600, 900]
    assert model.timesteps(0, 9) == list(range(10))
    assert opened(diffusion={"num_diffusion_timesteps": 500}).timesteps(2) == [0, 499]


@pytest.mark.parametrize(
    ("n", "t_0", "message"),
    [
        (1, None, "1 steps: must be 2 to 1000, or 0"),
        (1001, None, "1001 steps: must be 2 to 1000"),
        (40, 30, "40 steps: must be 2 to 31"),
        (-1, None, "-1 steps: must be"),
        (4, 1000, "--t_0 1000: this model has 1000 timesteps, 0 to 999"),
        (4, 0, "--t_0 0: this model has"),
    ],
)
def test_invalid_timesteps(model, n, t_0, message):
    with pytest.raises(UserError, match=message):
        model.timesteps(n, t_0)


# ---- invert, generate -------------------------------------------------------------------------------------------------------


def test_invert_and_generate_are_the_equations(model):
    images, steps = smooth_images(2).to(model.device), [0, 300, 600, 900]
    x_T = process.invert(model.unet, images, model.schedule, steps)
    assert torch.equal(model.invert(smooth_images(2), 4, 900), x_T)
    assert torch.equal(model.generate(x_T.cpu(), 4, 900), process.generate(model.unet, x_T, model.schedule, steps))


def test_invert_shows_its_steps(model):
    seen = []
    model.invert(smooth_images(2), 4, callback=lambda i, t, x_t, P_t: seen.append((i, t)))
    assert seen == [(0, 0), (1, 333), (2, 666)]


def test_tensors_of_another_shape(model):
    for call in (model.invert, model.generate, lambda x: model.edit(x, new_direction(model))):
        for shape in ((2, 3, 32, 32), (3, SIZE, SIZE), (2, 1, SIZE, SIZE)):
            with pytest.raises(UserError, match=r"this model takes tensors of shape \(B, 3, 16, 16\), not \("):
                call(torch.zeros(shape))


# ---- edit -------------------------------------------------------------------------------------------------------------------


def test_edit_is_the_asymmetric_process(model, x_T):
    direction = new_direction(model)
    edit = hspace.Edit([direction], [1.0])
    expected = process.generate(model.unet, x_T, model.schedule, [0, 333, 666, 999], edit=edit, t_edit=500)
    found = model.edit(x_T, direction, n_steps=4)
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(model.edit(x_T, [direction], [1.0], n_steps=4), found)
    assert (found - model.generate(x_T, 4)).abs().max() > 1e-3


def test_strength_one_means_the_same_at_any_number_of_steps(model, x_T):
    """Trained over 4 steps: over 8 each step adds half."""
    direction = new_direction(model)
    edit = hspace.Edit([direction], [0.5])
    expected = process.generate(model.unet, x_T, model.schedule, model.timesteps(8), edit=edit, t_edit=500)
    assert torch.allclose(model.edit(x_T, direction, n_steps=8), expected, atol=1e-4)


def test_strength_zero_is_the_plain_picture(model, x_T):
    assert torch.allclose(model.edit(x_T, new_direction(model), [0.0], n_steps=4), model.generate(x_T, 4), atol=1e-4)
    assert not torch.allclose(
        model.edit(x_T, new_direction(model), [-1.0], n_steps=4), model.edit(x_T, new_direction(model), n_steps=4), atol=1e-2
    )


def test_interval_is_the_records_unless_one_is_given(model, x_T):
    early, late = new_direction(model, t_edit=900), new_direction(model, t_edit=0)
    pictures = [model.edit(x_T, direction, n_steps=4) for direction in (early, late)]
    assert not torch.allclose(*pictures, atol=1e-2)
    assert torch.equal(model.edit(x_T, early, n_steps=4, t_edit=0), pictures[1])
    assert torch.equal(model.edit(x_T, late, n_steps=4, t_edit=900), pictures[0])


def test_several_directions_act_each_in_its_own_interval(model, x_T):
    one, two = new_direction(model, 1, t_edit=900), new_direction(model, 2, t_edit=300)
    edit = hspace.Edit([one, two], [0.5**0.5, -2 * 0.5**0.5], t_edits=[900, 300])
    expected = process.generate(model.unet, x_T, model.schedule, model.timesteps(4), edit=edit, t_edit=300)
    found = model.edit(x_T, [one, two], [1, -2], n_steps=4)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, model.edit(x_T, [one, two], [1, -2], n_steps=4, t_edit=300), atol=1e-2)


def test_boosting_adds_noise_that_the_seed_decides(model, x_T):
    direction = new_direction(model)
    plain, one, again, other = (
        model.edit(x_T, direction, n_steps=4, t_boost=t_boost, seed=seed)
        for t_boost, seed in ((0, 1), (400, 1), (400, 1), (400, 2))
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-2)
    assert not torch.allclose(one, plain, atol=1e-2)


def test_batch_size_changes_nothing(model, x_T):
    direction = new_direction(model)
    together = model.edit(x_T, direction, n_steps=4, t_boost=400)
    assert torch.allclose(model.edit(x_T[:1], direction, n_steps=4, t_boost=400), together[:1], atol=1e-3)


@pytest.mark.parametrize(
    ("directions", "more", "message"),
    [
        ([], {}, "no direction was given, so nothing would be edited"),
        ([0], {"strengths": [1, 2]}, "1 directions but 2 strengths"),
        ([0], {"t_edit": 1000}, r"t_edit 1000 of direction 0 is above every timestep \(the highest is 999\)"),
        (
            [0],
            {"t_0": 400},
            r"t_edit 500 of direction 0 is above every timestep \(the highest is 400\), so nothing would be edited",
        ),
        ([0], {"n_steps": 1}, "1 steps: must be 2 to 1000"),
    ],
)
def test_edits_that_are_refused(model, x_T, directions, more, message):
    with pytest.raises(UserError, match=message):
        model.edit(x_T, [new_direction(model, seed) for seed in directions], **{"n_steps": 4} | more)


def test_direction_without_t_edit(model, x_T):
    direction = new_direction(model, t_edit=None)
    with pytest.raises(UserError, match="direction 0 has no t_edit: give one"):
        model.edit(x_T, direction, n_steps=4)
    assert model.edit(x_T, direction, n_steps=4, t_edit=500).shape == x_T.shape


# ---- the default stack ------------------------------------------------------------------------------------------------------


def test_readme_example_of_the_library(tmp_path, monkeypatch):
    """As they stand in the docstring of asyrp/__init__.py, where no direction of the user's own has that name."""
    monkeypatch.chdir(tmp_path)
    model = asyrp.open_model("avatar.yml", device=DEVICE)
    smiling = asyrp.load_direction("smiling", model)
    assert smiling.record["t_edit"] == 335
    x_T = model.invert(smooth_images(1, 32), 10)
    plain, edited = model.generate(x_T, 10), model.edit(x_T, [smiling], strengths=[1.0], n_steps=10)
    assert 1e-3 < (plain - edited).abs().mean() < 0.5


def test_image_comes_back(monkeypatch):
    """A face of the kind that the default stack knows, inverted and generated again in 40 steps: within a few grey levels."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "avatar")
    import render

    image = to_unit_range(render.render_face("test", 0, 32)[0].convert("RGB"), 32)[None]
    model = asyrp.open_model("avatar.yml", device=DEVICE)
    again = model.generate(model.invert(image)).cpu()
    assert (again - image).abs().mean() < 0.05


# ---- fixed-point inversion --------------------------------------------------------------------------------------------------


def test_a_fixed_point_step_takes_eps_where_the_step_down_takes_it(model):
    images, timesteps = smooth_images(1), [0, 400]
    x_T = process.invert(model.unet, images.to(model.device), model.schedule, timesteps, iterations=30)
    eps = process.frozen_branch(model.unet, x_T, 400).eps
    back, _ = process.ddim_step(x_T, eps, 400, 0, model.schedule)
    torch.testing.assert_close(back.cpu(), images, rtol=0, atol=1e-4)


def test_the_config_says_how_a_model_inverts(tiny, tmp_path):
    settings = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    settings["editing"] = (settings.get("editing") or {}) | {"inversion": "fixed_point"}
    (tmp_path / "fixed.yml").write_text(yaml.safe_dump(settings))
    fixed, images = asyrp.open_model(tmp_path / "fixed.yml", tiny.folder / "ddpm.pt", DEVICE), smooth_images(1)
    expected = fixed.invert(images, 4, inversion="fixed_point")
    torch.testing.assert_close(fixed.invert(images, 4), expected, rtol=0, atol=0)
    assert not torch.equal(fixed.invert(images, 4, inversion="ddim"), expected)
