"""What is added to h: sums of directions, their coefficients, given directions, and means."""

import pytest
import torch

from asyrp.hspace import BlockDirection, Edit, GivenDirection, MeanRecorder, coefficients
from asyrp.process import Schedule, generate, timesteps

H = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
EMB = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))


def double(h, emb, t):
    return 2 * h


def constant(value):
    return lambda h, emb, t: torch.full_like(h, value)


def test_edit_is_the_weighted_sum():
    """c_0 h + sum_i c_i delta_h_i."""
    edited = Edit([double, constant(3.0)], [0.5, -1.0], origin=0.9)(H, EMB, 500)
    assert torch.allclose(edited, 0.9 * H + 0.5 * 2 * H - 3)


def test_every_direction_sees_the_unedited_h():
    kept = H.clone()
    assert torch.allclose(Edit([double, double], [1.0, 1.0])(H, EMB, 0), 5 * H)  # chained, it would be 9 h
    assert torch.equal(H, kept)


def test_directions_and_coefficients_come_in_pairs():
    with pytest.raises(ValueError, match="2 directions but 1 coefficients"):
        Edit([double, double], [1.0])
    with pytest.raises(ValueError, match="2 directions but 1 t_edits"):
        Edit([double, double], [1.0, 1.0], t_edits=[500])


@pytest.mark.parametrize(
    ("t", "expected"),
    [(999, 2.0 + 10.0 + 100.0), (500, 2.0 + 10.0 + 100.0), (499, 2.0 + 100.0), (300, 2.0 + 100.0), (299, 2.0), (0, 2.0)],
)
def test_each_direction_acts_in_its_own_interval(t, expected):
    """From its t_edit up, that one included; c_0 scales h at every t."""
    edit = Edit([constant(1.0), constant(1.0)], [10.0, 100.0], origin=2.0, t_edits=[500, 300])
    assert (edit(torch.ones_like(H), EMB, t) == expected).all()
    assert edit.t_edit == 300


def test_direction_that_does_not_act_is_not_computed():
    seen = []
    edit = Edit([lambda h, emb, t: seen.append(t) or h, double], [1.0, 1.0], t_edits=[500, None])
    for t in (501, 500, 499):
        edit(H, EMB, t)
    assert seen == [501, 500]


def test_lowest_t_edit_is_where_editing_ends():
    assert Edit([double, double, double], [1.0] * 3, t_edits=[513, 302, 400]).t_edit == 302
    assert Edit([double, double], [1.0] * 2, t_edits=[513, None]).t_edit == 0
    assert Edit([double], [1.0]).t_edit == 0
    assert Edit([], [], origin=2.0).t_edit == 0


def test_process_lets_each_direction_act_in_its_own_interval(unet):
    """Steps from 999, 666, 333 and 0: both act, then one, then none, and below the lowest t_edit the edit is not asked."""
    seen = {"a": [], "b": []}
    directions = [lambda h, emb, t, name=name: seen[name].append(t) or 0 * h for name in seen]
    edit = Edit(directions, [1.0, 1.0], t_edits=[999, 333])
    x_T = torch.zeros(1, 3, 16, 16)
    generate(unet, x_T, Schedule.linear(), timesteps(4, 999), edit=edit, t_edit=edit.t_edit)
    assert seen == {"a": [999], "b": [999, 666, 333]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1.0, 1, 40, 40), [1.0]),
        ((0.5, 1, 40, 40), [0.5]),
        ((1.0, 1, 40, 20), [2.0]),  # half the steps add up to half as much
        ((1.0, 1, 40, 1000), [0.04]),
        ((1.0, 1, 1000, 500), [2.0]),
        ((1.0, 1, 1, 4), [0.25]),
        ((1.0, 4, 40, 40), [0.5] * 4),
        ((2.0, 1, 40, 80, [-3.0]), [-3.0]),
        ((1.0, 4, 40, 40, [1.0, 0.0, -2.0, 4.0]), [0.5, 0.0, -1.0, 2.0]),
    ],
)
def test_coefficients(arguments, expected):
    assert coefficients(*arguments) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [(0, 40), (40, 0), (-1, 40)])
def test_number_of_steps_is_positive(steps):
    with pytest.raises(ValueError, match="numbers of steps must be 1 or more"):
        coefficients(1.0, 1, *steps)


def test_ignore_timesteps_block_gets_no_embedding(unet):
    block = unet.new_delta_block()
    with torch.no_grad():
        aware, ignorant = BlockDirection(block), BlockDirection(block, ignore_timesteps=True)
        assert not torch.allclose(aware(H, EMB, 1), aware(H, 2 * EMB, 1))
        assert torch.equal(ignorant(H, EMB, 1), ignorant(H, 2 * EMB, 1))


@pytest.mark.parametrize(("t", "value"), [(999, 9.0), (1000, 9.0), (700, 6.0), (501, 6.0), (499, 3.0), (0, 3.0)])
def test_given_direction_takes_the_nearest_timestep(t, value):
    direction = GivenDirection(
        {999: torch.full((1, 4, 2, 2), 9.0), 666: torch.full((1, 4, 2, 2), 6.0), 333: torch.full((1, 4, 2, 2), 3.0)}
    )
    assert (direction(H, EMB, t) == value).all()


def test_one_delta_h_for_all_timesteps():
    direction = GivenDirection({None: torch.full((1, 4, 2, 2), 7.0)})
    assert [direction(H, EMB, t).mean().item() for t in (0, 999)] == [7.0, 7.0]
    assert [key for key, _ in direction.items()] == [None]


def test_zeros_can_be_learned():
    direction = GivenDirection.zeros((1, 4, 2, 2), [999, 500])
    direction(torch.zeros(1, 4, 2, 2), EMB, 500).sum().backward()
    assert [p.grad is not None for p in direction.parameters()] == [False, True]
    assert not any(delta.any() for _, delta in direction.items())


def test_recorder_keeps_means_per_timestep():
    """Batches of unequal size weigh by their images."""
    recorder = MeanRecorder(double)
    for h in (H, H[:1] + 1):
        assert torch.equal(recorder(h, EMB, 999), 2 * h)
    recorder(H, EMB, 500)
    mean = dict(recorder.mean().items())
    assert list(mean) == [999, 500]
    assert torch.allclose(mean[999], 2 * torch.cat([H, H[:1] + 1]).mean(0, keepdim=True), atol=1e-6)
    assert torch.allclose(mean[500], 2 * H.mean(0, keepdim=True), atol=1e-6)
    [(key, overall)] = recorder.mean(over_timesteps=True).items()
    assert key is None
    assert torch.allclose(overall, (mean[999] + mean[500]) / 2)
