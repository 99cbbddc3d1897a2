"""Files of tensors: safe loading without running code, atomic writes, and strict loading into a network."""

import logging
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from utils.errors import UserError
from utils.files import replacing
from utils.text import one_line

log = logging.getLogger(__name__)

# Keys of a network's weights in a file, in order of preference: `ema`, `model_ema`, `state_dict_ema`, `ema_state_dict`,
# `params_ema` and the like are moving averages, which are preferred; RAW are the raw weights.
AVERAGE = re.compile(r"(^|_)(ema|averaged?)(_|$)")
RAW = ("state_dict", "model", "params", "model_state_dict", "net", "unet", "module", "shadow", "checkpoint", "weights")
# Prefixes that wrappers add to each name; they may be nested. For all but the first, a Lightning module may have other networks
# and buffers with other names.
WRAPPERS = ("module.", "model.", "unet.", "diffusion_model.")
COUNTERS = {"n_averaged", "num_updates", "decay", "step", "initted"}  # scalars stored with an average
DEEPEST = 8  # levels of nesting that are searched for weights, because a checkpoint may contain itself
# Replaces the messages of torch and safetensors for failed writes.
NOT_WHOLE = "it cannot be written completely; free some disk space, then start again"
# Errors that torch and safetensors raise for a file that is damaged or of another kind.
UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    SafetensorError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Misfit(UserError):
    """A state dict does not fit a network. `fault`: the message without advice, so that callers can add their own; it names the
    file and the tensors. `state_dict`: the weights that do not fit."""

    def __init__(self, fault, state_dict):
        super().__init__(f"{fault}; use the weight file that belongs to it")
        self.fault, self.state_dict = fault, state_dict


def save(obj, path):
    """torch.save, atomically. Raises OSError, which names `path`, if it cannot be written."""
    with replacing(path) as temporary:
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:
            raise OSError(None, NOT_WHOLE, str(path)) from error


def load(path):
    """Load a file of tensors on the CPU, without running any code in it. Raises UserError if it is missing, damaged, of another
    kind, or a pickle with more than tensors and plain data."""
    path = _existing(path)
    try:
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings():  # about what raises an error below
            warnings.simplefilter("ignore")
            return plain(torch.load(path, map_location="cpu", weights_only=True), path)
    except UNREADABLE as error:
        raise UserError(f"{path} {_complaint(path, error)}") from error


def plain(contents, path):
    """The contents of a file, if all tensors are dense. Raises UserError for sparse, quantised, 8-bit or meta tensors."""
    left, seen = [contents], set()
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor):
            kind = "quantised" if item.is_quantized else "meta" if item.is_meta else str(item.layout).partition(".")[2]
            if item.dtype.is_floating_point and item.dtype.itemsize < 2:
                kind = str(item.dtype).partition(".")[2]
            if kind != "strided":
                raise UserError(f"{path} contains {kind} tensors: save them as dense ones in float32 or float16")
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            left += item.values() if isinstance(item, dict) else item
    return contents


def save_safetensors(tensors, path, metadata):
    """Write {name: tensor} and metadata {name: str} to a safetensors file, atomically. Raises OSError, which names `path`."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
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
        raise UserError(f"{path} {_complaint(path, error)}") from error


def is_safetensors(path):
    """Decided by content, because a downloaded file has the name that a config expects, whatever its format."""
    # Eight bytes with the length of the header are followed by the header in JSON.
    with Path(path).open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def is_torchscript(path):
    """Whether a file is a TorchScript archive, which contains code and weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except UNREADABLE:
        return False


def _existing(path):
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a weight file in it")
    if path.exists() and not path.is_file():
        # For example a pipe, which would block when opened.
        raise UserError(f"{path} is not a regular file: give a weight file")
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path")
    return path


def _complaint(path, error):
    """Why a file could not be read. Replaces the messages of torch, which advise running the code in it."""
    if is_torchscript(path):
        return "is a TorchScript archive, which contains code: save its state_dict and use that file"
    if isinstance(error, pickle.UnpicklingError) and _is_whole_pickle(path):
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        return f"contains more than tensors{what}, so it was not loaded: if you trust it, save only its state_dict and use that"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied; change its permissions"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "cannot be read as a weight file: it is damaged, or too large for the memory of this machine"
    reason = "" if isinstance(error, pickle.UnpicklingError) or not str(error) else f" ({one_line(error)[:80]})"
    return f"cannot be read as a weight file{reason}: it is damaged or of another kind; download or save it again"


