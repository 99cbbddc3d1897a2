"""Files of tensors: read without running code, written whole, and loaded into a network completely or not at all."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from utils.errors import UserError
from utils.files import replacing

# Where a file holds a network's weights; the moving average before the raw ones.
AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema_model")
RAW = ("state_dict", "model", "params", "model_state_dict", "net")
# What wrappers put before each name; they may be nested.
PREFIXES = ("module.", "_orig_mod.", "model.")

NOT_WHOLE = "it cannot be written in full; make room there, then start again"  # what torch and safetensors do not tell apart


class Misfit(UserError):
    """A state dict that does not fit a network; the message names the file and the tensors. `state_dict`: what was to fit."""

    def __init__(self, message, state_dict):
        super().__init__(message)
        self.state_dict = state_dict


def save(obj, path):
    """torch.save, atomically. Raises OSError, which names `path`, where it cannot be written."""
    with replacing(path) as beside:
        try:
            torch.save(obj, beside)
        except RuntimeError as error:
            # torch has its own word for what the system refuses.
            raise OSError(None, NOT_WHOLE, str(path)) from error


def load(path):
    """A file of tensors -> its contents on the CPU (`weights_only`). Raises UserError when missing or unreadable."""
    path = _existing(path)
    try:
        if is_safetensors(path):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a file of weights ({_first_line(error)}); fetch or write it again"
        ) from error


def save_safetensors(tensors, path, metadata):
    """{name: tensor} and {name: str} -> a safetensors file, atomically. Raises OSError, which names `path`."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        try:
            save_file(whole, beside, metadata)
        except SafetensorError as error:
            raise OSError(None, NOT_WHOLE, str(path)) from error


def metadata_of(path):
    """The metadata of a safetensors file, {name: str}; {} for a file of another kind."""
    path = _existing(path)
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}); fetch or write it again") from error


def is_safetensors(path):
    """By its contents: what is fetched keeps the name that a config expects, whatever the source."""
    # A header in JSON follows its length in eight bytes.
    with Path(path).open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _existing(path):
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    return path


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def state_dict_of(contents, path):
    """The tensors of a weight file: plain, or under state_dict / model / ema, with or without `module.`; in float32."""
    while isinstance(contents, dict) and (keys := [key for key in (*AVERAGES, *RAW) if isinstance(contents.get(key), dict)]):
        contents = contents[keys[0]]
    if not isinstance(contents, dict) or not all(isinstance(v, torch.Tensor) for v in contents.values()):
        raise UserError(f"{path} holds no state dict: a file of weights is expected")
    return {key.removeprefix("module."): v.float() if v.is_floating_point() else v for key, v in contents.items()}


def load_strictly(module, state_dict, path, what):
    """Load every tensor or none. Raises Misfit that names what is missing, too many, or of another shape."""
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
        message = f"{path} does not fit {what}: {', '.join(faults)} of {len(expected)} tensors"
        raise Misfit(f"{message}; use the file that belongs to it", state_dict)
    # A network on the meta device has no memory of its own: it takes these tensors.
    module.load_state_dict(state_dict, assign=any(tensor.is_meta for tensor in expected.values()))
