"""Labels of strengths and of files: no two strengths of a run look alike."""

import numpy as np
import pytest

from asyrp.report.pictures import point_labels, strength_labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0], ["+1"]),
        ([1, 0, -0.5], ["+1", "+0", "-0.5"]),
        ([1.1, 1.15], ["+1.1", "+1.15"]),
        ([0.123], ["+0.12"]),
        ([0.123, 0.12], ["+0.123", "+0.12"]),
        ([0.123, 0.123, 2.0], ["+0.12", "+0.12", "+2"]),
        ([0.0, -0.0, 1.0], ["+0", "+0", "+1"]),
        ([12, 100, 123.4], ["+12", "+100", "+123"]),
        ([99.99999, 100], ["+99.99999", "+100"]),
        ([0.1 + 0.2, 0.3], ["+0.30000000000000004", "+0.3"]),
        ([0.0, 1e-30, 1.0], ["+0", "+1e-30", "+1"]),
        ([1e-5, -2e-5], ["+1e-05", "-2e-05"]),
        ([], []),
    ],
)
def test_strengths_have_the_shortest_labels_that_differ(values, labels):
    assert strength_labels(values) == labels


def test_zero_is_called_zero_though_rounding_missed_it():
    strip = np.linspace(-0.3, 0.3, 7) + np.array([0, 0, 0, 5.6e-17, 0, 0, 0])
    assert strength_labels(strip.tolist()) == ["-0.3", "-0.2", "-0.1", "+0", "+0.1", "+0.2", "+0.3"]


def test_different_numbers_never_share_a_label():
    draw = np.random.default_rng(0)
    for scale in (1e-300, 1e-9, 1.0, 1e9, 1e300):
        values = draw.integers(-20, 20, 30) * scale
        values = [*values, *np.nextafter(values, np.inf), *values]
        labels = strength_labels(values)
        for a, b in zip(values, labels, strict=True):
            assert [label == b for label in labels] == [value == a for value in values]


def test_labels_of_combined_directions():
    """Each direction's strengths get the digits that they need; the parts are apart as the report's sliders read them."""
    assert point_labels([(1.0,), (-0.5,)]) == ["+1", "-0.5"]
    assert point_labels([[1, -0.5], [1, 1.15], [1.1, 1.1]]) == ["+1, -0.5", "+1, +1.15", "+1.1, +1.1"]
    assert point_labels([]) == []
