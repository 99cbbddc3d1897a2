"""Settings -> U-Net."""

import inspect

from models.adm import ADM
from models.ddpm import DDPM

NETWORKS = {"ddpm": DDPM, "adm": ADM}

# Published YAML files say `type: "simple"` whatever the network is and leave the choice to data.dataset.
# These are the networks behind those dataset keys; the numbers are those of the published checkpoints.
_PLAN = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4, 4], "attn_resolutions": [16]}
_DDPM = {"type": "ddpm", **_PLAN, "num_res_blocks": 2}
_IDDPM = {"type": "adm", **_PLAN, "num_res_blocks": 1, "num_head_channels": 64}
_ADM_IMAGENET = {**_IDDPM, "ch": 256, "num_res_blocks": 2, "attn_resolutions": [32, 16, 8]}
PUBLISHED = {
    "CelebA_HQ": _DDPM,
    "LSUN": _DDPM,
    "AFHQ": _IDDPM,
    "FFHQ": _IDDPM,
    "MetFACE": _IDDPM,
    "CelebA_HQ_P2": _IDDPM,
    "IMAGENET": _ADM_IMAGENET,
}


def build_unet(config):
    """Settings with `data` and `model` sections (a namespace or a dict) -> frozen U-Net with random weights, in eval mode.

    Raises ValueError for an unknown type or dataset key, and for a `model` section that lacks a setting.
    """
    data, model = (_as_dict(_get(config, section)) for section in ("data", "model"))
    if model["type"] == "simple":
        if data.get("dataset") not in PUBLISHED:
            raise ValueError(f'model type "simple" needs data.dataset to be one of {", ".join(PUBLISHED)}')
        model = PUBLISHED[data["dataset"]]
    if model["type"] not in NETWORKS:
        raise ValueError(f'model type "{model["type"]}" is unknown: use "ddpm", "adm", or "simple" with a published dataset')
    network = NETWORKS[model["type"]]
    parameters = inspect.signature(network).parameters
    settings = {"image_size": data["image_size"], **{key: model[key] for key in model if key in parameters}}
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in settings]
    if missing:
        raise ValueError(f"the model section lacks {', '.join(missing)}")
    return network(**settings).eval().requires_grad_(False)


def _get(config, key):
    return config[key] if isinstance(config, dict) else getattr(config, key)


def _as_dict(section):
    return dict(section) if isinstance(section, dict) else vars(section)
