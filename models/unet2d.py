"""diffusers' UNet2DModel, split at its bottleneck: h is the output of the middle block (h-space, paper section 3.2).

Layers and names are those of the library, so its weights load unchanged. `encode` and `decode` are the two halves of
`UNet2DModel.forward`. Blocks that also pass a downsampled image along (as in NCSN++) are recognised by `skip_conv`, as there.
"""

import warnings

import numpy as np
import torch
from diffusers import UNet2DModel

from models.ddpm import DeltaBlock
from models.unet import UNet
from utils.errors import SettingsError
from utils.text import one_line

# torch.compile warns about a cached function in the library that only compares version numbers.
warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")


class UNet2D(UNet):
    """An unconditional UNet2DModel, split at its bottleneck.

    `unet(x, t)`: x (B, 3, H, W) in [-1, 1] plus noise, t (B,) in 0..T-1 -> predicted noise eps (B, 3, H, W), also if the
    network predicts v.

    settings: those of UNet2DModel (see zoo.UNet2DSettings). alpha_bars: float64 array (T,), the schedule it was trained with.
    Raises SettingsError if the library cannot build the network.
    """

    def __init__(self, image_size, prediction_type, alpha_bars, **settings):
        super().__init__()
        try:
            network = UNet2DModel(sample_size=image_size, **settings)
        except (ValueError, TypeError, ZeroDivisionError, NotImplementedError) as error:
            raise SettingsError(f"diffusers cannot build a UNet2DModel with these settings: {one_line(error)}") from error
        for name, layer in network.named_children():
            setattr(self, name, layer)
        T, known = len(alpha_bars), settings["num_train_timesteps"]
        if settings["time_embedding_type"] == "learned" and known < T:
            raise SettingsError(f"num_train_timesteps {known}: the schedule has {T} timesteps, and each needs an embedding")
        self.has_middle, self.centres = network.mid_block is not None, settings["center_input_sample"]
        widths = settings["block_out_channels"]
        self.ch, self.image_size = widths[0], image_size
        self.h_ch, self.h_size = widths[-1], image_size // 2 ** (len(widths) - 1)
        self.emb_ch = settings["time_embedding_dim"] or 4 * self.ch
        self.norm_groups = settings["norm_num_groups"] or min(self.h_ch // 4, 32)  # the library's default
        self.predicts_v = prediction_type == "v_prediction"
        if self.predicts_v:
            for name, coefficients in (("signal", np.sqrt(alpha_bars)), ("noise", np.sqrt(1 - alpha_bars))):
                # From numpy, so that the values exist even if the network is built on the meta device.
                self.register_buffer(name, torch.from_numpy(coefficients).float(), persistent=False)

    def encode(self, x, t):
        """x (B, 3, H, W), t (B,) -> h (B, C, h, w), skips (a tuple, shallow to deep), emb (B, E).

        Where the network predicts v, x and t come first in the skips.
        """
        emb = self.time_embedding(self.time_proj(t).to(x.dtype))
        small = 2 * x - 1 if self.centres else x
        y = self.conv_in(small)
        skips = [x, t, y] if self.predicts_v else [y]
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):
                y, new, small = block(y, emb, small)
            else:
                y, new = block(y, emb)
            skips.extend(new)
        return self.mid_block(y, emb) if self.has_middle else y, tuple(skips), emb

    def decode(self, h, skips, emb):
        """h (B, C, h, w), skips and emb of `encode` -> eps (B, 3, H, W). Does not modify `skips`."""
        y, left, small = h, tuple(skips), None
        for block in self.up_blocks:
            left, new = left[: -len(block.resnets)], left[-len(block.resnets) :]
            if hasattr(block, "skip_conv"):
                y, small = block(y, new, emb, small)
            else:
                y = block(y, new, emb)
        y = self.conv_out(self.conv_act(self.conv_norm_out(y)))
        if small is not None:
            y = y + small
        return self._eps_of_v(y, *left) if self.predicts_v else y

    def _eps_of_v(self, v, x, t):
        """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, appendix D) -> eps."""
        return self.signal[t][:, None, None, None] * v + self.noise[t][:, None, None, None] * x

    def decoder_blocks(self):
        """The modules that take most of the time and memory of `decode`."""
        return [layer for block in self.up_blocks for layer in (*block.resnets, *getattr(block, "attentions", ()))]

    def new_delta_block(self):
        """A delta block for this network's h, with PyTorch's default initialisation (paper: no zero initialisation)."""
        return DeltaBlock(self.h_ch, self.emb_ch, self.norm_groups)
