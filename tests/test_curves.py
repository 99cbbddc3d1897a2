"""Where LPIPS curves lie: each model has its own, and none takes another's by itself."""

from types import SimpleNamespace

import pytest
from tiny_world import open_tiny, straight

from asyrp import curves, intervals
from asyrp.config import load_config
from asyrp.store import Store
from utils.errors import UserError


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture(scope="module")
def other(tiny):
    return open_tiny(tiny, "adm")


@pytest.fixture
def kept(tmp_path):
    return Store(tmp_path / "precomputed")


def of(config, identity="a model"):
    """As much of a model as finding a curve needs."""
    return SimpleNamespace(config=load_config(config), identity=identity, precision="fp32")


def top(kept, model, name=None):
    """The highest value of the curve that is found: each test gives its curves another one."""
    return curves.find_curve(kept, model, name)[0].lpips_x_t.max()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("celeba", "celeba"),
        ("celeba_p2", "celeba"),
        ("ffhq", "celeba"),
        ("ffhq_p2", "celeba"),
        ("afhq", "afhq"),
        ("afhq_p2", "afhq"),
        ("bedroom", "bedroom"),
        ("church", "church"),
        ("metface", "metface"),
        ("avatar", "avatar"),
        ("custom", "celeba"),
    ],
)
def test_category_has_its_published_curves(kept, config, name):
    curve, where = curves.find_curve(kept, of(config))
    published = intervals.Curve.read(curves.PUBLISHED / f"{name}.csv")
    assert where == f"utils/lpips_curves/{name}.csv, published"
    assert (curve.lpips_x_t == published.lpips_x_t).all()
    assert curves.name_of_curve(load_config(config)) == name
    assert curves.name_of_curve(load_config(config), "mine") == "mine"


@pytest.mark.parametrize("config", ["imagenet", "cub_p2", "flower_p2", "avatar64"])
def test_category_without_curves(kept, config):
    category = load_config(config).data.category
    with pytest.raises(UserError, match=f"no LPIPS curves for category {category}: measure them with --lpips, choose others"):
        curves.find_curve(kept, of(config))
    assert curves.find_curve(kept, of(config), "celeba")[1] == "utils/lpips_curves/celeba.csv, published"


def test_custom_category_has_no_published_curves(kept, model):
    with pytest.raises(UserError, match=r"no LPIPS curves for category CUSTOM: .*\(afhq, avatar, bedroom, celeba, "):
        curves.find_curve(kept, model)
    with pytest.raises(UserError, match="no LPIPS curves named mine: measure them with --lpips"):
        curves.find_curve(kept, model, "mine")


def test_curves_measured_on_this_model(kept, model, other):
    curves.keep_curve(kept, straight(0.5), model, ["a"], "CUSTOM")
    curves.keep_curve(kept, straight(0.7), other, ["a"], "CUSTOM")
    assert (top(kept, model), top(kept, other)) == (0.5, 0.7)
    assert curves.find_curve(kept, model)[1].endswith(".safetensors, measured on 1 images")


def test_newest_curves_of_this_model_are_used(kept, model):
    curves.keep_curve(kept, straight(0.5), model, ["a"], "CUSTOM")
    curves.keep_curve(kept, straight(0.6), model, ["a", "b"], "mine")
    assert top(kept, model) == 0.6
    curves.keep_curve(kept, straight(0.5), model, ["a"], "CUSTOM")
    assert top(kept, model) == 0.5


def test_measured_curves_precede_published_ones(kept):
    celeba = of("celeba")
    curves.keep_curve(kept, straight(0.5), celeba, ["a"], "celeba")
    assert top(kept, celeba) == top(kept, celeba, "celeba") == 0.5


def test_curves_of_another_model_overwrite_nothing(kept, caplog):
    """FFHQ is measured under the name of the curves that it takes: those of CelebA-HQ stay what they were."""
    celeba, ffhq = of("celeba", "celeba's"), of("ffhq", "ffhq's")
    published = top(kept, celeba)
    curves.keep_curve(kept, straight(0.5), ffhq, ["a"], curves.name_of_curve(ffhq.config))
    assert top(kept, ffhq) == 0.5
    assert top(kept, celeba) == top(kept, celeba, "celeba") == published
    curves.keep_curve(kept, straight(0.6), celeba, ["a"], "celeba")
    assert (top(kept, ffhq), top(kept, celeba), top(kept, celeba, "celeba")) == (0.5, 0.6, 0.6)
    assert caplog.text == ""


def test_name_chooses_among_measured_curves(kept, model):
    curves.keep_curve(kept, straight(0.5), model, ["a"], "mine")
    curves.keep_curve(kept, straight(0.6), model, ["a"], "yours")  # the same images
    assert (top(kept, model, "mine"), top(kept, model, "yours")) == (0.5, 0.6)


def test_curves_of_another_model_need_a_name_and_warn(kept, model, other, caplog):
    curves.keep_curve(kept, straight(0.7), other, ["a"], "mine")
    assert top(kept, model, "mine") == 0.7
    assert f"the curves mine were measured on another model, {other.identity}" in caplog.text
    with pytest.raises(UserError, match="no LPIPS curves for category CUSTOM"):
        curves.find_curve(kept, model)


def test_damaged_curves_are_reported_and_not_used(kept, model, caplog):
    path = curves.keep_curve(kept, straight(0.7), model, ["a"], "CUSTOM")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="no LPIPS curves for category CUSTOM: measure them with --lpips"):
        curves.find_curve(kept, model)
    assert caplog.text.count("is damaged") == 1
