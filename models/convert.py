"""Files of weights -> the names of models/. Those of the diffusers library (`UNet2DModel`) are names of their own.

A DDPM++ in that layout is the network of models/ddpm.py with its tensors under other names: google/ddpm-ema-celebahq-256,
-bedroom-256 and -church-256 are published so. Attention is written with linear layers there, and has been named in two ways.
What a `UNet2DModel` computes depends on settings that leave no trace in its tensors; they stand in the `config.json` beside the
file.
"""

import json
import logging
import re
from pathlib import Path

from models.zoo import UNet2DSettings
from utils import tensors
from utils.errors import SettingsError
from utils.text import one_line

log = logging.getLogger(__name__)

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
# What the library called the layers of attention in its first year.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENTION = rf"(attentions\.\d+)\.({'|'.join(RENAMED)})\."
PROJECTIONS = ("q", "k", "v", "proj_out")

# Setting of UNet2DModel -> what models/ddpm.py computes, as google/ddpm-ema-* do. Those that decide the names and shapes of
# tensors are checked when the weights are loaded.
SETTINGS = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-6,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
OURS = ("type", "prediction_type")  # settings of a UNet2D that config.json does not have
ASSUMED = ("downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps", "attention_head_dim")  # what differs most often


def is_diffusers(state_dict):
    """Whether a state dict is named as diffusers names it."""
    return "time_embedding.linear_1.weight" in state_dict


def check_kind(config, where):
    """Raise SettingsError for the config.json of another network of diffusers."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise SettingsError(f"{where} describes a {kind}: of diffusers' networks only a UNet2DModel can be read")


def check_diffusers_config(config, norm_groups=32, where="config.json"):
    """Raise SettingsError, naming the settings, for a `UNet2DModel` that computes something else than models/ddpm.py.

    config: its config.json. norm_groups: of ours. `where` begins the message.
    """
    check_kind(config, where)
    wanted = SETTINGS | {"norm_num_groups": norm_groups, "attn_norm_num_groups": norm_groups}
    given = {name: config.get(name, getattr(UNet2DSettings, name, None)) for name in wanted}
    given["attn_norm_num_groups"] = given["attn_norm_num_groups"] or norm_groups  # of the middle block
    if _one_head(given["attention_head_dim"], config):
        given["attention_head_dim"] = None
    if given["act_fn"] == "swish":  # another name of it
        given["act_fn"] = "silu"
    if differing := _differing({name: (given[name], here) for name, here in wanted.items()}):
        raise SettingsError(
            f"{where} says {differing}: the DDPM++ here would compute something else with these weights; use "
            "weights whose settings are those of google/ddpm-ema-celebahq-256, or give --config the folder of their pipeline"
        )


def from_diffusers(state_dict, config=None, norm_groups=32, where="config.json"):
    """A state dict of `UNet2DModel` -> one of `DDPM`, with the same tensors. Names that DDPM++ lacks are left as they are.

    config: its config.json, checked as `check_diffusers_config` does. Raises SettingsError.
    """
    if config is not None:
        check_diffusers_config(config, norm_groups, where)
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


def read_weights_of(unet, path):
    """A file of weights for this U-Net -> state dict in float32, in its own names. Raises UserError."""
    if unet.settings["type"] != "unet2d":
        return read_unet_weights(path, unet.settings["norm_groups"])
    _check_same_settings(unet.settings, Path(path).with_name("config.json"))
    state_dict = tensors.state_dict_of(tensors.load(path), path)
    return {re.sub(ATTENTION, lambda m: f"{m[1]}.{RENAMED[m[2]]}.", key): value for key, value in state_dict.items()}


def _check_same_settings(settings, beside):
    """Raise SettingsError where the config.json beside a file of weights describes another UNet2DModel than these settings."""
    config = _read_config(beside)
    if config is None:
        return
    check_kind(config, beside)
    silent = vars(UNet2DSettings())
    pairs = {name: (config.get(name, silent[name]), here) for name, here in settings.items() if name not in OURS}
    if differing := _differing({name: (_listed(there), _listed(here)) for name, (there, here) in pairs.items()}):
        raise SettingsError(
            f"{beside} says {differing}: the network here would compute something else with these weights; put those settings "
            "into the model section, or give --config the folder of their pipeline"
        )


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _differing(pairs):
    """{setting: (there, here)} -> those that differ, in words; '' where none does."""
    return ", ".join(
        f"{name} {json.dumps(there)} (here {json.dumps(here)})" for name, (there, here) in pairs.items() if there != here
    )


def read_unet_weights(path, norm_groups=32):
    """A file of U-Net weights, in any layout and wrapping that is known -> state dict in float32, in the names of models/.

    norm_groups: of the network they are for, which no tensor tells. Weights of diffusers need the `config.json` beside them to
    say what models/ddpm.py computes; where there is none, a line says what is assumed. Raises UserError.
    """
    state_dict = tensors.state_dict_of(tensors.load(path), path)
    if not is_diffusers(state_dict):
        return state_dict
    beside = Path(path).with_name("config.json")
    config = _read_config(beside)
    if config is None:
        assumed = ", ".join(f"{name} {json.dumps(SETTINGS[name])}" for name in ASSUMED)
        log.info(f"{path} has no config.json of diffusers beside it: taken as google/ddpm-ema-* are ({assumed})")
    return from_diffusers(state_dict, config, norm_groups, beside)


def _read_config(path):
    """The settings of a diffusers network; None where there is no such file, or one of something else."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path}, beside weights of diffusers, is not valid JSON ({one_line(error)}): fetch it again"
        ) from error
    of_diffusers = isinstance(config, dict) and not config.keys().isdisjoint({"_class_name", "_diffusers_version", *SETTINGS})
    return config if of_diffusers else None


def _one_head(head_dim, config):
    """Whether heads of so many channels are one head at each of the widths that have attention; the middle always has some."""
    widths = config.get("block_out_channels")
    if not isinstance(widths, list | tuple) or not widths:
        return False
    kinds = config.get("down_block_types")
    kinds = kinds if isinstance(kinds, list | tuple) and len(kinds) == len(widths) else ["Attn"] * len(widths)
    return {widths[-1], *(width for width, kind in zip(widths, kinds, strict=True) if "Attn" in str(kind))} == {head_dim}
