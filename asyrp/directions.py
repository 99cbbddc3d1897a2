"""Directions in h-space with a record of how they were learned. Reads our checkpoints, those of the 2023 release, and
safetensors files.

A record is a mapping of plain data:

    kind               "delta_block" or "delta_h"
    ignore_timesteps   whether it is the same for all timesteps
    prompts            [source, target]
    t_edit, t_boost    the intervals it was trained for; t_boost only if it was known
    t_0, n_inv_step, n_train_step
    model              identity and architecture of the model it was learned on (see model.py)
    training           everything else that the result depends on: loss, learning rate, images, CLIP, seed ...
    origin             "trained", "mean of <n> images", "2023 release"
    calibration        how far it moves the image at each strength (see calibration.py), once measured

Strength 1 is the strength at which a direction was trained.
"""

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asyrp import hspace
from utils import hub, tensors
from utils.digests import digest
from utils.errors import UserError
from utils.files import ROOT, shown
from utils.text_dic import PROMPTS

if TYPE_CHECKING:
    from asyrp.model import Model

log = logging.getLogger(__name__)

CHECKPOINTS = Path("checkpoint")
SHIPPED = ROOT / "pretrained"
SUFFIXES = (".pth", ".safetensors")
ON_HUB, FILE = "hf:", "direction.safetensors"  # hf:USER/REPO is this file of a model on the Hugging Face hub
AGAIN = "download it again, or train it again"
FLAG = {"delta_block": "--train_delta_block", "delta_h": "--train_delta_h"}
Function = hspace.BlockDirection | hspace.GivenDirection
Record = dict[str, Any]
# Checkpoint names of the 2023 release, and ours: <experiment>_LC_<category>_t<t_0>_ninv<n>_ngen<n>[_<epoch>[_<images>]]
NAME = re.compile(r"(?P<experiment>.+)_LC_(?P<category>.+)_t(?P<t_0>\d+)_ninv(?P<n_inv>\d+)_ngen(?P<n_train>\d+)(?:_\d+)*")
EPOCH = re.compile(r"(.+_LC_.+_ngen\d+)_(\d+)(_\d+)?")  # experiment, epoch, images within the epoch


class Direction(nn.Module):
    """A direction: `direction(h, emb, t)` -> delta_h (see hspace.py), with its `record` and a display `name`."""

    def __init__(self, function: Function, record: Mapping[str, Any], name: str) -> None:
        super().__init__()
        self.function, self.record, self.name = function, dict(record), name

    def forward(self, h: torch.Tensor, emb: torch.Tensor, t: int) -> torch.Tensor:
        return self.function(h, emb, t)

    @property
    def kind(self) -> str:
        return kind_of(self.function)

    def state(self) -> dict[str, Any]:
        """The layout of the published checkpoints: {"0": state dict of the delta block}, or for a learned delta_h
        {"<timestep>": tensor}, with {"0": tensor} if it is the same for all timesteps."""
        if isinstance(self.function, hspace.BlockDirection):
            return {"0": self.function.block.state_dict()}
        return {str(0 if t is None else t): delta for t, delta in self.function.items()}

    def save(self, path: Path | str) -> None:
        """Write the direction and its record to a .safetensors or .pth file, which `load_direction` reads."""
        save(self, path)

    def digest(self) -> str:
        """Sixteen hex digits that identify the learned weights."""
        return digest(self.kind, self.record.get("ignore_timesteps", False), self.state())

    def scale(self, n_steps: int, n_directions: int = 1) -> float:
        """The coefficient for strength 1 with `n_steps` steps, when `n_directions` directions are combined."""
        return hspace.coefficients(1.0, n_directions, self.record.get("n_train_step") or n_steps, n_steps)[0]


def kind_of(function: Function) -> str:
    return "delta_block" if isinstance(function, hspace.BlockDirection) else "delta_h"


# Entries of a record shown to users -> their labels.
TOLD = {
    "prompts": "prompts",
    "t_edit": "t_edit",
    "t_boost": "t_boost",
    "t_0": "t_0",
    "n_inv_step": "inversion steps",
    "n_train_step": "training steps",
    "ignore_timesteps": "same for all timesteps",
    "origin": "origin",
}


