"""Trackers of a training's losses: TensorBoard, wandb, trackio. None of them need be installed."""

import sys
import time
from functools import partial
from itertools import count
from types import ModuleType, SimpleNamespace

import pytest
from test_losslog import log_epoch
from tiny_world import NAME, TRAIN

from asyrp.report import trackers
from asyrp.report.losslog import read_losses
from asyrp.training import COLUMNS
from utils.errors import UserError


@pytest.fixture
def experiment(tmp_path):
    return SimpleNamespace(name="smile", folder=tmp_path)


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

        def flush(self):
            pass

        def close(self):
            self.scalars["closed"] = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    return written


@pytest.fixture
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


class Library(ModuleType):
    """wandb or trackio, as far as the program calls it. runs: (arguments of `init`, [(step, values)]) of each."""

    class Error(Exception):
        pass

    def __init__(self, name):
        super().__init__(name)
        self.runs, self.finished, self.refuses = [], 0, None

    def init(self, **about):
        if self.refuses:
            raise self.refuses
        logged = []
        self.runs.append((about, logged))
        return SimpleNamespace(log=lambda values, step: logged.append((step, dict(values))), finish=self.finish)

    def finish(self):
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch, no_tensorboard):
    found = Library(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    return found


def track(experiment, epochs, kind=None, settings=None, **more):
    """The losses of a training over these epochs, of two images and two timesteps."""
    with trackers.opened(kind, experiment, settings or {}, 2 * epochs[0] + 1) as writers:
        for epoch in epochs:
            log_epoch(experiment.folder, epoch, writers=writers, **more)


def expected(steps):
    """{step: {tag: value}} of what `log_epoch` logs: means over two timesteps, and the total at each."""
    means = {f"loss/{name}": 2.5 + i for i, name in enumerate(COLUMNS)}
    return {step: means | {"total_loss_at_t/0999": 4, "total_loss_at_t/0500": 9} for step in steps}


# ---- TensorBoard ------------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_means_and_losses_by_timestep(experiment, events):
    track(experiment, [3, 4])
    [(folder, purge_step, scalars)] = events
    assert (folder, purge_step, scalars.pop("closed")) == ("tensorboard", 7, True)
    steps = expected([7, 8, 9, 10]).items()
    assert scalars == {(tag, step): value for step, values in steps for tag, value in values.items()}


def test_without_tensorboard_the_table_is_written(experiment, no_tensorboard):
    track(experiment, [0])
    assert len(list(read_losses(experiment.folder))) == 4
    assert [path.name for path in experiment.folder.iterdir()] == ["losses"]


def test_real_tensorboard_shows_what_was_logged(experiment, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    # TensorBoard reads its files in the order of the seconds they were begun in.
    monkeypatch.setattr(time, "time", partial(next, count(1_700_000_000)))
    track(experiment, [0, 1])
    track(experiment, [1], value=1)  # done again: TensorBoard forgets the first one
    shown = accumulator.EventAccumulator(str(experiment.folder / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss/l1")] == [(1, 2.5), (2, 2.5), (3, 3.5), (4, 3.5)]


# ---- wandb and trackio ------------------------------------------------------------------------------------------------------


def test_training_is_a_run_whose_steps_are_sent_whole(experiment, library):
    track(experiment, [0, 1], library.__name__, {"lr_training": 0.2})
    [(about, logged)] = library.runs
    assert about == {"project": "asyrp", "name": "smile", "group": "smile", "config": {"lr_training": 0.2}}
    assert logged == list(expected([1, 2, 3, 4]).items())
    assert library.finished == 1


def test_interrupted_training_flushes_and_ends_its_run(experiment, library):
    with pytest.raises(KeyboardInterrupt), trackers.opened(library.__name__, experiment, {}, 1) as [writer]:
        writer.add_scalar("loss/l1", 0.5, 1)
        raise KeyboardInterrupt
    assert library.runs[0][1] == [(1, {"loss/l1": 0.5})]
    assert library.finished == 1


def test_refusing_tracker_is_a_one_line_error(experiment, library):
    for refusal in (Library.Error("No API key\nconfigured"), OSError("no network")):
        library.refuses = refusal
        with pytest.raises(UserError, match=rf"^--track {library.__name__}: cannot start a run \([Nn]o .*\): log in, or"):
            trackers.tracker(library.__name__, experiment, {})


def test_tensorboard_and_another_side_by_side(experiment, library, events):
    track(experiment, [0], library.__name__)
    assert library.runs[0][1] == list(expected([1, 2]).items())
    assert len(events) == 1


def test_main_tracks_a_training(run, tmp_path, library):
    assert run(*TRAIN, "--n_iter", "2", "--track", library.__name__) == 0
    [(about, logged)] = library.runs
    assert about["name"] == NAME
    assert about["config"]["n_iter"] == 2 and about["config"]["model"].startswith("ddpm-16-")
    means = {}
    for row in read_losses(tmp_path / "runs" / NAME):
        means.setdefault((row["epoch"], row["image"]), []).append(float(row["total"]))
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert [values["loss/total"] for _, values in logged] == pytest.approx([sum(t) / len(t) for t in means.values()], rel=1e-4)


def test_nothing_is_tracked_by_default(run, library):
    assert run(*TRAIN) == 0
    assert not library.runs


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_missing_tracker_is_reported_before_computing(run, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    said = run.error(*TRAIN, "--track", kind)
    assert said == f"--track {kind}: {kind} is not installed: pip install {kind}"
    assert not (tmp_path / "precomputed").exists()


def test_only_a_training_is_tracked(run):
    assert run.error("--run_test", "--track", "wandb").startswith("--track follows a training: add --run_train")
