"""The plain trajectories that training keeps: in memory, on disk, in half precision, across runs."""

from pathlib import Path

import pytest
import torch
from tiny_world import SMILE, directions, tensors_equal

from asyrp import process, training
from utils.errors import UserError
from asyrp.data.pairs import Batch
from asyrp.origin import PlainTrajectories

TRAIN = ("--run_train", *SMILE, "--do_test", "0", "--l1_loss_w", "1")


def batch(*indices):
    x_T = torch.stack([torch.full((3, 4, 4), float(i)) for i in indices])
    return Batch(list(indices), [f"{i}.png" for i in indices], x_T, x_T)


def trajectories(*indices, steps=2):
    """P_plain (B, steps, 3, 4, 4) of images, unlike each other."""
    return torch.stack([torch.arange(steps * 48).view(steps, 3, 4, 4) / 7 + i for i in indices])


ONE = trajectories(0).nbytes


def test_memory_up_to_the_budget_and_no_more():
    plain = PlainTrajectories(ONE + 1)
    plain.put(batch(5, 7), trajectories(5, 7))
    assert torch.equal(plain.get(batch(5), 2), trajectories(5))
    assert plain.get(batch(7), 2) is plain.get(batch(5, 7), 2) is None


def test_beyond_the_budget_on_disk(tmp_path):
    plain = PlainTrajectories(ONE, tmp_path / "kept")
    plain.put(batch(5, 7), trajectories(5, 7))
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert torch.equal(plain.get(batch(7, 5), 2), trajectories(7, 5))
    # Another run finds what is on disk, by the latent and not by the number.
    later = PlainTrajectories(0, tmp_path / "kept")
    assert torch.equal(later.get(batch(7)._replace(indices=[3]), 2), trajectories(7))
    assert later.get(batch(5), 2) is None


def test_half_precision_takes_half_the_room(tmp_path):
    plain = PlainTrajectories(ONE, tmp_path, torch.float16)
    plain.put(batch(1, 2, 3), trajectories(1, 2, 3))
    [file] = tmp_path.iterdir()
    assert torch.load(file, weights_only=True).dtype == torch.float16
    assert torch.allclose(plain.get(batch(1, 2, 3), 2).float(), trajectories(1, 2, 3), rtol=1e-3)


def test_a_longer_interval_serves_a_shorter_one_and_not_the_other_way_round(tmp_path):
    plain = PlainTrajectories(0, tmp_path)
    plain.put(batch(1), trajectories(1, steps=2))
    assert plain.get(batch(1), 3) is None
    plain.put(batch(1), trajectories(1, steps=3))
    plain.put(batch(1), trajectories(1, steps=2))
    assert torch.equal(plain.get(batch(1), 3), trajectories(1, steps=3))
    assert torch.equal(plain.get(batch(1), 2), trajectories(1, steps=3)[:, :2])


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(obj, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\); make room, or"):
        PlainTrajectories(0, tmp_path).put(batch(1), trajectories(1))


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


def files():
    return [path for folder in Path("precomputed").glob("*_origin4_*") for path in folder.iterdir()]


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
def test_where_the_trajectory_is_kept_changes_no_loss(run, passes, flags, second, written):
    assert run(*TRAIN, *flags, "--n_iter", "2") == 0
    assert passes() == 2 * (WALKED + second)
    assert len(files()) == written
    losses = Path("runs/smile_LC_CUSTOM_t999_ninv4_ngen4/losses.csv").read_text()
    assert run(*TRAIN, "--cache_origin", "off", "--n_iter", "2", "--retrain") == 0
    assert Path("runs/smile_LC_CUSTOM_t999_ninv4_ngen4/losses.csv").read_text() == losses


def test_a_single_epoch_keeps_nothing_by_itself(run, passes):
    assert run(*TRAIN, "--cache_origin_gib", "0") == 0
    assert files() == []


def test_a_killed_run_and_another_prompt_find_the_files(run, passes, monkeypatch):
    disk = ("--cache_origin", "disk")
    train_batch, calls = training.train_batch, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_batch(*args)

    monkeypatch.setattr(training, "train_batch", dying)
    assert run(*TRAIN, *disk) == 130
    assert (passes(), len(files())) == (WALKED, 1)
    assert run(*TRAIN, *disk) == 0
    assert (passes(), len(files())) == (FOUND + WALKED, 2)
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


def test_a_negative_budget(run):
    assert run.error(*TRAIN, "--cache_origin_gib", "-1") == "--cache_origin_gib -1.0: must be 0 or more"
