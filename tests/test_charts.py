"""Charts: round ticks, positions of lines, and plots without warnings."""

import numpy as np
import pytest

from asyrp.intervals import Curve
from asyrp.report.charts import BOTTOM, LEFT, RIGHT, TOP, Line, Span, line_chart, round_numbers
from asyrp.report.pictures import plot_curves


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 999, [0, 200, 400, 600, 800]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 4.2, [1, 2, 3, 4]),
        (-0.02, 0.03, [-0.02, -0.01, 0, 0.01, 0.02, 0.03]),
    ],
)
def test_round_numbers(low, high, expected):
    assert round_numbers(low, high) == pytest.approx(expected)


def test_lines_lie_where_their_numbers_say():
    x = np.array([0, 50, 100])
    lines = [Line("up", x, np.array([0.0, 1.0, 2.0])), Line("flat", x, np.ones(3), spread=np.array([0.0, 1.0, 3.0]))]
    chart = line_chart("two lines", "t", "loss", lines, [Span("here", 50, 100)])
    (_, up, no_band), (_, flat, band) = chart.lines
    assert (up[0], up[1][0], up[2][0]) == ((LEFT, BOTTOM), (LEFT + RIGHT) / 2, RIGHT)
    assert no_band is None
    assert up[1] == flat[1]
    # The highest point of all is the end of the band, 4, with a little air above; the band stops at the bottom.
    assert band[2] == (RIGHT, pytest.approx(TOP + (BOTTOM - TOP) * 0.05 / 1.05, abs=0.1))
    assert band[3] == (RIGHT, BOTTOM)
    assert chart.spans == [("here", (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2)]
    assert [text for _, text in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [position for position, text in chart.x_ticks if text in ("0", "100")] == [LEFT, RIGHT]


@pytest.mark.parametrize("y", [0.0, 0.7, -0.7])
def test_single_point_has_a_place(y):
    chart = line_chart("one point", "t", "loss", [Line("one", np.array([3]), np.array([y]))])
    [(_, [(at_x, at_y)], _)] = chart.lines
    assert at_x == (LEFT + RIGHT) / 2
    assert TOP < at_y <= BOTTOM


def test_missing_glyphs_of_a_plot_give_no_warning(tmp_path, recwarn):
    values = np.linspace(0, 1, 3)
    plot_curves(Curve(np.arange(3), *[values] * 4), tmp_path / "curve.png", "\u6f22")
    assert (tmp_path / "curve.png").is_file() and not recwarn.list
