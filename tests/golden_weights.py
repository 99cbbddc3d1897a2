"""Seeded weights, the same as those the golden numbers were measured with."""

import json
import math
import zlib
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent / "golden"
U_NET_OUTPUTS = ("conv_out.weight", "out.2.weight")


def golden_json(name):
    """The contents of tests/golden/<name>."""
    return json.loads((GOLDEN / name).read_text())


def filled(shapes, seed=0, unet=True):
    """{key: shape} -> state dict; every tensor has a generator of its own, so the order of the keys does not matter.

    unet: whether the last convolution is made ten times smaller, as it is for U-Nets.
    """
    return {key: _filled(key, tuple(shape), seed, unet) for key, shape in shapes.items()}


def _filled(key, shape, seed, unet):
    r = torch.randn(shape, generator=torch.Generator().manual_seed((zlib.crc32(key.encode()) + seed) % 2**31))
    if key.endswith("running_var"):
        return 1 + 0.1 * r.abs()
    if len(shape) >= 2:
        return r / math.sqrt(math.prod(shape[1:])) * (0.1 if unet and key in U_NET_OUTPUTS else 1.0)
    return 1 + 0.1 * r if len(shape) == 1 and key.endswith("weight") else 0.05 * r
