"""Validate the `model` section and build the U-Net. Importing this module does not import torch, because `--help` uses it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from models.schedule import Diffusion, Schedule
from utils.errors import SettingsError, UserError
from utils.extras import install
from utils.sections import ANY, checked, one_name, setting
from utils.text import one_line

if TYPE_CHECKING:
    from models.unet import UNet

NEEDS_DIFFUSERS = f"type unet2d needs diffusers: {install('diffusers')}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of both DDPM++ and ADM.

    attn_resolutions: heights in pixels with attention; those that the network does not have are ignored. resamp_with_conv: use
    a convolution when changing the resolution. norm_groups: groups of every GroupNorm.
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

    def attention_widths(self, image_size: int) -> list[int]:
        """The numbers of channels at which there is attention; the middle block always has it."""
        levels = [i for i in range(len(self.ch_mult)) if image_size // 2**i in self.attn_resolutions]
        return [int(self.ch * self.ch_mult[i]) for i in [*levels, -1]]


@dataclass(frozen=True, kw_only=True)
class DDPMSettings(Plan):
    """A DDPM++ (models/ddpm.py)."""

    type: str = setting("ddpm", choices=("ddpm",))


@dataclass(frozen=True, kw_only=True)
class ADMSettings(Plan):
    """An iDDPM or ADM (models/adm.py), with the keys of guided-diffusion.

    Attention has heads of num_head_channels channels, or if that is -1, num_heads heads (in the decoder num_heads_upsample,
    unless that is -1). num_head_channels defaults to -1 if num_heads is given, else to 64. use_new_attention_order: split the
    fused qkv into q, k, v first and then into heads. learn_sigma: three more output channels for the variance.
    """

    type: str = setting("adm", choices=("adm",))
    num_head_channels: int | None = setting(None, at_least=-1, never=(0,))
    num_heads: int = setting(-1, at_least=-1, never=(0,))
    num_heads_upsample: int = setting(-1, at_least=-1, never=(0,))
    use_new_attention_order: bool = False
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    learn_sigma: bool = True

    def __post_init__(self) -> None:
        if self.num_head_channels is None:
            object.__setattr__(self, "num_head_channels", 64 if self.num_heads == -1 else -1)


_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")


@dataclass(frozen=True, kw_only=True)
class UNet2DSettings:
    """An unconditional UNet2DModel of the diffusers library (models/unet2d.py), with the library's names and defaults.

    prediction_type: what the network was trained to predict, the scheduler's setting of that name. The defaults are repeated
    here so that a model's identity does not change when the library adds a setting.
    """

    type: str = setting("unet2d", choices=("unet2d",))
    prediction_type: str = setting("epsilon", choices=("epsilon", "v_prediction"))
    in_channels: int = setting(3, choices=(3,))
    out_channels: int = setting(3, choices=(3,))
    center_input_sample: bool = False
    # "fourier" embeddings are for continuous noise levels, which have no t = 0.
    time_embedding_type: str = setting("positional", choices=("positional", "learned"))
    time_embedding_dim: int | None = setting(None, at_least=1)
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = setting(("DownBlock2D", *["AttnDownBlock2D"] * 3), choices=_DOWN)
    mid_block_type: str | None = setting("UNetMidBlock2D", choices=("UNetMidBlock2D",))
    up_block_types: tuple[str, ...] = setting((*["AttnUpBlock2D"] * 3, "UpBlock2D"), choices=_UP)
    block_out_channels: tuple[int, ...] = setting((224, 448, 672, 896), at_least=4, at_most=8192)
    layers_per_block: int = setting(2, at_least=1, at_most=64)
    mid_block_scale_factor: float = setting(1.0, above=0)
    downsample_padding: int = setting(1, at_least=0, at_most=1)
    downsample_type: str = setting("conv", choices=("conv", "resnet"))
    upsample_type: str = setting("conv", choices=("conv", "resnet"))
    dropout: float = setting(0.0, at_least=0, below=1)
    act_fn: str = "silu"
    attention_head_dim: int | None = setting(8, at_least=1)
    norm_num_groups: int | None = setting(32, at_least=1)
    attn_norm_num_groups: int | None = setting(None, at_least=1)
    norm_eps: float = setting(1e-5, above=0)
    resnet_time_scale_shift: str = setting("default", choices=("default", "scale_shift"))
    add_attention: bool = True
    num_train_timesteps: int | None = setting(None, at_least=1)  # number of learned embeddings, otherwise unused


NetworkSettings = DDPMSettings | ADMSettings | UNet2DSettings
SETTINGS: dict[str, type[NetworkSettings]] = {"ddpm": DDPMSettings, "adm": ADMSettings, "unet2d": UNet2DSettings}

# Keys that do not affect what a network computes, with the values for which this holds.
ACCEPTED: dict[str, dict[str, Any]] = {
    "ddpm": {"var_type": ("fixedsmall",), "ema": (True, False), "ema_rate": ANY},
    "adm": {
        "use_checkpoint": (True, False),
        "use_fp16": (True, False),
        "class_cond": (False,),
        "num_classes": (None,),
        "dims": (2,),
    },
    "unet2d": {
        "_class_name": ("UNet2DModel",),
        **dict.fromkeys(("_diffusers_version", "_name_or_path"), ANY),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        # Written by the library's EMAModel together with the settings of the network.
        **dict.fromkeys(("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step"), ANY),
        "use_ema_warmup": (True, False),
    },
}
# Other names of the same settings, in the flags and the code of guided-diffusion.
SAME = {"conv_resample": "resamp_with_conv"}
CALLED = {
    "num_channels": "ch",
    "model_channels": "ch",
    "channel_mult": "ch_mult",
    "attention_resolutions": "attn_resolutions",
    "out_channels": "out_ch",
}

# Published YAML files have `type: "simple"` for every network; data.dataset decides which one it is. These are the networks
# for those dataset keys, with the sizes of the published checkpoints.
_SIZES: dict[str, Any] = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4, 4], "attn_resolutions": [16]}
_DDPM: dict[str, Any] = {"type": "ddpm", **_SIZES, "num_res_blocks": 2}
_IDDPM: dict[str, Any] = {"type": "adm", **_SIZES, "num_res_blocks": 1, "num_head_channels": 64}
_ADM_IMAGENET = {**_IDDPM, "ch": 256, "num_res_blocks": 2, "attn_resolutions": [32, 16, 8]}
PUBLISHED = {
    "CelebA_HQ": _DDPM,
    "LSUN": _DDPM,
    "AFHQ": _IDDPM,
    "FFHQ": _IDDPM,
    "MetFACE": _IDDPM,
    **dict.fromkeys(("CelebA_HQ_P2", "FFHQ_P2", "AFHQ_P2", "CUB", "Flower"), _IDDPM),
    "IMAGENET": _ADM_IMAGENET,
}


def unet_settings(model: Any, data: Mapping[str, Any], where: str = "the model section") -> NetworkSettings:
    """A `model` section and its `data` section (mappings) -> an instance of one of the classes in SETTINGS.

    `type: simple` is handled as in the 2023 release: a DDPM++ with the sizes of the section for its DDPM++ datasets; for the
    others the published network, whatever the section says. where: prefix of error messages.
    Raises SettingsError (a ValueError) for invalid settings and for sizes that no network can have; UserError for a
    UNet2DModel if diffusers is not installed.
    """
    model = model if isinstance(model, dict) else {}
    if "type" not in model:
        raise SettingsError(f"{where} has no type: compare configs/celeba.yml")
    if model["type"] == "simple":
        model = _published(model, data.get("dataset"), where)
    kind = model["type"]
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise SettingsError(
            f'{where}: type {kind!r} is unknown: use "ddpm", "adm", "unet2d", or "simple" with a published dataset'
        )
    size = data.get("image_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SettingsError(f"data.image_size is {size!r}: must be a whole number of pixels")
    if kind == "adm":
        model = one_name(model, SAME, where)
    if kind == "unet2d":
        model = _for_pixels(model, size, where)
    settings = checked(SETTINGS[kind], model, where, ACCEPTED[kind], CALLED if kind != "unet2d" else None)
    faults = _faults_of_unet2d(settings, size) if isinstance(settings, UNet2DSettings) else _faults(settings, size)
    if fault := next(faults, None):
        raise SettingsError(f"{where}: {fault}")
    if kind == "unet2d" and find_spec("diffusers") is None:
        raise UserError(NEEDS_DIFFUSERS)
    return settings


def build_unet(config: Any) -> "UNet":
    """Settings with `data` and `model` sections (objects or dicts) -> frozen U-Net with random weights, in eval mode, with the
    interface of models.unet. A network that predicts v also uses the schedule of the `diffusion` section, or the default one.
    Raises SettingsError and UserError as `unet_settings` does.
    """
    data, model, diffusion = (_section(config, name) for name in ("data", "model", "diffusion"))
    settings = vars(unet_settings(model, data)).copy()
    plan = settings.copy()
    kind = plan.pop("type")
    if kind == "unet2d":
        plan["alpha_bars"] = Schedule.of(checked(Diffusion, diffusion, "the diffusion section")).alpha_bars
    unet = _network(kind)(image_size=data["image_size"], **plan).eval().requires_grad_(False)
    unet.settings = settings  # defines its architecture, apart from the image size
    return unet


def _network(kind: str) -> "type[UNet]":
    """The class of a network, imported when it is first used."""
    if kind == "unet2d":
        try:
            from models.unet2d import UNet2D
        except ImportError as error:
            raise UserError(f"{NEEDS_DIFFUSERS} ({one_line(error)})") from error
        return UNet2D
    if kind == "adm":
        from models.adm import ADM

        return ADM
    from models.ddpm import DDPM

    return DDPM


def _section(config: Any, name: str) -> dict[str, Any]:
    """A section of settings as a dict, {} if there is none."""
    section = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return section or {} if isinstance(section, dict | None) else dict(vars(section))


def _published(given: dict[str, Any], dataset: Any, where: str) -> dict[str, Any]:
    """The section that `type: simple` stands for."""
    if not isinstance(dataset, str) or dataset not in PUBLISHED:
        raise SettingsError(f'{where}: type "simple" needs data.dataset to be one of {", ".join(PUBLISHED)}')
    plan = PUBLISHED[dataset]
    if plan["type"] == "ddpm":
        return {**plan, **given, "type": "ddpm"}
    # Keys of the 2023 release are ignored, as they were there; any other key is an error, because it would have no effect.
    of_2023 = {f.name for f in fields(DDPMSettings)} - {"norm_groups"} | set(ACCEPTED["ddpm"])
    if others := [str(key) for key in given if key not in of_2023]:
        raise SettingsError(
            f'{where}: type "simple" is the published network for dataset {dataset}, so {others[0]} has no effect: use type '
            '"adm" and copy the model section of configs/ffhq.yml'
        )
    return plan


def _faults(settings: DDPMSettings | ADMSettings, image_size: int) -> Iterator[str]:
    """Yield reasons why a network with these settings cannot be built."""
    s = settings
    widths = [s.ch * m for m in s.ch_mult]
    if not widths:
        yield "ch_mult is empty: give one factor per resolution"
        return
    if any(width != int(width) for width in widths):
        yield f"ch_mult {_listed(s.ch_mult)} does not give whole numbers of channels for ch {s.ch}: change one of them"
    if s.ch % 2:
        yield f"ch {s.ch}: must be even, because half of the time embedding are sines and half cosines"
    if any(width % s.norm_groups for width in [s.ch] * (s.type == "ddpm") + widths):
        listed = _listed(dict.fromkeys([s.ch, *widths]))
        yield f"norm_groups {s.norm_groups} does not divide the channels {listed}: choose a common divisor, or another ch"
    halvings = len(s.ch_mult) - 1
    if image_size % 2**halvings:
        yield f"ch_mult has {len(s.ch_mult)} entries, so data.image_size must be a multiple of {2**halvings}, not {image_size}"
    if isinstance(s, ADMSettings):
        yield from _faults_of_heads(s, s.attention_widths(image_size))
        if s.resblock_updown and not s.resamp_with_conv:
            yield "resamp_with_conv false has no effect if resblock_updown is true: leave one of them out"


def _faults_of_heads(s: ADMSettings, widths: Sequence[int]) -> Iterator[str]:
    assert s.num_head_channels is not None  # set by __post_init__
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


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{n:g}" for n in numbers)


# ---- UNet2DModel ------------------------------------------------------------------------------------------------------------


def _for_pixels(given: dict[str, Any], image_size: int, where: str) -> dict[str, Any]:
    """The section without sample_size, which must equal the image size. Raises SettingsError if it differs, and for a network
    that takes class labels."""
    model = dict(given)
    size = model.pop("sample_size", None)
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise SettingsError(f"{where}: sample_size {list(size)}: only square images are supported")
        size = size[0]
    if size not in (None, image_size):
        raise SettingsError(f"{where}: sample_size {size} and data.image_size {image_size} differ: leave sample_size out")
    for name in ("class_embed_type", "num_class_embeds"):
        if model.get(name) is not None:
            raise SettingsError(f"{where}: {name} {model[name]}: the network takes class labels: use an unconditional one")
    return model


def _faults_of_unet2d(settings: UNet2DSettings, image_size: int) -> Iterator[str]:
    s = settings
    lengths = {name: len(getattr(s, name)) for name in ("block_out_channels", "down_block_types", "up_block_types")}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        yield f"{' and '.join(lengths)} must have the same number of entries, not {' and '.join(map(str, lengths.values()))}"
        return
    factor = 2 ** (lengths["block_out_channels"] - 1)
    if image_size % factor:
        n = len(s.block_out_channels)
        yield f"block_out_channels has {n} entries, so the image size must be a multiple of {factor}, not {image_size}"
    if s.time_embedding_type == "learned" and s.num_train_timesteps is None:
        yield "time_embedding_type learned needs num_train_timesteps, the number of its embeddings"
