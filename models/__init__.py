"""The frozen U-Nets, each split into `encode` and `decode` at its bottleneck."""

from models.zoo import build_unet

__all__ = ["build_unet"]
