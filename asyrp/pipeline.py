"""A pipeline of the diffusers library (a UNet2DModel and its scheduler) as the sections of a YAML.

It is a folder written by `DDPMPipeline.save_pretrained`, or a model on the Hugging Face hub. Each part is in its own
sub-folder, or, as for google/ddpm-*, next to model_index.json.
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
DATASET = "diffusers"  # data.dataset of a pipeline, which has no folder of images

# Schedulers whose settings describe the noise schedule of training. Others have settings that change it.
SCHEDULERS = ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "DDIMInverse", "PNDM")
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# Their other settings: those that would change the schedule, with the neutral value; and those for sampling, which are not
# used, because the process here has its own timesteps, ends at alpha_bar = 1 and clips nothing.
UNCHANGED = {"trained_betas": (None,), "rescale_betas_zero_snr": (False,)}
OF_SAMPLING = (
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("set_alpha_to_one", "steps_offset", "timestep_spacing", "skip_prk_steps", "variance_type"),
    *("tensor_format", "timestep_values"),  # from the first versions of the library
)


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """The settings of a scheduler that describe training, with the library's names and defaults."""

    num_train_timesteps: int = Diffusion.num_diffusion_timesteps
    beta_start: float = Diffusion.beta_start
    beta_end: float = Diffusion.beta_end
    beta_schedule: str = setting("linear", choices=tuple(BETAS))
    prediction_type: str = setting("epsilon", choices=("epsilon", "v_prediction"))


@dataclass(frozen=True)
class Pipeline:
    """name: its folder, or its name on the hub. folder: where its files are."""

    name: str
    folder: Path
    on_hub: bool = False

    @property
    def title(self):
        """The last part of its name, for results and curves."""
        return Path(self.name).name

    def file(self, part, name):
        """The path of a part's file."""
        own = self.folder / part
        return (own if own.is_dir() else self.folder) / name

    def weights(self):
        """The weight file of the network, downloaded from the hub if it is missing. Raises UserError."""
        for name in WEIGHTS:
            path = self.file("unet", name)
            if self.on_hub and not path.is_file():
                hub.fetch(self.name, [path.relative_to(self.folder).as_posix()], self.folder.name)
            if path.is_file():
                return path
        raise UserError(f"no weights at {self.file('unet', WEIGHTS[0])}, nor a .bin: save or download {self.name} again")

    def sections(self):
        """(sections as in a YAML, {section: prefix of error messages about it}).

        Raises UserError for a missing or damaged file, and SettingsError, naming the setting, for an unsupported pipeline or
        scheduler.
        """
        kind = self._check_parts()
        files = {part: self.file(part, name) for part, name in PARTS.items()}
        unet, about = _read(files["unet"]), _read(files["scheduler"])
        known = {"_class_name"} | UNet2DSettings.__dataclass_fields__.keys()
        scheduler = _scheduler(kind, about, files["scheduler"])
        size = unet.get("sample_size")
        size = size[0] if isinstance(size, list) and len(size) else size
        if size is None:
            raise SettingsError(f"{files['unet']} has no sample_size: write a YAML with type unet2d and image_size instead")
        T, betas = scheduler.num_train_timesteps, BETAS[scheduler.beta_schedule]
        diffusion = {"beta_schedule": betas, "num_diffusion_timesteps": T}
        if betas != "cosine":
            diffusion |= {"beta_start": scheduler.beta_start, "beta_end": scheduler.beta_end}
        sections = {
            "data": {"dataset": DATASET, "category": self.title, "image_size": size},
            "model": _known(unet, known) | {"type": "unet2d", "prediction_type": scheduler.prediction_type},
            "diffusion": diffusion,
            # The default t_0 is the last of 1000 timesteps.
            "editing": {"t_0": T - 1} if Diffusion.num_diffusion_timesteps != T else {},
        }
        where = {"model": files["unet"], "diffusion": files["scheduler"]}
        return sections, {section: str(where.get(section, self.folder)) for section in sections}

    def _check_parts(self):
        """The class of the scheduler. Raises SettingsError if the pipeline has other parts than a UNet2DModel and a
        scheduler."""
        place = self.folder / INDEX
        parts = {name: part[-1] for name, part in _read(place).items() if isinstance(part, list) and part and part[-1]}
        if (kind := parts.get("unet")) != "UNet2DModel":
            raise SettingsError(
                f"{place}: its unet is {kind or 'missing'}, but only pipelines with an unconditional UNet2DModel are supported"
            )
        if others := [f"{name} ({kind})" for name, kind in parts.items() if name not in PARTS]:
            raise SettingsError(
                f"{place} also has {', '.join(others)}, but only pipelines of a unet and a scheduler are supported"
            )
        return parts.get("scheduler")


def at(name):
    """A folder -> Pipeline, or None if it is not one."""
    folder = Path(os.path.abspath(name))  # so that "." has a name too; links keep theirs
    return Pipeline(str(folder), folder) if (folder / INDEX).is_file() else None


def on_hub(name):
    """A name on the hub -> Pipeline, with its settings downloaded but not its weights; None if it cannot be such a name.
    Raises UserError if the download fails."""
    if not hub.NAME.fullmatch(str(name)) or str(name).endswith((".yml", ".yaml")):
        return None
    return Pipeline(str(name), hub.fetch(str(name), SETTINGS), on_hub=True)


def _scheduler(kind, given, path):
    if str(kind).removesuffix("Scheduler") not in SCHEDULERS:
        names = ", ".join(f"{name}Scheduler" for name in SCHEDULERS)
        raise SettingsError(f"{path}: the schedule of a {kind} is not supported: save the pipeline with one of {names}")
    known = Scheduler.__dataclass_fields__.keys() | UNCHANGED.keys()
    accepted = UNCHANGED | dict.fromkeys(OF_SAMPLING, ANY)
    return checked(Scheduler, _known(given, known), path, accepted)


def _known(settings, known):
    """Settings without the library's own metadata, and without unknown ones that are switched off."""
    return {k: v for k, v in settings.items() if k in known or not (k.startswith("_") or v is None or v is False)}


def _read(path):
    """The settings of a JSON file -> dict."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, but a diffusers pipeline needs it: save the pipeline again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): save or download it again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} has no settings: save or download it again")
    return settings
