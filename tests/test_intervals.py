"""LPIPS curves -> t_edit and t_boost: the published tables, the edges, and the measurement."""

import csv
from dataclasses import fields

import numpy as np
import pytest
import torch
from tiny_world import smooth_images

from asyrp import process
from asyrp.intervals import Curve, choose_t_boost, choose_t_edit, measure
from utils.errors import UserError
from utils.files import ROOT

PUBLISHED = ROOT / "utils" / "lpips_curves"
HEADER = "t,lpips_x_t,lpips_x_t_std,lpips_x0_t,lpips_x0_t_std"
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


def same(a, b):
    """Whether two curves hold the very same numbers."""
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Curve))


@pytest.mark.parametrize("name", TABLE)
def test_published_curves_give_the_published_table(name):
    curve = Curve.read(PUBLISHED / f"{name}.csv")
    found = [choose_t_edit(curve, cosine) for cosine in COSINES] + [choose_t_boost(curve)]
    assert found == list(TABLE[name])


@pytest.mark.parametrize("name", TABLE)
def test_first_row_that_reaches_the_threshold_is_taken_at_every_cosine(name):
    """The published rule in its plainest form, on the text of the file; every value of the table is a threshold as well."""
    with (PUBLISHED / f"{name}.csv").open(newline="") as stream:
        rows = [(int(row["t"]), float(row["lpips_x0_t"]), float(row["lpips_x_t"])) for row in csv.DictReader(stream)]
    assert [t for t, _, _ in rows] == [*range(1, 998), 999]
    curve = Curve.read(PUBLISHED / f"{name}.csv")
    for cosine in np.linspace(0, 1, 101):
        assert choose_t_edit(curve, cosine) == next(t for t, P, _ in rows if 0.33 * cosine <= P)
    for _, P, x in rows:
        assert choose_t_edit(curve, 1.0, P) == next(t for t, other, _ in rows if other >= P)
        assert choose_t_boost(curve, x) == next(t for t, _, other in rows if other >= x)
        assert choose_t_boost(curve, P, from_x_t=False) == next(t for t, other, _ in rows if other >= P)


def test_shipped_curves_can_be_read():
    assert {path.stem for path in PUBLISHED.glob("*.csv")} == {*TABLE, "avatar"}
    # At the threshold of avatar.yml.
    assert 302 < choose_t_edit(Curve.read(PUBLISHED / "avatar.csv"), 0.9, 0.005) < 403


def test_curve_is_interpolated_between_distant_timesteps(curve):
    assert choose_t_edit(curve, 1.0, 0.25) == 200
    assert choose_t_edit(curve, 0.5, 0.5) == 200
    assert choose_t_edit(curve, 1.0, 0.2501) == 201
    assert choose_t_edit(curve, 1.0, 0.3) == 240


def test_curve_is_not_interpolated_between_neighbours():
    """Nothing is read between rows of a table of every timestep; one that is missing does not change that."""
    zeros = np.zeros(4)
    curve = Curve(np.array([10, 11, 13, 16]), zeros, zeros, np.array([0.1, 0.2, 0.3, 0.6]), zeros)
    assert [choose_t_edit(curve, 1.0, threshold) for threshold in (0.1, 0.11, 0.2, 0.21, 0.3)] == [10, 11, 11, 13, 13]
    assert [choose_t_edit(curve, 1.0, threshold) for threshold in (0.301, 0.45, 0.6)] == [14, 15, 16]


def test_threshold_just_above_a_row():
    value = 0.1 + 0.2
    curve = Curve(np.array([900, 990]), np.zeros(2), np.zeros(2), np.array([value, 1e6]), np.zeros(2))
    assert choose_t_edit(curve, 1.0, np.nextafter(value, 1)) == 901


def test_which_curve_t_boost_is_read_from(curve):
    assert choose_t_boost(curve, 0.25) == 100
    assert choose_t_boost(curve, 0.25, from_x_t=False) == 200


def test_threshold_of_zero_is_reached_at_once(curve):
    assert choose_t_edit(curve, 1.0, 0.0) == 0
    assert choose_t_boost(curve, 0.0) == 0


def test_threshold_that_is_never_reached(curve):
    with pytest.raises(UserError, match=r"LPIPS\(x_0, P_t\) never reaches 0\.600, its maximum is 0\.500: lower the threshold"):
        choose_t_edit(curve, 1.0, 0.6)
    with pytest.raises(UserError, match=r"LPIPS\(x_0, x_t\) never reaches 1\.200, its maximum is 1\.000"):
        choose_t_boost(curve)


def test_written_and_read_again(tmp_path):
    """Every digit is kept, so that t_edit cannot change."""
    values = np.random.default_rng(0).random((4, 50)) / 7
    curve = Curve(np.arange(50) * 20, *values)
    curve.write(tmp_path / "new" / "curve.csv")
    again = Curve.read(tmp_path / "new" / "curve.csv")
    assert same(again, curve)
    assert again.t.dtype == np.int64


