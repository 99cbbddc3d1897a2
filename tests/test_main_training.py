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
    Distance,
    directions,
    keep_curve,
    losses,
    names,
    open_tiny,
    settings,
    stored,
    tensors_equal,
    write_unet,
)

import asyrp.runner
from asyrp import process
from asyrp.intervals import Curve
from asyrp.store import Store
from losses.lpips_alex import WEIGHTS as LPIPS_WEIGHTS


@pytest.fixture
def small_lpips(monkeypatch):
    monkeypatch.setattr(asyrp.runner, "load_lpips", Distance)


# ---- --lpips ----------------------------------------------------------------------------------------------------------


def test_measured_curves_are_used_by_later_modes(run, results, small_lpips, capsys):
    own = ("--lpips_edit_th", "0.01", "--lpips_addnoise_th", "0.02", "--add_noise_from_xt")
    assert run("--lpips", *own, "--edit_attr", "smiling", intervals=()) == 0
    table = Curve.read(results / "lpips_CUSTOM.csv")
    assert table.t.tolist() == [0, 333, 666, 999]
    assert (results / "lpips_CUSTOM.png").stat().st_size > 1000
    marked = settings(results, "lpips")
    assert run(*TEST, "--run_train", *own, intervals=()) == 0
    [key] = stored("curve")
    said = f"LPIPS curves: precomputed/curve/{key[:2]}/{key}.safetensors, measured on 2 images"
    assert said in capsys.readouterr().err
    found = settings(results, "test")
    assert 0 < found["t_edit"] == marked["t_edit"]
    assert 0 < found["t_boost"] == marked["t_boost"]


def test_lpips_without_prompts_marks_no_t_edit(run, results, small_lpips):
    assert run("--lpips", "--lpips_addnoise_th", "0.02", intervals=()) == 0
    written = settings(results, "lpips")
    assert written["t_edit"] is None
    assert written["t_boost"] > 0


def test_lpips_marks_no_threshold_that_is_never_reached(run, results, small_lpips, capsys):
    never = ("--add_noise_from_xt", "--lpips_edit_th", "10", "--lpips_addnoise_th", "10")
    assert run("--lpips", "--src_txts", "face", "--trg_txts", "face", *never, intervals=()) == 0
    assert (settings(results, "lpips")["t_edit"], settings(results, "lpips")["t_boost"]) == (None, None)
    said = capsys.readouterr().err
    assert "t_edit is not marked: LPIPS(x_0, P_t) never reaches" in said
    assert "t_boost is not marked: LPIPS(x_0, x_t) never reaches" in said


def test_unreadable_image_is_not_measured(run, tiny, tmp_path, small_lpips, capsys):
    shutil.copytree(tiny.train, tmp_path / "some")
    (tmp_path / "some" / "00.png").write_bytes(b"no image")
    assert run("--lpips", "--custom_train_dataset_dir", "some") == 0
    assert "1 of 2 images could not be read and were skipped" in capsys.readouterr().err
    assert run("--lpips", "--custom_train_dataset_dir", "some", "--start_image_id", "1", "--n_train_img", "1") == 0
    assert len(stored("curve")) == 1  # measured on the same image both times


@pytest.mark.skipif(not LPIPS_WEIGHTS.exists(), reason="needs pretrained/lpips/alexnet_features.pt")
def test_real_lpips(run, tmp_path, results):
    write_unet(tmp_path, "larger", {**DDPM, "attn_resolutions": [16]}, size=32)
    own = ("--config", tmp_path / "larger.yml", "--model_path", tmp_path / "larger.pt", "--custom_dataset_name", "real")
    assert run("--lpips", *own, "--n_train_img", "3") == 0
    curve = Curve.read(results / "lpips_real.csv")
    assert (curve.lpips_x_t[1:] > 0.01).all()
    assert (curve.lpips_x_t_std[1:] > 0).all()


