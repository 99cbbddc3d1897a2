"""The losses of a training: a table for each epoch, and what trackers are told (see trackers.py).

The tables lie under <experiment's folder>/losses/, as epoch_<n>.csv with the columns FIELDS, a row for each optimiser step.
"""

import csv
import logging
import re
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from asyrp.training import COLUMNS
from utils.files import naming, ordinary, set_aside
from utils.terminal import line_of
from utils.text import one_line, printable

log = logging.getLogger(__name__)

FOLDER = "losses"
FIELDS = ("epoch", "image", "t", *COLUMNS)


def tables(folder):
    """{epoch: path of its table}, ascending."""
    found = {path: re.fullmatch(r"epoch_(\d+)\.csv", path.name) for path in Path(folder, FOLDER).glob("epoch_*.csv")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def read_losses(folder):
    """Yield the rows of all epochs in order, {field of FIELDS: str}; no more than the text of one epoch is held.

    A line that a killed run left unfinished is no row. A damaged table is renamed, with a line, and left out.
    """
    for epoch, path in tables(folder).items():
        try:
            lines = _lines(path)
            for row in csv.reader(lines, strict=True):
                _check(row, epoch)
        except (OSError, ValueError, csv.Error) as error:
            log.warning("%s is damaged (%s): it is left out, and renamed to %s.damaged", path, one_line(error), path.name)
            with suppress(OSError):
                set_aside(path)
            continue
        for row in csv.reader(lines):
            yield dict(zip(FIELDS, row, strict=True))


def _lines(path):
    """The finished lines of a table, without its header. Raises ValueError for a file that is no such table."""
    with ordinary(path).open(encoding="utf-8", newline="") as stream:
        header, *lines = stream.readlines() or [""]
    if header.rstrip("\r\n") != ",".join(FIELDS):
        raise ValueError("it has another header" if header else "it is empty")
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]


def _check(row, epoch):
    if len(row) != len(FIELDS):
        raise ValueError(f"a row has {len(row)} values, not {len(FIELDS)}")
    number, _, t, *values = row
    if int(number) != epoch:
        raise ValueError(f"a row is of epoch {int(number)}")
    int(t)
    for value in values:
        float(value)


@contextmanager
def loss_log(folder, epoch, n_images, writers=()):
    """Log one epoch of so many images -> record(names, timesteps, losses), to be called after each batch.

    names: of the batch's images; timesteps: list of ints; losses: tensor (len(timesteps), len(COLUMNS)). writers: of trackers;
    their steps count images. What an earlier run wrote of this epoch and of later ones into tables is dropped: it was stopped
    there, or is being done again.
    """
    for later, path in tables(folder).items():
        if later > epoch:
            path.unlink()
    table, seen = Path(folder, FOLDER, f"epoch_{epoch}.csv"), epoch * n_images
    rows = Rows(table)
    rows.write([FIELDS])
    with closing(rows):

        def record(names, timesteps, losses):
            nonlocal seen
            seen += len(names)
            images = printable(" ".join(names))
            rows.write(
                [epoch, images, t, *(f"{value:.6g}" for value in row)]
                for t, row in zip(timesteps, losses.tolist(), strict=True)
            )
            for writer in writers:
                for name, value in zip(COLUMNS, losses.mean(0).tolist(), strict=True):
                    writer.add_scalar(f"loss/{name}", value, seen)
                for t, value in zip(timesteps, losses[:, COLUMNS.index("total")].tolist(), strict=True):
                    writer.add_scalar(f"total_loss_at_t/{t:04d}", value, seen)

        yield record
        for writer in writers:
            writer.flush()  # a later epoch may be killed


class Rows:
    """A table that is written as it grows. One that cannot be written is given up with a line: training matters more."""

    def __init__(self, path):
        self.path, self.stream = path, None
        with self._giving_up():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = ordinary(path).open("w", encoding="utf-8", newline="")

    def write(self, rows):
        if self.stream:
            with self._giving_up():
                csv.writer(self.stream).writerows(rows)
                self.stream.flush()  # a killed run leaves whole rows

    def close(self):
        if self.stream:
            with self._giving_up():
                self.stream.close()

    @contextmanager
    def _giving_up(self):
        try:
            with naming(self.path):
                yield
        except OSError as error:
            log.warning("losses cannot be written, and training goes on without them: %s", line_of(error))
            stream, self.stream = self.stream, None
            with suppress(OSError):
                if stream:
                    stream.close()
