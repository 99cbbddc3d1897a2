"""A tiny world for whole runs: two U-Nets of 16 px, a CLIP of their size, and a few images."""

import json
import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import yaml
from golden_weights import filled
from PIL import Image

import asyrp
import main
from asyrp import curves
from asyrp.evaluation.segmenter import NAMES
from asyrp.intervals import Curve
from asyrp.report.losslog import read_losses
from asyrp.report.pictures import to_pil
from asyrp.store import Store
from models import build_unet

DEVICE = os.environ.get("ASYRP_TEST_DEVICE", "cpu")  # of whole runs
SIZE = 16
DDPM = {"type": "ddpm", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
ADM = {**DDPM, "type": "adm", "num_head_channels": 16}
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# Editing over the upper half of four timesteps, no boosting; a later flag wins over an earlier one.
INTERVALS = ("--user_defined_t_edit", "500", "--user_defined_t_addnoise", "0")
STEPS = ("--n_inv_step", "4", "--n_train_step", "4", "--n_test_step", "4")
SMILE = ("--edit_attr", "smiling", "--train_delta_block", "--get_h_num", "1")
DELTA_H = ("--edit_attr", "smiling", "--train_delta_h")
TRAIN = ("--run_train", *SMILE, "--do_test", "0")
TEST = ("--run_test", *SMILE)
MODES = {
    "lpips": ("--lpips",),
    "precompute": ("--just_precompute", "--n_precomp_img", "4"),
    "train": (*TRAIN, "--n_iter", "2"),  # goes on after the first epoch
    "retrain": (*TRAIN, "--retrain", "1"),
    "test": TEST,
    "evaluate": ("--evaluate", *SMILE),
}
NAME = "smile_LC_CUSTOM_t999_ninv4_ngen4"  # of the experiment, with its suffix


def smooth_images(n, size=SIZE, seed=0):
    """-> (n, 3, size, size) in [-1, 1], without sharp edges."""
    noise = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(F.interpolate(noise, size=size, mode="bicubic", align_corners=False))


def write_unet(folder, name, model, seed=0, size=SIZE):
    """A config <name>.yml and its weights <name>.pt."""
    settings = {"data": {"dataset": "TINY", "category": "CUSTOM", "image_size": size}, "model": model}
    (folder / f"{name}.yml").write_text(yaml.safe_dump(settings))
    shapes = {key: value.shape for key, value in build_unet(settings).state_dict().items()}
    torch.save(filled(shapes, seed), folder / f"{name}.pt")


def write_images(folder, n, seed):
    """n images, the last two of other sizes and modes: a grey one and one with transparency."""
    folder.mkdir()
    for i, image in enumerate(smooth_images(n - 2, seed=seed)):
        to_pil(image).save(folder / f"{i:02d}.png")
    odd = smooth_images(2, size=24, seed=seed + 1)
    to_pil(odd[0]).convert("L").resize((20, 30)).save(folder / f"{n - 2:02d}.png")
    to_pil(odd[1]).convert("RGBA").save(folder / f"{n - 1:02d}.png")


def write_world(folder):
    """Configs, weights and images -> where they lie."""
    write_unet(folder, "ddpm", DDPM)
    write_unet(folder, "adm", ADM)
    write_images(folder / "train", 4, seed=10)
    write_images(folder / "test", 4, seed=20)
    (folder / "clip.json").write_text(json.dumps(CLIP))
    shapes = {key: value.shape for key, value in open_clip.CLIP(**CLIP).state_dict().items()}
    torch.save(filled(shapes, unet=False), folder / "clip.pt")
    return world_at(folder)


def world_at(folder):
    """The places of a world that was written to `folder`."""
    return SimpleNamespace(folder=folder, train=folder / "train", test=folder / "test", clip=folder / "clip.json")


def call(tiny, *flags, model="ddpm", intervals=INTERVALS, steps=STEPS, weights=True, images=True):
    """main.py on the tiny world, in the current folder -> exit status.

    weights, images: whether the file of the U-Net and the folders of images are named.
    """
    given = ["--config", tiny.folder / f"{model}.yml", "--device", DEVICE, "--exp", "runs/smile"]
    given += ["--model_path", tiny.folder / f"{model}.pt"] if weights else []
    given += ["--custom_train_dataset_dir", tiny.train, "--custom_test_dataset_dir", tiny.test] if images else []
    given += ["--clip_model_name", tiny.clip, "--n_train_img", "2", "--n_test_img", "2", *steps, *intervals]
    handlers = logging.root.handlers[:]
    try:
        return main.main([str(flag) for flag in [*given, *flags]])
    finally:
        # A run logs to the stderr of its own test.
        logging.root.handlers[:] = handlers


def tensors_equal(a, b):
    """Whether two nested dicts hold the same tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(tensors_equal(a[key], b[key]) for key in a)
    return torch.equal(a, b)


def directions(path="checkpoint"):
    """{file name: the direction in it} of a folder of checkpoints."""
    files = {file.name: torch.load(file, weights_only=True) for file in sorted(Path(path).glob("*.pth"))}
    return {name: {key: value for key, value in contents.items() if key.isdigit()} for name, contents in files.items()}


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def settings(results, mode):
    return yaml.safe_load((results / f"settings_{mode}.yml").read_text())


def losses(results):
    """The rows of all epochs' losses, as dicts."""
    return list(read_losses(results))


def open_tiny(tiny, model="ddpm", **more):
    """A model of the tiny world, as the library opens it."""
    return asyrp.open_model(tiny.folder / f"{model}.yml", tiny.folder / f"{model}.pt", DEVICE, **more)


def stored(kind):
    """{key: tensors} of one kind, in the store of the current folder; every file is whole."""
    store = Store()
    paths = sorted(store.folder(kind).glob("??/*.safetensors"))
    found = {path.stem: store.read(kind, path.stem) for path in paths}
    assert all(path == store.path(kind, path.stem) for path in paths)
    assert None not in found.values()
    # What is read may be the file itself, mapped into memory: a test that spoils the file must not spoil what it compares with.
    return {key: {name: tensor.clone() for name, tensor in tensors.items()} for key, tensors in found.items()}


class Brightness(torch.nn.Module):
    """A segmenter: segment 1 where a pixel is above zero."""

    def forward(self, images):
        mean = images.mean(1, keepdim=True)
        return torch.cat([-mean, mean], 1)


def write_segmenter(path, names=("dark", "bright")):
    """A TorchScript file of Brightness; names: of its segments, None: the file does not tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Brightness()), path, {NAMES: json.dumps(names)} if names else {})


class Distance(torch.nn.Module):
    """In place of LPIPS, which needs images of 31 pixels."""

    def forward(self, a, b):
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


def straight(top):
    """LPIPS curves that rise from 0 to `top` at t = 999."""
    t = np.array([0, 999])
    return Curve(t, t / 999 * top, t * 0, t / 999 * top, t * 0)


def keep_curve(model, top=2.0, name="CUSTOM"):
    """Straight curves in the store of the current folder, as --lpips would leave them for a model -> their file."""
    return curves.keep_curve(Store(), straight(top), model, [], name)
