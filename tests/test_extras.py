"""Optional packages: which extra has each, and the one line where it is missing."""

import re
import subprocess
import sys

import pytest
import torch

from asyrp.evaluation import metrics
from asyrp.evaluation.evaluation import Evaluation
from asyrp.evaluation.gauges import Fidelity, Inception
from utils.errors import UserError
from utils.extras import EXTRAS, load
from utils.files import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# package, as it is imported -> as it is installed, where that is another name
DISTRIBUTIONS = {"dicebear": "dicebear-core"}


def names(requirements):
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


def without(monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_that_is_named_has_the_package(package):
    named = names(PROJECT["optional-dependencies"][EXTRAS[package]])
    assert DISTRIBUTIONS.get(package, package.replace("_", "-")) in named


@pytest.mark.parametrize("package", EXTRAS)
def test_running_needs_none_of_them(package):
    required = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert DISTRIBUTIONS.get(package, package.replace("_", "-")) not in names(required)


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    without(monkeypatch, "torchmetrics")
    with pytest.raises(UserError) as caught:
        load("torchmetrics.image.fid", "FID")
    assert str(caught.value).startswith("FID needs torchmetrics (")
    assert str(caught.value).endswith('): pip install -e ".[evaluation]"')
    assert "\n" not in str(caught.value)


def test_a_metric_without_its_package_is_left_out(monkeypatch):
    without(monkeypatch, "torchmetrics")
    without(monkeypatch, "torch_fidelity")
    openers = {Fidelity.name: Fidelity, Inception.name: lambda: Inception("cpu")}
    left_out = Evaluation(openers, {}, "cpu").left_out
    assert left_out.keys() == openers.keys()
    assert all(reason.endswith('pip install -e ".[evaluation]"') for reason in left_out.values())


@pytest.mark.parametrize(
    "metric",
    [metrics.psnr, metrics.ssim, metrics.frechet_distance, metrics.kernel_distance],
    ids=lambda metric: metric.__name__,
)
def test_every_metric_of_torchmetrics_says_so(monkeypatch, metric):
    without(monkeypatch, "torchmetrics")
    images = torch.zeros(2, 3, 16, 16)
    with pytest.raises(UserError, match="needs torchmetrics"):
        metric(images, images)


@pytest.mark.subprocess
def test_the_library_is_imported_without_any_of_them():
    code = f"""
import sys
sys.modules |= dict.fromkeys({list(EXTRAS)!r})
import asyrp.runner, asyrp.evaluation.gauges, scripts.avatar.render, scripts.avatar.masks
"""
    path = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts' / 'avatar')!r})"
    subprocess.run([sys.executable, "-c", path + code], cwd=ROOT, check=True)