def facts(kind: str, record: Record) -> tuple[dict[str, str], dict[str, str]]:
    """Describe a direction from its record -> ({label: value}, {label: value} of its training), all strings; missing entries
    are "unknown"."""
    model = record.get("model") or {}
    found = {"kind": kind.replace("_", " ")} | {name: record.get(key, "unknown") for key, name in TOLD.items()}
    found |= {"model": model.get("identity", "unknown"), "model architecture": model.get("architecture", "unknown")}
    training = record.get("training") or {}
    return {name: _text(value) for name, value in found.items()}, {name: _text(value) for name, value in training.items()}


def _text(value: Any) -> str:
    return " -> ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- files ------------------------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """The contents of a direction's file, not yet built for a model. `more`: its other entries (optimizer, scheduler)."""

    path: Path
    parts: dict[int, Any]
    record: Record
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        model = hub.model_of(self.path)
        return f"{ON_HUB}{model}" if model else self.path.name

    @property
    def kind(self) -> str:
        return "delta_block" if all(isinstance(part, dict) for part in self.parts.values()) else "delta_h"


def read(path: Path | str) -> Stored:
    """A direction's file -> Stored. Raises UserError if it is damaged or not a direction."""
    path = Path(path)
    contents = tensors.load(path)
    record = None
    if isinstance(contents, dict) and tensors.is_safetensors(path):
        record = tensors.metadata_of(path).get("record")
        contents = tensors.nested(contents)
    numbered: dict[int, Any] = {}
    more: dict[str, Any] = {}
    for name, value in contents.items() if isinstance(contents, dict) else ():
        if str(name).isdecimal():
            numbered[int(name)] = value
        else:
            more[name] = value
    blocks = [isinstance(part, dict) for part in numbered.values()]
    found = [tensor for part in numbered.values() for tensor in (part.values() if isinstance(part, dict) else [part])]
    if not found or any(blocks) != all(blocks) or not all(isinstance(tensor, torch.Tensor) for tensor in found):
        raise UserError(f"{path} does not contain a direction in h-space: give a checkpoint written by --run_train")
    if not all(torch.isfinite(tensor).all() for tensor in found):
        raise UserError(f"{path} is damaged: it contains inf or nan; {AGAIN}")
    if record is None:
        record = more.pop("record", None)
    record = record_of_name(path.stem) if record is None else _checked_record(record, path)
    return Stored(path, {name: _in_float32(part) for name, part in numbered.items()}, record, more)


def _in_float32(part: Any) -> Any:
    return {name: tensor.float() for name, tensor in part.items()} if isinstance(part, dict) else part.float()


# Entries of a record by type.
COUNTS = ("t_edit", "t_boost", "t_0", "n_inv_step", "n_train_step")
SWITCHES = ("ignore_timesteps",)
MAPPINGS = ("model", "training")


def _checked_record(record: Any, path: Path) -> Record:
    """A mapping, or its JSON -> the record. Raises UserError for an entry of the wrong type."""
    try:
        record = json.loads(record) if isinstance(record, str) else record
        json.dumps(record)  # fails unless it is plain data
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its record cannot be read; {AGAIN}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: its record is not a mapping; {AGAIN}")
    faults = [name for name in COUNTS if not (record.get(name) is None or (type(record[name]) is int and record[name] >= 0))]
    faults += [name for name in SWITCHES if not isinstance(record.get(name), bool | None)]
    faults += [name for name in MAPPINGS if not isinstance(record.get(name), dict | None)]
    prompts = record.get("prompts")
    if prompts is not None and not (isinstance(prompts, list | tuple) and [type(p) for p in prompts] == [str, str]):
        faults.append("prompts")
    if faults:
        raise UserError(f"{path} is damaged: its record has {faults[0]} {record[faults[0]]!r}; {AGAIN}")
    return {name: entry for name, entry in record.items() if name not in MAPPINGS or entry is not None}


def record_of_name(stem: str) -> Record:
    """The record given by the file name of a 2023 checkpoint; {"origin": "unknown"} for any other name."""
    match = NAME.fullmatch(stem)
    if match is None:
        return {"origin": "unknown"}
    t_0 = int(match["t_0"])
    n_inv, n_train = (int(match[name]) or t_0 + 1 for name in ("n_inv", "n_train"))  # 0 means every timestep
    record: Record = {"t_0": t_0, "n_inv_step": n_inv, "n_train_step": n_train}
    record |= {"origin": "2023 release", "category": match["category"]}
    if match["experiment"] in PROMPTS:
        record["prompts"] = list(PROMPTS[match["experiment"]])
    return record


