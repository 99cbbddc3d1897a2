"""Every flag does something: two runs that differ in it alone leave something different behind.

A flag of asyrp/options.py without a row in EFFECTS fails. What each flag does exactly is tested where that part is.
"""

import io
import shutil
import sys
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tiny_world import (
    DDPM,
    INTERVALS,
    NAME,
    SMILE,
    STEPS,
    Distance,
    call,
    directions,
    open_tiny,
    smooth_images,
    stored,
    write_segmenter,
    write_unet,
)

import asyrp.directions
import asyrp.parts
import asyrp.runner
from asyrp import curves, hspace, process, training
from asyrp.acceleration import fast_unet
from asyrp.evaluation import gauges
from asyrp.intervals import Curve
from asyrp.options import FLAGS
from asyrp.report.pictures import to_pil
from asyrp.store import Store
from utils.digests import digest

ONE = ("--n_test_img", "1", "--n_train_img", "1", "--n_precomp_img", "1", *STEPS)
TEST = ("--run_test", *SMILE, *ONE, *INTERVALS)
TRAIN = ("--run_train", *SMILE, *ONE, *INTERVALS, "--do_test", "0", "--exp", "runs/new")
TWICE = (*TRAIN, "--n_iter", "2", "--scheduler_step_size", "1")
AGAIN = (*TRAIN, "--exp", "runs/smile", "--n_train_img", "2")  # the training that already exists
BY_CURVE = ("--run_train", *SMILE, *ONE, "--exp", "runs/new", "--user_defined_t_addnoise", "0")
BOOSTED_BY_CURVE = ("--run_test", *SMILE, *ONE, "--user_defined_t_edit", "500")
INVERT = ("--just_precompute", *ONE)
STRIP = (*TEST, "--delta_interpolation", "--num_delta", "3")
PROMPTS = ("--run_train", "--train_delta_block", *ONE, *INTERVALS, "--do_test", "0", "--exp", "runs/new")
SADLY = (*PROMPTS, "--src_txts", "face", "--trg_txts", "sad face")
IDENTITY = (*TRAIN, "--use_id_loss", "--id_loss_w", "1")
WITHIN = (*TRAIN, "--n_train_img", "2", "--save_checkpoint_during_iter", "--save_checkpoint_step", "1")
NOISE = (*TEST, "--load_random_noise")
KEPT = (*TWICE, "--l1_loss_w", "1")
ON_DISK = (*KEPT, "--cache_origin_gib", "0")
BARE = ("--run_train", "--edit_attr", "smiling", *ONE, *INTERVALS, "--do_test", "0", "--exp", "runs/new")
PICTURED = (*TRAIN, "--n_iter", "2", "--n_train_img", "2", "--save_train_image_step", "2", "--save_train_image_iter", "2")
OTHER = (*TEST, "--exp", "runs/other")  # an experiment that has no direction of its own
DIVIDED = ("--labels", "labels.csv", "--label", "hair=blond")
SOME = (*ONE, *INTERVALS, "--exp", "runs/new", "--custom_train_dataset_dir", "some", "--n_train_img", "8")
FIT = (*SOME, "--fit_direction", "labels", *DIVIDED)
BY_PROMPTS = (*SOME, "--fit_direction", "labels", "--edit_attr", "smiling", "--n_examples", "2")
REGION = (*TEST, "--edit_region", "bright", "--segmenter", "segmenter.pt")
CLASSES = (*INVERT, "--config", "classes.yml", "--do_test", "0")

