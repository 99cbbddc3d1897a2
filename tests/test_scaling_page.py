"""docs/scaling.md: what is calculated there follows from the passes, the sizes of tensors, and nothing else."""

import math
import re

import pytest
import torch

from asyrp.config import load_config
from asyrp.store import Store
from models import build_unet
from utils.files import ROOT

IMAGES, GPUS = (1_000, 100_000, 1_000_000), (1, 8, 64)
# Of an image, in the encoder and the decoder, with 40 steps of which 20 are edited: see test_counted_work.py.
PASSES = {
    "inversion": (39, 39),
    "editing": (40, 60),
    "training, first epoch": (39, 59),
    "training, a later epoch": (20, 40),
}
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


@pytest.fixture(scope="module")
def rows():
    """{first cell: the others} of all tables."""
    lines = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {first: others for first, *others in cells}


def size(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


def test_passes(rows):
    for what, halves in PASSES.items():
        for n in IMAGES:
            for cell, gpus in zip(rows[f"{what}, {n:,} images"], GPUS, strict=True):
                found = [int(number.replace(",", "")) for number in cell.split(" / ")]
                assert found == [math.ceil(n / gpus) * passes for passes in halves]


def test_gradients(rows):
    with torch.device("meta"):
        block = build_unet(load_config("celeba.yml")).new_delta_block()
    step = sum(p.nbytes for p in block.parameters())
    for n in IMAGES:
        alone, *several = rows[f"{n:,} images"]
        assert alone == "0"
        for cell, w in zip(several, GPUS[1:], strict=True):
            assert size(cell) == pytest.approx(2 * (w - 1) / w * step * 20 * math.ceil(n / w), rel=0.005)


def test_bytes_on_the_disk(rows, tmp_path):
    kept = Store(tmp_path)
    kept.write("latent", "ab" * 8, {"x_T": torch.zeros(3, 256, 256)}, {"timesteps": list(range(40))})
    kept.write("trajectory", "ab" * 8, {"P_plain": torch.zeros(20, 3, 256, 256)})
    features = (512 + 2048) * 4 * 2  # of CLIP and Inception, float32, of an original and an edit
    each = {"latents": kept.size("latent"), "plain trajectories": kept.size("trajectory"), "what `--evaluate`": features}
    for what, bytes_of_image in each.items():
        [cells] = [cells for first, cells in rows.items() if first.startswith(what)]
        for cell, n in zip(cells, IMAGES, strict=True):
            assert size(cell) == pytest.approx(n * bytes_of_image, rel=0.005)
    measured = re.search(r"latent at 256 px has ([\d,]+) bytes", " ".join((ROOT / "docs/scaling.md").read_text().split()))[1]
    assert int(measured.replace(",", "")) == pytest.approx(kept.size("latent"), abs=100)
