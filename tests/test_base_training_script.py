"""scripts/train_base_model.py, called on a handful of images."""

import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from tiny_base import trained, write_config
from tiny_world import smooth_images, tensors_equal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import train_base_model

from asyrp.base_model.files import Files
from asyrp.base_model.trainer import Trainer
from asyrp.config import load_config
from asyrp.report.pictures import to_pil
from utils.files import held


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A config, six images (two of them in a sub-folder), and an image that cannot be read."""
    folder = tmp_path_factory.mktemp("base")
    write_config(folder / "tiny.yml")
    for i, image in enumerate(smooth_images(6)):
        path = folder / "images" / ("more" if i > 3 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
    (folder / "images" / "broken.png").write_text("no image")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "ddpm.pt"


@pytest.fixture
def train(world, out, capsys):
    """train(*flags) -> (exit status, what was printed, as lines)."""

    def train(*flags, config=None, images=None):
        given = ["--config", config or world / "tiny.yml", "--images", images or world / "images", "--out", out]
        given += ["--workers", 0, "--batch_size", 4, "--total_images", 8, "--device", "cpu", *flags]
        handlers, level = logging.root.handlers[:], logging.root.level
        capsys.readouterr()
        try:
            status = train_base_model.main([str(flag) for flag in given])
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        assert not any("Traceback" in line for line in lines)
        return status, [line for line in lines if line.strip() and not line.startswith("training:")]

    return train


@pytest.fixture
def error(train):
    """error(*flags) -> the one line of a user's error, which is the last one."""

    def error(*flags, **more):
        status, lines = train(*flags, **more)
        assert status == 2
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        return lines[-1].removeprefix("error: ")

    return error


def load(path):
    return torch.load(path, weights_only=True)


def record(out):
    return yaml.safe_load(Path(f"{out}.yml").read_text())


def state_of(out):
    return load(f"{out}.state")


# ---- the moving average -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["float16", "float32"])
def test_average_is_what_is_written(train, out, keep):
    assert train("--keep", keep, "--lr", 0.05, "--warmup", 0)[0] == 0
    weights, state = load(out), state_of(out)
    dtype = getattr(torch, keep)
    assert {value.dtype for value in weights.values()} == {dtype}
    assert all(torch.equal(weights[key], value.to(dtype)) for key, value in state["ema"].items())
    assert not all(torch.equal(weights[key], value.to(dtype)) for key, value in state["unet"].items())


# ---- going on ---------------------------------------------------------------------------------------------------------------


def test_resume_training(train, out):
    assert train()[0] == 0
    first = state_of(out)
    status, lines = train("--total_images", 20)
    last = state_of(out)
    assert status == 0
    assert f"resuming from {out}.state: 8 images seen" in lines
    assert (first["images_seen"], last["images_seen"], record(out)["images_seen"]) == (8, 20, 20)
    assert [(s["from"], s["to"]) for s in last["sessions"]] == [(0, 8), (8, 20)]
    assert last["seconds"] > first["seconds"] > 0
    assert [v["step"] for v in last["optimizer"]["state"].values()] == [5] * len(last["optimizer"]["state"])


def test_init_continues_from_weights(train, out):
    assert train("--keep", "float32", "--lr", 0.05)[0] == 0
    weights = out.rename(out.with_name("first.pt"))
    Path(f"{out}.state").unlink()
    status, _ = train("--init", weights, "--images_seen", 8, "--total_images", 12, "--lr", 1e-12)
    after = load(out)
    assert status == 0
    assert (record(out)["images_seen"], record(out)["sessions"][0]["init"]) == (12, str(weights))
    assert all(torch.equal(after[key], value.half()) for key, value in load(weights).items())


def test_complete_training_saves_weights_again(train, out):
    train()
    out.unlink()
    status, lines = train("--keep", "float32")
    assert status == 0
    assert "training is complete" in lines[-1]
    assert tensors_equal(load(out), state_of(out)["ema"])
    assert len(state_of(out)["sessions"]) == 1


def test_state_of_another_model_is_refused(train, error, world, out, tmp_path):
    train()
    line = error(config=write_config(tmp_path / "wide.yml", ch=16))
    assert line.startswith(f"{out}.state belongs to another model: model.ch is 8 there, but 16 in the config")