# flag -> (a run, what is added to it, what must differ: see `outcome`). A later value of a flag counts.
EFFECTS = {
    # mode
    "lpips": (INVERT, ("--lpips",), "files"),
    "just_precompute": ((*TEST, "--start_image_id", "2"), ("--just_precompute",), "latents"),
    "run_train": (TEST, ("--run_train", "--n_iter", "2", "--n_train_img", "2"), "directions"),
    "run_test": (INVERT, ("--run_test", *SMILE, *INTERVALS), "pictures"),
    "calibrate": (STRIP, ("--calibrate",), "pictures"),
    "evaluate": (TEST, ("--evaluate",), "files"),
    # run
    "config": (INVERT, ("--config", "cosine.yml"), "latents"),
    "exp": (TRAIN, ("--exp", "runs/newer"), "files"),
    "edit_attr": (TRAIN, ("--edit_attr", "pixar"), "directions"),
    "src_txts": (SADLY, ("--src_txts", "a dog"), "directions"),
    "trg_txts": (SADLY, ("--trg_txts", "a dog"), "directions"),
    "seed": (TRAIN, ("--seed", "1"), "directions"),
    "sh_file_name": (TEST, ("--sh_file_name", "go.sh"), "files"),
    "model_path": (INVERT, ("--model_path", "other.pt"), "latents"),
    "ignore_unknown_flags": ((*INVERT, "--of_no_meaning"), ("--ignore_unknown_flags",), "status"),
    "verbose": (INVERT, ("--verbose", "warning"), "said"),
    "device": (INVERT, ("--device", "cuda:99"), "status"),
    # intervals
    "user_defined_t_edit": (TEST, ("--user_defined_t_edit", "900"), "pictures"),
    "user_defined_t_addnoise": (TEST, ("--user_defined_t_addnoise", "700"), "pictures"),
    "lpips_edit_th": (BY_CURVE, ("--lpips_edit_th", "0.5"), "decided"),
    "lpips_addnoise_th": (BOOSTED_BY_CURVE, ("--lpips_addnoise_th", "0.2"), "decided"),
    "add_noise_from_xt": (BOOSTED_BY_CURVE, ("--lpips_addnoise_th", "0.1", "--add_noise_from_xt"), "decided"),
    "origin_process_addnoise": (
        (*TEST, "--user_defined_t_addnoise", "700", "--save_x_origin"),
        ("--origin_process_addnoise",),
        "pictures",
    ),
    "custom_dataset_name": (BY_CURVE, ("--custom_dataset_name", "celeba"), "decided"),
    # steps
    "t_0": (INVERT, ("--t_0", "900"), "latents"),
    "n_inv_step": (INVERT, ("--n_inv_step", "5"), "latents"),
    "n_train_step": (TRAIN, ("--n_train_step", "5"), "directions"),
    "n_test_step": (TEST, ("--n_test_step", "5"), "files"),
    "inversion": (TEST, ("--inversion", "ddpm"), "pictures"),
    "sample_type": (TEST, ("--sample_type", "ddpm"), "pictures"),
    "dt_lambda": (TEST, ("--dt_lambda", "0.5"), "pictures"),
    # data
    "custom_train_dataset_dir": ((*INVERT, "--do_test", "0"), ("--custom_train_dataset_dir", "images"), "latents"),
    "custom_test_dataset_dir": (TEST, ("--custom_test_dataset_dir", "images"), "pictures"),
    "target_class_num": (CLASSES, ("--target_class_num", "n01443537"), "latents"),
    "align_face": (INVERT, ("--align_face",), "status"),  # it needs a library that is not installed; see test_align.py
    "n_train_img": (TRAIN, ("--n_train_img", "2"), "directions"),
    "n_test_img": (TEST, ("--n_test_img", "2"), "files"),
    "n_calibrate_img": ((*STRIP, "--calibrate", "--n_calibrate_img", "1"), ("--n_calibrate_img", "3"), "latents"),
    "n_precomp_img": (INVERT, ("--n_precomp_img", "3"), "latents"),
    "bs_train": ((*TRAIN, "--n_train_img", "2"), ("--bs_train", "2"), "directions"),
    "bs_test": ((*TEST, "--n_test_img", "2"), ("--bs_test", "2"), "batches"),
    "bs_precompute": ((*INVERT, "--n_precomp_img", "4"), ("--bs_precompute", "2"), "batches"),
    "do_train": ((*INVERT, "--start_image_id", "2"), ("--do_train", "0"), "latents"),
    "do_test": (INVERT, ("--do_test", "0"), "latents"),
    "shuffle_train_dataloader": ((*TRAIN, "--n_train_img", "4"), ("--shuffle_train_dataloader",), "directions"),
    "re_precompute": ((*INVERT, "--do_test", "0"), ("--re_precompute",), "batches"),
    "load_random_noise": (TEST, ("--load_random_noise",), "pictures"),
    "saved_random_noise": (NOISE, ("--saved_random_noise",), "files"),
    "target_image_id": (TEST, ("--target_image_id", "3"), "files"),
    "start_image_id": (TEST, ("--start_image_id", "3"), "files"),
    # training
    "train_delta_block": (BARE, ("--train_delta_block",), "directions"),
    "train_delta_h": (BARE, ("--train_delta_h",), "directions"),
    "ignore_timesteps": (TRAIN, ("--ignore_timesteps",), "directions"),
    "get_h_num": (TEST, ("--get_h_num", "0"), "status"),
    "n_iter": (TRAIN, ("--n_iter", "2"), "directions"),
    "lr_training": (TRAIN, ("--lr_training", "0.1"), "directions"),
    "scheduler_step_size": (TWICE, ("--scheduler_step_size", "2"), "directions"),
    "sch_gamma": (TWICE, ("--sch_gamma", "1"), "directions"),
    "clip_loss_w": (TRAIN, ("--clip_loss_w", "1"), "directions"),
    "l1_loss_w": (TRAIN, ("--l1_loss_w", "1"), "directions"),
    "id_loss_w": (IDENTITY, ("--id_loss_w", "2"), "directions"),
    "use_id_loss": (TRAIN, ("--use_id_loss", "--id_loss_w", "1"), "directions"),
    "clip_source": (TRAIN, ("--clip_source", "origin"), "directions"),
    "clip_model_name": (TRAIN, ("--clip_model_name", "clip/clip.json"), "directions"),
    "retrain": (AGAIN, ("--retrain",), "batches"),
    "start_iter_when_you_use_pretrained": (TRAIN, ("--start_iter_when_you_use_pretrained", "3"), "files"),
    "save_checkpoint_only_last_iter": (TWICE, ("--save_checkpoint_only_last_iter",), "files"),
    "save_checkpoint_during_iter": (TRAIN, ("--save_checkpoint_during_iter", "--save_checkpoint_step", "1"), "files"),
    "save_checkpoint_step": (WITHIN, ("--save_checkpoint_step", "2"), "files"),
    # speed
    "precision": (INVERT, ("--precision", "bf16"), "latents"),
    "compile": (INVERT, ("--compile",), "compiled"),
    "checkpoint_decoder": (TRAIN, ("--checkpoint_decoder",), "recomputed"),
    "cache_origin": (KEPT, ("--cache_origin", "off"), "passes"),
    "cache_origin_gib": (KEPT, ("--cache_origin_gib", "0"), "trajectories"),
    "cache_origin_disk_gib": (ON_DISK, ("--cache_origin_disk_gib", "0"), "trajectories"),
    "cache_origin_half": (ON_DISK, ("--cache_origin_half",), "trajectories"),
    # several processes
    "slurm_array": (INVERT, ("--slurm_array",), "status"),  # this is no task of one; see test_ranks.py
    "collect": (TEST, ("--collect",), "status"),
    # inference
    "edit_image": ((*TEST, "--load_from_checkpoint", "smile"), ("--edit_image", "images/2.png"), "status"),
    "hs_coeff_delta_h": (TEST, ("--hs_coeff_delta_h", "2"), "pictures"),
    "hs_coeff_origin_h": (TEST, ("--hs_coeff_origin_h", "0.5"), "pictures"),
    "delta_interpolation": (TEST, ("--delta_interpolation",), "pictures"),
    "max_delta": (STRIP, ("--max_delta", "2"), "pictures"),
    "min_delta": (STRIP, ("--min_delta", "-1"), "pictures"),
    "num_delta": (STRIP, ("--num_delta", "2"), "pictures"),
    "equal_steps": ((*STRIP, "--calibrate"), ("--equal_steps", "0"), "pictures"),
    "multiple_attr": ((*TEST, "--get_h_num", "2"), ("--multiple_attr", "smile smile"), "pictures"),
    "multiple_hs_coeff": ((*TEST, "--multiple_attr", "smile"), ("--multiple_hs_coeff", "2"), "pictures"),
    "num_mean_of_delta_hs": (TEST, ("--num_mean_of_delta_hs", "2"), "pictures"),
    "load_from_checkpoint": (OTHER, ("--load_from_checkpoint", "smile"), "status"),
    "manual_checkpoint_name": (OTHER, ("--manual_checkpoint_name", f"{NAME}_0.pth"), "status"),
    "choose_checkpoint_num": (TEST, ("--choose_checkpoint_num", "1"), "pictures"),
    "pass_editing": (TEST, ("--pass_editing",), "pictures"),
    # fitting
    "fit_direction": ((*SOME, "--lpips"), ("--fit_direction", "h_pca", "--n_components", "1"), "directions"),
    "fit_by": (FIT, ("--fit_by", "mean"), "directions"),
    "positive": (BY_PROMPTS, ("--positive", "some", "--negative", "images"), "directions"),
    "negative": (BY_PROMPTS, ("--negative", "some", "--positive", "images"), "directions"),
    "labels": (BY_PROMPTS, ("--labels", "labels.csv", "--label", "hair=blond"), "directions"),
    "label": (FIT, ("--label", "hair=black"), "directions"),
    "n_examples": ((*BY_PROMPTS, "--fit_by", "mean"), ("--n_examples", "3"), "directions"),
    "hold": ((*FIT, "--fit_by", "mean"), ("--hold", "other.pth"), "directions"),
    "words": ((*SOME, "--fit_direction", "h_pca", "--n_components", "1"), ("--words", "words.txt"), "pictures"),
    "n_components": ((*SOME, "--fit_direction", "h_pca", "--n_components", "1"), ("--n_components", "2"), "directions"),
    # region
    "edit_mask": (TEST, ("--edit_mask", "mask.png"), "pictures"),
    "edit_region": (TEST, ("--edit_region", "bright", "--segmenter", "segmenter.pt"), "pictures"),
    "edit_threshold": (TEST, ("--edit_threshold", "0.7"), "pictures"),
    "region_dilation": (REGION, ("--region_dilation", "3"), "pictures"),
    "region_smoothing": (REGION, ("--region_smoothing", "3"), "pictures"),
    # sharing
    "export": (TEST, ("--export", "share"), "files"),
    # evaluation
    "segmenter": ((*TEST, "--evaluate"), ("--segmenter", "nowhere.pt"), "status"),
    # output
    "save_x0": ((*TEST, "--use_x0_tensor"), ("--save_x0",), "pictures"),
    "use_x0_tensor": ((*TEST, "--save_x0"), ("--use_x0_tensor",), "pictures"),
    "save_x_origin": (TEST, ("--save_x_origin",), "pictures"),
    "save_train_image": (TRAIN, ("--save_train_image", "0"), "files"),
    "save_train_image_step": (PICTURED, ("--save_train_image_step", "1"), "files"),
    "save_train_image_iter": (PICTURED, ("--save_train_image_iter", "1"), "files"),
    "save_process_origin": (TEST, ("--save_process_origin",), "files"),
    "save_process_delta_h": (TEST, ("--save_process_delta_h",), "files"),
    "save_precomputed_images": (INVERT, ("--save_precomputed_images",), "files"),
    "save_animation": (STRIP, ("--save_animation", "gif"), "files"),
    "save_to_folder": (TRAIN, ("--save_to_folder", "elsewhere"), "files"),
    "track": (TRAIN, ("--track", "trackio"), "tracked"),
}


