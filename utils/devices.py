"""Choosing a device and moving tensors to it."""

import torch

from utils.errors import UserError


def find_device(name: str | torch.device | None = None) -> torch.device:
    """ "cpu", "cuda", "cuda:1" or a torch.device; None: cuda if available -> torch.device. Raises UserError."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
        torch.zeros(1, device=device).cpu()  # fails for "meta", which has no data
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {name} is not available ({str(error).splitlines()[0]}): try --device cpu") from error


def to_device(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move a tensor to `device`; copies to a CUDA device use pinned memory and do not block."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
