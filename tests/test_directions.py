"""Directions: their records, their files (ours, the 2023 release's, safetensors), and where they are found."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_world import SIZE, open_tiny, tensors_equal

import asyrp
from asyrp import directions, hspace, training
from asyrp.directions import Direction
from utils.errors import UserError
from utils.files import ROOT

SHIPPED = sorted((ROOT / "pretrained" / "avatar" / "directions").iterdir())
SHAPE = (1, 64, SIZE // 2, SIZE // 2)  # of h in the tiny U-Nets


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with an empty checkpoint/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    return tmp_path


def new_direction(model, kind="delta_block", ignore=False, seed=0, **record):
    """A direction with numbers of its own, as training would leave it."""
    function = training.new_function(model, kind, ignore, [666, 999], seed)
    if kind == "delta_h":
        for i, delta in enumerate(function.deltas):
            delta.data.fill_(i + 1.5)
    made = training.new_record(model, kind, ignore, ("face", "sad face"), 500, [0, 333, 666, 999], 4, {"seed": seed}, 0)
    return Direction(function, made | record, "sad.pth").requires_grad_(False)


# ---- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["delta_block", "delta_h"])
@pytest.mark.parametrize("ignore", [False, True])
def test_saved_and_loaded(model, tmp_path, suffix, kind, ignore):
    """All of it: numbers, record, and what it does to h; a file of a few hundred KB that loads without running code."""
    direction = new_direction(model, kind, ignore)
    path = tmp_path / f"sad{suffix}"
    direction.save(path)
    found = asyrp.load_direction(path, model)
    assert tensors_equal(found.state(), direction.state())
    assert found.record == direction.record
    assert (found.kind, found.name) == (kind, path.name)
    h, emb = torch.randn(2, *SHAPE[1:], device=model.device), torch.randn(2, 128, device=model.device)
    for t in (999, 700, 0):
        assert torch.equal(found(h, emb, t), direction(h, emb, t))
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert path.stat().st_size < 500_000


def test_checkpoint_keeps_the_published_form(model, tmp_path):
    directions.save(new_direction(model), tmp_path / "a.pth", {"optimizer": {"state": {}}})
    contents = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(contents) == ["0", "optimizer", "record"]
    assert contents["0"].keys() == model.unet.new_delta_block().state_dict().keys()
    assert directions.read(tmp_path / "a.pth").more == {"optimizer": {"state": {}}}


def test_safetensors_say_what_they_are(model, tmp_path):
    directions.save(new_direction(model), tmp_path / "a.safetensors")
    metadata = directions.tensors.metadata_of(tmp_path / "a.safetensors")
    assert metadata["format"] == "asyrp direction"
    assert json.loads(metadata["record"])["prompts"] == ["face", "sad face"]


@pytest.mark.parametrize(
    ("stem", "record"),
    [
        (
            "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0",
            {"t_0": 999, "n_inv_step": 40, "n_train_step": 40, "category": "CelebA_HQ", "prompts": ["face", "smiling face"]},
        ),
        ("mine_LC_dog_t500_ninv50_ngen20", {"t_0": 500, "n_inv_step": 50, "n_train_step": 20, "category": "dog"}),
        ("mine_LC_dog_t999_ninv0_ngen0_3_200", {"t_0": 999, "n_inv_step": 1000, "n_train_step": 1000, "category": "dog"}),
    ],
)
def test_published_file_is_what_its_name_says(model, tmp_path, stem, record):
    torch.save({"0": new_direction(model).state()["0"]}, tmp_path / f"{stem}.pth")
    assert directions.read(tmp_path / f"{stem}.pth").record == record | {"origin": "2023 release"}
    found = asyrp.load_direction(tmp_path / f"{stem}.pth", model)
    assert found.scale(record["n_train_step"]) == 1.0
    assert "t_edit" not in found.record


def test_record_of_file_precedes_its_name(model, tmp_path):
    torch.save(new_direction(model).state(), tmp_path / "mine.pth")
    assert directions.read(tmp_path / "mine.pth").record == {"origin": "unknown"}
    path = tmp_path / "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"
    directions.save(new_direction(model), path)
    assert directions.read(path).record["prompts"] == ["face", "sad face"]


def test_published_block_needs_ignore_timesteps(model, tmp_path):
    torch.save(new_direction(model).state(), tmp_path / "old.pth")
    stored = directions.read(tmp_path / "old.pth")
    for ignore in (False, True):
        assert directions.build(stored, model, ignore).function.ignore_timesteps is ignore
    # A record knows better.
    directions.save(new_direction(model, ignore=True), tmp_path / "new.pth")
    assert directions.build(directions.read(tmp_path / "new.pth"), model, False).function.ignore_timesteps is True


def test_directions_available_for_a_model(model, tiny, tmp_path, monkeypatch):
    """The last whole epoch of each experiment, and files of other names; none that is damaged or of another architecture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(directions, "SHIPPED", tmp_path / "pretrained")
    assert directions.fitting(model) == {}
    steps = "LC_CUSTOM_t999_ninv4_ngen4"
    wanted = {"smile": f"smile_{steps}_10.pth", "twice": f"twice_{steps}_0.pth", "twice_LC_CUSTOM_t999_ninv8_ngen8": None}
    wanted["twice_LC_CUSTOM_t999_ninv8_ngen8"] = "twice_LC_CUSTOM_t999_ninv8_ngen8_0.pth"
    wanted |= {"mine_2": "mine_2.safetensors", "shipped": "shipped.pth"}
    for seed, name in enumerate([*wanted.values(), f"smile_{steps}_9.pth", f"smile_{steps}_11_50.pth"]):
        folder = tmp_path / ("pretrained/custom/directions" if name == "shipped.pth" else "checkpoint")
        directions.save(new_direction(model, seed=seed), folder / name)
    directions.save(new_direction(open_tiny(tiny, "adm")), tmp_path / "checkpoint/other.pth")
    torch.save({"0": torch.zeros(1, 5, 1, 1)}, tmp_path / "checkpoint/no_record.pth")
    (tmp_path / "checkpoint/damaged.pth").write_bytes(b"no direction")
    found = directions.fitting(model)
    assert {name: direction.name for name, direction in found.items()} == wanted
    for seed, direction in enumerate(found[name] for name in wanted):
        assert direction.digest() == new_direction(model, seed=seed).digest()