class Recogniser:
    """In place of the face recogniser, which is 170 MB; tests/test_irse.py checks it."""

    def __init__(self, *args):
        pass

    def embed(self, images):
        return F.normalize(F.avg_pool2d(images, 4).flatten(1))


@pytest.fixture(scope="module")
def outcome(tiny, tmp_path_factory):
    """outcome(flags) -> what a run leaves, {name: something to compare}; each in a folder of its own, equal ones once."""
    with pytest.MonkeyPatch.context() as patch:
        world = tmp_path_factory.mktemp("world")
        patch.chdir(world)
        prepare(tiny)
        patch.setenv("ASYRP_DATA_IMAGENET", str(world / "classes"))
        patch.setattr(asyrp.runner, "load_lpips", Distance)
        patch.setattr(gauges, "load_lpips", Distance)
        patch.setattr(asyrp.parts, "IdLoss", Recogniser)
        patch.setattr(asyrp.parts, "weights_at", lambda place: None)

        @cache
        def run(flags):
            folder = tmp_path_factory.mktemp("run") / "x"
            shutil.copytree(world, folder)
            with pytest.MonkeyPatch.context() as inner, redirect_stderr(io.StringIO()) as said:
                inner.chdir(folder)
                seen = watched(inner)
                status = call(tiny, *flags, intervals=(), steps=(), images="classes.yml" not in flags)
                return seen | {"status": status, "said": said.getvalue()} | left_behind()

        yield run


