"""Edits that stay in a region: the edited prediction inside a mask, the frozen one outside.

P_t is linear in eps, so that eps~ blended with eps is P_t blended, m P(eps~) + (1 - m) P(eps); D stays the frozen branch's.
Where the mask is 0, a step takes P and D from the frozen branch, as the plain process does. Published: blended diffusion
(Avrahami et al. 2022), here in P; the mask from the two predictions themselves is that of LEDITS++ (Brack et al. 2024).
"""

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF


class InRegion:
    """A U-Net, in the two halves that `asyrp.process` calls, whose edits stay inside a mask.

    mask: tensor (B or 1, 1, H, W), 0 (as it was) to 1 (edited), or a function of (eps, eps~), both (B, C, H, W), that gives it.

    The first decoding after an encoding is the plain one, as in `process.frozen_branch`; every further one with the same skips
    is an edit. What the plain one gave travels in `skips`, so that nobody has to know of it.
    """

    def __init__(self, unet, mask):
        self.unet = unet
        self.mask = mask if callable(mask) else lambda plain, edited: mask.to(plain)

    def encode(self, x, t):
        h, skips, emb = self.unet.encode(x, t)
        return h, (*skips, {}), emb

    def decode(self, h, skips, emb):
        *skips, memory = skips
        output = self.unet.decode(h, tuple(skips), emb)
        if "plain" not in memory:
            memory["plain"] = output
            return output
        plain = memory["plain"]
        return plain + self.mask(plain, output) * (output - plain)


def dilated(mask, radius):
    """A mask (B, 1, H, W), larger by `radius` pixels on every side."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius else mask


def smoothed(mask, radius):
    """A mask (B, 1, H, W) with soft edges: a Gaussian of 2 * radius + 1 pixels."""
    return TF.gaussian_blur(mask, [2 * radius + 1] * 2) if radius else mask


def largest_changes(quantile, radius):
    """-> a mask function for `InRegion`: where |eps~ - eps|, smoothed, is at or above this quantile of its image."""

    def mask(plain, edited):
        change = smoothed((edited - plain)[:, :3].detach().float().abs().mean(1, keepdim=True), radius)
        least = change.flatten(1).quantile(quantile, dim=1).view(-1, 1, 1, 1)
        return smoothed((change >= least).float(), radius).to(plain)

    return mask


def of_segments(labels, wanted, size, dilation, smoothing):
    """Label maps (B, h, w) -> masks (B, 1, size, size) of the segments with these numbers, dilated and smoothed."""
    inside = torch.isin(labels, torch.tensor(wanted, device=labels.device)).float().unsqueeze(1)
    return smoothed(dilated(F.interpolate(inside, size=(size, size), mode="nearest"), dilation), smoothing)