def test_to_tensors_and_back(curve):
    tensors = curve.to_tensors()
    assert {name: tensor.dtype for name, tensor in tensors.items()} == dict.fromkeys(HEADER.split(","), torch.float64)
    again = Curve.from_tensors(tensors)
    assert same(again, curve)
    assert again.t.tolist() == [0, 100, 200, 400]
    del tensors["lpips_x_t"]
    with pytest.raises(
        UserError, match=r"the stored LPIPS curve is invalid \(it has no lpips_x_t\): measure it again with --lpips"
    ):
        Curve.from_tensors(tensors)
    with pytest.raises(UserError, match="lpips_x_t cannot be nan"):
        Curve.from_tensors(tensors | {"lpips_x_t": torch.full((4,), torch.nan)})


def test_table_from_a_spreadsheet(tmp_path):
    """A byte order mark, an empty line, other columns and another order of them do no harm."""
    (tmp_path / "curve.csv").write_text("\ufefflpips_x_t_std,note,lpips_x_t,lpips_x0_t,lpips_x0_t_std,t\n\n1,a,2,3,4,5\n\n")
    assert Curve.read(tmp_path / "curve.csv").lpips_x0_t.tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is empty"),
        (b"a picture", "it has no column t"),
        (b"t,lpips_x_t\n1,0.5\n", "it has no column lpips_x_t_std"),
        (f"{HEADER},t\n1,0,0,0,0,2\n", "it has no column t, or two of that name"),
        (f"{HEADER}\n", "it has no rows"),
        (f"{HEADER}\n1,2,3\n", "line 2 has 3 values, not 5"),
        (f"{HEADER}\n1,0,0,0,0,0\n", "line 2 has 6 values, not 5"),
        (f"{HEADER}\n1,0,0,?,0\n", r"line 2 has '\?' instead of a number"),
        (f"{HEADER}\n1,0,0,,0\n", "line 2 has '' instead of a number"),
        (f"{HEADER}\n1,0,0,nan,0\n", "lpips_x0_t cannot be nan"),
        (f"{HEADER}\n1,0,0,inf,0\n", "lpips_x0_t cannot be inf"),
        (f"{HEADER}\n1,-0.1,0,0,0\n", r"lpips_x_t cannot be -0\.1"),
        (f"{HEADER}\n1,0,-2,0,0\n", r"lpips_x_t_std cannot be -2\.0"),
        (f"{HEADER}\n-1,0,0,0,0\n", r"t cannot be -1\.0"),
        (f"{HEADER}\n1.5,0,0,0,0\n", r"t cannot be 1\.5"),
        (f"{HEADER}\n1,0,0,0,0\n3,0,0,0,0\n2,0,0,0,0\n", "t = 2 follows t = 3"),
        (f"{HEADER}\n1,0,0,0,0\n1,0,0,0,0\n", "t = 1 follows t = 1"),
        (f"{HEADER}\n1,0,0,0,0\n2,0,0,0.\0005,0\n", r"line 3 has '0\.\\x005' instead of a number"),
        (b"\0" * 4096, "it has no column t"),
        (f"{HEADER}\n1,0,0,0,0\n".encode("utf-16"), "it is not UTF-8 text"),
        (f"{HEADER}\n".encode() + b"1,0,0,0,\xff\n", "it is not UTF-8 text"),
    ],
)
def test_broken_table_is_refused(tmp_path, text, said):
    (tmp_path / "curve.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        UserError, match=rf"/curve\.csv is not a table of LPIPS curves \({said}.*\): measure it .*--lpips"
    ) as caught:
        Curve.read(tmp_path / "curve.csv")
    assert str(caught.value).isprintable()


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv is not a table of LPIPS curves \(.*No such file"):
        Curve.read(tmp_path / "nothing.csv")


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


def test_measure_skips_unreadable_images(unet, caplog):
    x_0, steps = smooth_images(1), process.timesteps(2, 999)
    measured = measure(unet, [([0], x_0, []), ([], None, ["b.png cannot be read"])], SCHEDULE, steps, distance, "cpu")
    assert measured.lpips_x_t_std.tolist() == [0.0, 0.0]
    assert "skipped: b.png cannot be read" in caplog.text
    with pytest.raises(UserError, match="none of the images could be read"):
        measure(unet, [([], None, ["b.png cannot be read"])], SCHEDULE, steps, distance, "cpu")


def test_measure_refuses_what_is_not_finite(unet):
    def broken(a, b):
        return distance(a, b) * torch.nan

    with pytest.raises(UserError, match=r"invalid \(lpips_x_t cannot be .*--precision fp32"):
        measure(unet, [([0], smooth_images(1), [])], SCHEDULE, process.timesteps(2, 999), broken, "cpu")
