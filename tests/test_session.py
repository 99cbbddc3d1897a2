"""asyrp.Session: a picture, sliders, and what follows from where they are."""

import pytest
import torch
import yaml
from golden_weights import filled
from PIL import Image
from tiny_world import DEVICE, open_tiny, smooth_images, write_segmenter

import asyrp
from asyrp import session as sessions
from asyrp.directions import Direction
from asyrp.hspace import BlockDirection
from utils.errors import UserError

RECORD = {"t_edit": 500, "n_train_step": 4, "prompts": ["face", "smiling face"]}
# A change that grows as the square of the strength.
SQUARE = {"measure": "lpips", "strengths": [-1.5, -1, 0, 1, 1.5], "changes": [-2.25, -1, 0, 1, 2.25], "saturates": [None, None]}


def new_direction(model, seed, **record):
    block = model.unet.new_delta_block()
    block.load_state_dict(filled({key: value.shape for key, value in block.state_dict().items()}, seed))
    return Direction(BlockDirection(block), RECORD | record, f"direction {seed}").requires_grad_(False).to(model.device)


@pytest.fixture
def session(tiny, tmp_path):
    """Of a model with a segmenter, with two directions and a picture, over four steps."""
    write_segmenter(tmp_path / "segmenter.pt")
    settings = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    editing = {"n_test_step": 4, "n_train_step": 4, "user_defined_t_edit": 500, "user_defined_t_addnoise": 400}
    own = settings | {"editing": editing, "segmenter": str(tmp_path / "segmenter.pt"), "clip": {"model": str(tiny.clip)}}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(own))
    model = asyrp.open_model(tmp_path / "own.yml", tiny.folder / "ddpm.pt", DEVICE)
    made = asyrp.Session(model, {"smile": new_direction(model, 1), "frown": new_direction(model, 2, calibration=SQUARE)})
    [made.image] = smooth_images(1)
    return made


def test_session_starts_with_config_settings_and_no_edit(session):
    assert session.settings == {"n_steps": 4, "t_edit": None, "t_boost": 400, "seed": 0}
    assert (session.strengths(), session.label()) == ({}, "no edit")
    original, plain, edited = session.sides().values()
    assert original is session.image
    x_T = session.model.invert(session.image[None], 4)
    assert torch.equal(plain[None], session.model.generate(x_T, 4).cpu())
    assert torch.equal(edited, plain)
    assert asyrp.Session(session.model, {}).settings["n_steps"] == 4


def test_session_has_the_directions_of_the_model(tiny, learned, monkeypatch):
    monkeypatch.chdir(learned)
    assert [*asyrp.Session(open_tiny(tiny)).directions] == ["smile"]


def test_edit_is_what_the_model_makes_of_the_sliders(session):
    session.positions = {"smile": 0.5}
    x_T = session.model.invert(session.image[None], 4)
    wanted = session.model.edit(x_T, session.directions["smile"], [0.5], 4, t_boost=400).cpu()
    assert torch.equal(session.edit()[None], wanted)
    assert [*session.sides()] == ["original", "reconstruction", "smile +0.5"]


def test_calibrated_direction_moves_in_equal_steps(session):
    session.positions = {"frown": 0.75}  # half of the way to a change of 2.25
    assert session.strengths() == {"frown": pytest.approx(1.05)}
    session.positions = {"frown": -1.5, "smile": 0.0}
    assert session.strengths() == {"frown": -1.5}


def test_several_directions_keep_full_strength(session):
    """A second slider at almost 0 changes almost nothing."""
    session.positions = {"smile": 1.0}
    alone = session.edit()
    session.positions["frown"] = 1e-6
    assert (session.edit() - alone).abs().max() < 1e-3
    session.positions["frown"] = 1.5
    assert (session.edit() - alone).abs().max() > 1e-2
    assert session.label() == "smile +1, frown +1.5"


@pytest.mark.parametrize(
    "change", [{"n_steps": 5}, {"t_edit": 900}, {"t_boost": 900}, {"seed": 1}], ids=lambda change: next(iter(change))
)
def test_every_setting_has_its_effect(session, change):
    session.positions = {"smile": 1.0}
    before = session.edit()
    session.settings |= change
    assert not torch.equal(session.edit(), before)


