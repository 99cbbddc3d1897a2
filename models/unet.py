"""The interface of the frozen U-Nets."""

from typing import Any

import torch
from torch import nn


class UNet(nn.Module):
    """A U-Net that is split into `encode` and `decode` at its bottleneck; `unet(x, t)` is `decode(*encode(x, t))`.

    settings: plain data that defines its architecture, apart from the image size. ch: channels at full resolution. h is
    (B, h_ch, h_size, h_size).
    """

    settings: dict[str, Any]
    image_size: int
    ch: int
    h_ch: int
    h_size: int

    def encode(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """x (B, 3, H, W) in [-1, 1] plus noise, t (B,) -> h, skips (tensors that begin with B), emb (B, E)."""
        raise NotImplementedError

    def decode(self, h: torch.Tensor, skips: tuple[torch.Tensor, ...], emb: torch.Tensor) -> torch.Tensor:
        """-> eps (B, 3, H, W), or (B, 6, H, W) with a learned variance. Does not modify `skips`."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.decode(*self.encode(x, t))

    def decoder_blocks(self) -> list[nn.Module]:
        """The modules that take most of the time and memory of `decode`."""
        raise NotImplementedError

    def new_delta_block(self) -> nn.Module:
        """A module with random weights, `block(h, emb)` or `block(h, None)` -> delta_h (B, C, h, w)."""
        raise NotImplementedError
