"""A pipeline of the diffusers library, a UNet2DModel and its scheduler, as the sections of a YAML.

It is a folder as `DDPMPipeline.save_pretrained` writes it, or a model on the Hugging Face hub. Each part lies in a folder of
its own, or, as google/ddpm-* have it, beside model_index.json.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from models.schedule import Diffusion
from models.zoo import UNet2DSettings
from utils import hub
from utils.errors import SettingsError, UserError
from utils.sections import ANY, checked, setting
from utils.text import one_line

INDEX = "model_index.json"
PARTS = {"unet": "config.json", "scheduler": "scheduler_config.json"}
SETTINGS = [INDEX, *PARTS.values(), *(f"{part}/{file}" for part, file in PARTS.items())]
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DATASET = "diffusers"  # data.dataset of a pipeline: no folder of images is known for it

# Schedulers that say by beta_schedule and its like what the network was trained with. Others have settings that change it.
SCHEDULERS = ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "DDIMInverse", "PNDM")
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# Their other settings: those that would change the schedule, with the value that does not; and those of sampling, for the
# process here has its own timesteps, its own end (alpha_bar = 1), and clips nothing.
UNCHANGED = {"trained_betas": (None,), "rescale_betas_zero_snr": (False,)}
OF_SAMPLING = (
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("set_alpha_to_one", "steps_offset", "timestep_spacing", "skip_prk_steps", "variance_type"),
    *("tensor_format", "timestep_values"),  # of the library's first versions
)


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """What a scheduler says of the training, with the library's names and defaults."""

    num_train_timesteps: int = Diffusion.num_diffusion_timesteps
    beta_start: float = Diffusion.beta_start
    beta_end: float = Diffusion.beta_end
    beta_schedule: str = setting("linear", choices=tuple(BETAS))
    prediction_type: str = setting("epsilon", choices=("epsilon", "v_prediction"))


@dataclass(frozen=True)
class Pipeline:
    """name: its folder, or its name on the hub. folder: where its files lie."""

    name: str
    folder: Path
    on_hub: bool = False

    @property
    def title(self):
        """Its last name, for results and curves."""
        return Path(self.name).name

    def file(self, part, name):
        """The place of a part's file."""
        own = self.folder / part
        return (own if own.is_dir() else self.folder) / name

    def weights(self):
        """The file of the network's weights; from the hub it is fetched when it is missing. Raises UserError."""
        for name in WEIGHTS:
            path = self.file("unet", name)
            if self.on_hub and not path.is_file():
                hub.fetch(self.name, [path.relative_to(self.folder).as_posix()], self.folder.name)
            if path.is_file():
                return path
        raise UserError(f"no weights at {self.file('unet', WEIGHTS[0])}, nor a .bin: save or fetch {self.name} again")

    def sections(self):
        """-> (sections as of a YAML, {section: what messages about it begin with}).

        Raises UserError for a file that is missing or damaged, SettingsError for a pipeline of another kind and for a scheduler
        whose schedule is none of those here, by name.
        """
        kind = self._check_parts()
        files = {part: self.file(part, name) for part, name in PARTS.items()}
        unet, about = _read(files["unet"]), _read(files["scheduler"])
        known = {"_class_name"} | UNet2DSettings.__dataclass_fields__.keys()
        scheduler = _scheduler(kind, about, files["scheduler"])
        size = unet.get("sample_size")
        size = size[0] if isinstance(size, list) and len(size) else size
        if size is None:
            raise SettingsError(f"{files['unet']} does not say its sample_size: write a YAML with type unet2d and image_size")
        T, betas = scheduler.num_train_timesteps, BETAS[scheduler.beta_schedule]
        diffusion = {"beta_schedule": betas, "num_diffusion_timesteps": T}
        if betas != "cosine":
            diffusion |= {"beta_start": scheduler.beta_start, "beta_end": scheduler.beta_end}
        sections = {
            "data": {"dataset": DATASET, "category": self.title, "image_size": size},
            "model": _known(unet, known) | {"type": "unet2d", "prediction_type": scheduler.prediction_type},
            "diffusion": diffusion,
            # The whole process, as the default is at 1000 timesteps.
            "editing": {"t_0": T - 1} if Diffusion.num_diffusion_timesteps != T else {},
        }
        where = {"model": files["unet"], "diffusion": files["scheduler"]}
        return sections, {section: str(where.get(section, self.folder)) for section in sections}

    def _check_parts(self):
        """Raise SettingsError for a pipeline that is more than a UNet2DModel and a scheduler -> the scheduler's class."""
        place = self.folder / INDEX
        parts = {name: part[-1] for name, part in _read(place).items() if isinstance(part, list) and part and part[-1]}
        if (kind := parts.get("unet")) != "UNet2DModel":
            raise SettingsError(
                f"{place}: its unet is {kind or 'missing'}, and only a UNet2DModel, without conditions, can be edited"
            )
        if others := [f"{name} ({kind})" for name, kind in parts.items() if name not in PARTS]:
            raise SettingsError(
                f"{place} names {', '.join(others)} too: only a pipeline of a unet and a scheduler can be edited"
            )
        return parts.get("scheduler")


def at(name):
    """A folder -> Pipeline; None where there is none."""
    folder = Path(os.path.abspath(name))  # with its own name, also where that is "." or a link
    return Pipeline(str(folder), folder) if (folder / INDEX).is_file() else None


def on_hub(name):
    """A name on the hub -> Pipeline, with its settings fetched and its weights not; None for a text that can be no such name.
    Raises UserError when the hub does not give it."""
    if not hub.NAME.fullmatch(str(name)) or str(name).endswith((".yml", ".yaml")):
        return None
    return Pipeline(str(name), hub.fetch(str(name), SETTINGS), on_hub=True)


def _scheduler(kind, given, path):
    if str(kind).removesuffix("Scheduler") not in SCHEDULERS:
        names = ", ".join(f"{name}Scheduler" for name in SCHEDULERS)
        raise SettingsError(f"{path}: the schedule of a {kind} cannot be read; save the pipeline with one of {names}")
    known = Scheduler.__dataclass_fields__.keys() | UNCHANGED.keys()
    accepted = UNCHANGED | dict.fromkeys(OF_SAMPLING, ANY)
    return checked(Scheduler, _known(given, known), path, accepted)


def _known(settings, known):
    """Settings without the library's notes on itself, and without those that are not known here and switched off."""
    return {k: v for k, v in settings.items() if k in known or not (k.startswith("_") or v is None or v is False)}


def _read(path):
    """-> the settings of a JSON file, a dict."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, and a pipeline of diffusers has one; save it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): save or fetch it again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: save or fetch it again")
    return settings
