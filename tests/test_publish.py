"""scripts/publish.py: a checkpoint -> a safetensors file that edits as the checkpoint does."""

import sys

import pytest
import torch
from tiny_world import TEST, open_tiny, tensors_equal

import asyrp
from asyrp import directions, hspace, training
from asyrp.directions import Direction
from utils import tensors
from utils.files import ROOT
from utils.terminal import guarded

sys.path.insert(0, str(ROOT / "scripts"))

import publish


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture
def checkpoint(learned):
    [path] = (learned / "checkpoint").glob("*.pth")
    return path


def published(*args):
    """The exit status."""
    return guarded(publish.main, [str(arg) for arg in args])


def edited(model, path):
    """What a direction's file does to the same latents, at two strengths."""
    x_T = torch.randn(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    direction = asyrp.load_direction(path, model)
    settings = {"n_steps": 6, "t_edit": direction.record.get("t_edit", 500)}
    return torch.stack([model.edit(x_T, direction, [strength], **settings).cpu() for strength in (1.0, -0.5)])


def test_published_direction_edits_as_its_checkpoint_does(model, checkpoint, tmp_path, capsys):
    out = tmp_path / "smile.safetensors"
    assert published(checkpoint, "--out", out) == 0
    assert torch.equal(edited(model, out), edited(model, checkpoint))
    before, after = (asyrp.load_direction(path, model) for path in (checkpoint, out))
    assert before.record == after.record
    assert before.digest() == after.digest()
    told = capsys.readouterr().out
    assert told.startswith(f"{out}: {out.stat().st_size:,} bytes\n")
    for line in ("prompts: face -> smiling face", "t_edit: 500", "training steps: 4", f"model: {model.identity}"):
        assert f"\n  {line}\n" in told


def test_published_file_has_only_the_direction(checkpoint, tmp_path):
    out = tmp_path / "smile.safetensors"
    assert published(checkpoint, "--out", out) == 0
    assert tensors.is_safetensors(out)
    assert "optimizer" in torch.load(checkpoint, weights_only=True)
    stored = directions.read(out)
    assert stored.more == {}
    assert tensors_equal(stored.parts, directions.read(checkpoint).parts)


def test_command_line_takes_it(run_learned, results, tmp_path):
    pictures = []
    [path] = (tmp_path / "checkpoint").glob("*.pth")
    assert published(path, "--out", "mine.safetensors") == 0
    for name in (path, "mine.safetensors"):
        assert run_learned(*TEST, "--manual_checkpoint_name", name) == 0
        pictures.append((results / "test_images" / "4" / "all.png").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("ignore", [False, True])
def test_learned_delta_h(model, tmp_path, ignore):
    """One tensor for each timestep, or one for all of them."""
    function = training.new_function(model, "delta_h", ignore, [666, 999])
    for i, delta in enumerate(function.deltas):
        delta.data.fill_(i + 0.5)
    record = training.new_record(model, "delta_h", ignore, ("a", "b"), 500, [0, 333, 666, 999], 4, {})
    directions.save(Direction(function, record, "a"), tmp_path / "a.pth")
    assert published(tmp_path / "a.pth") == 0
    assert torch.equal(edited(model, tmp_path / "a.safetensors"), edited(model, tmp_path / "a.pth"))


def test_file_of_2023_keeps_what_its_name_says(model, tmp_path, capsys):
    block = hspace.BlockDirection(model.unet.new_delta_block()).block.state_dict()
    source = tmp_path / "smiling_LC_CelebA_HQ_t999_ninv40_ngen20_0.pth"
    torch.save({"0": block, "optimizer": {}}, source)
    assert published(source, "--out", tmp_path / "s.safetensors") == 0
    told = capsys.readouterr().out
    assert "\n  training steps: 20\n" in told
    assert "\n  t_edit: unknown\n" in told
    assert "\n  model: unknown\n" in told
    record = asyrp.load_direction(tmp_path / "s.safetensors", model).record
    assert (record["n_train_step"], record["prompts"]) == (20, ["face", "smiling face"])
    assert torch.equal(edited(model, tmp_path / "s.safetensors"), edited(model, source))


def test_refused_arguments(checkpoint, tiny, tmp_path, capsys):
    def error(*args):
        assert published(*args) == 2
        return capsys.readouterr().err.splitlines()[-1]

    out = tmp_path / "a.safetensors"
    assert "nowhere.pth: no such file" in error("nowhere.pth")
    assert "does not contain a direction in h-space" in error(tiny.folder / "ddpm.pt", "--out", out)
    assert "the name must end in .safetensors" in error(checkpoint, "--out", tmp_path / "a.pth")
    assert not out.exists()
    out.write_text("mine")
    assert f"{out} already exists" in error(checkpoint, "--out", out)
    assert out.read_text() == "mine"
