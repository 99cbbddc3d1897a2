"""A model's YAML file or diffusers pipeline -> validated settings, one dataclass per section."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from asyrp import pipeline
from asyrp.pipeline import Pipeline
from models.schedule import Diffusion
from models.zoo import ADMSettings, DDPMSettings, UNet2DSettings, unet_settings
from utils.errors import SettingsError, UserError
from utils.files import ROOT, shown
from utils.sections import ANY, Section, checked, nearest, setting
from utils.text import one_line

CONFIGS = ROOT / "configs"
# A settings file is small, and with this few aliases it cannot expand to a large one.
LARGEST, MOST_ALIASES = 64 * 1024, 20


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images. `dataset`: selects their layout and a published network; `category`: which of them, part of file names;
    `image_size`: pixels; `credit`: shown in reports."""

    dataset: str = setting(part_of_a_name=True)
    category: str = setting(part_of_a_name=True)
    image_size: int = setting(at_least=1, at_most=8192)
    credit: str = ""


# Unused keys of the 2023 release and of DDIM, with the values that match what this code does.
DATA_ACCEPTED = {
    "channels": (3,),
    "logit_transform": (False,),
    "uniform_dequantization": (False,),
    "gaussian_dequantization": (False,),
    "rescaled": (True,),
    "random_flip": (True, False),  # for training a base model; directions were never trained on flipped images
    "num_workers": ANY,
}
SECTIONS_ACCEPTED = ("sampling", "training", "optim", "path", "pipeline")  # the last two are written by `to_dict`


@dataclass(frozen=True, kw_only=True)
class Editing:
    """Values of main.py's flags of the same names for this model, unless the flags are given; None: not set."""

    lpips_edit_th: float | None = setting(None, at_least=0)
    lpips_addnoise_th: float | None = setting(None, at_least=0)
    add_noise_from_xt: bool | None = None
    user_defined_t_edit: int | None = setting(None, at_least=0)
    user_defined_t_addnoise: int | None = setting(None, at_least=0)
    t_0: int | None = setting(None, at_least=1)
    n_inv_step: int | None = setting(None, at_least=0, never=(1,))
    n_train_step: int | None = setting(None, at_least=0, never=(1,))
    n_test_step: int | None = setting(None, at_least=0, never=(1,))
    n_train_img: int | None = setting(None, at_least=1)
    n_iter: int | None = setting(None, at_least=1)
    bs_train: int | None = setting(None, at_least=1)
    lr_training: float | None = setting(None, above=0)
    scheduler_step_size: int | None = setting(None, at_least=1)
    sch_gamma: float | None = setting(None, above=0)
    clip_loss_w: float | None = setting(None, at_least=0)
    l1_loss_w: float | None = setting(None, at_least=0)
    id_loss_w: float | None = setting(None, at_least=0)
    clip_source: str | None = setting(None, choices=("x0", "origin"))
    inversion: str | None = setting(None, choices=("ddim", "fixed_point"))
    dt_lambda: float | None = None

    def given(self) -> dict[str, Any]:
        """{flag: value} of those that the file sets."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """`model`: an argument of ClipLoss; a path is relative to the repository."""

    model: str


@dataclass(frozen=True, kw_only=True)
class Judge:
    """For --evaluate. `weights`: file of the judge, relative to the repository; `aims`: attribute in utils/text_dic.py ->
    (label, class) of the judge; `kept`: labels that an edit should not change."""

    weights: str
    aims: dict[str, tuple[str, str]]
    kept: tuple[str, ...] = ()

    def by_direction(self) -> dict[str, tuple[str, str]]:
        """The aims by direction name: attributes of the default stack are its direction names with the prefix `avatar_`."""
        return {attribute.removeprefix("avatar_"): aim for attribute, aim in self.aims.items()}


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model's settings. `path`: the file they were read from, or the pipeline's folder or name; `pipeline`: the Pipeline, if
    it is one."""

    data: Data
    model: DDPMSettings | ADMSettings | UNet2DSettings
    diffusion: Diffusion
    editing: Editing
    clip: Clip | None
    judge: Judge | None
    segmenter: str | None
    path: Path
    pipeline: Pipeline | None = None

    @property
    def name(self) -> str:
        """The name of the model: the file name without suffix, or the pipeline's name."""
        itself = self.pipeline and self.path == Path(self.pipeline.name)
        return self.path.name if itself else self.path.stem

    def clip_name(self) -> str:
        """The CLIP for this model, as an argument of ClipLoss: its own, else OpenAI's ViT-B/16."""
        if self.clip is None:
            return "ViT-B/16"
        own = ROOT / self.clip.model
        return str(own) if own.is_file() else self.clip.model

    @property
    def inversion(self) -> str:
        """How images are inverted unless --inversion says otherwise."""
        return self.editing.inversion or "ddim"

    def segmenter_path(self) -> Path | None:
        """The file of the segmenter, or None."""
        return None if self.segmenter is None else ROOT / self.segmenter