def prepare(tiny):
    """What every run finds: a direction, curves, and things to name."""
    assert (
        call(tiny, "--run_train", *SMILE, "--do_test", "0", "--save_checkpoint_during_iter", "--save_checkpoint_step", "1") == 0
    )
    t = np.array([0, 999])
    curves.keep_curve(Store(), Curve(t, t / 300, 0 * t, t / 999, 0 * t), open_tiny(tiny), [], "CUSTOM")
    write_unet(Path(), "other", DDPM, seed=1)
    config = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    cosine = config | {"diffusion": {"beta_schedule": "cosine"}}
    classes = config | {"data": config["data"] | {"dataset": "IMAGENET", "category": "IMAGENET"}}
    for name, changed in (("cosine", cosine), ("classes", classes)):
        Path(f"{name}.yml").write_text(yaml.safe_dump(changed))
    Path("clip").mkdir()
    shutil.copy(tiny.clip, "clip")
    weights = torch.load(tiny.clip.with_suffix(".pt"), weights_only=True)
    torch.save(weights | {"visual.proj": weights["visual.proj"].flip(0)}, "clip/clip.pt")
    write_segmenter("segmenter.pt")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    for i, image in enumerate(smooth_images(8, seed=40)):
        Path("some").mkdir(exist_ok=True)
        to_pil(image).save(f"some/{i:02d}.png")
    asyrp.directions.save(
        asyrp.directions.Direction(
            hspace.GivenDirection({None: torch.ones(1, 64, 8, 8)}), {"kind": "delta_h", "ignore_timesteps": True}, "other"
        ),
        "other.pth",
    )
    rows = [f"{i:02d}.png,{'blond' if i % 2 else 'black'}" for i in range(8)]
    Path("labels.csv").write_text("\n".join(["file,hair", *rows]) + "\n")
    Path("go.sh").write_text("python main.py\n")
    Path("words.txt").write_text("a horse\na house\n")
    for i, image in enumerate(smooth_images(4, seed=30)):
        place = Path("classes/train", ("n01440764", "n01443537")[i % 2])
        for folder in (Path("images"), place):
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(folder / f"{i}.png")


