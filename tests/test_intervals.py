"""LPIPS curves -> t_edit and t_boost: the published tables, the edges, and the measurement."""

import numpy as np
import pytest
import torch
from tiny_world import smooth_images

from asyrp import process
from utils.errors import UserError
from asyrp.intervals import Curve, choose_t_boost, choose_t_edit, measure
from asyrp.workbench import PUBLISHED_CURVES

COSINES = (1, 0.95, 0.90, 0.85, 0.80)
# Published t_edit at each of COSINES, then t_boost at 1.2.
TABLE = {
    "celeba": (538, 526, 514, 503, 489, 167),
    "afhq": (482, 462, 439, 412, 383, 167),
    "bedroom": (384, 377, 367, 356, 344, 221),
    "church": (396, 382, 367, 352, 335, 293),
    "metface": (396, 356, 313, 262, 216, 180),
}
SCHEDULE = process.Schedule.linear()


@pytest.fixture
def curve():
    """LPIPS(x_0, x_t) climbs to 1.0, LPIPS(x_0, P_t) to 0.5."""
    t = np.array([0, 100, 200, 400])
    return Curve(t, t / 400, t / 4000, t / 800, t / 8000)


@pytest.mark.parametrize("name", TABLE)
def test_published_curves_give_the_published_table(name):
    curve = Curve.read(PUBLISHED_CURVES / f"{name}.csv")
    found = [choose_t_edit(curve, cosine) for cosine in COSINES] + [choose_t_boost(curve)]
    assert found == pytest.approx(TABLE[name], abs=3)


def test_between_two_timesteps_the_curve_is_straight(curve):
    assert choose_t_edit(curve, 1.0, 0.25) == 200
    assert choose_t_edit(curve, 0.5, 0.5) == 200
    assert choose_t_edit(curve, 1.0, 0.2501) == 201
    assert choose_t_edit(curve, 1.0, 0.3) == 240


def test_which_curve_t_boost_is_read_from(curve):
    assert choose_t_boost(curve, 0.25) == 100
    assert choose_t_boost(curve, 0.25, from_x_t=False) == 200


def test_a_threshold_of_zero_is_reached_at_once(curve):
    assert choose_t_edit(curve, 1.0, 0.0) == 0
    assert choose_t_boost(curve, 0.0) == 0


def test_a_threshold_that_is_never_reached(curve):
    with pytest.raises(UserError, match=r"LPIPS\(x_0, P_t\) never reaches 0\.600: its maximum is 0\.500; lower the threshold"):
        choose_t_edit(curve, 1.0, 0.6)
    with pytest.raises(UserError, match=r"LPIPS\(x_0, x_t\) never reaches 1\.200: its maximum is 1\.000"):
        choose_t_boost(curve)


def test_written_and_read_again(curve, tmp_path):
    curve.write(tmp_path / "new" / "curve.csv")
    again = Curve.read(tmp_path / "new" / "curve.csv")
    for name, values in vars(curve).items():
        assert np.allclose(getattr(again, name), values, atol=5e-5), name


@pytest.mark.parametrize(
    "text", ["t,lpips_x_t\n1,0.5\n", "a picture", "t,lpips_x_t,lpips_x_t_std,lpips_x0_t,lpips_x0_t_std\n1,2,3\n"]
)
def test_a_broken_table_is_refused(tmp_path, text):
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(UserError, match=r"curve\.csv is not a table of LPIPS curves.*--lpips"):
        Curve.read(tmp_path / "curve.csv")


def distance(a, b):
    """A stand-in for LPIPS."""
    return (a - b).abs().mean((1, 2, 3), keepdim=True)


def test_measure(unet):
    """Mean and deviation over the images at every timestep, the last one included; batches change nothing."""
    x_0, steps = smooth_images(3), process.timesteps(4, 999)
    together = measure(unet, [([0, 1, 2], x_0, [])], SCHEDULE, steps, distance, "cpu")
    apart = measure(unet, [([i], x_0[i : i + 1], []) for i in range(3)], SCHEDULE, steps, distance, "cpu")
    assert together.t.tolist() == steps
    for name, values in vars(together).items():
        assert np.allclose(values, getattr(apart, name), atol=1e-5), name

    states = []
    x_T = process.invert(unet, x_0, SCHEDULE, steps, lambda i, t, x_t, P_t: states.append((x_t, P_t)))
    eps = unet(x_T, torch.full((3,), 999)).detach()
    states.append((x_T, process.predict_x0(x_T, eps, 999, SCHEDULE)))
    for i, (x_t, P_t) in enumerate(states):
        assert together.lpips_x_t[i] == pytest.approx(float(distance(x_0, x_t).mean()), abs=1e-5)
        assert together.lpips_x0_t[i] == pytest.approx(float(distance(x_0, P_t).mean()), abs=1e-5)
        assert together.lpips_x0_t_std[i] == pytest.approx(float(distance(x_0, P_t).std(correction=0)), abs=1e-5)


def test_measure_leaves_out_what_cannot_be_read(unet, caplog):
    x_0, steps = smooth_images(1), process.timesteps(2, 999)
    measured = measure(unet, [([0], x_0, []), ([], None, ["b.png cannot be read"])], SCHEDULE, steps, distance, "cpu")
    assert measured.lpips_x_t_std.tolist() == [0.0, 0.0]
    assert "left out: b.png cannot be read" in caplog.text
    with pytest.raises(UserError, match="none of the images could be read"):
        measure(unet, [([], None, ["b.png cannot be read"])], SCHEDULE, steps, distance, "cpu")
