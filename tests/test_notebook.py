"""docs/asyrp.ipynb runs from top to bottom; Jupyter is not needed for that."""

import json
import re
import subprocess
import sys

import pytest
import torch

from asyrp.evaluation.metrics import psnr
from utils.files import ROOT

BOOK = ROOT / "docs" / "asyrp.ipynb"
CELLS = json.loads(BOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What the notebook asks other programs for, as it runs in an empty folder: a list of commands, none of which is run."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", lambda command, **more: asked.append(command))
    return asked


@pytest.mark.slow
def test_notebook_runs(started, tmp_path):
    names = {}
    for i, source in enumerate(CODE):
        exec(compile(source, f"cell {i + 1}", "exec"), names)
    assert started == []  # the repository is there
    assert len(CODE) == 10
    images, plain, x_T = names["images"], names["plain"], names["x_T"]
    assert psnr(plain, images).min() > 25
    strip = torch.stack(names["strip"])
    assert torch.equal(strip[0], plain[1])
    assert torch.allclose(strip[2], names["edited"][1], atol=1e-3)
    changes = (strip - strip[0]).abs().mean((1, 2, 3)).tolist()
    assert changes == sorted(changes)
    # Below the edge of the mask as everywhere, above it less.
    inside, everywhere = names["inside"][0] - plain[0], names["edited"][0] - plain[0]
    assert inside[:, :12].abs().mean() < 0.9 * everywhere[:, :12].abs().mean()
    assert (names["own"] - plain).abs().amax((1, 2, 3)).min() > 0.1
    # The new direction is found again, and is what was learned.
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["my_angry.safetensors"]
    assert names["again"].digest() == names["angry"].digest()
    assert torch.equal(names["model"].edit(x_T, names["again"]), names["own"])


def test_notebook_clones_the_repository(started, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["/usr/lib/python"])
    names = {}
    exec(CODE[0], names)
    place = tmp_path / "asyrp-repository"
    clone, install = started
    assert clone[:2] == ["git", "clone"] and clone[-2:] == [names["REPOSITORY"], str(place)]
    assert install[1:4] == ["-m", "pip", "install"] and install[-2:] == ["-e", f"{place}[avatar]"]
    assert sys.path[:2] == [str(place), str(place / "scripts")]


def test_notebook_has_no_outputs():
    book = json.loads(BOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["language"]) == (4, "python")
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code")


def test_link_opens_this_notebook_of_the_same_repository():
    [link] = re.findall(r"\(https://colab\.research\.google\.com/github/(\S+)/blob/main/(\S+)\)", "".join(CELLS[0]["source"]))
    assert f'REPOSITORY = "https://github.com/{link[0]}"' in CODE[0]
    assert ROOT / link[1] == BOOK
