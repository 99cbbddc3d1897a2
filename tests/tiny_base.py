"""A tiny base model to train: a network of 16 px, 10 timesteps."""

import yaml
from tiny_world import SIZE, smooth_images

from asyrp.base_model.settings import Settings
from asyrp.base_model.trainer import Trainer

T = 10
MODEL = {"type": "ddpm", "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "norm_groups": 4}
DIFFUSION = {"beta_start": 0.01, "beta_end": 0.6, "num_diffusion_timesteps": T}


def write_config(path, **model):
    data = {"dataset": "TINY", "category": "CUSTOM", "image_size": SIZE}
    path.write_text(yaml.safe_dump({"data": data, "model": {**MODEL, **model}, "diffusion": DIFFUSION}))
    return path


def settings(**given):
    return Settings(**{"batch_size": 4, "total_images": 100, "workers": 0, **given})


def trained(config, steps=2, **given):
    """A trainer after a few steps."""
    trainer = Trainer(config, settings(**given))
    for _ in range(steps):
        trainer.step(smooth_images(4))
    return trainer
