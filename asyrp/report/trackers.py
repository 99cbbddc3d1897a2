"""Where the losses of a training can be watched: TensorBoard, wandb and trackio, all of them written to like TensorBoard."""

import importlib
from contextlib import ExitStack, closing, contextmanager

from utils.errors import UserError
from utils.text import one_line

PROJECT = "asyrp"
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def library(kind):
    """The module of a tracker. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(LIBRARIES[kind])
    except ImportError as error:
        raise UserError(f"--track {kind}: the library {kind} is not installed; pip install {kind}") from error


def tracker(kind, experiment, settings, step=1):
    """A writer for the losses of one training: `add_scalar(tag, value, step)`, `flush` and `close`, as TensorBoard's.

    kind: "tensorboard", which writes into the experiment's folder, or "wandb" or "trackio", where it becomes a run of the
    project PROJECT. experiment: an Experiment. settings: plain data that these two show with the run. step: the first that will
    be logged; what TensorBoard has of it and of later ones, from a training that was stopped, is taken back.
    Raises UserError where the library is not installed, and where it begins no run.
    """
    module = library(kind)
    if kind == "tensorboard":
        return module.SummaryWriter(experiment.folder / "tensorboard", purge_step=step)
    refusals = (OSError, RuntimeError, ValueError, getattr(module, "Error", OSError))
    try:
        # A training that goes on is a run of its own, beside the first one.
        return Run(module.init(project=PROJECT, name=experiment.name, group=experiment.name, config=settings))
    except refusals as error:
        raise UserError(f"--track {kind}: it begins no run ({one_line(error)}); log in there, or leave the flag out") from error


@contextmanager
def opened(kind, experiment, settings, step):
    """The writers of a training, open until the block ends -> list: TensorBoard's where that is installed, and that of `kind`,
    or None. The rest: see `tracker`."""
    kinds = [kind] if kind else []
    try:
        library("tensorboard")
        kinds.append("tensorboard")
    except UserError:  # nobody asked for it
        pass
    with ExitStack() as stack:
        yield [stack.enter_context(closing(tracker(each, experiment, settings, step))) for each in kinds]


class Run:
    """A run of wandb or trackio, which take all values of a step at once."""

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
