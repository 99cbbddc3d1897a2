"""The frozen U-Nets, each split into `encode` and `decode` at its bottleneck (see models/unet.py)."""

from models.zoo import build_unet

__all__ = ["build_unet"]
