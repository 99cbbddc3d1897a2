"""iDDPM and ADM: the U-Net of Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021).

The same module is used for both, and for the networks of P2-weighting and ILVR, which have the same keys. Module names follow
the published checkpoints, so a `state_dict` loads strictly. There are no label embeddings, because no network used here has
them. Split at the bottleneck like models/ddpm.py: h is the output of the middle block (paper section 3.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.unet import UNet


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32, as these networks were trained."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def norm(channels, groups):
    return GroupNorm32(groups, channels, eps=1e-5)


def timestep_embedding(t, dim):
    """Sinusoidal embedding of the timesteps t (B,) -> (B, dim), float32, cosine half first (iDDPM's order and scale)."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(index * -(math.log(10_000) / half))[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def halve(x):
    return F.avg_pool2d(x, 2)


def double(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Residual block; `resample` (halve or double) changes the resolution between its normalisation and convolution."""

    def __init__(self, in_ch, out_ch, emb_ch, dropout, scale_shift, groups, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(in_ch, groups), nn.SiLU(), nn.Conv2d(in_ch, out_ch, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_ch, 2 * out_ch if scale_shift else out_ch))
        self.out_layers = nn.Sequential(
            norm(out_ch, groups), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if in_ch == out_ch else nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x, emb):
        y = self.in_layers[:2](x)
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        y = self.in_layers[2](y)
        offset = self.emb_layers(emb).to(y.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = offset.chunk(2, dim=1)
            y = self.out_layers[1:](self.out_layers[0](y) * (1 + scale) + shift)
        else:
            y = self.out_layers(y + offset)
        return self.skip_connection(x) + y


class AttentionBlock(nn.Module):
    """Multi-head self-attention; the fused qkv is split into heads first, then into q, k, v (the "legacy" order), or with
    `new_order` into q, k, v first."""

    def __init__(self, ch, heads, new_order, groups):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(ch, groups)
        self.qkv = nn.Conv1d(ch, 3 * ch, 1)
        self.proj_out = nn.Conv1d(ch, ch, 1)

    def forward(self, x):
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        parts, which = ((3, self.heads), 1) if self.new_order else ((self.heads, 3), 2)
        q, k, v = qkv.unflatten(1, (*parts, -1)).transpose(3, 4).unbind(which)  # each (B, heads, HW, channels of a head)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.transpose(2, 3).flatten(1, 2)).view(x.shape)


class Downsample(nn.Module):
    """Strided convolution, or average pooling, for networks without residual down-sampling."""

    def __init__(self, ch, with_conv):
        super().__init__()
        self.op = nn.Conv2d(ch, ch, 3, stride=2, padding=1) if with_conv else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    """Up-sampling by 2, optionally followed by a convolution, for networks without residual up-sampling."""

    def __init__(self, ch, with_conv):
        super().__init__()
        if with_conv:
            self.conv = nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x):
        x = double(x)
        return self.conv(x) if hasattr(self, "conv") else x


class Block(nn.Sequential):
    """Runs layers in order, passing the time embedding to those that take it."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class DeltaBlock(nn.Module):
    """f_t, the implicit function that predicts delta_h from h and the time embedding (paper section 3.4, iDDPM/ADM form).

    `block(h, emb)` -> delta_h, both (B, C, h, w); emb is (B, E), or None for a direction that ignores timesteps.
    """

    def __init__(self, ch, emb_ch, groups):
        super().__init__()
        self.in_layers = nn.Sequential(norm(ch, groups), nn.SiLU(), nn.Conv2d(ch, ch, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_ch, ch))
        self.out_layers = nn.Sequential(norm(ch, groups), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(ch, ch, 1))

    def forward(self, h, emb=None):
        y = self.in_layers(h)
        if emb is not None:
            y = y + self.emb_layers(emb)[:, :, None, None]
        return self.out_layers(y)


class ADM(UNet):
    """iDDPM / ADM U-Net.

    `unet(x, t)`: x (B, 3, H, W) in [-1, 1] plus noise, t (B,) in 0..999 -> (B, 6, H, W) with a learned variance (the
    first three channels are eps), else (B, 3, H, W).
    """

    def __init__(
        self,
        ch,
        ch_mult,
        num_res_blocks,
        attn_resolutions,
        image_size,
        num_head_channels=64,
        num_heads=-1,
        num_heads_upsample=-1,
        use_new_attention_order=False,
        dropout=0.0,
        in_channels=3,
        out_ch=3,
        resamp_with_conv=True,
        resblock_updown=True,
        use_scale_shift_norm=True,
        learn_sigma=True,
        norm_groups=32,
    ):
        super().__init__()
        self.ch, self.image_size, self.norm_groups = ch, image_size, norm_groups
        self.emb_ch = emb_ch = 4 * ch
        self.time_embed = nn.Sequential(nn.Linear(ch, emb_ch), nn.SiLU(), nn.Linear(emb_ch, emb_ch))

        def res_block(in_ch, out, resample=None):
            return ResBlock(in_ch, out, emb_ch, dropout, use_scale_shift_norm, norm_groups, resample)

        upper_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample

        def attention_block(width, heads):
            heads = heads if num_head_channels == -1 else width // num_head_channels
            return AttentionBlock(width, heads, use_new_attention_order, norm_groups)

        def attention(level, width, heads):
            return [attention_block(width, heads)] if image_size // 2**level in attn_resolutions else []

        def resized(resample, plain, width):
            return res_block(width, width, resample) if resblock_updown else plain(width, resamp_with_conv)

        widths = [int(ch * m) for m in ch_mult]
        last = len(widths) - 1
        current = widths[0]
        blocks, skip_ch = [Block(nn.Conv2d(in_channels, current, 3, padding=1))], [current]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                blocks.append(Block(res_block(current, width), *attention(level, width, num_heads)))
                skip_ch.append(width)
                current = width
            if level < last:
                blocks.append(Block(resized(halve, Downsample, current)))
                skip_ch.append(current)
        self.input_blocks = nn.ModuleList(blocks)

        self.h_ch, self.h_size = current, image_size // 2**last
        self.middle_block = Block(res_block(current, current), attention_block(current, num_heads), res_block(current, current))

        blocks = []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [res_block(current + skip_ch.pop(), width), *attention(level, width, upper_heads)]
                current = width
                if level > 0 and i == num_res_blocks:
                    layers.append(resized(double, Upsample, current))
                blocks.append(Block(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        out = 2 * in_channels if learn_sigma else out_ch
        self.out = nn.Sequential(norm(current, norm_groups), nn.SiLU(), nn.Conv2d(current, out, 3, padding=1))

    def encode(self, x, t):
        """x (B, 3, H, W), t (B,) -> h (B, C, h, w), skips (a tuple, shallow to deep), emb (B, E)."""
        emb = self.time_embed(timestep_embedding(t, self.ch))
        y, skips = x, []
        for block in self.input_blocks:
            y = block(y, emb)
            skips.append(y)
        return self.middle_block(y, emb), tuple(skips), emb

    def decode(self, h, skips, emb):
        """h (B, C, h, w), skips and emb of `encode` -> prediction (B, 3 or 6, H, W). Does not modify `skips`."""
        y = h
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            y = block(torch.cat([y, skip], dim=1), emb)
        return self.out(y)

    def decoder_blocks(self):
        """The modules that take most of the time and memory of `decode`."""
        return list(self.output_blocks)

    def new_delta_block(self):
        """A delta block for this network's h, with PyTorch's default initialisation (paper: no zero initialisation)."""
        return DeltaBlock(self.h_ch, self.emb_ch, self.norm_groups)