def test_strength_one_is_what_it_was_trained_as(model):
    """Over 4 steps in training: over 2 each counts twice."""
    direction = new_direction(model)
    assert [direction.scale(n) for n in (4, 2, 8, 40)] == [1.0, 2.0, 0.5, 0.1]
    assert new_direction(model, n_train_step=None).scale(7) == 1.0


def test_digest_is_of_what_was_learned(model):
    one = new_direction(model)
    assert one.digest() == new_direction(model, t_edit=7).digest()
    others = [new_direction(model, seed=1), new_direction(model, ignore=True), new_direction(model, "delta_h")]
    assert len({one.digest(), *(other.digest() for other in others)}) == 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_directions_have_records(path):
    record = directions.read(path).record
    assert record["prompts"][1] == f"{path.stem} face" or record["prompts"][0] == "face"
    steps = record["n_train_step"], record["n_inv_step"], record["t_0"]
    assert (*steps, record["t_boost"]) == (40, 40, 999, None)  # no boosting: avatar.yml says so
    assert 0 < record["t_edit"] < 999


# ---- files that are refused -------------------------------------------------------------------------------------------------


def refused(path, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        directions.read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    "contents",
    [
        {},
        [1, 2],
        torch.zeros(3),
        {"0": 3},
        {"0": {}},
        {"0": {"a": 3}},
        {"0": {"a": torch.zeros(1)}, "1": torch.zeros(1)},
        {"conv_in.weight": torch.zeros(1)},
        {"²": torch.zeros(1)},
        {"optimizer": {}, "record": {}},
    ],
)
def test_files_that_are_not_a_direction(tmp_path, contents):
    torch.save(contents, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "does not contain a direction in h-space: give a checkpoint written by --run_train")


