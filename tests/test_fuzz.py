"""Three hundred damaged files of each kind that the project reads: each is read, renamed, or a one-line error."""

import json
import os
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pipelines
import pytest
import torch
from safetensors.torch import save_file
from tiny_base import trained, write_config
from tiny_world import CLIP, keep_curve, open_tiny, smooth_images

from asyrp import curves, directions
from asyrp.base_model.files import Files, model_sections
from asyrp.base_model.settings import Settings
from asyrp.base_model.trainer import Trainer
from asyrp.config import load_config
from asyrp.data.datasets import ImageFolder, UnreadableImage
from asyrp.data.pairs import Batch
from asyrp.data.pixels import PixelIndex
from asyrp.evaluation.segmenter import open_segmenter
from asyrp.intervals import Curve
from asyrp.report import page
from asyrp.report.losslog import FIELDS, read_losses
from asyrp.report.pictures import to_pil
from asyrp.store import Store
from losses.clip_loss import ClipLoss
from models.convert import read_unet_weights
from models.judge import Judge, load_judge, save_judge
from utils import download, tensors
from utils.errors import UserError

FILES = 300
WEIGHTS = {
    name: torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
    for i, name in enumerate(("down.0.conv.weight", "down.1.conv.bias", "mid.norm.weight"))
}


# ---- the kinds of files: function of (folder, tiny world) -> (path of a whole file, function that reads it) ------------------


def weights(legacy):
    def kind(folder, tiny):
        torch.save(WEIGHTS, folder / "w.pt", _use_new_zipfile_serialization=not legacy)
        return folder / "w.pt", lambda path: tensors.state_dict_of(tensors.load(path), path)

    return kind


def safetensors(folder, tiny):
    save_file(WEIGHTS, folder / "w.safetensors")
    return folder / "w.safetensors", lambda path: tensors.state_dict_of(tensors.load(path), path)


def diffusers_config(folder, tiny):
    weights = {"conv_in.weight": torch.zeros(8, 3, 3, 3), "time_embedding.linear_1.weight": torch.zeros(8, 8)}
    save_file(weights, folder / "w.safetensors")
    config = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "norm_num_groups": 32}
    config |= {
        "attention_head_dim": None,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    }
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | config))
    return folder / "config.json", lambda path: read_unet_weights(folder / "w.safetensors")


def pipeline(file):
    def kind(folder, tiny):
        pipelines.save(folder)
        return folder / file, lambda path: load_config(folder)

    return kind


def checkpoint(suffix):
    def kind(folder, tiny):
        model = open_tiny(tiny)
        [stored] = [directions.read(path) for path in sorted(Path("checkpoint").glob("*.pth"))]
        directions.save(directions.build(stored, model), folder / f"smile{suffix}")
        return folder / f"smile{suffix}", lambda path: directions.build(directions.read(path), model)

    return kind


def latent(folder, tiny):
    kept = Store(folder)
    kept.write("latent", "0" * 16, {"x_T": torch.randn(3, 16, 16)}, {"timesteps": [0, 333]})

    def read(path):
        found = kept.read("latent", "0" * 16, {"x_T": (3, 16, 16)})
        assert (found is None) == (not path.exists())

    return kept.path("latent", "0" * 16), read


def stored_curve(folder, tiny):
    model = open_tiny(tiny)
    os.chdir(folder)
    return keep_curve(model), lambda path: curves.find_curve(Store(), model)


def published_curve(folder, tiny):
    shutil.copy(curves.PUBLISHED / "avatar.csv", folder / "curve.csv")
    return folder / "curve.csv", Curve.read


def pixel_index(folder, tiny):
    faces = ImageFolder(tiny.train, 16)
    index = PixelIndex(faces, folder)
    index.add(range(len(faces)), ["0123456789abcdef"] * len(faces))

    def read(path):
        again = PixelIndex(faces, folder)
        for i in range(len(faces)):
            assert again.get(i) is None or isinstance(again.get(i), str)

    return index.path, read


def losses(folder, tiny):
    table = folder / "losses" / "epoch_0.csv"
    table.parent.mkdir()
    rows = [["0", f"{i:02d}.png", str(999 - 100 * i), *["0.25"] * (len(FIELDS) - 3)] for i in range(8)]
    table.write_text("\n".join(",".join(row) for row in [FIELDS, *rows]) + "\n")
    return table, lambda path: list(read_losses(folder))


def settings_of_a_run(folder, tiny):
    shutil.copy(next(Path("runs").glob("*/settings_train.yml")), folder / "settings_train.yml")
    return folder / "settings_train.yml", lambda path: page.write(folder, None, "name", {})


def evaluation(folder, tiny):
    _, read = settings_of_a_run(folder, tiny)
    summary = {"reconstruction": {"SSIM": {"mean": 0.9, "standard_error": 0.1, "n": 4}}}
    distances = {"reconstruction": {"KID": {"value": 0.1, "n": 500}}}
    about = {"settings": {"prompts": ["a", "b"], "clip": "c"}, "left_out": {"FID": "why"}}
    (folder / "evaluation.json").write_text(json.dumps({**about, "summary": summary, "distances": distances}))
    return folder / "evaluation.json", read


