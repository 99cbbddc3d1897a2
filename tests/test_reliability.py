"""A run killed at any moment goes on where it was, and processes that share a cache do each other no harm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_world import TRAIN, directions, losses, tensors_equal

from asyrp import checkpoints

TESTS = Path(__file__).parent
INVERT = ("--just_precompute", "--n_precomp_img", "4", "--bs_precompute", "1", "--do_test", "0")
LEARN = (*TRAIN, "--n_train_img", "2", "--n_iter", "3")


def start(tiny, flags, where="nowhere", n=0):
    """Run main.py in a process of its own, in the current folder."""
    command = [sys.executable, TESTS / "victim.py", tiny.folder, where, str(n), *flags]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    # With as many threads as this process: another number gives other last digits.
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL)


def killed(tiny, flags, where, n):
    assert start(tiny, flags, where, n).wait() == -signal.SIGKILL


def latents(folder="precomputed"):
    """{file name: latent} of the cache; every file is whole."""
    return {path.name: torch.load(path, weights_only=True) for path in Path(folder).glob("*/*.pt")}


def test_killed_while_inverting(run, tiny, tmp_path, monkeypatch):
    killed(tiny, INVERT, "invert", 3)
    done = {path: path.stat().st_mtime_ns for path in Path("precomputed").glob("*/*.pt")}
    assert len(done) == 2
    assert run(*INVERT) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    kept = latents()
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir("fresh")
    assert run(*INVERT) == 0
    assert tensors_equal(kept, latents())


@pytest.mark.parametrize(
    ("where", "n", "left"),
    [
        ("train_batch", 4, ["_0.pth"]),  # in the second epoch
        ("save", 4, ["_0.pth"]),  # two latents, the first checkpoint, half of the second
    ],
)
def test_killed_while_training(run, tiny, results, where, n, left):
    killed(tiny, LEARN, where, n)
    assert [name[-6:] for name in directions()] == left
    half = list(Path("checkpoint").glob(".*"))
    assert len(half) == (where == "save")
    assert run(*LEARN) == 0
    resumed, rows = directions(), losses(results)
    assert run(*LEARN, "--retrain", "1") == 0
    assert tensors_equal(resumed, directions())
    assert rows == losses(results)


def test_what_a_killed_writer_left_is_swept_up(tmp_path):
    target = tmp_path / "direction.pth"
    old, new, other = (tmp_path / name for name in (".direction.pth.old", ".direction.pth.new", ".another.pth.old"))
    for path, age in ((old, 7200), (new, 0), (other, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    checkpoints.save({}, target)
    assert [path.exists() for path in (target, old, new, other)] == [True, False, True, True]


def test_two_processes_on_one_cache(run, tiny, tmp_path, monkeypatch):
    both = [start(tiny, INVERT), start(tiny, INVERT)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    shared = latents()
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir("alone")
    assert run(*INVERT) == 0
    assert tensors_equal(shared, latents())
