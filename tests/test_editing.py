"""What a run's settings make of directions: strengths, labels, coefficients, and what decides a reverse process."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyrp.editing import Reverse, Use, check_finite, edits_of, points_of, spread
from asyrp.settings import Value
from utils.errors import UserError

REVERSE = Reverse([0, 500, 999], t_boost=0, sample_type="ddim", dt_lambda=1.0, seed=1)


def use(t_edit=500, scale=1.0):
    return Use(SimpleNamespace(name="a direction"), Value(t_edit, "flag"), scale)


def test_points():
    assert points_of(1) == [(1.0,)]
    assert points_of(2) == [(1.0, 1.0)]
    assert points_of(1, [[-1.0, 0.0, 1.0]]) == [(-1.0,), (0.0,), (1.0,)]
    assert points_of(2, [[0, 1], [2, 3]]) == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_every_factor_is_in_the_coefficient():
    """Strength of the run, factor of the direction, point of the strip, scale of the steps; labels leave the scale out."""
    [(label, edit)] = edits_of([use(scale=0.1)], points_of(1), strength=2.0, each=[3.0], origin=0.9)
    assert (label, edit.coefficients, edit.origin, edit.t_edits) == ("+6", pytest.approx([0.6]), 0.9, [500])
    strip = edits_of([use(700, 0.5)], points_of(1, [[-1.0, 0.0, 1.0]]), strength=2.0)
    assert [label for label, _ in strip] == ["-2", "+0", "+2"]
    assert [edit.coefficients for _, edit in strip] == [[-1.0], [0.0], [1.0]]


def test_each_direction_has_its_own_scale_and_interval():
    [(_, edit)] = edits_of([use(700, 0.5), use(300, 0.25)], points_of(2), each=[1.0, 2.0])
    assert (edit.coefficients, edit.t_edits, edit.t_edit) == ([0.5, 0.5], [700, 300], 300)


def test_labels_distinguish_all_strengths():
    for strip in ((1.1, 1.15, 2), (0, 0.001, 3), (-1000, 1000, 5)):
        labels = [label for label, _ in edits_of([use()], points_of(1, [np.linspace(*strip)]))]
        assert len(set(labels)) == strip[2]


@pytest.mark.parametrize(
    "change",
    [{"timesteps": [0, 999]}, {"t_boost": 300}, {"sample_type": "ddpm"}, {"dt_lambda": 0.9}],
    ids=lambda change: next(iter(change)),
)
def test_content_of_a_reverse_process(change):
    assert replace(REVERSE, **change).content() != REVERSE.content()


def test_seed_matters_only_if_noise_is_drawn():
    assert replace(REVERSE, seed=2).content() == REVERSE.content()
    for noisy in (replace(REVERSE, t_boost=300), replace(REVERSE, sample_type="ddpm")):
        assert replace(noisy, seed=2).content() != noisy.content()


def test_picture_that_is_not_finite_names_its_image():
    images = torch.zeros(2, 3, 4, 4)
    check_finite(images, ["a.png", "b.png"], "the edit +1")
    images[1, 2, 3, 3] = float("nan")
    with pytest.raises(UserError, match=r"the edit \+1 of b\.png is not finite: lower the strength"):
        check_finite(images, ["a.png", "b.png"], "the edit +1")


def test_at_most_40_states_are_drawn():
    some = spread(list(range(1000)))
    assert some[0] == 0
    assert some[-1] == 999
    assert len(some) < 100
    assert some == sorted(set(some))
    assert spread([3, 7]) == [3, 7]
