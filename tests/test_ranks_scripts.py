"""The scripts by several processes: a base model is trained and the claims are tested as by one."""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from several import together
from tiny_base import settings, write_config
from tiny_world import DDPM, open_tiny, smooth_images, write_images, write_unet

from asyrp import directions, hspace, ranks
from asyrp.base_model.trainer import Trainer
from asyrp.config import load_config
from asyrp.ranks import Ranks
from asyrp.report.pictures import to_pil
from utils.errors import UserError
from utils.files import ROOT
from utils.terminal import guarded

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "bench"))

import analyze
import bench
import scaling
import train_base_model

# ---- a base model -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    """A config, and a folder of six images."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(smooth_images(6)):
        to_pil(image).save(tmp_path / "images" / f"{i}.png")
    return write_config(tmp_path / "tiny.yml"), tmp_path / "images"


def steps(config, several):
    """Two steps on the same batches of five -> losses and the last gradients. Noise and mirrored images are drawn."""
    trainer, losses = Trainer(config, settings(batch_size=5, flip=True), ranks=several), []
    for seed in range(2):
        trainer.step(several.share(smooth_images(5, seed=seed)))
        losses.append(trainer.loss)
    assert trainer.images_seen == 10
    return losses, [p.grad for p in trainer.unet.parameters()]


@pytest.mark.subprocess
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_of_a_base_model_are_those_of_the_whole_batch(base, tmp_path, world):
    config = load_config(base[0])

    def work(rank):
        with ranks.together() as several:
            several.join("cpu")
            torch.save(steps(config, several), tmp_path / f"{rank}.pt")

    together(world, work, folder=tmp_path)
    expected = steps(config, Ranks())
    assert max(gradient.abs().max() for gradient in expected[1]) > 0.01
    for rank in range(world):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-4, atol=1e-5)


def test_batch_has_an_image_for_every_process(base):
    with pytest.raises(UserError, match="--batch_size 4 is split over 5 processes: use 5 or more"):
        Trainer(load_config(base[0]), settings(), ranks=Ranks(0, 5))


@pytest.fixture
def train_base(base, tmp_path):
    """train_base(world, name, *flags) -> (what each process said, the record of the training)."""

    def train(world, name, *flags, ends=None, before=lambda rank: None):
        given = ["--config", base[0], "--images", base[1], "--out", tmp_path / name, "--device", "cpu", "--workers", 0]
        given += ["--batch_size", 4, "--total_images", 16, *flags]

        def work(rank):
            before(rank)
            return train_base_model.main([str(flag) for flag in given])

        said = together(world, work, ends, folder=tmp_path)
        return said, yaml.safe_load((tmp_path / f"{name}.yml").read_text())

    return train


@pytest.mark.subprocess
def test_script_trains_as_one_process(train_base, tmp_path):
    _, expected = train_base(1, "one.pt")
    (terminal, other), found = train_base(2, "two.pt")
    assert "16 images seen; weights in" in terminal[-1]
    assert other == []
    assert found["images_seen"] == expected["images_seen"] == 16
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    _, longer = train_base(3, "two.pt", "--total_images", 24)
    assert [session["to"] for session in longer["sessions"]] == [16, 24]


@pytest.mark.subprocess
def test_signal_to_one_process_stops_all_and_saves(train_base):
    def signalled(rank):
        step = Trainer.step

        def stepped(self, x_0):
            step(self, x_0)
            os.kill(os.getpid(), signal.SIGTERM)

        if rank == 1:
            Trainer.step = stepped

    (terminal, other), found = train_base(2, "two.pt", ends=[143, 143], before=signalled)
    assert terminal[-1].startswith("stopped by SIGTERM, 4 images seen; saved")
    assert other == []
    assert found["images_seen"] == 4


# ---- the claims -------------------------------------------------------------------------------------------------------------


@pytest.mark.subprocess
def test_claims_are_those_of_one_process(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_unet(tmp_path, "ddpm", DDPM, size=32)
    write_images(tmp_path / "images", 6, seed=5)
    block = hspace.BlockDirection(open_tiny(tiny).unet.new_delta_block())
    record = {"prompts": ["face", "smile face"], "t_edit": 500, "n_train_step": 4}
    directions.save(directions.Direction(block, record, "smile"), "smile.pth")
    given = ["--config", "ddpm.yml", "--model_path", "ddpm.pt", "--images", "images", "--clip_model_name", tiny.clip]
    given += ["--direction", "smile=smile.pth", "--n", 3, "--steps", 4, "--t_boost", 300, "--device", "cpu", "--claims", 1, 3]

    def claims(world, out):
        terminals = together(world, lambda rank: guarded(analyze.main, list(map(str, [*given, "--out", out]))), folder=tmp_path)
        assert [len(some) > 0 for some in terminals] == [True] + [False] * (world - 1)
        report = json.loads(Path(out, "report.json").read_text())
        for claim in report["claims"].values():
            del claim["seconds"]
        return flat(report)

    expected, found = claims(1, "one"), claims(2, "two")
    assert found.keys() == expected.keys()
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    assert {name: found[name] for name in found if name not in numbers} == {
        name: value for name, value in expected.items() if name not in numbers
    }


@pytest.mark.subprocess
@pytest.mark.parametrize("world", [2, 3])
def test_scaling_of_processes(tiny, tmp_path, world):
    """A rehearsal: figures belong to a machine that does nothing else."""
    given = ["--config", tiny.folder / "ddpm.yml", "--model_path", tiny.folder / "ddpm.pt", "--clip_model_name", tiny.clip]
    given += ["--steps", 4, "--rounds", 1, "--warmup", 0, "--device", "cpu", "--out", tmp_path / "b.md", "--ranks", world]
    together(world, lambda rank: bench.main([str(flag) for flag in given]), folder=tmp_path)
    head, _, *rows = [line.strip("| ").split(" | ") for line in (tmp_path / "b.md").read_text().splitlines() if line[:1] == "|"]
    assert head == ["mode", "ratio", "wanted"]
    assert [row[0] for row in rows] == ["invert", "edit", "first epoch", "further epoch"]
    assert all(0 < float(row[1].strip("*x")) < 10 * world for row in rows)


def test_the_ratio_is_of_images_in_the_same_time():
    world = SimpleNamespace(args=bench.parse_args([]), device=torch.device("cpu"), edit_steps=[0])
    contestant = SimpleNamespace(world=world, batch=2)
    text = scaling.report(contestant, 3, {"invert": [2.0, 2.0, 9.0]}, {"invert": [4.0, 2.5, 9.0]})
    assert text.splitlines()[-1] == "| invert | **2.40x** | 2.7x |"


def test_bench_starts_its_processes_by_torchrun(monkeypatch):
    started = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(
        scaling.subprocess, "run", lambda command, **more: started.append(command) or SimpleNamespace(returncode=3)
    )
    assert bench.main(["--ranks", "2", "--steps", "4"]) == 3
    [command] = started
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[-7:] == ["--nproc_per_node", "2", bench.__file__, "--ranks", "2", "--steps", "4"]


def flat(value, name=""):
    """Nested data -> {path: plain value}."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {name: value}
    return {path: plain for key, item in items for path, plain in flat(item, f"{name}/{key}").items()}
