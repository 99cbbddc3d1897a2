"""The plain trajectories that training keeps: in memory, on disk, in half precision, across runs."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_world import SMILE, directions, losses, stored, tensors_equal

from asyrp import process, training
from asyrp.data.pairs import Batch
from asyrp.origin import PlainTrajectories, announce
from asyrp.store import Store, trajectory_key

TRAIN = ("--run_train", *SMILE, "--do_test", "0", "--l1_loss_w", "1")


def batch(*indices):
    x_T = torch.stack([torch.full((3, 4, 4), float(i)) for i in indices])
    return Batch(list(indices), [f"{i}.png" for i in indices], x_T, x_T)


def trajectories(*indices, steps=2):
    """P_plain (B, steps, 3, 4, 4) of images, unlike each other."""
    return torch.stack([torch.arange(steps * 48).view(steps, 3, 4, 4) / 7 + i for i in indices])


ONE = trajectories(0).nbytes
MODEL = SimpleNamespace(identity="ddpm", precision="fp32")


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """on_disk(bytes of memory) -> PlainTrajectories with the store in the current folder."""
    monkeypatch.chdir(tmp_path)

    def new(ram=0, disk=10**9, dtype=torch.float32):
        return PlainTrajectories(ram, Store(), partial(trajectory_key, MODEL, [0, 999], dtype), disk, dtype)

    return new


def test_ram_budget_is_respected():
    plain = PlainTrajectories(ONE + 1)
    plain.put(batch(5, 7), trajectories(5, 7))
    assert torch.equal(plain.get(batch(5), 2), trajectories(5))
    assert plain.get(batch(7), 2) is plain.get(batch(5, 7), 2) is None


def test_beyond_the_budget_on_disk(on_disk):
    plain = on_disk(ONE)
    plain.put(batch(5, 7), trajectories(5, 7))
    assert len(stored("trajectory")) == 1
    assert torch.equal(plain.get(batch(7, 5), 2), trajectories(7, 5))
    # Another run finds what is on disk, by the latent and not by the number.
    later = on_disk()
    assert torch.equal(later.get(batch(7)._replace(indices=[3]), 2), trajectories(7))
    assert later.get(batch(5), 2) is None


def test_half_precision_takes_half_the_space(on_disk):
    plain = on_disk(ONE, dtype=torch.float16)
    plain.put(batch(1, 2, 3), trajectories(1, 2, 3))
    [found] = stored("trajectory").values()
    assert found["P_plain"].dtype == torch.float16
    assert torch.allclose(plain.get(batch(1, 2, 3), 2).float(), trajectories(1, 2, 3), rtol=1e-3)


def test_longer_trajectory_serves_a_shorter_one_only(on_disk):
    plain = on_disk()
    plain.put(batch(1), trajectories(1, steps=2))
    assert plain.get(batch(1), 3) is None
    plain.put(batch(1), trajectories(1, steps=3))
    plain.put(batch(1), trajectories(1, steps=2))
    assert torch.equal(plain.get(batch(1), 3), trajectories(1, steps=3))
    assert torch.equal(plain.get(batch(1), 2), trajectories(1, steps=3)[:, :2])


def test_disk_budget_is_respected_and_reported_once(on_disk, caplog):
    plain = on_disk(disk=2 * ONE + 100)
    plain.put(batch(1, 2, 3, 4), trajectories(1, 2, 3, 4))
    assert len(stored("trajectory")) == 2
    assert plain.get(batch(1, 2), 2) is not None
    assert plain.get(batch(3), 2) is None
    assert caplog.text.count("--cache_origin_disk_gib is used up; you can delete precomputed/trajectory") == 1


def test_disk_budget_includes_earlier_runs(on_disk):
    on_disk().put(batch(1, 2), trajectories(1, 2))
    for _ in range(2):
        later = on_disk(disk=4 * ONE)
        later.put(batch(1, 2, 3, 4, 5, 6), trajectories(1, 2, 3, 4, 5, 6))
    assert len(stored("trajectory")) == 3


def test_full_disk_stops_only_the_cache(on_disk, caplog):
    Path("precomputed").write_text("in the way")
    plain = on_disk()
    plain.put(batch(1, 2), trajectories(1, 2))
    assert plain.get(batch(1), 2) is None
    assert caplog.text.count("no more plain trajectories are cached, later epochs recompute the rest") == 1
    assert caplog.text.count("precomputed/trajectory") == caplog.text.count("Not a directory") == 1


def test_damaged_trajectory_is_recomputed(on_disk, caplog):
    on_disk().put(batch(1), trajectories(1))
    [key] = stored("trajectory")
    path = Store().path("trajectory", key)
    path.write_bytes(path.read_bytes()[:-5])
    plain = on_disk()
    assert plain.get(batch(1), 2) is None
    assert caplog.text.count("is damaged") == 1
    plain.put(batch(1), trajectories(1))
    assert torch.equal(plain.get(batch(1), 2), trajectories(1))


@pytest.mark.parametrize(
    ("ram", "disk", "said"),
    [
        (10**12, 10**12, "1000 images in memory (16 GB)"),
        (10**9, 2 * 10**9, "63 images in memory (0.99 GB), 127 images on disk (2 GB), 810 images recomputed in each epoch"),
        (0, 0, "1000 images recomputed in each epoch"),
    ],
)
def test_cache_usage_is_logged(caplog, ram, disk, said):
    """1,000 images of 256 px in 20 steps: 15.7 MB each."""
    with caplog.at_level(logging.INFO):
        announce(1000, 20, 256, ram, disk, torch.float32)
    assert f"plain trajectories, 15.7 MB per image: {said}" in caplog.text


# ---- whole runs ---------------------------------------------------------------------------------------------------------


WALKED, FOUND = 3, 2  # frozen passes of an image over two steps: the trajectories share the first one


@pytest.fixture
def passes(monkeypatch):
    """passes() -> frozen passes of training since the last call."""
    seen, frozen_branch = [], process.frozen_branch
    monkeypatch.setattr(process, "frozen_branch", lambda *args: seen.append(1) or frozen_branch(*args))

    def since():
        found = len(seen)
        seen.clear()
        return found

    return since


@pytest.mark.parametrize(
    ("flags", "second", "written"),
    [
        ((), FOUND, 0),
        (("--cache_origin_gib", "0"), FOUND, 2),
        (("--cache_origin", "disk"), FOUND, 2),
        (("--cache_origin", "ram"), FOUND, 0),
        (("--cache_origin", "ram", "--cache_origin_gib", "0"), WALKED, 0),
        (("--cache_origin", "off"), WALKED, 0),
    ],
)
def test_cache_location_does_not_change_losses(run, results, passes, flags, second, written):
    assert run(*TRAIN, *flags, "--n_iter", "2") == 0
    assert passes() == 2 * (WALKED + second)
    assert len(stored("trajectory")) == written
    rows = losses(results)
    assert run(*TRAIN, "--cache_origin", "off", "--n_iter", "2", "--retrain") == 0
    assert losses(results) == rows


def test_single_epoch_caches_nothing_by_default(run, passes):
    assert run(*TRAIN, "--cache_origin_gib", "0") == 0
    assert stored("trajectory") == {}


def test_trajectories_are_reused_after_kill_and_for_other_prompts(run, passes, monkeypatch):
    disk = ("--cache_origin", "disk")
    train_batch, calls = training.train_batch, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_batch(*args)

    monkeypatch.setattr(training, "train_batch", dying)
    assert run(*TRAIN, *disk) == 130
    assert (passes(), len(stored("trajectory"))) == (WALKED, 1)
    assert run(*TRAIN, *disk) == 0
    assert (passes(), len(stored("trajectory"))) == (FOUND + WALKED, 2)
    assert run(*TRAIN, *disk, "--edit_attr", "sad", "--exp", "runs/sad") == 0
    assert passes() == 2 * FOUND
    # Other steps have another trajectory.
    assert run(*TRAIN, *disk, "--n_train_step", "5", "--exp", "runs/five") == 0
    assert passes() == 2 * WALKED


def test_in_half_precision_every_epoch_and_run_sees_the_same_numbers(run):
    half = ("--cache_origin", "disk", "--cache_origin_half", "--retrain")
    found = []
    for flags in (half, half, ("--retrain",)):
        # Counted from P_plain: L1's gradient is a sign, which rounding seldom turns.
        assert run(*TRAIN, "--clip_source", "origin", *flags) == 0
        found.append(directions())
    assert tensors_equal(found[0], found[1])
    assert not tensors_equal(found[0], found[2])
