"""Whole runs in a tiny world: measuring the intervals, precomputing, and training."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import (
    DDPM,
    DELTA_H,
    NAME,
    SMILE,
    TEST,
    TRAIN,
    directions,
    losses,
    names,
    settings,
    tensors_equal,
    write_curve,
    write_unet,
)

import asyrp.runner
from asyrp import process
from asyrp.intervals import Curve
from losses.lpips_alex import WEIGHTS as LPIPS_WEIGHTS

# ---- --lpips ----------------------------------------------------------------------------------------------------------


def test_measured_curves_are_used_by_later_modes(run, results, monkeypatch, capsys):
    class Distance(torch.nn.Module):
        def forward(self, a, b):
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(asyrp.runner, "load_lpips", Distance)
    own = ("--custom_dataset_name", "mine", "--lpips_edit_th", "0.01", "--lpips_addnoise_th", "0.02", "--add_noise_from_xt")
    assert run("--lpips", *own, "--edit_attr", "smiling", intervals=()) == 0
    table = Curve.read("precomputed/lpips_curves/mine.csv")
    assert table.t.tolist() == [0, 333, 666, 999]
    assert (results / "lpips_mine.png").stat().st_size > 1000
    marked = settings(results, "lpips")
    assert run(*TEST, "--run_train", *own, intervals=()) == 0
    assert "LPIPS curves: precomputed/lpips_curves/mine.csv" in capsys.readouterr().err
    found = settings(results, "test")
    assert 0 < found["t_edit"] == marked["t_edit"]
    assert 0 < found["t_boost"] == marked["t_boost"]


def test_lpips_without_prompts_marks_no_t_edit(run, results, monkeypatch, capsys):
    monkeypatch.setattr(asyrp.runner, "load_lpips", lambda: torch.nn.PairwiseDistance())
    assert run("--lpips", "--custom_dataset_name", "mine", intervals=()) == 0
    assert settings(results, "lpips")["t_edit"] is None
    assert "t_edit is not marked: t_edit is not known: give --edit_attr" in capsys.readouterr().err


@pytest.mark.skipif(not LPIPS_WEIGHTS.exists(), reason="needs pretrained/lpips/alexnet_features.pt")
def test_real_lpips(run, tmp_path):
    write_unet(tmp_path, "larger", {**DDPM, "attn_resolutions": [16]}, size=32)
    own = ("--config", tmp_path / "larger.yml", "--model_path", tmp_path / "larger.pt", "--custom_dataset_name", "real")
    assert run("--lpips", *own, "--n_train_img", "3") == 0
    curve = Curve.read("precomputed/lpips_curves/real.csv")
    assert (curve.lpips_x_t[1:] > 0.01).all()
    assert (curve.lpips_x_t_std[1:] > 0).all()


def test_prompts_decide_t_edit(run, results):
    write_curve()
    assert run("--run_train", *SMILE, "--lpips_edit_th", "1", intervals=()) == 0
    smiling = settings(results, "train")
    assert smiling["prompts"] == [["face", "smiling face"]]
    own = ("--src_txts", "face", "--trg_txts", "dog on a skateboard", *SMILE[2:], "--exp", "runs/dog")
    assert run("--run_train", *own, "--lpips_edit_th", "1", intervals=()) == 0
    dog = settings(results.with_name(NAME.replace("smile", "dog")), "train")
    assert smiling["t_edit"] != dog["t_edit"]
    assert smiling["t_boost"] == dog["t_boost"] == 50


# ---- --just_precompute ------------------------------------------------------------------------------------------------


def test_precompute_fills_the_cache_that_later_modes_use(run, results, tmp_path, monkeypatch):
    assert run("--just_precompute", "--n_precomp_img", "3", "--save_precomputed_images") == 0
    [folder] = (tmp_path / "precomputed").iterdir()
    assert len(names(folder)) == 6
    assert names(results / "image_samples" / "precomputed_test") == ["000000.png", "000001.png", "000002.png"]
    monkeypatch.setattr(process, "invert", None)
    assert run("--run_train", *SMILE) == 0


def test_precompute_again(run, monkeypatch):
    sizes, invert = [], process.invert
    monkeypatch.setattr(process, "invert", lambda unet, x_0, *rest: sizes.append(len(x_0)) or invert(unet, x_0, *rest))
    for flags in ((), (), ("--re_precompute",)):
        assert run("--just_precompute", "--n_precomp_img", "2", "--do_test", "0", *flags) == 0
    assert sizes == [2, 2]


@pytest.mark.parametrize(("flag", "count"), [("--do_train", 2), ("--do_test", 2)])
def test_precompute_one_split(run, tmp_path, flag, count):
    assert run("--just_precompute", "--n_precomp_img", "2", flag, "0") == 0
    [folder] = (tmp_path / "precomputed").iterdir()
    assert len(names(folder)) == count


# ---- --run_train ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ddpm", "adm"])
def test_training_writes_checkpoint_losses_and_pictures(run, results, model):
    assert run("--run_train", *SMILE, "--n_iter", "2", "--l1_loss_w", "1", model=model) == 0
    assert list(directions()) == [f"{NAME}_0.pth", f"{NAME}_1.pth"]
    contents = torch.load(f"checkpoint/{NAME}_1.pth", weights_only=True)
    assert list(contents) == ["0", "optimizer", "scheduler", "settings"]
    assert contents["settings"]["prompts"] == ["face", "smiling face"]
    rows = losses(results)
    order = [(e, f"0{i}.png", t) for e in "01" for i in range(2) for t in ("999", "666")]
    assert [(row["epoch"], row["image"], row["t"]) for row in rows] == order
    assert names(results / "training_images") == ["0_000000.png", "1_000000.png"]
    assert names(results / "test_images" / "4") == ["000000.png", "000001.png", "all.png"]


@pytest.mark.parametrize(("flags", "keys"), [([], ["999", "666"]), (["--ignore_timesteps"], ["0"])])
@pytest.mark.parametrize("model", ["ddpm", "adm"])
def test_learned_delta_h(run, generated, model, flags, keys):
    """One tensor per trained timestep, or one in all; it edits, also with other test steps."""
    assert run("--run_train", *DELTA_H, *flags, "--do_test", "0", model=model) == 0
    [state] = directions().values()
    assert list(state) == keys
    assert all(tuple(delta.shape) == (1, 64, 8, 8) and delta.any() for delta in state.values())
    assert run("--run_test", *DELTA_H, *flags, "--n_test_step", "6", "--save_x_origin", model=model) == 0
    plain, edited = generated[:2]
    assert len(edited["steps"]) == 6
    assert (plain["x_0"] - edited["x_0"]).abs().max() > 1e-4


def test_a_block_without_timesteps_stays_one(run):
    assert run(*TRAIN, "--ignore_timesteps") == 0
    assert run(*TEST, "--ignore_timesteps") == 0
    assert "was trained with --ignore_timesteps: give that flag too" in run.error(*TEST)


def test_resumed_training_equals_uninterrupted_training(run, results):
    """Also in the learning rate, and in the order of the images, which is another one in each epoch."""
    long = (*TRAIN, "--l1_loss_w", "1", "--shuffle_train_dataloader", "--scheduler_step_size", "2", "--n_train_img", "4")
    assert run(*long, "--n_iter", "1") == 0
    first = directions()
    assert run(*long, "--n_iter", "3") == 0
    resumed = directions()
    shutil.rmtree("checkpoint")
    assert run(*long, "--n_iter", "3") == 0
    assert tensors_equal(resumed, directions())
    assert tensors_equal(first[f"{NAME}_0.pth"], resumed[f"{NAME}_0.pth"])
    assert not tensors_equal(resumed[f"{NAME}_0.pth"], resumed[f"{NAME}_2.pth"])
    rows = losses(results)
    assert len({tuple(row["image"] for row in rows if row["epoch"] == epoch) for epoch in "012"}) > 1


def test_finished_epochs_are_not_run_again_unless_told(run_learned, results, learned, capsys):
    assert run_learned(*TRAIN, "--lr_training", "0.01") == 0
    assert tensors_equal(directions(), directions(learned / "checkpoint"))
    assert "going on after epoch 0" in capsys.readouterr().err
    assert run_learned(*TRAIN, "--lr_training", "0.01", "--retrain", "1") == 0
    assert not tensors_equal(directions(), directions(learned / "checkpoint"))


@pytest.mark.parametrize("other", [("--edit_attr", "sad"), ("--ignore_timesteps",)])
def test_training_does_not_go_on_from_something_else(run_learned, other):
    assert "was trained for other prompts or in another way; --retrain ignores it" in run_learned.error(*TRAIN, *other)


def test_without_training_the_learned_direction_is_tested(run_learned, learned, results):
    assert run_learned("--run_train", *SMILE, "--do_train", "0") == 0
    assert tensors_equal(directions(), directions(learned / "checkpoint"))
    assert (results / "test_images" / "4" / "all.png").exists()


def test_without_training_there_must_be_a_checkpoint(run, tmp_path):
    assert "--do_train 0, and there is no checkpoint/" in run.error("--run_train", *SMILE, "--do_train", "0")
    assert not (tmp_path / "checkpoint").exists()


def test_only_the_last_checkpoint(run):
    last = (*TRAIN, "--save_checkpoint_only_last_iter")
    assert run(*last, "--n_iter", "2") == 0
    assert list(directions()) == [f"{NAME}_1.pth"]
    assert run(*last, "--n_iter", "3") == 0
    assert list(directions()) == [f"{NAME}_1.pth", f"{NAME}_2.pth"]


def test_the_first_epochs_number(run):
    assert run(*TRAIN, "--start_iter_when_you_use_pretrained", "3") == 0
    assert list(directions()) == [f"{NAME}_3.pth"]


def test_checkpoints_within_an_epoch(run, capsys):
    within = (*TRAIN, "--save_checkpoint_during_iter", "--save_checkpoint_step", "2", "--n_train_img", "4", "--bs_train", "2")
    assert run(*within) == 0
    saved = directions()
    assert list(saved) == [f"{NAME}_0.pth", f"{NAME}_0_2.pth", f"{NAME}_0_4.pth"]
    assert tensors_equal(saved[f"{NAME}_0.pth"], saved[f"{NAME}_0_4.pth"])
    assert not tensors_equal(saved[f"{NAME}_0.pth"], saved[f"{NAME}_0_2.pth"])
    assert run(*TEST, "--choose_checkpoint_num", "2") == 0
    assert f"direction: checkpoint/{NAME}_0_2.pth" in capsys.readouterr().err
    assert "after 3 images (--choose_checkpoint_num)" in run.error(*TEST, "--choose_checkpoint_num", "3")


def test_how_often_training_saves_pictures(run, results, tmp_path):
    often = ("--n_train_img", "4", "--n_iter", "2", "--save_train_image_step", "3", "--save_train_image_iter", "2")
    assert run(*TRAIN, *often, "--save_to_folder", "elsewhere") == 0
    assert names(tmp_path / "elsewhere") == ["0_000000.png", "0_000003.png"]
    assert run(*TRAIN, *often, "--exp", "runs/none", "--save_train_image", "0") == 0
    assert not (results.with_name(NAME.replace("smile", "none")) / "training_images").exists()


def test_what_is_missing_for_the_test_shows_before_training(run, tmp_path):
    assert "nowhere: no such folder" in run.error("--run_train", *SMILE, "--custom_test_dataset_dir", "nowhere")
    write_curve(top=0.05)
    assert "never reaches 0.100" in run.error("--run_train", *SMILE, intervals=("--user_defined_t_edit", "500"))
    assert not (tmp_path / "checkpoint").exists()


def test_sampled_latents_are_drawn_beforehand(run, tmp_path):
    noise = ("--load_random_noise", "--saved_random_noise")
    assert run("--just_precompute", *noise, "--n_precomp_img", "2") == 0
    kept = tmp_path / "precomputed" / "CUSTOM_noise_16"
    assert names(kept) == ["000000.pt", "000001.pt", "1000000.pt", "1000001.pt"]  # of training, of testing


def test_training_may_begin_at_another_direction(run_learned, learned):
    begin = ("--exp", "runs/other", "--load_from_checkpoint", "smile", "--edit_attr", "sad")
    assert run_learned(*TRAIN, *begin, "--lr_training", "0") == 0
    [before] = directions(learned / "checkpoint").values()
    assert tensors_equal(directions()[NAME.replace("smile", "other") + "_0.pth"], before)
    assert "no direction nobody" in run_learned.error(*TRAIN, "--exp", "runs/third", "--load_from_checkpoint", "nobody")


def test_an_epoch_trained_again_has_its_losses_once(run, results):
    assert run(*TRAIN, "--n_iter", "2") == 0
    rows = losses(results)
    Path("checkpoint", f"{NAME}_1.pth").unlink()
    assert run(*TRAIN, "--n_iter", "2") == 0
    assert losses(results) == rows
    assert run(*TRAIN, "--retrain", "1") == 0
    assert losses(results) == [row for row in rows if row["epoch"] == "0"]
