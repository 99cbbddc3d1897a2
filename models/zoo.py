"""Settings of the `model` section, checked -> U-Net. Importing this module does not import torch: `--help` reads it too."""

from dataclasses import dataclass, fields

from utils.errors import SettingsError
from utils.sections import ANY, checked, one_name, setting


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What both kinds of network have.

    attn_resolutions: heights in pixels at which there is attention; one that the network does not reach has none.
    resamp_with_conv: a convolution where the resolution changes. norm_groups: of every GroupNorm.
    """

    ch: int = setting(at_least=4, at_most=8192)
    ch_mult: tuple[float, ...] = setting(above=0, at_most=1024)
    num_res_blocks: int = setting(at_least=1, at_most=64)
    attn_resolutions: tuple[int, ...] = setting(at_least=1)
    dropout: float = setting(0.0, at_least=0, below=1)
    in_channels: int = setting(3, choices=(3,))
    out_ch: int = setting(3, choices=(3,))
    resamp_with_conv: bool = True
    norm_groups: int = setting(32, at_least=1)

    def attention_widths(self, image_size):
        """-> the widths, in channels, at which there is attention; the middle block always has some."""
        levels = [i for i in range(len(self.ch_mult)) if image_size // 2**i in self.attn_resolutions]
        return [int(self.ch * self.ch_mult[i]) for i in [*levels, -1]]


@dataclass(frozen=True, kw_only=True)
class DDPMSettings(Plan):
    """A DDPM++ (models/ddpm.py)."""

    type: str = setting("ddpm", choices=("ddpm",))


@dataclass(frozen=True, kw_only=True)
class ADMSettings(Plan):
    """An iDDPM or ADM (models/adm.py), with the keys of guided-diffusion.

    Attention has heads of num_head_channels channels, or where that is -1, num_heads heads, and num_heads_upsample in the upper
    half unless that is -1. num_head_channels is -1 by default where num_heads is given, else 64. use_new_attention_order: the
    fused qkv is split into q, k, v first and then into heads. learn_sigma: three more channels, the variance.
    """

    type: str = setting("adm", choices=("adm",))
    num_head_channels: int | None = setting(None, at_least=-1, never=(0,))
    num_heads: int = setting(-1, at_least=-1, never=(0,))
    num_heads_upsample: int = setting(-1, at_least=-1, never=(0,))
    use_new_attention_order: bool = False
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    learn_sigma: bool = True

    def __post_init__(self):
        if self.num_head_channels is None:
            object.__setattr__(self, "num_head_channels", 64 if self.num_heads == -1 else -1)


SETTINGS = {"ddpm": DDPMSettings, "adm": ADMSettings}

# Keys that change nothing of what a network computes, with the values for which that is so.
ACCEPTED = {
    "ddpm": {"var_type": ("fixedsmall",), "ema": (True, False), "ema_rate": ANY},
    "adm": {
        "use_checkpoint": (True, False),
        "use_fp16": (True, False),
        "class_cond": (False,),
        "num_classes": (None,),
        "dims": (2,),
    },
}
# Other names of the same settings, in guided-diffusion's flags and in its code.
SAME = {"conv_resample": "resamp_with_conv"}
CALLED = {
    "num_channels": "ch",
    "model_channels": "ch",
    "channel_mult": "ch_mult",
    "attention_resolutions": "attn_resolutions",
    "out_channels": "out_ch",
}

# Published YAML files say `type: "simple"` whatever the network is and leave the choice to data.dataset.
# These are the networks behind those dataset keys; the numbers are those of the published checkpoints.
_SIZES = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4, 4], "attn_resolutions": [16]}
_DDPM = {"type": "ddpm", **_SIZES, "num_res_blocks": 2}
_IDDPM = {"type": "adm", **_SIZES, "num_res_blocks": 1, "num_head_channels": 64}
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


def unet_settings(model, data, where="the model section"):
    """A `model` section, and the `data` section it stands beside (mappings) -> DDPMSettings or ADMSettings.

    `type: simple` is what the 2023 release says: a DDPM++ with the section's own plan for its DDPM++ datasets; for the others
    the published network, whatever the section says, as there. `where` begins the messages.
    Raises SettingsError, a ValueError, for what `checked` refuses and for a plan that no network can have.
    """
    model = model if isinstance(model, dict) else {}
    if "type" not in model:
        raise SettingsError(f"{where} lacks type; compare configs/celeba.yml")
    if model["type"] == "simple":
        model = _published(model, data.get("dataset"), where)
    kind = model["type"]
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise SettingsError(f'{where}: type {kind!r} is unknown: use "ddpm", "adm", or "simple" with a published dataset')
    if kind == "adm":
        model = one_name(model, SAME, where)
    settings = checked(SETTINGS[kind], model, where, ACCEPTED[kind], CALLED)
    size = data.get("image_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SettingsError(f"data.image_size is {size!r}: must be a whole number of pixels")
    if fault := next(_faults(settings, size), None):
        raise SettingsError(f"{where}: {fault}")
    return settings


def build_unet(config):
    """Settings with `data` and `model` sections (an object or a dict, as they are) -> frozen U-Net with random weights, in eval
    mode. Raises SettingsError, a ValueError, as `unet_settings` does.
    """
    from models.adm import ADM
    from models.ddpm import DDPM

    data, model = (_as_dict(config[s] if isinstance(config, dict) else getattr(config, s)) for s in ("data", "model"))
    settings = vars(unet_settings(model, data)).copy()
    plan = settings.copy()
    network = {"ddpm": DDPM, "adm": ADM}[plan.pop("type")]
    unet = network(image_size=data["image_size"], **plan).eval().requires_grad_(False)
    unet.settings = settings  # everything, besides the image size, that its architecture is
    return unet


def _as_dict(section):
    return section if isinstance(section, dict) else vars(section)


def _published(given, dataset, where):
    """The section behind `type: simple`."""
    if not isinstance(dataset, str) or dataset not in PUBLISHED:
        raise SettingsError(f'{where}: type "simple" needs data.dataset to be one of {", ".join(PUBLISHED)}')
    plan = PUBLISHED[dataset]
    if plan["type"] == "ddpm":
        return {**plan, **given, "type": "ddpm"}
    # The 2023 release's own keys are passed over, as there; for any other the section is asked to say which network it means.
    of_2023 = {f.name for f in fields(DDPMSettings)} - {"norm_groups"} | set(ACCEPTED["ddpm"])
    if others := [str(key) for key in given if key not in of_2023]:
        raise SettingsError(
            f'{where}: type "simple" is the published network for dataset {dataset}, so {others[0]} has no effect: say "adm", '
            "and copy the model section of configs/ffhq.yml"
        )
    return plan


def _faults(settings, image_size):
    """What keeps a network of this plan from being built, in words."""
    s = settings
    widths = [s.ch * m for m in s.ch_mult]
    if not widths:
        yield "ch_mult is empty: give one factor for each resolution"
        return
    if any(width != int(width) for width in widths):
        yield f"ch_mult {_listed(s.ch_mult)} makes no whole number of channels from ch {s.ch}"
    if s.ch % 2:
        yield f"ch {s.ch}: must be even, half of the time embedding is sines and half cosines"
    if any(width % s.norm_groups for width in [s.ch] * (s.type == "ddpm") + widths):
        widths = _listed(dict.fromkeys([s.ch, *widths]))
        yield f"norm_groups {s.norm_groups} does not divide the channels {widths}: choose a divisor of them all, or another ch"
    halvings = len(s.ch_mult) - 1
    if image_size % 2**halvings:
        yield f"ch_mult has {len(s.ch_mult)} entries, so data.image_size must be a multiple of {2**halvings}, not {image_size}"
    if s.type == "adm":
        yield from _faults_of_heads(s, s.attention_widths(image_size))
        if s.resblock_updown and not s.resamp_with_conv:
            yield "resamp_with_conv false has no effect where resblock_updown is true: leave one of them out"


def _faults_of_heads(s, widths):
    numbers = {"num_heads": s.num_heads, "num_heads_upsample": s.num_heads_upsample}
    given = {name: n for name, n in numbers.items() if n != -1}
    for width in widths:
        if s.num_head_channels == -1:
            if s.num_heads == -1:
                yield "num_head_channels -1 needs num_heads"
            for name, n in given.items():
                if width % n:
                    yield f"{name} {n} does not divide the {width} channels of an attention layer"
        elif width % s.num_head_channels:
            yield f"num_head_channels {s.num_head_channels} does not divide the {width} channels of an attention layer"
        else:
            for name, n in given.items():
                if n * s.num_head_channels != width:
                    yield (
                        f"{name} {n} and num_head_channels {s.num_head_channels} contradict each other at {width} channels: "
                        f"leave {name} out, or set num_head_channels to -1"
                    )


def _listed(numbers):
    return ", ".join(f"{n:g}" for n in numbers)
