"""The losses of a training: losses.csv in the experiment's folder, and TensorBoard events where TensorBoard is installed."""

import csv
from contextlib import contextmanager, nullcontext
from pathlib import Path

from asyrp.training import COLUMNS
from utils.files import replacing

FIELDS = ("epoch", "image", "t", *COLUMNS)


def read_losses(folder):
    """The rows of <folder>/losses.csv, one for each optimiser step -> list of {field of FIELDS: str}; [] without the file.

    A line that a killed run left unfinished is no row.
    """
    table = Path(folder) / "losses.csv"
    if not table.exists():
        return []
    with table.open(newline="") as stream:
        return list(csv.DictReader(line for line in stream if line.endswith("\n")))


@contextmanager
def loss_log(folder, epoch, n_images):
    """Log one epoch of so many images -> record(names, timesteps, losses), to be called after each batch.

    names: of the batch's images; timesteps: list of ints; losses: tensor (len(timesteps), len(COLUMNS)). In TensorBoard the x
    axis counts images. What an earlier run logged of this epoch and of later ones is dropped: it was stopped there, or is being
    done again.
    """
    table, seen = Path(folder) / "losses.csv", epoch * n_images
    kept = [row for row in read_losses(folder) if int(row["epoch"]) < epoch]
    with replacing(table) as beside, beside.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(kept)
    events_of_epoch = event_writer(Path(folder) / "tensorboard", seen + 1) or nullcontext()
    with table.open("a", newline="") as stream, events_of_epoch as events:
        writer = csv.writer(stream)

        def record(names, timesteps, losses):
            nonlocal seen
            seen += len(names)
            for t, row in zip(timesteps, losses.tolist(), strict=True):
                writer.writerow([epoch, " ".join(names), t, *(f"{value:.6g}" for value in row)])
            if events:
                for name, value in zip(COLUMNS, losses.mean(0).tolist(), strict=True):
                    events.add_scalar(f"loss/{name}", value, seen)
                for t, value in zip(timesteps, losses[:, COLUMNS.index("total")].tolist(), strict=True):
                    events.add_scalar(f"total_loss_at_t/{t:04d}", value, seen)

        yield record


def event_writer(folder, step):
    """A SummaryWriter that takes back what was logged from `step` on; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step)
