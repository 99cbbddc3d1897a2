"""Edits restricted to a region: the edited prediction inside a mask, the frozen one outside.

P_t is linear in eps, so blending eps~ with eps blends P_t: m P(eps~) + (1 - m) P(eps). D still comes from the frozen branch.
Where the mask is 0, a step takes P and D from the frozen branch, like the plain process. Sources: blended diffusion
(Avrahami et al. 2022), here applied to P; the mask computed from the two predictions is that of LEDITS++ (Brack et al. 2024).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from asyrp.process import Halves

MaskOfChange = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (eps, eps~) -> mask
MaskOf = Callable[[torch.Tensor], torch.Tensor | MaskOfChange]  # images (B, 3, H, W) -> a mask for `InRegion`


class InRegion:
    """Wraps a U-Net (`encode`, `decode`) so that edits are restricted to a mask.

    mask: tensor (B or 1, 1, H, W), 0 (unedited) to 1 (edited), or a function of (eps, eps~), both (B, C, H, W), that returns
    one.

    The first `decode` after an `encode` is the frozen branch, as in `process.frozen_branch`; any further one with the same
    skips is an edit. The output of the frozen branch is passed along inside `skips`, so that callers need not change.
    """

    def __init__(self, unet: Halves, mask: torch.Tensor | MaskOfChange) -> None:
        self.unet = unet
        self.mask: MaskOfChange = (lambda plain, edited: mask.to(plain)) if isinstance(mask, torch.Tensor) else mask

    def encode(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, tuple, torch.Tensor]:
        h, skips, emb = self.unet.encode(x, t)
        return h, (*skips, {}), emb

    def decode(self, h: torch.Tensor, skips: tuple, emb: torch.Tensor) -> torch.Tensor:
        *own, memory = skips
        output = self.unet.decode(h, tuple(own), emb)
        if "plain" not in memory:
            memory["plain"] = output
            return output
        plain = memory["plain"]
        return plain + self.mask(plain, output) * (output - plain)


def dilated(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """A mask (B, 1, H, W), enlarged by `radius` pixels on every side."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius else mask


def smoothed(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """A mask (B, 1, H, W) with soft edges, blurred by a Gaussian of 2 * radius + 1 pixels."""
    return TF.gaussian_blur(mask, [2 * radius + 1] * 2) if radius else mask


def largest_changes(quantile: float, radius: int) -> MaskOfChange:
    """A mask function for `InRegion`: where the smoothed |eps~ - eps| is at or above this quantile of the image."""

    def mask(plain: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        change = smoothed((edited - plain)[:, :3].detach().float().abs().mean(1, keepdim=True), radius)
        least = change.flatten(1).quantile(quantile, dim=1).view(-1, 1, 1, 1)
        return smoothed((change >= least).float(), radius).to(plain)

    return mask


def of_segments(labels: torch.Tensor, wanted: Sequence[int], size: int, dilation: int, smoothing: int) -> torch.Tensor:
    """Label maps (B, h, w) -> masks (B, 1, size, size) of the segments with these numbers, dilated and smoothed."""
    inside = torch.isin(labels, torch.tensor(wanted, device=labels.device)).float().unsqueeze(1)
    return smoothed(dilated(F.interpolate(inside, size=(size, size), mode="nearest"), dilation), smoothing)
