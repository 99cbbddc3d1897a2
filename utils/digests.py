"""Digests: short names that identify a content."""

import hashlib
import json
from typing import Any

import numpy as np
import torch


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits that depend on every part.

    A part is a tensor or an array (dtype, shape and bytes), a dict, list or tuple of parts, or plain data: None, bool, int,
    float or str. Raises TypeError for anything else.
    """
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        _feed(h, part)
    return h.hexdigest()


def _feed(h: hashlib.blake2b, part: Any) -> None:
    # Each part starts with its kind and length, so that different sequences of parts never give the same bytes.
    if isinstance(part, torch.Tensor):
        # As raw bytes, because numpy has no bfloat16.
        data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if part.numel() else np.empty(0, np.uint8)
        h.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        h.update(data.data)
    elif isinstance(part, np.ndarray):
        _feed(h, torch.from_numpy(np.ascontiguousarray(part)))
    elif isinstance(part, dict):
        h.update(f"dict {len(part)};".encode())
        for key in sorted(part, key=str):
            _feed(h, key)
            _feed(h, part[key])
    elif isinstance(part, list | tuple):
        h.update(f"list {len(part)};".encode())
        for item in part:
            _feed(h, item)
    elif part is None or isinstance(part, bool | int | float | str):
        text = json.dumps(part).encode()
        h.update(f"plain {len(text)};".encode())
        h.update(text)
    else:
        raise TypeError(f"{type(part).__name__} has no digest: give tensors and plain data")
