"""Reading and writing weights and directions, always strictly, and never half a file."""

import os
import pickle
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

from asyrp.errors import UserError
from models import build_unet

NESTED = ("state_dict", "model", "ema")


@contextmanager
def replacing(path):
    """Write a file beside `path` and rename it when complete: a reader sees the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a file of weights ({_first_line(error)}); fetch or write it again"
        ) from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def state_dict_of(contents, path):
    """The tensors of a weight file: plain, or under state_dict / model / ema, with or without `module.`; in float32."""
    for key in NESTED:
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict) or not all(isinstance(v, torch.Tensor) for v in contents.values()):
        raise UserError(f"{path} holds no state dict; a U-Net's weights are expected")
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


def _remedy(state_dict):
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
    load_strictly(unet, state_dict_of(load(path), path), path, f"the U-Net of {config.path.name}")
    return unet.to(device)