def find_config(name: Path | str) -> Path | Pipeline:
    """The value of `--config` -> path of a YAML file (given as a path, or as a name in configs/ with or without .yml), or a
    Pipeline (given as a folder, or as a name on the Hugging Face hub, whose settings are downloaded). Raises UserError if
    there is no such model."""
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yml"):
        if path.is_file():
            return path
        if found := pipeline.at(path):
            return found
    known = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yml")))
    if Path(name).is_dir():
        needed = f"a diffusers pipeline (a folder with {pipeline.INDEX}), a YAML file, or one of {known}"
        raise UserError(f"--config {name} is a folder but not a pipeline: give {needed}")
    try:
        if found := pipeline.on_hub(name):
            return found
    except UserError as error:
        raise UserError(f"--config {name}: no such file or folder; {error}") from error
    raise UserError(
        f"--config {name}: no such file: give a path, one of {known}, or a diffusers pipeline by its folder or its name "
        "on the Hugging Face hub (owner/model)"
    )


def load_config(name: Path | str) -> Config:
    """Load the settings of a model -> Config. name: see `find_config`.

    Raises UserError, one line that names the file and the section, for a missing file, invalid YAML, and a setting that is
    missing, unknown, of the wrong type or out of range. The YAML files of the 2023 release load too.
    """
    found = find_config(name)
    if isinstance(found, Pipeline):
        sections, places = found.sections()
        return _checked(sections, Path(found.name), places.__getitem__, found)
    sections, of_pipeline = _read(found), None
    known = [f.name for f in fields(Config) if f.name not in ("path", "pipeline")]
    for section in sections:
        if section not in (*known, *SECTIONS_ACCEPTED):
            raise SettingsError(f"{shown(found)}: unknown section {section!r}; did you mean {nearest(section, known)}?")

    def where(section: str) -> str:
        return f"{shown(found)}: section '{section}'"

    if isinstance(model := sections.get("model"), dict) and model.get("type") == "unet2d" and "pipeline" in model:
        sections, of_pipeline = _with_pipeline(sections, where)
    return _checked(sections, found, where, of_pipeline)


def _with_pipeline(sections: dict[str, Any], where: Callable[[str], str]) -> tuple[dict[str, Any], Pipeline]:
    """The sections of a YAML whose model section names a pipeline -> (sections, Pipeline). The pipeline supplies what the YAML
    does not set."""
    name, others = sections["model"]["pipeline"], sections["model"].keys() - {"type", "pipeline"}
    if not isinstance(name, str):
        raise SettingsError(f"{where('model')}: pipeline {name!r}: must be text")
    if others or "diffusion" in sections:
        extra = f"{where('model')}: {min(others, key=str)}" if others else where("diffusion")
        raise SettingsError(f"{extra} is set by the pipeline {name}: leave it out")
    try:
        found = pipeline.at(ROOT / name) or pipeline.at(name) or pipeline.on_hub(name)
    except UserError as error:
        raise UserError(f"{where('model')}: pipeline {name}: no such folder; {error}") from error
    if not found:
        raise UserError(f"{where('model')}: pipeline {name}: neither a folder with {pipeline.INDEX} nor a name on the hub")
    theirs, _ = found.sections()
    given = {section: sections.get(section) or {} for section in ("data", "editing")}
    both = {section: theirs[section] | own if isinstance(own, dict) else own for section, own in given.items()}
    return theirs | sections | both | {"model": theirs["model"]}, found