def test_damaged_state_error_says_how_to_restart(train, error, out):
    train()
    path = Path(f"{out}.state")
    whole = path.read_bytes()
    for contents in (whole[: len(whole) // 2], b""):
        path.write_bytes(contents)
        assert f"delete it and start again from the weights (--init {out} --images_seen 8)" in error()
    torch.save({"unet": {}}, path)
    assert "delete it and start again from the weights" in error()
    path.unlink()
    assert f"--init {out} --images_seen 8" in error()


# ---- images -----------------------------------------------------------------------------------------------------------------


def test_unreadable_image_is_reported_once_and_skipped(train, out, world):
    status, lines = train("--total_images", 40, "--flip")
    assert status == 0
    assert [line for line in lines if "skipped" in line] == [
        f"skipped: {world / 'images' / 'broken.png'} cannot be read as an image (unknown format)"
    ]
    made = record(out)
    assert (made["images_seen"], made["images_in_folder"]) == (40, 7)
    assert (made["flags"]["flip"], made["flags"]["batch_size"], made["flags"]["betas"]) == (True, 4, [0.9, 0.99])
    assert made["torch"] == torch.__version__
    assert made["hours"] >= 0
    assert made["config"]["model"]["norm_groups"] == 4
    assert Path(f"{out}.png").stat().st_size > 1000


def test_no_readable_images_exit_2(error, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    assert "none of its 1 images can be used" in error(images=tmp_path / "bad")


def test_worker_processes_read_an_lmdb(train, world, out, tmp_path):
    (tmp_path / "lmdb").mkdir()
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**24) as handle, handle.begin(write=True) as txn:
        for path in world.glob("images/**/[0-4].png"):
            txn.put(path.name.encode(), path.read_bytes())
    assert train("--workers", 2, images=tmp_path / "lmdb")[0] == 0
    assert (record(out)["images_in_folder"], record(out)["images_seen"]) == (5, 8)


# ---- what ends a training ---------------------------------------------------------------------------------------------------


def test_second_training_of_same_file_exits_2(train, out):
    with held(Files(out).lock, "what the test does"):
        status, lines = train()
    assert status == 2
    assert f"the training of {out} is in use by process {os.getpid()}" in lines[-1] and "give another --out" in lines[-1]
    assert train()[0] == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_saves_second_does_not(train, out, monkeypatch, request, number, status):
    step, times = Trainer.step, 1

    def interrupted(self, x_0):
        step(self, x_0)
        for _ in range(times):
            signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "step", interrupted)
    own_ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, own_ctrl_c))
    former = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    found, lines = train()
    assert found == status
    assert lines[-1].startswith(f"stopped by {number.name}, 4 images seen; saved")
    assert state_of(out)["images_seen"] == 4
    times = 2
    found, lines = train()
    assert found == status
    assert lines[-1] == train_base_model.STOPPED
    assert state_of(out)["images_seen"] == 4
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == former


def test_ignored_ctrl_c_stays_ignored(train, out, monkeypatch, request):
    own_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, own_ctrl_c))
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x_0: (step(self, x_0), signal.raise_signal(signal.SIGINT)))
    assert train()[0] == 0
    assert state_of(out)["images_seen"] == 8


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_process_group_keeps_workers_alive(train, out, monkeypatch, number):
    step = Trainer.step

    def signalled(self, x_0):
        step(self, x_0)
        assert multiprocessing.active_children()
        for reader in multiprocessing.active_children():
            os.kill(reader.pid, number)

    monkeypatch.setattr(Trainer, "step", signalled)
    assert train("--workers", 1, "--total_images", 40)[0] == 0
    assert state_of(out)["images_seen"] == 40


def test_minutes_end_a_training_early(train, out, monkeypatch):
    step = Trainer.step

    def slow(self, x_0):
        step(self, x_0)
        self.seconds += 60

    monkeypatch.setattr(Trainer, "step", slow)
    assert train("--minutes", 1.5, "--total_images", 400)[0] == 0
    assert state_of(out)["images_seen"] == 8


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(n): the next n files of tensors find no room."""
    save, left = torch.save, [0]

    def saved(contents, path):
        if left[0]:
            left[0] -= 1
            Path(path).write_bytes(b"half of i")
            raise RuntimeError("[enforce fail] unexpected pos 64 vs 0")
        save(contents, path)

    monkeypatch.setattr(torch, "save", saved)
    return lambda n: left.__setitem__(0, n)


def test_full_disk_is_one_line_and_keeps_old_state(train, error, out, full_disk):
    train()
    full_disk(1)
    assert f"{out}.state: " in error("--total_images", 12)
    assert state_of(out)["images_seen"] == 8


def test_temporarily_full_disk_does_not_end_training(train, out, full_disk):
    full_disk(1)
    status, lines = train("--save_minutes", 0)
    assert status == 0
    assert len([line for line in lines if line.endswith("the previous save is kept, and training continues")]) == 1
    assert state_of(out)["images_seen"] == 8


def test_nan_weights_are_not_saved(train, error, out, monkeypatch):
    train()
    step = Trainer.step

    def exploding(self, x_0):
        step(self, x_0)
        self.loss = torch.tensor(float("nan"))

    monkeypatch.setattr(Trainer, "step", exploding)
    assert "the loss is not finite after" in error("--total_images", 12)
    assert state_of(out)["images_seen"] == 8


def test_compiler_that_fails_is_one_line(error, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no C++ compiler")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda unet: compile(unet, backend=failing))
    assert error("--compile").endswith("leave --compile out")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lr", "0"], "flags: lr 0.0: must be above 0"),
        (["--lr", "fast"], "argument --lr: invalid float value"),
        (["--betas", "0.9", "1"], "betas 1.0: must be 0 or more and below 1"),
        (["--snr_bounds", "3", "1", "--loss_weighting", "snr"], "--snr_bounds 3.0 1.0: give the smaller one first"),
        (["--p2_gamma", "1"], "--p2_gamma has no effect with --loss_weighting simple"),
        (["--snr_power", "1", "--loss_weighting", "p2"], "--snr_power has no effect with --loss_weighting p2"),
        (["--images_seen", "4"], "--images_seen is the number of images that --init was trained on"),
        (["--images_seen", "8", "--init", "w.pt"], "--total_images 8: must be more than --images_seen 8"),
        (["--init", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--images", "nowhere"], "nowhere is not a folder of images"),
        (["--config", "nowhere"], "--config nowhere: no such file"),
        (["--device", "abacus"], "--device abacus is not available"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--out", "/dev/null/w.pt"], "/dev/null"),
        (["--out", "."], "is a folder"),
    ],
)
def test_errors_are_one_line(error, flags, told):
    assert told in error(*flags)


def test_weights_of_another_network_are_refused(error, tmp_path):
    trainer = trained(load_config(write_config(tmp_path / "wide.yml", ch=16)), 0)
    torch.save(trainer.averaged_weights(), tmp_path / "wide.pt")
    assert f"{tmp_path / 'wide.pt'} does not fit the U-Net of tiny.yml" in error("--init", tmp_path / "wide.pt")
