"""The `model` section: which network each setting makes, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden_unets import relative_l2
from golden_weights import filled
from torch import nn

from models import build_unet
from models.adm import AttentionBlock
from models.zoo import PUBLISHED, ADMSettings, DDPMSettings, unet_settings
from utils.errors import SettingsError, UserError

DDPM = {"type": "ddpm", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
ADM = {**DDPM, "type": "adm", "num_head_channels": 16}
SIZE = 16
X = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
T = torch.tensor([20, 700])


def built(model, size=SIZE, **changes):
    """A network of a section with some of its keys changed (None: left out), with weights that depend on the keys alone."""
    section = {key: value for key, value in {**model, **changes}.items() if value is not None}
    unet = build_unet({"data": {"image_size": size}, "model": section})
    unet.load_state_dict(filled({key: value.shape for key, value in unet.state_dict().items()}))
    return unet


@torch.no_grad()
def eps(model, **changes):
    return built(model, **changes)(X, T)[:, :3]


def keys(unet):
    return {key: tuple(value.shape) for key, value in unet.state_dict().items()}


def refused(model, complaint, data=None, **changes):
    with pytest.raises(SettingsError, match=complaint) as caught:
        build_unet({"data": {"image_size": SIZE, **(data or {})}, "model": {**model, **changes}})
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


# ---- settings of both kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [DDPM, ADM], ids=["ddpm", "adm"])
def test_section_can_be_any_object(model):
    settings = unet_settings(model, {"image_size": SIZE})
    data = SimpleNamespace(image_size=SIZE, more="than is needed")
    of_objects = build_unet(SimpleNamespace(data=data, model=settings))
    of_namespaces = build_unet(SimpleNamespace(data=data, model=SimpleNamespace(**model)))
    assert keys(of_objects) == keys(of_namespaces) == keys(built(model))


@pytest.mark.parametrize("model", [DDPM, ADM], ids=["ddpm", "adm"])
def test_every_group_norm_follows_norm_groups(model):
    unet = built(model, ch=12, num_head_channels=12 if model is ADM else None, norm_groups=4)
    norms = [m for net in (unet, unet.new_delta_block()) for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {4}
    assert unet(X, T).isfinite().all()
    assert {m.num_groups for m in built(model).modules() if isinstance(m, nn.GroupNorm)} == {32}


@pytest.mark.parametrize("model", [DDPM, ADM], ids=["ddpm", "adm"])
def test_settings_change_what_is_computed(model):
    """Each key is followed: another value of it is another function of the same weights, or other weights."""
    plain = built(model)
    changes = {"ch": 64, "ch_mult": [1, 1], "num_res_blocks": 2, "attn_resolutions": [16, 8], "norm_groups": 16}
    changes |= {"dropout": 0.5}
    if model is DDPM:
        changes |= {"resamp_with_conv": False}
    else:
        changes |= {"num_head_channels": 32, "use_new_attention_order": True, "resblock_updown": False}
        changes |= {"use_scale_shift_norm": False, "learn_sigma": False}
    for key, value in changes.items():
        unet = built(model, **{key: value})
        if key == "dropout":
            assert {m.p for m in unet.modules() if isinstance(m, nn.Dropout)} == {0.5}
        else:
            assert keys(unet) != keys(plain) or relative_l2(unet(X, T), plain(X, T)) > 1e-3, key


@pytest.mark.parametrize("model", [DDPM, ADM], ids=["ddpm", "adm"])
def test_fraction_of_ch(model):
    """guided-diffusion's own plan for 512 px begins with 0.5."""
    unet = built(model, ch=64, ch_mult=[0.5, 1])
    assert unet.h_ch == 64
    assert unet(X, T).isfinite().all()
    last = unet.conv_out if model is DDPM else unet.out[2]
    assert last.in_channels == 32