def _checked(sections: dict[str, Any], path: Path, where: Callable[[str], str], of_pipeline: Pipeline | None = None) -> Config:
    """Sections as read -> Config. where: function section -> the prefix of error messages about it."""

    def optional(kind: type[Section], section: str) -> Section | None:
        return None if sections.get(section) is None else checked(kind, sections[section], where(section))

    data = checked(Data, sections.get("data"), where("data"), DATA_ACCEPTED)
    diffusion = checked(Diffusion, sections.get("diffusion"), where("diffusion"))
    editing = checked(Editing, sections.get("editing"), where("editing"))
    _check_diffusion(diffusion, where("diffusion"))
    _check_timesteps(editing, diffusion.num_diffusion_timesteps, where("editing"))
    segmenter = sections.get("segmenter")
    if not isinstance(segmenter, str | None):
        raise SettingsError(f"{shown(path)}: segmenter {segmenter!r}: must be text")
    return Config(
        data=data,
        model=unet_settings(sections.get("model"), vars(data), where("model")),
        diffusion=diffusion,
        editing=editing,
        clip=optional(Clip, "clip"),
        judge=optional(Judge, "judge"),
        segmenter=segmenter,
        path=path,
        pipeline=of_pipeline,
    )


def to_dict(value: Any) -> Any:
    """Dataclasses, dicts and lists -> plain data for YAML or JSON; paths become strings."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_diffusion(diffusion: Diffusion, where: str) -> None:
    if diffusion.beta_start > diffusion.beta_end:
        raise SettingsError(f"{where}: beta_start {diffusion.beta_start} is above beta_end {diffusion.beta_end}: swap them")
    betas = (diffusion.beta_start, diffusion.beta_end)
    if diffusion.beta_schedule == "cosine" and betas != (Diffusion.beta_start, Diffusion.beta_end):
        raise SettingsError(f"{where}: beta_schedule cosine does not use beta_start and beta_end: leave them out")


def _check_timesteps(editing: Editing, T: int, where: str) -> None:
    for name, largest in (("t_0", T - 1), ("user_defined_t_edit", T), ("user_defined_t_addnoise", T)):
        if (getattr(editing, name) or 0) > largest:
            raise SettingsError(f"{where}: {name} {getattr(editing, name)}: must be at most {largest}, with {T} timesteps")


class _Loader(yaml.SafeLoader):
    """Plain data only. Duplicate keys are an error, as in YAML 1.2, and so are more than MOST_ALIASES aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                mark = self.peek_event().start_mark
                text = f"more than {MOST_ALIASES} aliases (*name): write the values out"
                raise yaml.composer.ComposerError(None, None, text, mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if twice := [key for key, n in keys.items() if n > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


# PyYAML raises more than YAMLError: other errors for scalars that do not match their tag (`!!bool x`, a 13th month), and
# RecursionError for deeply nested brackets.
FAULTS = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, RecursionError)


def _read(path: Path) -> dict[str, Any]:
    """The sections of a YAML file -> dict."""
    try:
        if path.stat().st_size > LARGEST:
            raise SettingsError(
                f"{shown(path)} is larger than {LARGEST // 1024} KiB: give a settings file such as configs/celeba.yml"
            )
        text = path.read_text(encoding="utf-8")
        sections = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown(path)} is not valid YAML: it is not UTF-8 text") from error
    except SettingsError:
        raise
    except FAULTS as error:
        raise SettingsError(f"{shown(path)} is not valid YAML: {one_line(error)}") from error
    if not isinstance(sections, dict):
        raise SettingsError(f"{shown(path)} has no sections: compare configs/celeba.yml")
    return sections
