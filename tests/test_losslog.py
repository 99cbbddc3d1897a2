"""losses.csv and TensorBoard: what is kept when a training is stopped, goes on, or is done again."""

import sys
import time
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from asyrp.report.losslog import loss_log, read_losses
from asyrp.training import COLUMNS


@pytest.fixture
def events(monkeypatch):
    """TensorBoard, as far as the program calls it: [(folder, purge_step, {(tag, step): value})], one for each writer."""
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.scalars = {}
            written.append((folder.name, purge_step, self.scalars))

        def add_scalar(self, tag, value, step):
            self.scalars[tag, step] = value

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    return written


def log_epoch(folder, epoch, value=0.0, images=("a.png", "b.png")):
    """An epoch of batches of one image, over two timesteps; the losses are value, value + 1, ..., by timestep and column."""
    with loss_log(folder, epoch, len(images)) as record:
        for name in images:
            record([name], [999, 500], value + torch.arange(2.0 * len(COLUMNS)).view(2, -1))


def test_every_loss_of_every_step_can_be_read_back(tmp_path):
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1, value=0.25)
    rows = read_losses(tmp_path)
    steps = [("a.png", "999"), ("a.png", "500"), ("b.png", "999"), ("b.png", "500")]
    assert [(row["epoch"], row["image"], row["t"]) for row in rows] == [(e, *step) for e in "01" for step in steps]
    assert [float(rows[5][name]) for name in COLUMNS] == [5.25, 6.25, 7.25, 8.25, 9.25]


def test_an_epoch_that_was_stopped_is_logged_once(tmp_path):
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1)
    table = tmp_path / "losses.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-10])  # killed in the middle of epoch 1, and of a line
    assert len(read_losses(tmp_path)) == 7
    log_epoch(tmp_path, 1)
    assert table.read_bytes() == whole


def test_training_again_drops_what_came_later(tmp_path):
    for epoch in range(3):
        log_epoch(tmp_path, epoch)
    log_epoch(tmp_path, 0, value=7)
    assert [(row["epoch"], row["l1"]) for row in read_losses(tmp_path)] == [("0", "7"), ("0", "12")] * 2


def test_without_a_training_there_is_no_row(tmp_path):
    assert read_losses(tmp_path) == []


def test_tensorboard_gets_means_and_losses_by_timestep(tmp_path, events):
    log_epoch(tmp_path, 3)
    [(folder, purge_step, scalars)] = events
    assert (folder, purge_step) == ("tensorboard", 7)
    expected = {(f"loss/{name}", step): 2.5 + i for i, name in enumerate(COLUMNS) for step in (7, 8)}
    expected |= {(f"total_loss_at_t/{t}", step): value for t, value in (("0999", 4), ("0500", 9)) for step in (7, 8)}
    assert scalars == expected


def test_without_tensorboard_the_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log_epoch(tmp_path, 0)
    assert len(read_losses(tmp_path)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]


def test_real_tensorboard_shows_what_was_logged(tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    # TensorBoard reads its files in the order of the seconds they were begun in.
    monkeypatch.setattr(time, "time", partial(next, count(1_700_000_000)))
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1)
    log_epoch(tmp_path, 1, value=1)  # done again: TensorBoard forgets the first one
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss/l1")] == [(1, 2.5), (2, 2.5), (3, 3.5), (4, 3.5)]