def test_numbers_that_are_not_finite(model, tmp_path):
    for i, value in enumerate((float("nan"), float("inf"))):
        directions.save(new_direction(model), tmp_path / f"{i}.pth")
        contents = torch.load(tmp_path / f"{i}.pth", weights_only=True)
        contents["0"]["conv1.bias"][3] = value
        torch.save(contents, tmp_path / f"{i}.pth")
        refused(tmp_path / f"{i}.pth", "is damaged: it contains inf or nan; download it again")


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("{", "its record cannot be read"),
        ("[1]", "its record is not a mapping"),
        ('{"t_edit": "high"}', "its record has t_edit 'high'"),
        ('{"t_edit": -1}', "its record has t_edit -1"),
        ('{"n_train_step": 40.5}', "its record has n_train_step 40.5"),
        ('{"n_inv_step": true}', "its record has n_inv_step True"),
        ('{"prompts": "face"}', "its record has prompts 'face'"),
        ('{"prompts": ["face"]}', r"its record has prompts \['face'\]"),
        ('{"model": "ddpm"}', "its record has model 'ddpm'"),
        ('{"training": 3}', "its record has training 3"),
    ],
)
def test_invalid_records_are_refused(tmp_path, record, complaint):
    save_file({"999": torch.zeros(SHAPE)}, tmp_path / "a.safetensors", {"record": record})
    refused(tmp_path / "a.safetensors", f"is damaged: {complaint}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.95])
def test_truncated_file(model, tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    directions.save(new_direction(model), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(path, "cannot be read")


def test_file_of_several_blocks(model, tmp_path):
    block = new_direction(model).state()["0"]
    torch.save({"0": block, "1": block}, tmp_path / "two.pth")
    with pytest.raises(UserError, match="contains 2 delta blocks: write each to its own file"):
        asyrp.load_direction(tmp_path / "two.pth", model)


# ---- of another model -------------------------------------------------------------------------------------------------------


def test_direction_for_other_weights_warns(model, tiny, tmp_path, caplog):
    directions.save(new_direction(model), tmp_path / "a.pth")
    asyrp.load_direction(tmp_path / "a.pth", model)
    assert caplog.records == []
    torch.save({key: 1.01 * value for key, value in model.unet.state_dict().items()}, tmp_path / "other.pt")
    weights = {key.removeprefix("unet."): value for key, value in torch.load(tmp_path / "other.pt", weights_only=True).items()}
    torch.save(weights, tmp_path / "other.pt")
    asyrp.load_direction(tmp_path / "a.pth", asyrp.open_model(tiny.folder / "ddpm.yml", tmp_path / "other.pt", model.device))
    assert len(caplog.records) == 1
    assert "a.pth was trained on other weights of the same architecture" in caplog.text


def test_another_architecture_is_an_error(model, tiny, tmp_path):
    other = open_tiny(tiny, "adm")
    directions.save(new_direction(model), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth was trained on another architecture \(ddpm-16-.*, this model is adm-16-"):
        asyrp.load_direction(tmp_path / "a.pth", other)
    # Of an older file only its tensors tell.
    torch.save(new_direction(model).state(), tmp_path / "old.pth")
    with pytest.raises(UserError, match="does not fit the delta block of this model"):
        asyrp.load_direction(tmp_path / "old.pth", other)


def test_delta_h_of_another_shape(model, tmp_path):
    torch.save({"999": torch.zeros(1, 32, 8, 8)}, tmp_path / "narrow.pth")
    with pytest.raises(UserError, match="belongs to another model, its delta_h is not 64 x 8 x 8"):
        asyrp.load_direction(tmp_path / "narrow.pth", model)


def test_one_delta_h_for_all_timesteps_needs_no_flag(model, tmp_path):
    torch.save({"0": torch.ones(SHAPE)}, tmp_path / "one.pth")
    found = asyrp.load_direction(tmp_path / "one.pth", model)
    assert found.record["ignore_timesteps"] is True
    assert isinstance(found.function, hspace.GivenDirection)


# ---- where they lie ---------------------------------------------------------------------------------------------------------


def written(*names):
    """Files under checkpoint/, empty: finding one does not read it."""
    for name in names:
        Path("checkpoint", name).write_bytes(b"")


SUFFIX = "_LC_TINY_t999_ninv4_ngen4"


def test_latest_epoch_is_found(folder):
    written(*(f"sad{SUFFIX}_{epoch}.pth" for epoch in (0, 2, 9, 10)), f"sad{SUFFIX}_10_4.pth", f"sad{SUFFIX}_11_4.pth")
    for name in ("sad", f"sad{SUFFIX}"):
        assert directions.find(name, "TINY", SUFFIX) == Path(f"checkpoint/sad{SUFFIX}_10.pth")


def test_checkpoint_within_an_epoch_is_chosen_by_its_images(folder):
    written(
        f"sad{SUFFIX}_0.pth", f"sad{SUFFIX}_0_2.pth", f"sad{SUFFIX}_1_2.pth", f"sad{SUFFIX}_1_4.pth", f"sad{SUFFIX}_0_4.pth"
    )
    assert directions.find("sad", "TINY", SUFFIX, images=2).name == f"sad{SUFFIX}_1_2.pth"
    assert directions.find("sad", "TINY", SUFFIX, images=4).name == f"sad{SUFFIX}_1_4.pth"
    with pytest.raises(UserError, match=r"no direction sad after 3 images \(--choose_checkpoint_num\)"):
        directions.find("sad", "TINY", SUFFIX, images=3)
    with pytest.raises(UserError, match="--choose_checkpoint_num chooses among the checkpoints of an experiment: leave it out"):
        directions.find(f"sad{SUFFIX}_0.pth", "TINY", SUFFIX, images=2)


def test_ways_to_name_a_file(folder):
    written(f"sad{SUFFIX}_0.pth", "mine.safetensors")
    Path("here.pth").write_bytes(b"")
    ways = {
        "here.pth": "here.pth",
        str(folder / "here.pth"): str(folder / "here.pth"),
        f"sad{SUFFIX}_0.pth": f"checkpoint/sad{SUFFIX}_0.pth",
        f"sad{SUFFIX}_0": f"checkpoint/sad{SUFFIX}_0.pth",
        f"checkpoint/sad{SUFFIX}_0.pth": f"checkpoint/sad{SUFFIX}_0.pth",
        "mine": "checkpoint/mine.safetensors",
    }
    assert {name: str(directions.find(name, "TINY")) for name in ways} == ways


def test_experiment_of_other_steps_is_found_where_there_is_one(folder):
    """The steps of a direction are in its record and need not be given again."""
    written(
        "sad_LC_TINY_t999_ninv40_ngen20_3.pth", "sad_LC_OTHER_t999_ninv40_ngen40_3.pth", "sadder_LC_TINY_t9_ninv4_ngen4_0.pth"
    )
    assert directions.find("sad", "TINY", SUFFIX).name == "sad_LC_TINY_t999_ninv40_ngen20_3.pth"
    written("sad_LC_TINY_t999_ninv40_ngen10_0.pth")
    with pytest.raises(UserError, match=re.escape("there are several experiments named sad (sad_LC_TINY_t999_ninv40_ngen10, ")):
        directions.find("sad", "TINY", SUFFIX)
    written(f"sad{SUFFIX}_0.pth")
    assert directions.find("sad", "TINY", SUFFIX).name == f"sad{SUFFIX}_0.pth"


def test_checkpoint_precedes_shipped_direction(folder):
    assert directions.find("smiling", "AVATAR").parent == ROOT / "pretrained" / "avatar" / "directions"
    written("smiling_LC_AVATAR_t999_ninv40_ngen40_0.pth")
    assert directions.find("smiling", "AVATAR").parent == Path("checkpoint")
    with pytest.raises(UserError, match=r"no direction smiling: looked for .*; train it with --run_train, or give"):
        directions.find("smiling", "CelebA_HQ")


def test_name_is_not_a_pattern(folder):
    written(f"sad{SUFFIX}_0.pth")
    for name in ("s.d", "*", "sad.*", "["):
        with pytest.raises(UserError, match="no direction"):
            directions.find(name, "TINY", SUFFIX)