def pictures(folder, tiny):
    _, read = settings_of_a_run(folder, tiny)
    gallery, [image] = page.Gallery(folder, [], 3, 9), smooth_images(1)
    batch = Batch([0], ["00.png"], image[None], image[None])
    gallery.add(batch, [("original", image[None])], [(label, image[None]) for label in ("-1", "+0", "+1")])
    gallery.save()
    return folder / page.PICTURES, read


def record_of_downloads(folder, tiny):
    (folder / "w.pt").write_bytes(b"weights")
    download._record(folder / "w.pt", "0" * 64)
    return folder / download.RECORD, lambda path: download.verify(folder / "w.pt")


def config(folder, tiny):
    shutil.copy(tiny.folder / "ddpm.yml", folder / "ddpm.yml")
    return folder / "ddpm.yml", lambda path: load_config(str(path))


def clip_config(folder, tiny):
    for name in ("clip.json", "clip.pt"):
        shutil.copy(tiny.folder / name, folder / name)
    (folder / "clip.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    return folder / "clip.json", lambda path: ClipLoss(str(path))


def judge(folder, tiny):
    save_judge(Judge({"hair": ["blond", "black"]}), folder / "judge.pt")
    return folder / "judge.pt", load_judge


def segmenter(folder, tiny):
    torch.jit.script(torch.nn.Conv2d(3, 2, 1)).save(folder / "segmenter.pt")
    return folder / "segmenter.pt", lambda path: open_segmenter(path, "cpu")


def state_of_a_base_model(folder, tiny):
    made = load_config(str(write_config(folder / "base.yml")))
    files = Files(folder / "ddpm.pt")
    tensors.save(trained(made).state(), files.state)

    def read(path):
        state = files.read_state(model_sections(made))
        if state:
            Trainer(made, Settings(batch_size=4, workers=0), state=state)

    return files.state, read


def image(suffix):
    def kind(folder, tiny):
        [one] = smooth_images(1)
        to_pil(one).save(folder / f"a{suffix}")

        def read(path):
            try:
                ImageFolder(folder, 16)[0]
            except UnreadableImage as error:
                raise UserError(str(error)) from error

        return folder / f"a{suffix}", read

    return kind


KINDS = {
    "weights": weights(legacy=False),
    "weights before torch 1.6": weights(legacy=True),
    "safetensors": safetensors,
    "config.json of diffusers": diffusers_config,
    "index of a pipeline": pipeline("model_index.json"),
    "network of a pipeline": pipeline("unet/config.json"),
    "scheduler of a pipeline": pipeline("scheduler/scheduler_config.json"),
    "checkpoint": checkpoint(".pth"),
    "published direction": checkpoint(".safetensors"),
    "latent": latent,
    "curve in the store": stored_curve,
    "curve in a table": published_curve,
    "pixel index": pixel_index,
    "losses": losses,
    "settings of a run": settings_of_a_run,
    "evaluation": evaluation,
    "damaged report_pictures.json": pictures,
    "record of downloads": record_of_downloads,
    "config": config,
    "CLIP's config": clip_config,
    "judge": judge,
    "segmenter": segmenter,
    "state of a base model": state_of_a_base_model,
    "PNG": image(".png"),
    "JPEG": image(".jpg"),
    "WebP": image(".webp"),
}


# ---- what happens to them ---------------------------------------------------------------------------------------------------


def cut(contents, chance):
    return contents[: chance.randrange(len(contents))]


def flipped(contents, chance):
    for _ in range(chance.choice([1, 8])):
        contents[chance.randrange(len(contents))] ^= chance.randrange(1, 256)
    return contents


def zeroed(contents, chance):
    at, size = chance.randrange(len(contents)), chance.choice([1, 64, 400])
    contents[at : at + size] = bytes(len(contents[at : at + size]))
    return contents


def shuffled(contents, chance):
    """Blocks in another order, as after a faulty disk write."""
    places = sorted({0, len(contents), *(chance.randrange(len(contents)) for _ in range(4))})
    pieces = [contents[a:b] for a, b in pairwise(places)]
    chance.shuffle(pieces)
    return b"".join(pieces)


def reworded(contents, chance):
    """A word or a number of a text replaced, as an editor's slip leaves it."""
    words = [b"nan", b"-1", b"1e400", b"null", b"[]", b"{}", b"\xff\xfe", b"\x00", b"true", b"9" * 400, b"", b"&a [*a]", b"x\n"]
    at = chance.randrange(len(contents))
    return contents[:at] + chance.choice(words) + contents[at + chance.randrange(1, 12) :]


HEALED = {
    "pixel index",
    "losses",
    "settings of a run",
    "evaluation",
    "damaged report_pictures.json",
    "record of downloads",
    "latent",
}
DAMAGES = (cut, flipped, zeroed, shuffled, reworded)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_read_or_is_a_one_line_error(kind, learned, tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(learned)
    caplog.set_level("CRITICAL")
    path, read = KINDS[kind](tmp_path, tiny)
    read(path)
    whole, told, chance = path.read_bytes(), 0, random.Random(kind)
    for i in range(FILES):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(DAMAGES[i % len(DAMAGES)](bytearray(whole), chance)))
        try:
            read(path)
        except UserError as error:
            told += 1
            said = str(error)
            assert said.isprintable() and len(said) < 2000 and "weights_only" not in said
    # What others can do without will be recomputed, or left out with a line.
    assert told > FILES / 20 or kind in HEALED