def test_picture_is_inverted_once_for_a_number_of_steps(session, monkeypatch):
    calls, invert = [], session.model.invert
    monkeypatch.setattr(session.model, "invert", lambda images, n_steps: calls.append(n_steps) or invert(images, n_steps))
    monkeypatch.setattr(sessions, "KEPT", 2)
    for position in (0.5, 1.0):
        session.positions = {"smile": position}
        session.edit()
    session.strip()
    assert calls == [4]
    session.settings["n_steps"] = 5
    session.edit()
    session.settings["n_steps"], session.image = 4, session.image.clone()
    session.edit()
    assert calls == [4, 5]
    session.image = smooth_images(2)[1]
    session.edit()
    session.image = smooth_images(1)[0]
    session.edit()
    assert calls == [4, 5, 4, 4]  # the first was forgotten for the third


def test_strip_runs_from_negated_to_slider_positions(session):
    session.positions = {"smile": 1.0}
    strip = session.strip()
    assert [*strip] == ["-1", "-0.5", "+0", "+0.5", "+1"]
    assert torch.equal(strip["+1"], session.edit())
    assert torch.equal(strip["+0"], session.inverted()[1][0])
    session.positions = {"smile": -0.5}
    assert torch.equal(session.strip(3)["-0.5"], session.edit())
    session.positions["frown"] = 1.5
    assert [*session.strip(3)] == ["+0.5, -1.5", "+0, +0", "-0.5, +1.5"]


def test_edit_stays_in_its_region(session, tmp_path):
    session.positions = {"smile": 1.0}
    x_T, everywhere = session.inverted()[0], session.edit()
    for name, given in (("mask", half_white(tmp_path)), ("segments", ["bright"]), ("threshold", 0.5)):
        session.set_region(**{name: given})
        assert name in session.about()["region"]
        mask = session.region.mask_of(session.image[None])
        wanted = session.model.edit(x_T, session.directions["smile"], None, 4, t_boost=400, mask=mask).cpu()
        assert torch.equal(session.edit()[None], wanted)
        assert not torch.equal(wanted[0], everywhere)
    with pytest.raises(UserError, match="an edit has only one region"):
        session.set_region(segments=["bright"], threshold=0.5)
    with pytest.raises(UserError, match=r"gone\.png cannot be read as an image"):
        session.set_region(mask="gone.png")
    assert session.region.about["threshold"] == 0.5  # as before
    session.set_region()
    assert torch.equal(session.edit(), everywhere)


def half_white(folder):
    """A mask that is white on the left."""
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(folder / "mask.png")
    return folder / "mask.png"


def test_learned_direction_has_slider_at_1(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session.positions, seen = {"smile": 1.0}, []
    made = session.learn(smooth_images(2), "face", "sad face", progress=lambda *counted: seen.append(counted))
    assert session.directions["face to sad face"] is made
    assert made.record["prompts"] == ["face", "sad face"] and made.record["t_edit"] == 500
    assert session.positions == {"face to sad face": 1.0}
    assert seen[-1] == (4, 4)
    assert not torch.equal(session.edit(), session.inverted()[1][0])

    def stop(done, total):
        raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        session.learn(smooth_images(2), "face", "old face", progress=stop)
    assert "face to old face" not in session.directions
    assert session.positions == {"face to sad face": 1.0}


def test_about_lists_settings_of_the_edit(session):
    session.positions, session.settings["seed"] = {"smile": 0.5}, 3
    about = session.about()
    assert about["model"] == session.model.identity
    assert (about["n_steps"], about["t_boost"], about["seed"], about["region"]) == (4, 400, 3, None)
    [used] = about["directions"]
    assert (used["name"], used["strength"], used["prompts"]) == ("smile", 0.5, RECORD["prompts"])
    assert used["digest"] == session.directions["smile"].digest()


def test_session_errors(session):
    with pytest.raises(UserError, match="a strip needs an edit: move a slider first"):
        session.strip()
    with pytest.raises(UserError, match="a direction is learned from two prompts"):
        session.learn(smooth_images(1), "face", "  ")
    session.directions["old"] = new_direction(session.model, 3, t_edit=None)
    session.positions = {"old": 1.0}
    with pytest.raises(UserError, match="direction 3 has no t_edit: give one"):
        session.edit()
    session.positions = {"smile": 1.0}
    session.settings["t_edit"] = 1000
    with pytest.raises(UserError, match="t_edit 1000 of direction 1 is above every timestep"):
        session.edit()
    session.settings |= {"t_edit": None, "n_steps": 1}
    with pytest.raises(UserError, match="1 steps: must be 2 to 1000"):
        session.edit()
    session.image = None
    with pytest.raises(UserError, match="there is no image yet"):
        session.sides()
