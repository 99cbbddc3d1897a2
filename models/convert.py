"""DDPM++ weights in the layout of the diffusers library (`UNet2DModel`) -> the names of models/ddpm.py.

The same network with its tensors under other names: google/ddpm-ema-celebahq-256, -bedroom-256 and -church-256 are published
so. Attention is written with linear layers there, and has been named in two ways.
"""

import re

OUTSIDE = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
}
INSIDE = {
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
PROJECTIONS = ("q", "k", "v", "proj_out")


def is_diffusers(state_dict):
    """Whether a state dict is named as diffusers names it."""
    return "time_embedding.linear_1.weight" in state_dict


def from_diffusers(state_dict):
    """A state dict of `UNet2DModel` -> one of `DDPM`, with the same tensors. Names that DDPM++ lacks are left as they are."""
    levels = 1 + max((int(m[1]) for key in state_dict if (m := re.match(r"up_blocks\.(\d+)\.", key))), default=0)
    converted = {}
    for key, value in state_dict.items():
        module, _, kind = _renamed(key, levels).rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in PROJECTIONS and value.ndim == 2:
            value = value[:, :, None, None]  # a linear layer as a convolution of 1x1
        converted[f"{module}.{kind}"] = value
    return converted


def _renamed(key, levels):
    for old, new in OUTSIDE.items():
        key = re.sub(rf"^{re.escape(old)}\.", f"{new}.", key)
    for old, new in INSIDE.items():
        key = key.replace(f".{old}.", f".{new}.")
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
        side, level, part, index, rest = match.groups()
        # diffusers counts the levels of both halves as they run, the published checkpoints by resolution.
        level = int(level) if side == "down" else levels - 1 - int(level)
        parts = {"resnets": f"block.{index}", "attentions": f"attn.{index}"}
        parts |= {"downsamplers": "downsample", "upsamplers": "upsample"}
        return f"{side}.{level}.{parts.get(part, part)}.{rest}"
    return key


def read_unet_weights(path):
    from utils import tensors

    state_dict = tensors.state_dict_of(tensors.load(path), path)
    return from_diffusers(state_dict) if is_diffusers(state_dict) else state_dict
