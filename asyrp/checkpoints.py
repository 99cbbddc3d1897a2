"""Reading and writing weights and directions, always strictly, and never half a file."""

import glob
import hashlib
import os
import pickle
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from asyrp.config import CONFIGS, load_config
from utils.errors import UserError
from asyrp.hspace import BlockDirection, GivenDirection
from models import build_unet
from models.convert import from_diffusers, is_diffusers
from models.judge import Judge

NESTED = ("ema", "state_dict", "model")  # where a file holds averaged weights too, those are meant
ABANDONED = 3600  # seconds


@contextmanager
def replacing(path):
    """Write a file beside `path` and rename it when complete: a reader sees the old file or the new one, never half.

    What a writer that was killed left beside this path is removed once it is too old to be somebody's work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        # Its writer may finish it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(beside)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def save(obj, path):
    """torch.save, atomically."""
    with replacing(path) as beside:
        torch.save(obj, beside)


def load(path):
    """A file of tensors -> its contents on the CPU (`weights_only`). Raises UserError when missing or unreadable."""
    path = _existing(path)
    try:
        if _is_safetensors(path):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a file of weights ({_first_line(error)}); fetch or write it again"
        ) from error


def _existing(path):
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    return path


def _is_safetensors(path):
    # By its contents: what is fetched keeps the name that a config expects, whatever the source. A header in JSON follows
    # its length in eight bytes.
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def state_dict_of(contents, path):
    """The tensors of a weight file: plain, or under state_dict / model / ema, with or without `module.`; in float32."""
    while isinstance(contents, dict) and (keys := [key for key in NESTED if isinstance(contents.get(key), dict)]):
        contents = contents[keys[0]]
    if not isinstance(contents, dict) or not all(isinstance(v, torch.Tensor) for v in contents.values()):
        raise UserError(f"{path} holds no state dict: a file of weights is expected")
    return {key.removeprefix("module."): v.float() if v.is_floating_point() else v for key, v in contents.items()}


def load_strictly(module, state_dict, path, what):
    """Load every tensor or none. Raises UserError that names what is missing, too many, or of another shape."""
    expected = module.state_dict()
    missing = [k for k in expected if k not in state_dict]
    surplus = [k for k in state_dict if k not in expected]
    reshaped = [k for k in expected if k in state_dict and expected[k].shape != state_dict[k].shape]
    faults = [
        f"{len(keys)} {fault} (first: {keys[0]})"
        for fault, keys in (("missing", missing), ("too many", surplus), ("of another shape", reshaped))
        if keys
    ]
    if faults:
        raise UserError(f"{path} does not fit {what}: {', '.join(faults)} of {len(expected)} tensors; {_remedy(state_dict)}")
    module.load_state_dict(state_dict)


def fitting_configs(state_dict):
    """Shipped configs whose U-Net, or whose delta block, has tensors of these names and shapes -> list of file names."""
    return [name for name, networks in _shipped_shapes().items() if _shapes(state_dict) in networks]


@cache
def _shipped_shapes():
    shapes = {}
    for path in sorted(CONFIGS.glob("*.yml")):
        # A user's own file there may be faulty; that is another error than the one to be told.
        with suppress(UserError, ValueError), torch.device("meta"):
            unet = build_unet(load_config(str(path)))
            shapes[path.name] = [_shapes(module.state_dict()) for module in (unet, unet.new_delta_block())]
    return shapes


def _shapes(state_dict):
    return {key: value.shape for key, value in state_dict.items()}


def _remedy(state_dict):
    if names := fitting_configs(state_dict):
        return f"it would fit {', '.join(names)}"
    if "conv_in.weight" in state_dict and "down.0.block.0.conv1.weight" in state_dict:
        return f"these are DDPM++ weights with ch {state_dict['conv_in.weight'].shape[0]}: use a config that says so"
    if "input_blocks.0.0.weight" in state_dict:
        return (
            f"these are iDDPM/ADM weights with ch {state_dict['input_blocks.0.0.weight'].shape[0]}: use a config that says so"
        )
    if "0" in state_dict or "layer_0" in state_dict:
        return "this looks like a direction, not a U-Net: check --model_path"
    return "use the file that belongs to the config"


def load_unet(config, path, device="cpu"):
    """Settings and a weight file -> frozen U-Net on `device`, in eval mode. Raises UserError when they do not fit."""
    try:
        unet = build_unet(config)
    except ValueError as error:
        raise UserError(f"{config.path}: {error}") from error
    state_dict = state_dict_of(load(path), path)
    state_dict = from_diffusers(state_dict) if is_diffusers(state_dict) else state_dict
    load_strictly(unet, state_dict, path, f"the U-Net of {config.path.name}")
    return unet.to(device)


def fingerprint(path):
    """Sixteen hexadecimal digits that change with the contents of a file. Raises UserError when it is missing."""
    with _existing(path).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def direction_state(direction):
    """A direction in the form of the published checkpoints: {"0": state dict of the delta block}, or with a learned delta_h
    {"<timestep>": tensor}, {"0": tensor} where one serves all timesteps."""
    if trained_as(direction) == "block":
        return {"0": direction.block.state_dict()}
    return {str(0 if t is None else t): delta for t, delta in direction.items()}


def trained_as(direction):
    """ "block" for --train_delta_block, "delta_h" for --train_delta_h."""
    return "block" if isinstance(direction, BlockDirection) else "delta_h"


def load_direction(path, unet, ignore_timesteps=False):
    """A direction's checkpoint -> (BlockDirection or GivenDirection for this U-Net, everything in the file).

    Raises UserError when the file is no direction, or belongs to another model.
    """
    contents = load(path)
    numbered = {int(key): value for key, value in contents.items() if str(key).isdigit()} if isinstance(contents, dict) else {}
    if not numbered:
        raise UserError(f"{path} holds no direction in h-space; give a checkpoint that --run_train wrote")
    if all(isinstance(value, dict) for value in numbered.values()):
        if len(numbered) > 1:
            raise UserError(f"{path} holds {len(numbered)} delta blocks; write each to a file of its own, for --multiple_attr")
        [weights] = numbered.values()
        block = unet.new_delta_block()
        load_strictly(block, weights, path, "the delta block of this model")
        return BlockDirection(block, ignore_timesteps).to(_device(unet)), contents
    shape = (1, unet.h_ch, unet.h_size, unet.h_size)
    if any(not isinstance(value, torch.Tensor) or value.shape != shape for value in numbered.values()):
        raise UserError(f"{path} is a direction of another model: its delta_h is not {' x '.join(map(str, shape[1:]))}")
    if list(numbered) == [0]:
        numbered = {None: numbered[0]}
    return GivenDirection(numbered).to(_device(unet)), contents


def _device(module):
    return next(module.parameters()).device


def save_judge(judge, path):
    """The judge's weights in half precision, with the names of its labels and their classes."""
    weights = {key: value.half().contiguous() for key, value in judge.state_dict().items()}
    save({"model": weights, "labels": {label: list(names) for label, names in judge.labels.items()}}, path)


def load_judge(path, device="cpu"):
    """A file of `save_judge` -> frozen Judge in eval mode. Raises UserError when it is none."""
    contents = load(path)
    if "labels" not in contents:
        raise UserError(f"{path} is no judge: it names no labels; scripts/avatar/train_judge.py writes one that does")
    judge = Judge(contents["labels"])
    load_strictly(judge, state_dict_of(contents, path), path, "the judge")
    return judge.eval().requires_grad_(False).to(device)