def test_prompts_decide_t_edit(run, tiny, results):
    keep_curve(open_tiny(tiny))
    assert run("--run_train", *SMILE, "--lpips_edit_th", "1", intervals=()) == 0
    smiling = settings(results, "train")
    assert smiling["prompts"] == [["face", "smiling face"]]
    own = ("--src_txts", "face", "--trg_txts", "dog on a skateboard", *SMILE[2:], "--exp", "runs/dog")
    assert run("--run_train", *own, "--lpips_edit_th", "1", intervals=()) == 0
    dog = settings(results.with_name(NAME.replace("smile", "dog")), "train")
    assert smiling["t_edit"] != dog["t_edit"]
    assert smiling["t_boost"] == dog["t_boost"] == 50


# ---- --just_precompute ------------------------------------------------------------------------------------------------


def test_precompute_fills_the_store_that_later_modes_use(run, results, monkeypatch):
    assert run("--just_precompute", "--n_precomp_img", "3", "--save_precomputed_images") == 0
    assert len(stored("latent")) == 6
    for split in ("train", "test"):
        assert names(results / "image_samples" / f"precomputed_{split}") == ["000000.png", "000001.png", "000002.png"]
    monkeypatch.setattr(process, "invert", None)
    assert run("--run_train", *SMILE) == 0


def test_precompute_again(run, monkeypatch):
    sizes, invert = [], process.invert

    def counted(unet, x_0, *rest, **more):
        sizes.append(len(x_0))
        return invert(unet, x_0, *rest, **more)

    monkeypatch.setattr(process, "invert", counted)
    for flags in ((), (), ("--re_precompute",)):
        assert run("--just_precompute", "--n_precomp_img", "2", "--do_test", "0", *flags) == 0
    assert sizes == [2, 2]


def test_precompute_does_not_count_broken_files(run, capsys):
    precompute = ("--just_precompute", "--n_precomp_img", "2", "--do_test", "0")
    assert run(*precompute) == 0
    whole = stored("latent")
    path = Store().path("latent", min(whole))
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert run(*precompute) == 0
    said = capsys.readouterr().err
    assert said.index(f"{path.name} is damaged") < said.index("train: 2 latents ready")
    assert tensors_equal(stored("latent"), whole)


@pytest.mark.parametrize(("flag", "split"), [("--do_train", "test"), ("--do_test", "train")])
def test_precompute_one_split(run, flag, split, capsys):
    assert run("--just_precompute", "--n_precomp_img", "2", flag, "0") == 0
    assert len(stored("latent")) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "ready" in line] == [f"{split}: 2 latents ready"]


def test_run_train_with_just_precompute_stops_before_training(run, tmp_path):
    """As the published script_precompute.sh."""
    assert run("--run_train", "--just_precompute", *SMILE, "--n_precomp_img", "1") == 0
    assert len(stored("latent")) == 2
    assert not (tmp_path / "checkpoint").exists()


# ---- --run_train ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ddpm", "adm"])
def test_training_writes_checkpoint_losses_and_pictures(run, results, model):
    assert run("--run_train", *SMILE, "--n_iter", "2", "--l1_loss_w", "1", model=model) == 0
    assert list(directions()) == [f"{NAME}_0.pth", f"{NAME}_1.pth"]
    contents = torch.load(f"checkpoint/{NAME}_1.pth", weights_only=True)
    assert list(contents) == ["0", "optimizer", "record"]
    record = settings(results, "train")["record"]
    assert contents["record"] == record
    assert (record["prompts"], record["t_edit"], record["n_train_step"]) == (["face", "smiling face"], 500, 4)
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


def test_ignore_timesteps_is_kept(run, results):
    """The record says so; a test does not need the flag."""
    assert run(*TRAIN, "--ignore_timesteps") == 0
    assert run(*TEST) == 0
    by_itself = (results / "test_images" / "4" / "all.png").read_bytes()
    assert run(*TEST, "--ignore_timesteps") == 0
    assert (results / "test_images" / "4" / "all.png").read_bytes() == by_itself
    assert settings(results, "test")["decided"]["directions"][0]["record"]["ignore_timesteps"] is True
    assert run(*TRAIN, "--exp", "runs/aware") == 0
    assert "was trained without --ignore_timesteps: leave that flag out" in run.error(
        *TEST, "--exp", "runs/aware", "--ignore_timesteps"
    )