def save(direction: Direction, path: Path | str, more: dict[str, Any] | None = None) -> None:
    """Write a direction and its record, as .safetensors or like the published checkpoints. more: optimizer, scheduler."""
    if Path(path).suffix == ".safetensors":
        _save_safetensors(direction.state(), direction.record, path)
    else:
        tensors.save({**direction.state(), **(more or {}), "record": direction.record}, path)


def convert(stored: Stored, path: Path | str) -> None:
    """Write a Stored direction and its record as safetensors, without optimizer state; loading such a file runs no code."""
    _save_safetensors({str(number): part for number, part in stored.parts.items()}, stored.record, path)


def write_record(path: Path, record: Record) -> Path:
    """Replace the record in a direction's file, and nothing else -> the file. Directions that ship are not modified; a copy in
    checkpoint/ is written instead, which takes precedence from then on."""
    contents = tensors.load(path)
    target = CHECKPOINTS / path.name if path.resolve().is_relative_to(SHIPPED) else path
    if tensors.is_safetensors(path):
        _save_safetensors(contents, record, target)
    else:
        tensors.save(contents | {"record": record}, target)
    return target


def _save_safetensors(state: dict[str, Any], record: Record, path: Path | str) -> None:
    tensors.save_safetensors(tensors.flat(state), path, {"format": "asyrp direction", "record": json.dumps(record)})


# ---- for a model ------------------------------------------------------------------------------------------------------------


def load_direction(name_or_path: Path | str, model: "Model") -> Direction:
    """Load a direction -> frozen Direction on the model's device.

    name_or_path: a path, a name in checkpoint/, a direction that ships with the model, or "hf:USER/REPO" on the Hugging Face
    hub. Raises UserError if it is missing, damaged, or belongs to another architecture.
    """
    return build(read(find(name_or_path, model.config.data.category)), model)


def build(stored: Stored, model: "Model", ignore_timesteps: bool = False) -> Direction:
    """Stored -> frozen Direction for a model. ignore_timesteps: used if the record does not say. Raises UserError if it does
    not fit."""
    record: Record = {"ignore_timesteps": ignore_timesteps} | stored.record | {"kind": stored.kind}
    check_model(stored, model)
    if stored.kind == "delta_block":
        function: Function = hspace.BlockDirection(_block(stored, model), record["ignore_timesteps"])
    else:
        function = hspace.GivenDirection(deltas := _deltas(stored, model))
        record["ignore_timesteps"] = [*deltas] == [None]
    return Direction(function, record, stored.name).requires_grad_(False).to(model.device)


def _block(stored: Stored, model: "Model") -> nn.Module:
    if len(stored.parts) > 1:
        n = len(stored.parts)
        raise UserError(f"{stored.path} contains {n} delta blocks: write each to its own file and use --multiple_attr")
    [weights] = stored.parts.values()
    block = model.unet.new_delta_block()
    tensors.load_strictly(block, weights, stored.path, "the delta block of this model")
    return block


def _deltas(stored: Stored, model: "Model") -> dict[int | None, torch.Tensor]:
    shape = (1, model.unet.h_ch, model.unet.h_size, model.unet.h_size)
    if any(part.shape != shape for part in stored.parts.values()):
        size = " x ".join(map(str, shape[1:]))
        raise UserError(f"{stored.path} belongs to another model, its delta_h is not {size}: use the one it was trained on")
    # In the order of training; safetensors sorts by name.
    return {None: stored.parts[0]} if list(stored.parts) == [0] else dict(sorted(stored.parts.items(), reverse=True))


def check_model(stored: Stored, model: "Model") -> None:
    """Raise UserError for a direction of another architecture; warn if only the weights differ."""
    made = stored.record.get("model")
    if not made:
        return
    if made.get("architecture") != model.architecture:
        raise UserError(
            f"{stored.path} was trained on another architecture ({made.get('architecture')}, this model is "
            f"{model.architecture}): use the config it was trained with, or train a direction for this model"
        )
    if made.get("identity") != model.identity:
        log.warning(
            "%s was trained on other weights of the same architecture (%s, these are %s): its effect may differ",
            shown(stored.path),
            made.get("identity"),
            model.identity,
        )


def check_replaceable(experiment: str) -> None:
    """Raise UserError if an experiment of this name has a trained checkpoint, which a fit would overwrite or be hidden by."""
    for path in _epochs(re.escape(experiment), None):
        if not str(read(path).record.get("origin")).startswith("fitted"):
            raise UserError(f"{path} was trained: give another --exp, or --retrain 1 to overwrite its epoch 0")


