"""The scripts of examples/ run on the default stack, each on one or two pictures."""

import runpy
import shutil
import sys

import pytest
import torch
from PIL import Image

import asyrp
from utils.files import ROOT

EXAMPLES = ROOT / "examples"
CELL, GAP = 96, 4  # pixels of a labelled grid


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(name, *flags) in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def faces(folder, split, n):
    folder.mkdir()
    for path in sorted((EXAMPLES / "faces" / split).iterdir())[:n]:
        shutil.copy(path, folder)
    return folder


def cells(path, rows, columns):
    """A labelled picture -> its cells, a list of rows of tensors (3, CELL, CELL) in [-1, 1]."""
    with Image.open(path) as picture:
        left, top = picture.width - columns * (CELL + GAP), picture.height - rows * (CELL + GAP)
        assert 0 < left < 2 * CELL and 0 < top < CELL
        boxes = [[(left + x * (CELL + GAP), top + y * (CELL + GAP)) for x in range(columns)] for y in range(rows)]
        cut = [[picture.crop((x, y, x + CELL, y + CELL)) for x, y in row] for row in boxes]
    return [[torch.tensor(list(cell.tobytes())).view(CELL, CELL, 3) / 127.5 - 1 for cell in row] for row in cut]


def far(a, b):
    return (a - b).abs().mean().item()


def test_edit_a_photograph(run):
    run("edit_a_photograph")
    [[original, plain, edited]] = cells("edited.png", 1, 3)
    assert far(original, plain) < 0.05
    assert far(plain, edited) > 0.02


def test_learn_a_direction(run, tmp_path):
    run("learn_a_direction", "--images", faces(tmp_path / "train", "train", 1), "--test", faces(tmp_path / "test", "test", 1))
    [[original, plain, edited]] = cells("learned.png", 1, 3)
    assert far(original, plain) < 0.05
    assert far(plain, edited) > 0.01
    learned = asyrp.load_direction("learned.safetensors", asyrp.open_model("avatar.yml"))
    assert learned.record["prompts"] == ["face", "sad face"]
    assert learned.record["training"]["n_images"] == 1


def test_sweep_strengths(run, tmp_path):
    run("sweep_strengths", "--images", faces(tmp_path / "test", "test", 2), "--strengths", 0, 1)
    for original, plain, edited in cells("strengths.png", 2, 3):
        assert far(original, plain) < 0.05
        assert far(plain, edited) > 0.01


@pytest.mark.parametrize(
    ("name", "flags", "error"),
    [
        ("edit_a_photograph", ["--image", "nowhere.png"], "nowhere.png"),
        ("learn_a_direction", ["--images", "nowhere"], "nowhere is not a folder of images"),
        ("sweep_strengths", ["--direction", "nobody"], "no direction nobody"),
    ],
)
def test_an_error_is_one_line(run, name, flags, error):
    with pytest.raises(SystemExit, match=f"^error: {error}"):
        run(name, *flags)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_they_are_short_and_use_the_public_library_alone(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    imports = {line for line in lines if line.startswith(("import ", "from "))}
    assert imports <= {"import argparse", "import sys", "from pathlib import Path", "from tqdm import tqdm"} | {
        "import asyrp  # noqa: E402"
    }