@pytest.mark.parametrize(
    ("model", "changes", "complaint"),
    [
        (DDPM, {"ch": "wide"}, "ch 'wide': must be a whole number"),
        (DDPM, {"ch": 33}, "ch 33: must be even"),
        (DDPM, {"ch": 48}, "norm_groups 32 does not divide the channels 48, 96"),
        (DDPM, {"ch": 48, "ch_mult": [2, 4]}, "norm_groups 32 does not divide the channels 48, 96, 192"),
        (DDPM, {"norm_groups": 24}, "norm_groups 24 does not divide the channels 32, 64"),
        (DDPM, {"norm_groups": 0}, "norm_groups 0: must be 1 or more"),
        (ADM, {"norm_groups": 24}, "norm_groups 24 does not divide"),
        (DDPM, {"ch_mult": []}, "ch_mult is empty"),
        (DDPM, {"ch_mult": [1, 1.01]}, r"ch_mult 1, 1\.01 does not give whole numbers of channels"),
        (DDPM, {"ch_mult": [1] * 6}, "data.image_size must be a multiple of 32, not 16"),
        (DDPM, {"ch_mult": [0]}, "ch_mult 0"),
        (DDPM, {"in_channels": 1}, "in_channels 1: must be 3"),
        (DDPM, {"num_heads": 4}, "unknown key 'num_heads'"),
        (DDPM, {"attn_resolution": [8]}, "unknown key 'attn_resolution'; did you mean attn_resolutions"),
        (DDPM, {"num_channels": 8}, "it is called ch here"),
        (DDPM, {"var_type": "fixedlarge"}, "var_type 'fixedlarge' is not supported: it must be 'fixedsmall'"),
        (ADM, {"num_head_channel": 8}, "did you mean num_head_channels"),
        (ADM, {"attention_resolutions": "16"}, "it is called attn_resolutions here"),
        (ADM, {"class_cond": True}, "class_cond true is not supported"),
        (ADM, {"num_classes": 1000}, "num_classes 1000 is not supported"),
        (ADM, {"dims": 3}, "dims 3 is not supported: it must be 2"),
        (ADM, {"num_head_channels": 24}, "num_head_channels 24 does not divide the 64 channels"),
        (ADM, {"num_head_channels": 0}, "num_head_channels 0: must be another value"),
        (ADM, {"num_head_channels": -1}, "num_head_channels -1 needs num_heads"),
        (ADM, {"num_head_channels": -1, "num_heads": 3}, "num_heads 3 does not divide the 64 channels"),
        (ADM, {"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 3}, "num_heads_upsample 3 does not divide"),
        (
            ADM,
            {"num_heads": 2},
            "num_heads 2 and num_head_channels 16 contradict each other at 64 channels: leave num_heads out",
        ),
        (ADM, {"num_heads_upsample": 2}, "num_heads_upsample 2 and num_head_channels 16 contradict each other"),
        (ADM, {"resamp_with_conv": False}, "resamp_with_conv false has no effect if resblock_updown is true"),
        (ADM, {"conv_resample": True, "resamp_with_conv": False}, "the same setting but differ"),
        ({"type": ["ddpm"]}, {}, "is unknown"),
        ({}, {}, "has no type"),
    ],
)
def test_plans_that_are_refused(model, changes, complaint):
    refused(model, complaint, **changes)


@pytest.mark.parametrize("size", [None, "16", 16.0, True, 0])
def test_invalid_image_size(size):
    refused(DDPM, "image_size", data={"image_size": size})


# ---- guided-diffusion's keys ------------------------------------------------------------------------------------------------


def attention(block, x, order):
    """Attention head by head, as guided-diffusion's QKVAttentionLegacy and QKVAttention describe it."""
    flat = x.flatten(2)
    qkv = block.qkv(block.norm(flat))
    n, channels, heads = len(x), x.shape[1], block.heads
    width = channels // heads
    found = []
    for head in range(heads):
        if order == "legacy":
            q, k, v = qkv[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=1)
        else:
            q, k, v = (part[:, width * head : width * (head + 1)] for part in qkv.chunk(3, dim=1))
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / width**0.5, dim=-1)
        found.append(torch.einsum("bts,bcs->bct", weights, v))
    return x + block.proj_out(torch.cat(found, dim=1)).reshape(n, channels, *x.shape[2:])


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_both_orders_of_attention(heads):
    torch.manual_seed(0)
    x = torch.randn(2, 24, 3, 5)
    found = {}
    for order in ("legacy", "new"):
        block = AttentionBlock(24, heads, order == "new", groups=8)
        block.load_state_dict(filled({key: value.shape for key, value in block.state_dict().items()}))
        found[order] = block(x)
        assert relative_l2(found[order], attention(block, x, order)) < 1e-6
    assert (relative_l2(found["new"], found["legacy"]) > 1e-3) == (heads > 1)


def heads_of(unet):
    """-> heads of every attention layer: (lower half, middle, upper half)."""
    halves = (unet.input_blocks, unet.middle_block, unet.output_blocks)
    return tuple([m.heads for m in half.modules() if isinstance(m, AttentionBlock)] for half in halves)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ([1], [1], [1, 1])),  # 64 channels to a head
        ({"num_head_channels": 16}, ([4], [4], [4, 4])),
        ({"num_heads": 4}, ([4], [4], [4, 4])),
        ({"num_heads": 4, "num_head_channels": -1}, ([4], [4], [4, 4])),
        ({"num_heads": 4, "num_head_channels": 16}, ([4], [4], [4, 4])),
        ({"num_heads": 4, "num_heads_upsample": 2}, ([4], [4], [2, 2])),
        ({"num_heads": 4, "num_heads_upsample": -1}, ([4], [4], [4, 4])),
    ],
)
def test_heads_of_attention(given, expected):
    assert heads_of(built(ADM, num_head_channels=None) if not given else built({**DDPM, "type": "adm"}, **given)) == expected


