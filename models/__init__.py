"""The frozen U-Nets, each split into `encode` and `decode` at its bottleneck."""

from typing import Protocol, runtime_checkable

from models.zoo import build_unet

__all__ = ["UNet", "build_unet"]


@runtime_checkable
class UNet(Protocol):
    """The interface of a U-Net, a torch module; `unet(x, t)` is `decode(*encode(x, t))`.

    settings: dict of plain data that defines its architecture, apart from the image size. ch: channels at full resolution. h is
    (B, h_ch, h_size, h_size).
    """

    settings: dict
    image_size: int
    ch: int
    h_ch: int
    h_size: int

    def encode(self, x, t):
        """x (B, 3, H, W) in [-1, 1] plus noise, t (B,) -> h, skips (a tuple of tensors that begin with B), emb (B, E)."""

    def decode(self, h, skips, emb):
        """-> eps (B, 3, H, W), or (B, 6, H, W) with a learned variance. Does not modify `skips`."""

    def decoder_blocks(self):
        """-> list of the modules that take most of the time and memory of `decode`."""

    def new_delta_block(self):
        """-> a module with random weights, `block(h, emb)` or `block(h, None)` -> delta_h (B, C, h, w)."""
