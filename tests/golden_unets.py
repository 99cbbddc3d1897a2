"""The tiny U-Nets and delta blocks that the golden numbers were measured on."""

from functools import cache

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, filled, golden_json

from asyrp.acceleration.fast_unet import layout_for
from models import build_unet

needs_channels_last = pytest.mark.skipif(
    layout_for("cpu") != "channels_last", reason="this PyTorch is too old for channels_last"
)
MANIFEST = golden_json("manifest.json")
ARCHITECTURES = tuple(MANIFEST["architectures"])


def settings(name):
    """Architecture of the manifest -> settings of `build_unet`."""
    given = MANIFEST["architectures"][name]
    if name == "ddpm":
        return {"data": given["data"], "model": {"type": "ddpm", **given["model"]}}
    model = {key: given[key] for key in ("num_res_blocks", "num_head_channels", "resblock_updown", "learn_sigma")}
    model |= {
        "type": "adm",
        "ch": given["num_channels"],
        "ch_mult": [int(m) for m in given["channel_mult"].split(",")],
        "attn_resolutions": [int(r) for r in given["attention_resolutions"].split(",")],
        "use_scale_shift_norm": given["use_scale_shift_norm"],
    }
    return {"data": {"image_size": given["image_size"]}, "model": model}


@cache
def golden_weights(name):
    """-> (state dict of the U-Net, state dicts of the two delta blocks)."""
    weights = filled(golden_json(f"keys_{name}.json"), MANIFEST["seed"])
    unet = {key: value for key, value in weights.items() if not key.startswith("layer_")}
    blocks = [
        {key.removeprefix(f"layer_{i}."): value for key, value in weights.items() if key.startswith(f"layer_{i}.")}
        for i in range(2)
    ]
    return unet, blocks


@cache
def golden_unet(name):
    """-> (U-Net, its two delta blocks), loaded strictly. Shared between tests: leave them as they are."""
    unet_weights, block_weights = golden_weights(name)
    unet = build_unet(settings(name))
    unet.load_state_dict(unet_weights)
    blocks = []
    for weights in block_weights:
        block = unet.new_delta_block().requires_grad_(False)
        block.load_state_dict(weights)
        blocks.append(block)
    return unet, blocks


@cache
def golden_arrays(name):
    """tests/golden/<name>.npz -> {key: tensor}."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def relative_l2(found, expected):
    """|found - expected| / |expected| as a float."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gradient_at_h(unet, x, t):
    """The gradient at h of the squares of the prediction: what training a direction sends through the decoder."""
    h, skips, emb = unet.encode(x, t)
    h = h.clone().requires_grad_()
    unet.decode(h, skips, emb).square().sum().backward()
    return h.grad