def watched(patch):
    """Lists that record what a run does without writing a file."""
    seen = {"batches": [], "passes": [], "compiled": [], "recomputed": [], "tracked": []}

    def watch(home, name, note):
        function = getattr(home, name)
        patch.setattr(home, name, lambda *args, **more: note(*args) or function(*args, **more))

    watch(process, "invert", lambda unet, x_0, *rest: seen["batches"].append(("invert", len(x_0))))
    watch(process, "generate", lambda unet, x_T, *rest: seen["batches"].append(("generate", len(x_T))))
    watch(training, "train_batch", lambda unet, direction, batch, *rest: seen["batches"].append(("train", len(batch.names))))
    watch(process, "frozen_branch", lambda *args: seen["passes"].append(1))
    watch(fast_unet, "checkpoint", lambda *args: seen["recomputed"].append(1))
    tracked = SimpleNamespace(log=lambda values, step: seen["tracked"].append(step), finish=lambda: None)
    patch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **about: tracked))
    # Compiling takes a minute: what is given to the compiler is enough.
    patch.setattr(torch, "compile", lambda part, **more: seen["compiled"].append(part.__name__) or part)
    return seen


def left_behind():
    """The files in the current folder after a run."""
    paths = [path for path in sorted(Path().rglob("*")) if path.is_file()]
    written = {path.stem: yaml.safe_load(path.read_text()) for path in paths if path.name.startswith("settings_")}
    # --inversion ddpm must change the pictures, not only their folder.
    pictures = {str(p).replace("_ddpm/", "/"): p for p in paths if p.suffix == ".png" and p.parts[0] == "runs"}
    return {
        "files": [str(path) for path in paths],
        "pictures": {name: path.read_bytes() for name, path in pictures.items()},
        "directions": digest(directions()) + " ".join(directions()),
        "latents": digest(stored("latent")),
        "trajectories": digest(stored("trajectory")),
        "decided": {name: (found.get("t_edit"), found.get("t_boost")) for name, found in written.items()},
    }


@pytest.mark.parametrize("flag", FLAGS)
def test_flag_has_its_effect(outcome, flag):
    flags, added, what = EFFECTS[flag]
    assert f"--{flag}" in added
    before, after = outcome(flags), outcome((*flags, *added))
    if what == "status":
        assert sorted([before["status"], after["status"]]) == [0, 2]
    else:
        assert after["status"] == 0, after["said"]
        assert before[what] != after[what]


def test_compared_runs_differ_only_in_the_flag(outcome):
    """The same run leaves the same behind: no view holds a date, a path or chance."""
    for flags in (TEST, TRAIN, INVERT, ON_DISK):
        first, second = outcome(flags), outcome((*flags, "--verbose", "info"))
        assert [what for what in first if what != "said" and first[what] != second[what]] == []


def test_no_row_for_a_removed_flag():
    assert EFFECTS.keys() == FLAGS.keys()