def test_finished_epochs_are_not_repeated_without_retrain(run_learned, learned, capsys):
    assert run_learned(*TRAIN) == 0
    assert tensors_equal(directions(), directions(learned / "checkpoint"))
    assert "resuming after epoch 0" in capsys.readouterr().err
    assert run_learned(*TRAIN, "--lr_training", "0.01", "--retrain", "1") == 0
    assert not tensors_equal(directions(), directions(learned / "checkpoint"))


def test_without_training_the_learned_direction_is_tested(run_learned, learned, results):
    assert run_learned("--run_train", *SMILE, "--do_train", "0") == 0
    assert tensors_equal(directions(), directions(learned / "checkpoint"))
    assert (results / "test_images" / "4" / "all.png").exists()


def test_test_after_training_may_leave_the_edit_out(run, results, generated):
    assert run("--run_train", *SMILE, "--pass_editing") == 0
    assert {call["edit"] for call in generated} == {None}
    assert settings(results, "test")["strengths"] == ["no edit"]


@pytest.mark.parametrize("mode", ["--run_test", "--evaluate"])
def test_what_was_trained_is_what_is_tested(run, results, mode, generated):
    """Also where the test is asked for by another flag, and the training began at another direction."""
    assert run(*TRAIN, "--exp", "runs/first", "--edit_attr", "sad") == 0
    assert run("--run_train", mode, *SMILE, "--do_test", "0", "--manual_checkpoint_name", "first") == 0
    edited = [call["edit"] for call in generated if call["edit"]]
    assert {direction.name for edit in edited for direction in edit.directions} == {f"{NAME}.pth"}


def test_without_training_there_must_be_a_checkpoint(run):
    assert "--do_train 0, but there is no checkpoint/" in run.error("--run_train", *SMILE, "--do_train", "0")
    assert directions() == {}


def test_only_the_last_checkpoint(run):
    last = (*TRAIN, "--save_checkpoint_only_last_iter")
    assert run(*last, "--n_iter", "2") == 0
    assert list(directions()) == [f"{NAME}_1.pth"]
    assert run(*last, "--n_iter", "3") == 0
    assert list(directions()) == [f"{NAME}_1.pth", f"{NAME}_2.pth"]


def test_first_epochs_number(run):
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


def test_missing_test_images_are_reported_before_training(run, tiny, tmp_path):
    assert "nowhere is not a folder of images" in run.error("--run_train", *SMILE, "--custom_test_dataset_dir", "nowhere")
    keep_curve(open_tiny(tiny), top=0.05)
    assert "never reaches 0.100" in run.error("--run_train", *SMILE, intervals=("--user_defined_t_edit", "500"))
    assert not (tmp_path / "checkpoint").exists()


def test_sampled_latents_are_drawn_beforehand(run):
    noise = ("--load_random_noise", "--saved_random_noise")
    assert run("--just_precompute", *noise, "--n_precomp_img", "2") == 0
    drawn = stored("noise")
    assert sorted(Store().about("noise", key)["number"] for key in drawn) == [0, 1, 1_000_000, 1_000_001]  # training, testing
    assert run("--run_train", *SMILE, *noise, "--seed", "7") == 0
    assert tensors_equal(stored("noise"), drawn)


def test_epoch_trained_again_has_its_losses_once(run, results):
    assert run(*TRAIN, "--n_iter", "2") == 0
    rows = losses(results)
    Path("checkpoint", f"{NAME}_1.pth").unlink()
    assert run(*TRAIN, "--n_iter", "2") == 0
    assert losses(results) == rows
    assert run(*TRAIN, "--retrain", "1") == 0
    assert losses(results) == [row for row in rows if row["epoch"] == "0"]