def _is_whole_pickle(path):
    """Whether a file is a complete pickle, or a complete zip archive of torch with one. Runs no code."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                return _calls_for_pickle(pickletools.genops(archive.read(name)))  # reading verifies the checksum
        with path.open("rb") as stream:
            # The old format of torch has four pickles before its tensors: magic number, version, machine, and the object.
            whole = _calls_for_pickle(pickletools.genops(stream))
            for _ in range(3):
                if stream.peek(1)[:1] == b"\x80":
                    _calls_for_pickle(pickletools.genops(stream))
            return whole
    except UNREADABLE:
        return False


def _calls_for_pickle(operations):
    # Read to the end to detect a truncated file. The opcodes exclude text that starts with ".", a valid empty pickle.
    return any([operation.name in ("PROTO", "GLOBAL", "REDUCE") for operation, _, _ in operations])


class _Found(NamedTuple):
    """A state dict in a file: the keys that lead to it, whether it is an average, its tensors (None: an average without names),
    and the names of tensors that belong to something else."""

    where: str
    averaged: bool
    tensors: dict | None
    left_out: tuple = ()


def state_dict_of(contents, path):
    """Extract the weights from the contents of a file -> {name: tensor}, in float32.

    The weights may be nested under the usual keys (AVERAGE, RAW), in a Lightning checkpoint, or in the list of DDIM; a moving
    average is preferred. Prefixes of wrappers (`module.`, `model.`, `_orig_mod.`) and counters of averages are removed. If
    there was a choice, the one taken is logged. contents: from `load`. Raises UserError if there is no state dict.
    """
    found = list(_found(contents))
    named = [f for f in found if f.tensors]
    if not named:
        raise UserError(f"{path} contains no state dict: give a weight file")
    taken = next((f for f in named if f.averaged), named[0])
    _tell(path, taken, [f for f in found if f is not taken])
    return {name: t.detach().float() if t.is_floating_point() else t for name, t in taken.tensors.items()}


def _tell(path, taken, others):
    if others:
        kind = "moving average" if taken.averaged else "raw weights"
        told = ", ".join(f"{f.where}{'' if f.tensors else ' (an average without names)'}" for f in others)
        level = logging.INFO if all(f.tensors for f in others) else logging.WARNING
        log.log(level, f"{path}: using the {kind} under {taken.where}, not those under {told}")
    if taken.left_out:
        log.info(f"{path}: ignored {len(taken.left_out)} tensors that are not part of the network (first: {taken.left_out[0]})")


def _found(contents, where="", averaged=False, depth=0, seen=None):
    """Yield every state dict in the contents of a file, preferred keys first. seen: ids of visited objects."""
    seen = set() if seen is None else seen
    if depth > DEEPEST or id(contents) in seen:
        return
    seen.add(id(contents))
    if isinstance(contents, list | tuple):
        if len(contents) >= 4:  # DDIM: weights, optimizer, epoch, step, and optionally the average
            yield from _found(contents[0], f"{where}[0]", averaged, depth + 1, seen)
            yield from _found(contents[-1], f"{where}[-1]", True, depth + 1, seen)
        return
    if not isinstance(contents, dict):
        return
    averages = [key for key in contents if isinstance(key, str) and AVERAGE.search(key)]
    inside = {}
    for key in (*averages, *RAW):
        part = contents.get(key)
        if isinstance(part, dict | list | tuple) and part and id(part) not in seen:
            place = f"{where}.{key}".strip(".")
            inside[key] = list(_found(part, place, averaged or key in averages, depth + 1, seen))
    if any(inside.values()):
        for key, found in inside.items():
            yield from found
            if not found and key in averages:
                yield _Found(f"{where}.{key}".strip("."), True, None)
    elif contents and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in contents.items()):
        yield from _networks(contents, where or "its top level", averaged)


def _networks(tensors, where, averaged):
    """A flat state dict -> yields the network in it, and averages stored with it under other prefixes."""
    tensors = _uncounted({name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()})
    while inside := next((under for p in WRAPPERS if len(under := _under(p, tensors)) == len(tensors) > 0), None):
        tensors = _uncounted(inside)
    groups, raw = {}, {}
    for name, tensor in tensors.items():
        head, dot, tail = name.partition(".")
        if dot and AVERAGE.search(head):
            groups.setdefault(head, {})[tail] = tensor
        else:
            raw[name] = tensor
    for head, group in groups.items():
        yield _unwrapped(_dotted(_uncounted(group), raw), f"{where} ({head}.)", True)
    if raw:
        yield _unwrapped(raw, where, averaged and not groups)


def _unwrapped(tensors, where, averaged):
    """Remove the prefixes of wrappers."""
    left_out = []
    while under := next(((p, under) for p in WRAPPERS if (under := _under(p, tensors))), None):
        prefix, inside = under
        if prefix == "module." and len(inside) < len(tensors):
            break
        left_out += [name for name in tensors if not name.startswith(prefix)]
        tensors = _uncounted(inside)
    return _Found(where, averaged, tensors, tuple(left_out))


def _under(prefix, tensors):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _uncounted(tensors):
    return {name: tensor for name, tensor in tensors.items() if name not in COUNTERS or tensor.numel() > 1}


def _dotted(average, raw):
    """LitEma removes the dots from the names of an average; restore them from the names of the raw weights."""
    for names in (raw, [name.removeprefix("model.") for name in raw], _unwrapped(raw, "", False).tensors):
        dotted = {name.replace(".", ""): name for name in names}
        # Not possible if two names are equal without dots.
        if average.keys() <= dotted.keys() and len(dotted) == len(names):
            return {dotted[name]: tensor for name, tensor in average.items()}
    return average


def load_strictly(module, state_dict, path, what):
    """Load every tensor or none. Raises Misfit, naming tensors that are missing, unexpected or of another shape."""
    expected = module.state_dict()
    missing = [k for k in expected if k not in state_dict]
    surplus = [k for k in state_dict if k not in expected]
    reshaped = [k for k in expected if k in state_dict and expected[k].shape != state_dict[k].shape]
    faults = [
        f"{len(keys)} {fault} (first: {keys[0]})"
        for fault, keys in (("missing", missing), ("unexpected", surplus), ("of another shape", reshaped))
        if keys
    ]
    if faults:
        raise Misfit(f"{path} does not fit {what}: {', '.join(faults)} of {len(expected)} tensors", state_dict)
    # A network on the meta device has no memory, so these tensors are assigned.
    module.load_state_dict(state_dict, assign=any(tensor.is_meta for tensor in expected.values()))


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """{number: state dict, or a tensor} -> {"<number>.<name>": tensor}, and {number: tensor} for a tensor."""
    found: dict[str, torch.Tensor] = {}
    for number, part in state.items():
        found |= {f"{number}.{name}": value for name, value in part.items()} if isinstance(part, dict) else {number: part}
    return found


def nested(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        number, dot, rest = name.partition(".")
        if dot and number.isdigit():
            found.setdefault(number, {})[rest] = value
        else:
            found[name] = value
    return found
