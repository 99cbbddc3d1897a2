"""DDPM++ weights in the layout of the diffusers library."""

import json
import logging

import pytest
import torch
from diffusers import UNet2DModel
from golden_unets import relative_l2
from safetensors.torch import save_file

from asyrp.config import load_config
from models import build_unet
from models.convert import check_diffusers_config, from_diffusers, is_diffusers, read_unet_weights
from utils.errors import SettingsError, UserError
from utils.tensors import Misfit, load_strictly

# The plan of google/ddpm-ema-celebahq-256 in small: six levels, attention at the second lowest, two layers per block.
WIDTHS = (32, 32, 64, 64, 96, 96)
SIZE = 64
PLAN = {
    "sample_size": SIZE,
    "block_out_channels": WIDTHS,
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "layers_per_block": 2,
}
# What google/ddpm-ema-* say and UNet2DModel does not do by itself.
PUBLISHED = {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
MODEL = {"type": "ddpm", "ch": 32, "ch_mult": [1, 1, 2, 2, 3, 3], "num_res_blocks": 2, "attn_resolutions": [SIZE // 16]}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
X, T = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 801])


def theirs(**changes):
    """A UNet2DModel with random weights; those of its norms are not left at one and zero."""
    torch.manual_seed(0)
    unet = UNet2DModel(**PLAN | PUBLISHED | changes)
    for parameter in unet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter) * (parameter.ndim == 1))
    return unet.eval().requires_grad_(False)


def ours(path, **changes):
    """Our network with the weights of a file."""
    unet = build_unet({"data": {"image_size": SIZE}, "model": MODEL | changes})
    load_strictly(unet, read_unet_weights(path, unet.norm_groups), path, "the U-Net")
    return unet


@torch.no_grad()
def error(unet, reference):
    expected = reference(X, T).sample
    assert expected.std() > 0.1
    return relative_l2(unet(X, T), expected)


@pytest.fixture(scope="module")
def reference():
    return theirs()


def as_linear_and_old(state_dict):
    for new, old in OLD_NAMES.items():
        state_dict = {key.replace(f".{new}.", f".{old}."): value for key, value in state_dict.items()}
    return state_dict


@pytest.mark.parametrize("names", [lambda w: w, as_linear_and_old], ids=["new names", "old names"])
@pytest.mark.parametrize("file", ["w.bin", "w.safetensors", "named_as_the_config_wants.ckpt"])
def test_same_output_as_diffusers(reference, tmp_path, names, file):
    path = tmp_path / file
    weights = names(reference.state_dict())
    if file == "w.bin":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    assert error(ours(path), reference) < 1e-5


def test_folder_as_diffusers_saves_it(reference, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    reference.save_pretrained(tmp_path)
    assert error(ours(tmp_path / "diffusion_pytorch_model.safetensors"), reference) < 1e-5
    assert not caplog.messages


def test_other_groups_of_normalisation(tmp_path):
    reference = theirs(norm_num_groups=8)
    reference.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    assert error(ours(path, norm_groups=8), reference) < 1e-5
    with pytest.raises(SettingsError, match=r"norm_num_groups 8 \(here 32\)"):
        ours(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"downsample_padding": 1}, "downsample_padding 1 (here 0)"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos true (here false)"),
        ({"freq_shift": 0}, "freq_shift 0 (here 1)"),
        ({"attention_head_dim": 8}, "attention_head_dim 8 (here null)"),
        ({"norm_eps": 1e-3}, "norm_eps 0.001 (here 1e-06)"),
        ({"act_fn": "relu"}, 'act_fn "relu" (here "silu")'),
        ({"center_input_sample": True}, "center_input_sample true (here false)"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor 2 (here 1)"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups 8 (here 32)"),
    ],
)
def test_network_that_computes_something_else_is_refused(tmp_path, changes, said):
    """Its tensors would load: each of these settings is in config.json alone."""
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    with pytest.raises(SettingsError) as caught:
        ours(path)
    message = str(caught.value)
    assert said in message and message.count("(here") == 1 and "config.json" in message and "\n" not in message
    (tmp_path / "config.json").unlink()
    assert error(ours(path), reference) > 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resnet_time_scale_shift", "scale_shift"),
        ("add_attention", False),
        ("time_embedding_type", "fourier"),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 10),
        ("downsample_type", "resnet"),
        ("upsample_type", "resnet"),
        ("mid_block_type", None),
    ],
)
def test_settings_that_tensors_show_too(name, value):
    with pytest.raises(SettingsError, match=name):
        check_diffusers_config(PUBLISHED | {name: value})