def test_heads_where_widths_differ():
    unet = built(ADM, attn_resolutions=[16, 8], num_head_channels=16)
    assert heads_of(unet) == ([2, 4], [4], [4, 4, 2, 2])


def test_average_pooling_without_convolution():
    with_conv, without = (built(ADM, resblock_updown=False, conv_resample=on) for on in (True, False))
    lost = set(keys(with_conv)) - set(keys(without))
    assert lost == {
        f"{layer}.{kind}" for layer in ("input_blocks.2.0.op", "output_blocks.1.2.conv") for kind in ("weight", "bias")
    }
    assert keys(without).items() <= keys(with_conv).items()
    assert without(X, T).shape == (2, 6, SIZE, SIZE)


def test_keys_that_change_no_number():
    changes = {"use_checkpoint": True, "use_fp16": True, "class_cond": False, "num_classes": None, "dims": 2, "in_channels": 3}
    assert torch.equal(eps(ADM, **changes), eps(ADM))
    assert torch.equal(eps(DDPM, var_type="fixedsmall", ema=True, ema_rate=0.999), eps(DDPM))


# ---- `type: simple` ---------------------------------------------------------------------------------------------------------

OF_2023 = {
    "type": "simple",
    "in_channels": 3,
    "out_ch": 3,
    "ch": 64,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
    "var_type": "fixedsmall",
    "ema_rate": 0.999,
    "ema": True,
    "resamp_with_conv": True,
}


def simple(dataset, section):
    return unet_settings(section, {"dataset": dataset, "image_size": 256})


def test_simple_follows_the_section_of_a_ddpm():
    settings = simple("CelebA_HQ", OF_2023)
    assert settings == replace(simple("LSUN", {"type": "simple"}), ch=64, ch_mult=(1, 1, 2))
    assert isinstance(settings, DDPMSettings)


def test_simple_alone_is_the_published_network():
    for dataset, plan in PUBLISHED.items():
        assert simple(dataset, {"type": "simple"}) == unet_settings(plan, {"image_size": 256})


def test_simple_is_the_published_adm_whatever_the_section_says():
    settings = simple("FFHQ", OF_2023)
    assert isinstance(settings, ADMSettings)
    assert settings == unet_settings(PUBLISHED["FFHQ"], {"image_size": 256})


@pytest.mark.parametrize("key", ["num_heads", "use_new_attention_order", "norm_groups", "chh"])
def test_simple_refuses_keys_unknown_to_2023(key):
    refused({**OF_2023, key: 4}, f"{key} has no effect: use type", data={"dataset": "AFHQ", "image_size": 256})


@pytest.mark.parametrize("dataset", ["Cats", None, ["FFHQ"]])
def test_simple_needs_a_published_dataset(dataset):
    refused({"type": "simple"}, "needs data.dataset to be one of CelebA_HQ", data={"dataset": dataset})
