"""Directions fitted to h: differences of means, boundaries, projections, principal components; and the labels they are from."""

from pathlib import Path

import pytest
import torch
from tiny_world import NAME, open_tiny, smooth_images

from asyrp import directions, fitting, process
from asyrp.data import labels
from utils.errors import UserError

TIMESTEPS = (0, 333, 666, 999)
SHAPE = (4, 2, 2)


def cloud(n=40, shift=3.0, axis=0, seed=0):
    """{t: h} of two classes that lie `shift` apart along one coordinate -> (h, positive)."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.arange(n) % 2 == 0
    h = {}
    for t in TIMESTEPS:
        x = torch.randn(n, 16, generator=generator)
        x[:, axis] += shift * positive
        h[t] = x.view(n, *SHAPE)
    return h, positive


def along(direction, axis=0):
    """Share of a direction that lies along a coordinate, at each timestep."""
    return [(delta.flatten()[axis] / delta.norm()).item() for delta in direction.values()]


def test_h_is_collected_along_the_plain_process(tiny):
    model, images = open_tiny(tiny), smooth_images(3)
    x_T = model.invert(images, 4)
    timesteps = model.timesteps(4)[2:]
    found = fitting.bottlenecks(model, [x_T[:2], x_T[2:]], timesteps)
    assert list(found) == timesteps and found[timesteps[0]].shape == (3, model.unet.h_ch, 8, 8)
    x_t = x_T
    for t, t_next in ((timesteps[1], timesteps[0]), (timesteps[0], -1)):
        frozen = process.frozen_branch(model.unet, x_t, t)
        assert torch.allclose(found[t], frozen.h, atol=1e-4)
        x_t, _ = process.ddim_step(x_t, frozen.eps, t, t_next, model.schedule)


def test_mean_difference_goes_from_the_one_mean_to_the_other():
    h, positive = cloud()
    direction = fitting.mean_difference(h, positive)
    for t, delta in direction.items():
        assert torch.allclose(h[t][~positive].mean(0) + delta[0], h[t][positive].mean(0), atol=1e-5)
    assert min(along(direction)) > 0.8


def test_boundary_normals_length_and_accuracy():
    h, positive = cloud(200)
    direction, accuracy = fitting.boundary_normals(h, positive)
    assert min(along(direction)) > 0.9 and min(accuracy.values()) > 0.85
    for t, delta in direction.items():
        normal = delta.flatten() / delta.norm()
        apart = (h[t].flatten(1) @ normal)[positive].mean() - (h[t].flatten(1) @ normal)[~positive].mean()
        assert delta.norm() == pytest.approx(apart.item(), rel=1e-4)
    _, chance = fitting.boundary_normals(cloud(200, shift=0.0)[0], positive)
    assert all(0.3 < value < 0.7 for value in chance.values())


def test_projected_off_removes_all_directions_jointly():
    direction, _ = cloud()
    direction = {t: x[:1] for t, x in direction.items()}
    others = [{t: x[i : i + 1] for t, x in cloud(seed=1)[0].items()} for i in (0, 1, 2)]
    others[1] = {t: others[1][t] + 2 * others[0][t] for t in TIMESTEPS}  # far from orthogonal
    left = fitting.projected_off(direction, others)

    def inner(a, b):
        return sum((a[t] * b[t]).sum() for t in TIMESTEPS)

    assert all(abs(inner(left, other)) < 1e-4 * abs(inner(direction, other)) + 1e-4 for other in others)
    assert inner(left, left) < inner(direction, direction)
    assert any(abs((left[999] * other[999]).sum()) > 1e-3 for other in others)  # not at each timestep by itself
    again = fitting.projected_off(left, [*others, others[0]])  # one of them twice
    assert all(torch.allclose(again[t], left[t], atol=1e-4) for t in TIMESTEPS)
    assert fitting.projected_off(direction, []) is direction


def test_principal_components():
    generator = torch.Generator().manual_seed(0)
    h = {}
    for t in TIMESTEPS:
        x = torch.randn(50, 16, generator=generator)
        x[:, 3] *= 10
        x[:, 7] *= 5
        h[t] = x.view(50, *SHAPE)
    components, shares = fitting.principal_components(h, 3)
    for k, axis in enumerate((3, 7)):
        for t in TIMESTEPS:
            delta = components[k][t].flatten()
            assert abs(delta[axis]) / delta.norm() > 0.95
            assert delta.norm() == pytest.approx(h[t].flatten(1)[:, axis].std().item(), rel=0.1)
            assert (components[k][t] * components[k][999]).sum() > 0
        assert components[k][999].flatten()[axis] > 0
    assert all((value.diff() < 0).all() and value.sum() < 1 for value in shares.values())
    covariance = h[0].flatten(1).T.cov().diagonal().sum()
    assert shares[0][0].item() == pytest.approx((components[0][0].square().sum() / covariance).item(), rel=1e-5)
    with pytest.raises(UserError, match="50 components need more than 50 images, not 50"):
        fitting.principal_components(h, 50)


@pytest.mark.parametrize("fit", [fitting.mean_difference, fitting.boundary_normals])
def test_classes_that_are_too_small(fit):
    h, _ = cloud(8)
    with pytest.raises(UserError, match="1 positive and 7 negative images"):
        fit(h, torch.arange(8) == 0)


# ---- labels -----------------------------------------------------------------------------------------------------------------


def test_table_of_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,hair,age\n0.png,blond,3\n1.png, blond ,4\n2.png,black,\n", encoding="utf-8")
    assert labels.read_table(path, "hair=blond") == {"0.png": True, "1.png": True, "2.png": False}


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        (b"file,hair\n0.png,blond\n", "eyes=blue", "has no column eyes: its columns are file, hair"),
        (b"name,hair\n0.png,blond\n", "hair=blond", "has no column file"),
        (b"file,hair\n0.png,blond\n1.png,black\n", "hair=green", "the values are black, blond"),
        (b"file,hair\n0.png,blond\n", "hair=blond", "must apply to some images but not all"),
        (b"", "hair=blond", "its columns are none"),
        (b"\xff\xfe\x00", "hair=blond", "is not a table of labels"),
    ],
)
def test_table_that_does_not_divide(tmp_path, text, wanted, said):
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(UserError) as caught:
        labels.read_table(tmp_path / "labels.csv", wanted)
    assert said in str(caught.value)


def test_balanced_classes():
    assert labels.balanced([True, None, True, False, True, False], 2) == [0, 2, 3, 5]
    assert labels.extremes([0.3, 0.1, 0.9, 0.5], 1) == [None, False, True, None]
    assert labels.extremes([0.3, 0.1, 0.9], 5) == [None, False, True]


# ---- --fit_direction --------------------------------------------------------------------------------------------------------

HAIR = ("--fit_direction", "labels", "--labels", "labels.csv", "--label", "hair=blond", "--exp", "runs/blond")


@pytest.fixture
def table(run):
    Path("labels.csv").write_text("file,hair\n" + "".join(f"0{i}.png,{'blond' if i % 2 else 'black'}\n" for i in range(4)))
    Path("strange.csv").write_text("file,hair\na.png,blond\nb.png,black\n")
    return run


def test_fitted_direction_is_used_like_a_trained_one(table, capsys):
    assert table(*HAIR, "--n_train_img", "4") == 0
    assert "2 positive and 2 negative images" in capsys.readouterr().err
    [path] = Path("checkpoint").glob("*.pth")
    assert path.name == "blond_LC_CUSTOM_t999_ninv4_ngen4_0.pth"
    stored = directions.read(path)
    assert stored.kind == "delta_h" and stored.record["origin"] == "fitted: labels, svm"
    assert stored.record["t_edit"] == 500 and stored.record["training"]["positive"] == 2
    assert table("--run_test", "--exp", "runs/blond") == 0
    assert table("--evaluate", "--exp", "runs/blond", "--edit_attr", "smiling") == 0


def test_hold_projects_directions_out(table):
    mean = (*HAIR, "--n_train_img", "4", "--fit_by", "mean")
    assert table(*mean, "--exp", "runs/other") == 0
    assert table(*mean, "--exp", "runs/held", "--hold", "other") == 0
    [held, other] = (directions.read(path).parts for path in sorted(Path("checkpoint").glob("*.pth")))
    assert all(torch.allclose(delta, torch.zeros(()), atol=1e-4) for delta in held.values())  # all of it was the other
    assert other.keys() == held.keys() and any(delta.any() for delta in other.values())


def test_hold_refuses_a_delta_block(run_learned, tmp_path):
    (tmp_path / "labels.csv").write_text("file,hair\n00.png,blond\n01.png,blond\n02.png,black\n03.png,black\n")
    assert "which differs per image" in run_learned.error(*HAIR, "--n_train_img", "4", "--hold", "smile")


def test_fit_does_not_overwrite_a_training(run_learned):
    """The experiment of the fixture was trained."""
    flags = ("--fit_direction", "h_pca", "--n_components", "1", "--n_train_img", "4", "--exp", "runs/x")
    assert run_learned(*flags) == 0
    assert run_learned(*flags) == 0  # its own fit
    Path("checkpoint").joinpath(f"{NAME}_0.pth").rename(next(Path("checkpoint").glob("x_pc1*")))
    assert "was trained: give another --exp, or --retrain 1" in run_learned.error(*flags)
    assert run_learned(*flags, "--retrain", "1") == 0


def test_components_are_separate_directions(run, capsys):
    flags = ("--fit_direction", "h_pca", "--n_components", "2", "--n_train_img", "4", "--exp", "runs/x")
    assert run(*flags) == 0
    said = capsys.readouterr().err
    assert "component 1: " in said and "% of the variance over the timesteps" in said
    assert sorted(path.name.partition("_LC_")[0] for path in Path("checkpoint").glob("*.pth")) == ["x_pc1", "x_pc2"]
    assert run("--run_test", "--exp", "runs/x_pc2") == 0
    assert "4 components need more than 4 images" in run.error(*flags, "--n_components", "4")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--fit_direction", "labels"), "needs labels: --positive and --negative"),
        (("--fit_direction", "labels", "--positive", "a"), "--positive and --negative must be given together"),
        ((*HAIR, "--positive", "a", "--negative", "b"), "both define labels"),
        ((*HAIR, "--label", "blond"), "must be NAME=VALUE"),
        ((*HAIR, "--run_train", "--train_delta_h", "--edit_attr", "smiling"), "both produce a direction"),
        ((*HAIR, "--train_delta_h"), "computes a delta_h"),
        (("--run_test", "--fit_by", "mean"), "--fit_by needs --fit_direction labels"),
        ((*HAIR, "--n_components", "2"), "--n_components needs --fit_direction h_pca or clip_pca"),
        (("--fit_direction", "h_pca", "--run_test"), "produces several directions"),
        ((*HAIR, "--load_random_noise"), "needs labelled images"),
        ((*HAIR, "--labels", "strange.csv"), "strange.csv names none of the 2 images"),
        ((*HAIR, "--labels", "nowhere.csv"), "nowhere.csv: No such file or directory; check the path"),
        (("--fit_direction", "labels", "--positive", "nowhere", "--negative", "b"), "nowhere is not a folder of images"),
    ],
)
def test_errors_of_fitting(table, flags, said):
    assert said in table.error(*flags)
