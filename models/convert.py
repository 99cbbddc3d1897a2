"""Read weight files into the names used in models/, including those of the diffusers library (`UNet2DModel`).

A DDPM++ in that layout is the network of models/ddpm.py with its tensors under other names, as published for
google/ddpm-ema-celebahq-256, -bedroom-256 and -church-256. Attention uses linear layers there, with two sets of names. What a
`UNet2DModel` computes depends on settings that cannot be seen in its tensors; they are in the `config.json` next to the file.
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
# Former names of the attention layers in the library.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENTION = rf"(attentions\.\d+)\.({'|'.join(RENAMED)})\."
PROJECTIONS = ("q", "k", "v", "proj_out")

# Settings of UNet2DModel that match models/ddpm.py, as in google/ddpm-ema-*. Settings that affect names and shapes of tensors
# are checked when the weights are loaded.
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
OURS = ("type", "prediction_type")  # settings of a UNet2D that are not in config.json
ASSUMED = (
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "norm_eps",
    "attention_head_dim",
)  # those that differ most often


def is_diffusers(state_dict):
    """Whether a state dict has the names of diffusers."""
    return "time_embedding.linear_1.weight" in state_dict


def check_kind(config, where):
    """Raise SettingsError for the config.json of another kind of network."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise SettingsError(f"{where} describes a {kind}: of the networks in diffusers only UNet2DModel is supported")


def check_diffusers_config(config, norm_groups=32, where="config.json"):
    """Raise SettingsError, naming the settings, for a `UNet2DModel` that computes something different from models/ddpm.py.

    config: its config.json. norm_groups: of our network. where: prefix of the message.
    """
    check_kind(config, where)
    wanted = SETTINGS | {"norm_num_groups": norm_groups, "attn_norm_num_groups": norm_groups}
    given = {name: config.get(name, getattr(UNet2DSettings, name, None)) for name in wanted}
    given["attn_norm_num_groups"] = given["attn_norm_num_groups"] or norm_groups  # for the middle block
    if _one_head(given["attention_head_dim"], config):
        given["attention_head_dim"] = None
    if given["act_fn"] == "swish":  # the same function
        given["act_fn"] = "silu"
    if differing := _differing({name: (given[name], here) for name, here in wanted.items()}):
        raise SettingsError(
            f"{where} has {differing}: the DDPM++ here would compute something different with these weights: use "
            "weights with the settings of google/ddpm-ema-celebahq-256, or pass the folder of their pipeline as --config"
        )


def from_diffusers(state_dict, config=None, norm_groups=32, where="config.json"):
    """A state dict of `UNet2DModel` -> one of `DDPM`, with the same tensors. Names unknown to DDPM++ are kept.

    config: its config.json, checked as `check_diffusers_config` does. Raises SettingsError.
    """
    if config is not None:
        check_diffusers_config(config, norm_groups, where)
    levels = 1 + max((int(m[1]) for key in state_dict if (m := re.match(r"up_blocks\.(\d+)\.", key))), default=0)
    converted = {}
    for key, value in state_dict.items():
        module, _, kind = _renamed(key, levels).rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in PROJECTIONS and value.ndim == 2:
            value = value[:, :, None, None]  # a linear layer as a 1x1 convolution
        converted[f"{module}.{kind}"] = value
    return converted


def _renamed(key, levels):
    for old, new in OUTSIDE.items():
        key = re.sub(rf"^{re.escape(old)}\.", f"{new}.", key)
    for old, new in INSIDE.items():
        key = key.replace(f".{old}.", f".{new}.")
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
        side, level, part, index, rest = match.groups()
        # diffusers numbers the levels of both halves in the order they run, the published checkpoints by resolution.
        level = int(level) if side == "down" else levels - 1 - int(level)
        parts = {"resnets": f"block.{index}", "attentions": f"attn.{index}"}
        parts |= {"downsamplers": "downsample", "upsamplers": "upsample"}
        return f"{side}.{level}.{parts.get(part, part)}.{rest}"
    return key


def read_weights_of(unet, path):
    """A weight file for this U-Net -> state dict in float32, with the U-Net's names. Raises UserError."""
    if unet.settings["type"] != "unet2d":
        return read_unet_weights(path, unet.settings["norm_groups"])
    _check_same_settings(unet.settings, Path(path).with_name("config.json"))
    state_dict = tensors.state_dict_of(tensors.load(path), path)
    return {re.sub(ATTENTION, lambda m: f"{m[1]}.{RENAMED[m[2]]}.", key): value for key, value in state_dict.items()}


def _check_same_settings(settings, config_path):
    """Raise SettingsError if the config.json next to a weight file describes a UNet2DModel with other settings."""
    config = _read_config(config_path)
    if config is None:
        return
    check_kind(config, config_path)
    silent = vars(UNet2DSettings())
    pairs = {name: (config.get(name, silent[name]), here) for name, here in settings.items() if name not in OURS}
    if differing := _differing({name: (_listed(there), _listed(here)) for name, (there, here) in pairs.items()}):
        raise SettingsError(
            f"{config_path} has {differing}: the network here would compute something different with these weights: put those "
            "settings in the model section, or pass the folder of their pipeline as --config"
        )


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _differing(pairs):
    """{setting: (there, here)} -> a description of those that differ; '' if none do."""
    return ", ".join(
        f"{name} {json.dumps(there)} (here {json.dumps(here)})" for name, (there, here) in pairs.items() if there != here
    )


def read_unet_weights(path, norm_groups=32):
    """A file of U-Net weights, in any known layout and wrapping -> state dict in float32, with the names of models/.

    norm_groups: those of the network, which cannot be seen in the tensors. Weights of diffusers must have a `config.json` that
    matches models/ddpm.py next to them; if there is none, the assumed settings are logged. Raises UserError.
    """
    state_dict = tensors.state_dict_of(tensors.load(path), path)
    if not is_diffusers(state_dict):
        return state_dict
    config_path = Path(path).with_name("config.json")
    config = _read_config(config_path)
    if config is None:
        assumed = ", ".join(f"{name} {json.dumps(SETTINGS[name])}" for name in ASSUMED)
        log.info(f"{path} has no diffusers config.json next to it: assuming the settings of google/ddpm-ema-* ({assumed})")
    return from_diffusers(state_dict, config, norm_groups, config_path)


def _read_config(path):
    """The settings of a diffusers network, or None if there is no such file or it is something else."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path}, next to weights of diffusers, is not valid JSON ({one_line(error)}): download it again"
        ) from error
    of_diffusers = isinstance(config, dict) and not config.keys().isdisjoint({"_class_name", "_diffusers_version", *SETTINGS})
    return config if of_diffusers else None


def _one_head(head_dim, config):
    """Whether heads of head_dim channels mean a single head in every attention layer, including the middle block."""
    widths = config.get("block_out_channels")
    if not isinstance(widths, list | tuple) or not widths:
        return False
    kinds = config.get("down_block_types")
    kinds = kinds if isinstance(kinds, list | tuple) and len(kinds) == len(widths) else ["Attn"] * len(widths)
    return {widths[-1], *(width for width, kind in zip(widths, kinds, strict=True) if "Attn" in str(kind))} == {head_dim}
