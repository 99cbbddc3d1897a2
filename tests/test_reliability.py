"""A run killed at any moment resumes, and processes can share a cache."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_world import TRAIN, directions, losses, stored, tensors_equal

from asyrp.store import Store
from utils import tensors

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


@pytest.mark.subprocess
@pytest.mark.parametrize(("where", "n"), [("invert", 3), ("save_file", 3)])
def test_resume_after_kill_while_inverting(run, tiny, tmp_path, monkeypatch, where, n):
    """Finished latents are kept, partial files are ignored, and the result equals that of an uninterrupted run."""
    killed(tiny, INVERT, where, n)
    done = {key: Store().path("latent", key).stat().st_mtime_ns for key in stored("latent")}
    assert len(done) == 2
    assert len(list(Path("precomputed/latent").glob("*/.*"))) == (where == "save_file")
    assert run(*INVERT) == 0
    assert all(Store().path("latent", key).stat().st_mtime_ns == then for key, then in done.items())
    kept = stored("latent")
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir("fresh")
    assert run(*INVERT) == 0
    assert tensors_equal(kept, stored("latent"))


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("where", "n", "left"),
    [
        ("train_batch", 4, ["_0.pth"]),  # in the second epoch
        ("save", 2, ["_0.pth"]),  # the first checkpoint, half of the second
    ],
)
def test_resume_after_kill_while_training(run, tiny, results, where, n, left):
    killed(tiny, LEARN, where, n)
    assert [name[-6:] for name in directions()] == left
    half = list(Path("checkpoint").glob(".*.pth.*"))
    assert len(half) == (where == "save")
    assert run(*LEARN) == 0
    resumed, rows = directions(), losses(results)
    assert run(*LEARN, "--retrain", "1") == 0
    assert tensors_equal(resumed, directions())
    assert rows == losses(results)


def test_temporary_files_of_killed_writers_are_deleted(tmp_path):
    target = tmp_path / "direction.pth"
    old, new, other = (tmp_path / name for name in (".direction.pth.old", ".direction.pth.new", ".another.pth.old"))
    for path, age in ((old, 7200), (new, 0), (other, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    tensors.save({}, target)
    assert [path.exists() for path in (target, old, new, other)] == [True, False, True, True]


@pytest.mark.subprocess
def test_two_processes_on_one_store(run, tiny, tmp_path, monkeypatch):
    both = [start(tiny, INVERT), start(tiny, INVERT)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    shared = stored("latent")
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir("alone")
    assert run(*INVERT) == 0
    assert tensors_equal(shared, stored("latent"))


@pytest.mark.subprocess
def test_two_processes_do_not_train_one_experiment(run, tiny):
    """The second one says who is at it, and the first one's direction is that of a run alone."""
    long = (*TRAIN, "--n_train_img", "4", "--n_iter", "8")
    first = start(tiny, long)
    while not directions():
        assert first.poll() is None
        time.sleep(0.05)
    said = run.error(*long)
    assert "the experiment smile_LC_CUSTOM_t999_ninv4_ngen4 is in use by process" in said
    assert "wait for it, or give another --exp" in said
    assert first.wait(timeout=120) == 0
    assert len(directions()) == 8
    assert run(*long) == 0
