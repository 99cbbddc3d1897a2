"""DDPM++ weights in the layout of the diffusers library."""

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from asyrp import checkpoints
from asyrp.config import load_config
from models import build_unet
from models.convert import from_diffusers, is_diffusers
from utils.errors import UserError

# The plan of google/ddpm-ema-celebahq-256 in small: six levels, attention at the second lowest, two layers per block.
WIDTHS = (32, 32, 64, 64, 96, 96)
LEVELS = len(WIDTHS)
SIZE = 64
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
CONFIG = f"""
data: {{dataset: TINY, category: CUSTOM, image_size: {SIZE}}}
model: {{type: ddpm, ch: 32, ch_mult: [1, 1, 2, 2, 3, 3], num_res_blocks: 2, attn_resolutions: [{SIZE // 16}]}}
"""


@pytest.fixture(scope="module")
def reference():
    """A UNet2DModel with random weights; those of its norms are not left at one and zero."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    for parameter in unet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter) * (parameter.ndim == 1))
    return unet.eval().requires_grad_(False)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "small.yml").write_text(CONFIG)
    return load_config(str(tmp_path / "small.yml"))


def as_linear_and_old(state_dict):
    for new, old in OLD_NAMES.items():
        state_dict = {key.replace(f".{new}.", f".{old}."): value for key, value in state_dict.items()}
    return state_dict


@pytest.mark.parametrize("names", [lambda w: w, as_linear_and_old], ids=["new names", "old names"])
@pytest.mark.parametrize("file", ["w.bin", "w.safetensors", "named_as_the_config_wants.ckpt"])
def test_the_same_output_as_diffusers(reference, config, tmp_path, names, file):
    path = tmp_path / file
    weights = names(reference.state_dict())
    if file == "w.bin":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    unet = checkpoints.load_unet(config, path)
    x, t = torch.randn(2, 3, SIZE, SIZE), torch.tensor([7, 801])
    with torch.no_grad():
        expected, found = reference(x, t).sample, unet(x, t)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_every_tensor_of_the_published_architecture_has_its_place():
    """At full size, without memory for it: names and shapes of celeba.yml."""
    with torch.device("meta"):
        theirs = UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
            attention_head_dim=None,
        ).state_dict()
        ours = build_unet(load_config("celeba")).state_dict()
    converted = from_diffusers(theirs)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    assert is_diffusers(theirs) and not is_diffusers(ours)


def test_another_network_in_this_layout_is_refused(reference, config, tmp_path):
    weights = reference.state_dict()
    weights["up_blocks.0.extra.0.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"1 too many \(first: up\.5\.extra"):
        checkpoints.load_unet(config, tmp_path / "w.bin")
