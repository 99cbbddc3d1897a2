"""The loss charts of a report."""

from asyrp.report.page import loss_charts
from asyrp.training import COLUMNS

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def loss_rows(epochs, images, total):
    """Rows as `read_losses` gives them, over the timesteps 900 and 300; total: a function of (epoch, image number, t)."""
    zero = dict.fromkeys(COLUMNS, "0")
    return [
        {**zero, "epoch": str(e), "image": LETTERS[i], "t": str(t), "total": str(total(e, i, t))}
        for e in range(epochs)
        for i in range(images)
        for t in (900, 300)
    ]


def drawn_y(chart):
    """{label: heights} of a chart's lines, in units of its highest point."""
    heights = {label: [252 - y for _, y in points] for label, points, _ in chart.lines}
    top = max(max(line) for line in heights.values())
    return {label: [round(y / top, 2) for y in line] for label, line in heights.items()}


def test_losses_by_epoch_and_by_timestep():
    losses = loss_charts(loss_rows(3, 2, lambda e, i, t: 4 - e + (i - 0.5) + (t - 600) / 300))
    assert losses["names"] == ["total"]
    assert losses["epochs"] == [(0, [4]), (1, [3]), (2, [2])]
    # A point for each image, whose mean over timesteps it is, and one for each timestep, mean over images.
    assert drawn_y(losses["training"]) == {"total": [round(y / 4.5, 2) for y in (3.5, 4.5, 2.5, 3.5, 1.5, 2.5)]}
    expected = {"total, epoch 0": [3 / 5, 5 / 5], "total, epoch 2": [1 / 5, 3 / 5]}
    assert drawn_y(losses["timesteps"]) == {label: [round(y, 2) for y in line] for label, line in expected.items()}


def test_many_epochs_have_one_point_each():
    losses = loss_charts(loss_rows(70, 3, lambda e, i, t: 1 + e))
    assert losses["points"] == 1
    assert len(losses["training"].lines[0][1]) == 70


def test_single_epoch_is_drawn_too():
    losses = loss_charts(loss_rows(1, 1, lambda e, i, t: 1))
    assert [label for label, _, _ in losses["timesteps"].lines] == ["total, epoch 0"]
    assert len(losses["training"].lines[0][1]) == 1
