"""Trackers for the losses of a training: TensorBoard, wandb and trackio, all with the interface of TensorBoard."""

import importlib
from contextlib import ExitStack, closing, contextmanager

from utils.errors import UserError
from utils.text import one_line

PROJECT = "asyrp"
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def library(kind):
    """The module of a tracker. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(LIBRARIES[kind])
    except ImportError as error:
        raise UserError(f"--track {kind}: {kind} is not installed: pip install {kind}") from error


def tracker(kind, experiment, settings, step=1):
    """A writer for the losses of one training: `add_scalar(tag, value, step)`, `flush` and `close`, as in TensorBoard.

    kind: "tensorboard", which writes to the experiment's folder, or "wandb" or "trackio", which create a run in the project
    PROJECT. experiment: an Experiment. settings: plain data to store with the run. step: the first that will be logged;
    TensorBoard discards this and later steps of an interrupted training.
    Raises UserError if the library is not installed or cannot start a run.
    """
    module = library(kind)
    if kind == "tensorboard":
        return module.SummaryWriter(experiment.folder / "tensorboard", purge_step=step)
    refusals = (OSError, RuntimeError, ValueError, getattr(module, "Error", OSError))
    try:
        # A resumed training is a separate run in the same group.
        return Run(module.init(project=PROJECT, name=experiment.name, group=experiment.name, config=settings))
    except refusals as error:
        raise UserError(f"--track {kind}: cannot start a run ({one_line(error)}): log in, or leave the flag out") from error


@contextmanager
def opened(kind, experiment, settings, step):
    """The writers of a training, closed at the end of the block -> list: of `kind` (or None), and TensorBoard if it is
    installed. The other arguments are those of `tracker`."""
    kinds = [kind] if kind else []
    try:
        library("tensorboard")
        kinds.append("tensorboard")
    except UserError:  # optional
        pass
    with ExitStack() as stack:
        yield [stack.enter_context(closing(tracker(each, experiment, settings, step))) for each in kinds]


class Run:
    """Adapter for a run of wandb or trackio, which log all values of a step at once."""

    def __init__(self, run):
        self.run, self.step, self.values = run, None, {}

    def add_scalar(self, tag, value, step):
        if step != self.step:
            self.flush()
        self.step, self.values[tag] = step, value

    def flush(self):
        if self.values:
            self.run.log(self.values, step=self.step)
        self.values = {}

    def close(self):
        self.flush()
        self.run.finish()