def test_missing_settings_use_diffusers_defaults():
    check_diffusers_config(PUBLISHED)
    for name in PUBLISHED:
        silent = {key: value for key, value in PUBLISHED.items() if key != name}
        with pytest.raises(SettingsError, match=name):
            check_diffusers_config(silent)


def test_one_head_by_its_number():
    check_diffusers_config(PUBLISHED | {"attention_head_dim": 64, "block_out_channels": [64, 64]})
    with pytest.raises(SettingsError, match="attention_head_dim 64"):
        check_diffusers_config(PUBLISHED | {"attention_head_dim": 64, "block_out_channels": [64, 128]})


@pytest.mark.parametrize("changes", [{"attention_head_dim": 96}, {"act_fn": "swish"}], ids=str)
def test_act_fn_swish_is_silu(tmp_path, changes):
    """At this plan's widths with attention, 96 channels are one head; swish is another name of silu."""
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path)
    unet = build_unet({"data": {"image_size": SIZE}, "model": MODEL})
    unet.load_state_dict(read_unet_weights(tmp_path / "diffusion_pytorch_model.safetensors"))
    with torch.no_grad():
        assert (unet(X, T) - reference(X, T).sample).abs().max() < 1e-5


def test_missing_config_logs_assumed_settings(reference, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    for other in (None, "{}", "[1]", '{"name": "of something else"}'):
        if other:
            (tmp_path / "config.json").write_text(other)
        caplog.clear()
        read_unet_weights(tmp_path / "w.safetensors")
        [line] = caplog.messages
        assert "w.safetensors has no diffusers config.json next to it" in line
        assert "downsample_padding 0, flip_sin_to_cos false, freq_shift 1, norm_eps 1e-06, attention_head_dim null" in line


def test_config_that_cannot_be_read(reference, tmp_path):
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json.* not valid JSON"):
        read_unet_weights(tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="describes a UNet2DConditionModel"):
        read_unet_weights(tmp_path / "w.safetensors")


def test_our_own_names_need_no_config(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    unet = build_unet({"data": {"image_size": SIZE}, "model": MODEL})
    torch.save({"model": {f"module.{key}": value for key, value in unet.state_dict().items()}}, tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {"norm_eps": 1}))
    found = read_unet_weights(tmp_path / "w.pt")
    assert all(torch.equal(found[key], value) for key, value in unet.state_dict().items())
    assert not caplog.messages


def test_average_in_this_layout(reference, tmp_path):
    raw = {key: 0 * value for key, value in reference.state_dict().items()}
    torch.save({"unet": raw, "ema_unet": reference.state_dict()}, tmp_path / "w.pt")
    assert error(ours(tmp_path / "w.pt"), reference) < 1e-5


def test_every_published_tensor_is_converted():
    """At full size, without memory for it: names and shapes of celeba.yml."""
    with torch.device("meta"):
        theirs = UNet2DModel(**PLAN | {"sample_size": 256, "block_out_channels": (128, 128, 256, 256, 512, 512)}).state_dict()
        ours = build_unet(load_config("celeba")).state_dict()
    converted = from_diffusers(theirs)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    assert is_diffusers(theirs) and not is_diffusers(ours)


def test_another_network_in_this_layout_is_refused(reference, tmp_path):
    weights = reference.state_dict()
    weights["up_blocks.0.extra.0.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.bin")
    with pytest.raises(Misfit, match=r"1 unexpected \(first: up\.5\.extra"):
        ours(tmp_path / "w.bin")
