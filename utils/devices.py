"""Devices."""

import torch

from utils.errors import UserError


def find_device(name=None):
    """ "cpu", "cuda", "cuda:1" or a torch.device; None: cuda where there is one -> torch.device. Raises UserError."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
        torch.zeros(1, device=device).cpu()  # of a device that only knows shapes ("meta") nothing comes back
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error


def to_device(x, device):
    """A tensor onto `device`; the copy to a CUDA device starts from pinned memory, so that nobody waits for it."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