# ---- finding files ----------------------------------------------------------------------------------------------------------


def find(name: Path | str, category: str, suffix: str = "", images: int | None = None) -> Path:
    """The file of a direction -> path.

    name: a path, a name in checkpoint/, an experiment (with or without its suffix `_LC_...`), a direction that ships with the
    model of this category, or hf:USER/REPO, which is downloaded. suffix: that of the current experiment, tried first. images:
    choose the checkpoint written within an epoch after this many images. Raises UserError that says where it looked.
    """
    name = str(name)
    files = [Path(name), CHECKPOINTS / name, *(CHECKPOINTS / f"{name}{end}" for end in SUFFIXES)]
    found = [_fetched(name)] if name.startswith(ON_HUB) else [path for path in files if path.is_file()]
    if found and images is not None:
        raise UserError(f"--choose_checkpoint_num chooses among the checkpoints of an experiment: leave it out for {found[0]}")
    for stem in dict.fromkeys((name + suffix, name)):
        found += _epochs(re.escape(stem), images)
    if not found:
        found = _only_experiment(name, category, images)
    if images is None and name in (ships := shipped(category)):
        found.append(ships[name])
    if not found:
        within = "" if images is None else f" after {images} images (--choose_checkpoint_num)"
        raise UserError(
            f"no direction {name}{within}: looked for {CHECKPOINTS}/{name}{suffix}_<epoch>.pth and for a file of that name; "
            "train it with --run_train, or give --manual_checkpoint_name"
        )
    return found[0]


def _fetched(name: str) -> Path:
    """hf:USER/REPO -> the direction's file in the hub cache. Raises UserError."""
    model = name.removeprefix(ON_HUB)
    if not hub.NAME.fullmatch(model):
        raise UserError(f"{name}: give a direction on the Hugging Face hub as {ON_HUB}USER/REPO")
    return hub.file(model, FILE)


def shipped(category: str) -> dict[str, Path]:
    """The directions that ship with the model of a category -> {name: path}."""
    folder = SHIPPED / category.lower() / "directions"
    return {path.stem: path for end in reversed(SUFFIXES) for path in sorted(folder.glob(f"*{end}"))}


def fitting(model: "Model") -> dict[str, Direction]:
    """All directions available for a model -> {name: Direction}: those that ship with it, and the last epoch of each experiment
    in checkpoint/. Files that are damaged or belong to another architecture are skipped."""
    found = shipped(model.config.data.category)
    epochs: dict[str, list[tuple[int, Path]]] = {}
    for path in (path for end in SUFFIXES for path in CHECKPOINTS.glob(f"*{end}")):
        stem, epoch, images = match.groups() if (match := EPOCH.fullmatch(path.stem)) else (path.stem, 0, None)
        if images is None:  # not a checkpoint within an epoch
            epochs.setdefault(stem, []).append((int(epoch), path))
    for stem, paths in sorted(epochs.items()):
        experiment = stem.partition("_LC_")[0]
        found[stem if experiment in found else experiment] = max(paths)[1]
    built = {}
    for name, path in found.items():
        with suppress(UserError):
            built[name] = build(read(path), model)
    return built


def _only_experiment(name: str, category: str, images: int | None) -> list[Path]:
    """Checkpoints of the experiment of this name, with any numbers of steps; [] if there is none. UserError for several."""
    pattern = rf"({re.escape(name)}_LC_{re.escape(category)}_t\d+_ninv\d+_ngen\d+)_\d+\.pth"
    stems = sorted({match[1] for path in CHECKPOINTS.glob("*.pth") if (match := re.fullmatch(pattern, path.name))})
    if len(stems) > 1:
        raise UserError(f"there are several experiments named {name} ({', '.join(stems)}): give the full name of one")
    return _epochs(re.escape(stems[0]), images) if stems else []


def _epochs(stem: str, images: int | None) -> list[Path]:
    """Checkpoints <stem>_<epoch>[_<images>].pth, the latest epoch first. stem: a regular expression."""
    pattern = re.compile(stem + r"_(\d+)" + ("" if images is None else f"_{images}") + r"\.pth")
    matches = [(pattern.fullmatch(path.name), path) for path in CHECKPOINTS.glob("*.pth")]
    epochs = {int(match[1]): path for match, path in matches if match}
    return [epochs[epoch] for epoch in sorted(epochs, reverse=True)]
