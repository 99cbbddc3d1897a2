"""The tables of losses when a training is interrupted, resumed or repeated."""

import pytest
import torch

from asyrp.report.losslog import FIELDS, loss_log, read_losses
from asyrp.report.page import loss_charts
from asyrp.training import COLUMNS


def log_epoch(folder, epoch, value=0.0, images=("a.png", "b.png"), writers=()):
    """An epoch of batches of one image, over two timesteps; the losses are value, value + 1, ..., by timestep and column."""
    with loss_log(folder, epoch, len(images), writers) as record:
        for name in images:
            record([name], [999, 500], value + torch.arange(2.0 * len(COLUMNS)).view(2, -1))


def table(folder, epoch):
    return folder / "losses" / f"epoch_{epoch}.csv"


def test_every_loss_of_every_step_can_be_read_back(tmp_path):
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1, value=0.25)
    rows = list(read_losses(tmp_path))
    steps = [("a.png", "999"), ("a.png", "500"), ("b.png", "999"), ("b.png", "500")]
    assert [(row["epoch"], row["image"], row["t"]) for row in rows] == [(e, *step) for e in "01" for step in steps]
    assert [float(rows[5][name]) for name in COLUMNS] == [5.25, 6.25, 7.25, 8.25, 9.25]


def test_epochs_are_read_in_the_order_of_their_numbers(tmp_path):
    for epoch in (2, 9, 10, 11):
        log_epoch(tmp_path, epoch, images=["a.png"])
    assert [row["epoch"] for row in read_losses(tmp_path)] == ["2", "2", "9", "9", "10", "10", "11", "11"]


def test_epoch_leaves_earlier_tables_alone(tmp_path):
    """They are neither read nor written, whatever they hold."""
    log_epoch(tmp_path, 0)
    table(tmp_path, 0).write_bytes(b"\0")
    table(tmp_path, 0).chmod(0)
    log_epoch(tmp_path, 1)
    table(tmp_path, 0).chmod(0o600)
    assert table(tmp_path, 0).read_bytes() == b"\0"


def test_epoch_that_was_stopped_is_logged_once(tmp_path, caplog):
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1)
    whole = table(tmp_path, 1).read_bytes()
    table(tmp_path, 1).write_bytes(whole[:-10])  # killed in the middle of a line
    assert len(list(read_losses(tmp_path))) == 7
    assert not caplog.messages
    log_epoch(tmp_path, 1)
    assert table(tmp_path, 1).read_bytes() == whole


def test_epoch_without_rows_is_not_damaged(tmp_path, caplog):
    with loss_log(tmp_path, 0, 2):
        assert list(read_losses(tmp_path)) == []
    assert list(read_losses(tmp_path)) == []
    assert not caplog.messages


def test_retraining_deletes_later_tables(tmp_path):
    for epoch in range(3):
        log_epoch(tmp_path, epoch)
    log_epoch(tmp_path, 0, value=7)
    assert [(row["epoch"], row["l1"]) for row in read_losses(tmp_path)] == [("0", "7"), ("0", "12")] * 2
    assert [path.name for path in (tmp_path / "losses").iterdir()] == ["epoch_0.csv"]


HEADER = ",".join(FIELDS).encode() + b"\r\n"
ROW = b"1,a.png,999,1,2,3,4,5\r\n"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "it is empty"),
        (b"\0" * 5000, "it has another header"),
        (b"a picture", "it has another header"),
        (HEADER + b"\0" * 5000 + b"\n", "a row has 1 values, not 8"),
        (HEADER + ROW + b"\0" * 30 + ROW, "invalid literal for int"),
        (HEADER + ROW + b"1,a.png,999,1,2\r\n" + ROW, "a row has 5 values, not 8"),
        (HEADER + ROW + b"1,a.pn" + ROW, "a row has 9 values, not 8"),
        (HEADER + b"1,a.png,999,1,2,3,4,?\r\n", "could not convert string to float"),
        (HEADER + b"1,a.png,9.5,1,2,3,4,5\r\n", "invalid literal for int"),
        (HEADER + b"3,a.png,999,1,2,3,4,5\r\n", "a row belongs to epoch 3"),
        (HEADER + b"1,\xff.png,999,1,2,3,4,5\r\n", "can't decode byte 0xff"),
        (HEADER + ROW.replace(b"a.png", b'"a.png'), "unexpected end of data"),
    ],
)
def test_damaged_table_is_renamed(tmp_path, caplog, contents, said):
    """One line says so, once; the other epochs are read, and its own can be logged again."""
    for epoch in range(3):
        log_epoch(tmp_path, epoch)
    table(tmp_path, 1).write_bytes(contents)
    assert [row["epoch"] for row in read_losses(tmp_path)] == list("00002222")
    [message] = caplog.messages
    assert message.startswith(f"{table(tmp_path, 1)} is damaged (") and said in message and message.isprintable()
    assert (tmp_path / "losses" / "epoch_1.csv.damaged").read_bytes() == contents
    assert [row["epoch"] for row in read_losses(tmp_path)] == list("00002222")
    assert len(caplog.messages) == 1
    log_epoch(tmp_path, 1)
    assert [row["epoch"] for row in read_losses(tmp_path)] == list("00001111")


def test_no_more_than_an_epoch_is_read_ahead(tmp_path):
    log_epoch(tmp_path, 0)
    log_epoch(tmp_path, 1)
    rows = read_losses(tmp_path)
    assert next(rows)["epoch"] == "0"
    table(tmp_path, 1).write_bytes(HEADER + ROW.replace(b"a.png", b"new.png"))
    assert [row["image"] for row in rows] == ["a.png", "b.png", "b.png", "new.png"]


def test_names_of_any_kind_can_be_read_back(tmp_path):
    """A comma, quotes, letters of other scripts, two lines, and a byte that is no UTF-8."""
    log_epoch(tmp_path, 0, images=['a, "b".png', "Καλημέρα.png", "two\nlines.png", "\udcff.png"])
    found = list(dict.fromkeys(row["image"] for row in read_losses(tmp_path)))
    assert found == ['a, "b".png', "Καλημέρα.png", r"two\nlines.png", r"\xff.png"]


def test_report_draws_an_epoch_that_was_stopped(tmp_path):
    """Its images so far have points of their own; the means are those of what is there."""
    log_epoch(tmp_path, 0, images=["a", "b", "c", "d"])
    log_epoch(tmp_path, 1, value=10, images=["a", "b"])
    charts = loss_charts(read_losses(tmp_path))
    assert charts["points"] == 4
    assert [len(points) for _, points, _ in charts["training"].lines] == [6] * len(COLUMNS)
    assert charts["epochs"] == [(0, [2.5, 3.5, 4.5, 5.5, 6.5]), (1, [12.5, 13.5, 14.5, 15.5, 16.5])]


def test_without_a_training_there_is_no_row(tmp_path):
    assert list(read_losses(tmp_path)) == []
    assert loss_charts(read_losses(tmp_path)) is None
