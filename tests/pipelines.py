"""Pipelines of diffusers with random weights: five configurations, with the options of each at small widths."""

import json
from itertools import pairwise

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from golden_weights import filled
from safetensors.torch import load_file

from models.convert import RENAMED

# Two levels, attention at the lower one.
SMALL = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# Six levels, attention at the second lowest: the plan of diffusers' training example and of google/ddpm-*.
SIX = {
    "sample_size": 64,
    "block_out_channels": (32, 32, 32, 32, 64, 64),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
GOOGLE = {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
# name -> (settings of the UNet2DModel, settings of the scheduler)
FIVE = {
    "the training example's": (SIX, {}),
    "google's": (SIX | GOOGLE, {"variance_type": "fixed_large"}),
    "64 px, other groups": (
        {
            "sample_size": 64,
            "block_out_channels": (16, 32, 48),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attn_norm_num_groups": 4,
        },
        {"beta_schedule": "scaled_linear", "beta_end": 0.012, "num_train_timesteps": 300},
    ),
    "scale and shift": (SMALL | {"resnet_time_scale_shift": "scale_shift", "layers_per_block": 1}, {"beta_end": 0.03}),
    "cosine schedule": (SMALL, {"beta_schedule": "squaredcos_cap_v2"}),
}


def network(**settings):
    """A UNet2DModel with random weights; those of its norms are not left at one and zero."""
    unet = UNet2DModel(**SMALL | settings)
    unet.load_state_dict(filled({key: value.shape for key, value in unet.state_dict().items()}))
    return unet.eval().requires_grad_(False)


def save(folder, unet=None, **scheduled):
    """The pipeline of a network (by default a small one), as the library saves it -> (folder, network, scheduler)."""
    unet, scheduler = unet or network(), DDPMScheduler(**scheduled)
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder, unet, scheduler


def flatten(folder):
    """Give a pipeline the form that google/ddpm-* have: no folders within, torch's file, attention by its old names."""
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for old, new in RENAMED.items():
        weights = {key.replace(f".{new}.", f".{old}."): value for key, value in weights.items()}
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    for part, name in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        (folder / part / name).rename(folder / name)
        for left in (folder / part).iterdir():
            left.unlink()
        (folder / part).rmdir()


def change(path, **settings):
    """Change settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


class ByTheLibrary:
    """A UNet2DModel and a scheduler: eps, and each step by the library's own DDIM, set to the process here: nothing is clipped,
    and the end is alpha_bar = 1. Timesteps are ascending, and evenly spread as the library spreads them."""

    def __init__(self, unet, scheduler):
        self.unet, self.scheduler = unet, scheduler

    def _steps(self, kind, timesteps):
        made = kind.from_config(self.scheduler.config, clip_sample=False, set_alpha_to_one=True)
        T, gap = len(made.betas), timesteps[1] - timesteps[0]
        made.set_timesteps(T // gap)
        assert {b - a for a, b in pairwise(timesteps)} == {gap} == {T // made.num_inference_steps}
        return made

    @torch.no_grad()
    def invert(self, x, timesteps):
        made = self._steps(DDIMInverseScheduler, timesteps)
        for t, t_next in pairwise(timesteps):
            x = made.step(self.unet(x, t).sample, t_next, x).prev_sample
        return x

    @torch.no_grad()
    def generate(self, x, timesteps):
        made = self._steps(DDIMScheduler, timesteps)
        for t in reversed(timesteps):
            x = made.step(self.unet(x, t).sample, t, x, eta=0.0).prev_sample
        return x

    @torch.no_grad()
    def eps(self, x, t):
        output, alpha_bar = self.unet(x, t).sample, self.scheduler.alphas_cumprod[t][:, None, None, None]
        if self.scheduler.config.prediction_type == "epsilon":
            return output
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * x
