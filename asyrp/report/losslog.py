"""Log the losses of a training: one table per epoch, and trackers (see trackers.py).

Tables are <experiment's folder>/losses/epoch_<n>.csv, with the columns FIELDS and one row per optimiser step.
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
    """Yield the rows of all epochs in order, {field of FIELDS: str}, with the text of one epoch in memory at a time.

    The incomplete last line of a killed run is ignored. A damaged table is renamed with a warning and skipped.
    """
    for epoch, path in tables(folder).items():
        try:
            lines = _lines(path)
            for row in csv.reader(lines, strict=True):
                _check(row, epoch)
        except (OSError, ValueError, csv.Error) as error:
            log.warning("%s is damaged (%s): it was skipped and renamed to %s.damaged", path, one_line(error), path.name)
            with suppress(OSError):
                set_aside(path)
            continue
        for row in csv.reader(lines):
            yield dict(zip(FIELDS, row, strict=True))


def _lines(path):
    """The complete lines of a table, without its header. Raises ValueError if it is not a table of losses."""
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
        raise ValueError(f"a row belongs to epoch {int(number)}")
    int(t)
    for value in values:
        float(value)


@contextmanager
def loss_log(folder, epoch, n_images, writers=()):
    """Log one epoch of n_images images -> record(names, timesteps, losses), to be called after each batch.

    names: of the batch's images; timesteps: list of ints; losses: tensor (len(timesteps), len(COLUMNS)). writers: of trackers;
    their steps count images. Tables that an earlier run wrote for this epoch and later ones are overwritten or deleted.
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
            writer.flush()  # a later epoch may be interrupted


class Rows:
    """A CSV file written row by row. If it cannot be written, it is given up with a warning, and training continues."""

    def __init__(self, path):
        self.path, self.stream = path, None
        with self._giving_up():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = ordinary(path).open("w", encoding="utf-8", newline="")

    def write(self, rows):
        if self.stream:
            with self._giving_up():
                csv.writer(self.stream).writerows(rows)
                self.stream.flush()  # so that a killed run leaves complete rows

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
            log.warning("losses cannot be written, training continues without them: %s", line_of(error))
            stream, self.stream = self.stream, None
            with suppress(OSError):
                if stream:
                    stream.close()
