"""DDPM++: the U-Net of Ho et al. (2020) with the channel plan that SDEdit trained at 256x256.

Module names follow the published checkpoints, so a `state_dict` loads strictly. The network is split at its bottleneck:
`encode` returns h, the output of the middle block (h-space, paper section 3.2); `decode` computes the prediction from it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.unet import UNet


def norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-6)


def timestep_embedding(t, dim):
    """Sinusoidal embedding of the timesteps t (B,) -> (B, dim), float32, sine half first (DDPM++'s order and scale)."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(index * -(math.log(10_000) / (half - 1)))[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResnetBlock(nn.Module):
    def __init__(self, in_ch, out_ch, emb_ch, dropout, groups):
        super().__init__()
        self.norm1 = norm(in_ch, groups)
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.temb_proj = nn.Linear(emb_ch, out_ch)
        self.norm2 = norm(out_ch, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        if in_ch != out_ch:
            self.nin_shortcut = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x, emb):
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.temb_proj(F.silu(emb))[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + y


class AttnBlock(nn.Module):
    """One head of self-attention over all positions; q, k, v are 1x1 convolutions."""

    def __init__(self, ch, groups):
        super().__init__()
        self.norm = norm(ch, groups)
        self.q = nn.Conv2d(ch, ch, 1)
        self.k = nn.Conv2d(ch, ch, 1)
        self.v = nn.Conv2d(ch, ch, 1)
        self.proj_out = nn.Conv2d(ch, ch, 1)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, HW, C)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, ch, with_conv):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(ch, ch, 3, stride=2)

    def forward(self, x):
        if self.with_conv:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return F.avg_pool2d(x, 2)


class Upsample(nn.Module):
    def __init__(self, ch, with_conv):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(ch, ch, 3, padding=1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each followed by attention if there is any."""

    def __init__(self, channels, emb_ch, dropout, attention, groups):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(i, o, emb_ch, dropout, groups) for i, o in channels)
        self.attn = nn.ModuleList(AttnBlock(o, groups) for _, o in channels) if attention else nn.ModuleList()

    def step(self, j, x, emb):
        x = self.block[j](x, emb)
        return self.attn[j](x) if self.attn else x


class DeltaBlock(nn.Module):
    """f_t, the implicit function that predicts delta_h from h and the time embedding (paper section 3.4, DDPM++ form).

    `block(h, emb)` -> delta_h, both (B, C, h, w); emb is (B, E), or None for a direction that ignores timesteps.
    """

    def __init__(self, ch, emb_ch, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(ch, ch, 1)
        self.temb_proj = nn.Linear(emb_ch, ch)
        self.norm2 = norm(ch, groups)
        self.conv2 = nn.Conv2d(ch, ch, 1)

    def forward(self, h, emb=None):
        y = self.conv1(h)
        if emb is not None:
            y = y + self.temb_proj(F.silu(emb))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(y)))


class DDPM(UNet):
    """DDPM++ U-Net.

    `unet(x, t)`: x (B, 3, H, W) in [-1, 1] plus noise, t (B,) in 0..999 -> predicted noise eps (B, out_ch, H, W).
    """

    def __init__(
        self,
        ch,
        ch_mult,
        num_res_blocks,
        attn_resolutions,
        image_size,
        dropout=0.0,
        in_channels=3,
        out_ch=3,
        resamp_with_conv=True,
        norm_groups=32,
    ):
        super().__init__()
        self.ch, self.image_size, self.norm_groups = ch, image_size, norm_groups
        self.emb_ch = emb_ch = 4 * ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, emb_ch), nn.Linear(emb_ch, emb_ch)])
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)

        widths = [int(ch * m) for m in ch_mult]
        resolutions = [image_size // 2**i for i in range(len(widths))]
        last = len(widths) - 1

        self.down = nn.ModuleList()
        skip_ch, current = [ch], ch
        for i, width in enumerate(widths):
            channels = [(current if j == 0 else width, width) for j in range(num_res_blocks)]
            level = Level(channels, emb_ch, dropout, resolutions[i] in attn_resolutions, norm_groups)
            skip_ch += [width] * num_res_blocks
            current = width
            if i < last:
                level.downsample = Downsample(current, resamp_with_conv)
                skip_ch.append(current)
            self.down.append(level)

        self.h_ch, self.h_size = current, image_size // 2**last
        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(current, current, emb_ch, dropout, norm_groups)
        self.mid.attn_1 = AttnBlock(current, norm_groups)
        self.mid.block_2 = ResnetBlock(current, current, emb_ch, dropout, norm_groups)

        up = []
        for i in reversed(range(len(widths))):
            channels = []
            for _ in range(num_res_blocks + 1):
                channels.append((current + skip_ch.pop(), widths[i]))
                current = widths[i]
            level = Level(channels, emb_ch, dropout, resolutions[i] in attn_resolutions, norm_groups)
            if i > 0:
                level.upsample = Upsample(current, resamp_with_conv)
            up.insert(0, level)
        self.up = nn.ModuleList(up)  # indexed by resolution as in the checkpoints: up[0] runs last

        self.norm_out = norm(current, norm_groups)
        self.conv_out = nn.Conv2d(current, out_ch, 3, padding=1)

    def encode(self, x, t):
        """x (B, 3, H, W), t (B,) -> h (B, C, h, w), skips (a tuple, shallow to deep), emb (B, E)."""
        emb = self.temb.dense[0](timestep_embedding(t, self.ch))
        emb = self.temb.dense[1](F.silu(emb))
        y = self.conv_in(x)
        skips = [y]
        for level in self.down:
            for j in range(len(level.block)):
                y = level.step(j, y, emb)
                skips.append(y)
            if hasattr(level, "downsample"):
                y = level.downsample(y)
                skips.append(y)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(y, emb)), emb)
        return h, tuple(skips), emb

    def decode(self, h, skips, emb):
        """h (B, C, h, w), skips and emb of `encode` -> eps (B, out_ch, H, W). Does not modify `skips`."""
        deepest_first = iter(reversed(skips))
        y = h
        for level in reversed(self.up):
            for j in range(len(level.block)):
                y = level.step(j, torch.cat([y, next(deepest_first)], dim=1), emb)
            if hasattr(level, "upsample"):
                y = level.upsample(y)
        return self.conv_out(F.silu(self.norm_out(y)))

    def decoder_blocks(self):
        """The modules that take most of the time and memory of `decode`."""
        return [block for level in self.up for block in (*level.block, *level.attn)]

    def new_delta_block(self):
        """A delta block for this network's h, with PyTorch's default initialisation (paper: no zero initialisation)."""
        return DeltaBlock(self.h_ch, self.emb_ch, self.norm_groups)
