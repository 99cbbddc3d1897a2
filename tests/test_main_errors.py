"""Every error that a user can cause is one line that says what to do; what was computed is kept."""

import shutil

import pytest
import torch
import yaml
from tiny_world import DELTA_H, NAME, TEST, TRAIN, directions, keep_curve, names, open_tiny, tensors_equal

import asyrp.model
import asyrp.runner
from asyrp import process, training


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--edit_attr", "smilling"), "smiling"),
        (("--custom_test_dataset_dir", "nowhere"), "nowhere is not a folder of images"),
        (("--model_path", "nowhere.pt"), "nowhere.pt: no such file"),
        (("--config", "nowhere.yml"), "nowhere.yml: no such file: give a path, one of"),
        (("--device", "cuda:99"), "--device cuda:99 is not available"),
        (("--target_image_id", "4"), "there are only 4 images, numbered from 0"),
        (("--start_image_id", "4"), "there are only 4 images, numbered from 0"),
        (("--load_from_checkpoint", "nobody"), "no direction nobody"),
        (("--manual_checkpoint_name", "nobody.pth"), "no direction nobody.pth"),
        (("--n_test_stp", "4"), "did you mean --n_test_step?"),
    ],
)
def test_errors(run_learned, flags, message):
    assert message in run_learned.error(*TEST, *flags, intervals=())


def test_clip_that_is_missing(run_learned):
    assert "nowhere.json: no such file" in run_learned.error(*TRAIN, "--clip_model_name", "nowhere.json")
    # An edit whose interval is known needs none.
    assert run_learned(*TEST, "--clip_model_name", "nowhere.json") == 0


def test_direction_that_was_not_trained(run):
    assert "train it with --run_train" in run.error(*TEST)


def test_kind_of_direction_must_be_right(run_learned):
    assert "was trained with --train_delta_block" in run_learned.error("--run_test", *DELTA_H)


@pytest.mark.parametrize(("model", "other", "said"), [("ddpm", "adm", "iDDPM/ADM"), ("adm", "ddpm", "DDPM++")])
def test_weights_of_another_architecture(run, tiny, model, other, said):
    message = run.error(*TRAIN, "--model_path", tiny.folder / f"{other}.pt", model=model)
    assert f"{other}.pt does not fit the U-Net of {model}.yml" in message
    assert f"these are {said} weights" in message


def test_direction_of_another_model(run_learned):
    said = run_learned.error(*TEST, model="adm")
    assert "was trained on another architecture (ddpm-16-" in said
    assert "use the config it was trained with, or train a direction for this model" in said


def test_delta_h_of_another_model(run, tmp_path):
    torch.save({"999": torch.zeros(1, 32, 8, 8)}, tmp_path / "narrow.pth")
    message = run.error("--run_test", *DELTA_H, "--manual_checkpoint_name", "narrow.pth")
    assert "belongs to another model, its delta_h is not 64 x 8 x 8" in message


def test_file_that_is_not_a_direction(run, tiny):
    assert "does not contain a direction" in run.error(*TEST, "--manual_checkpoint_name", tiny.folder / "ddpm.pt")
    assert "cannot be read as a weight file" in run.error(*TEST, "--manual_checkpoint_name", tiny.folder / "ddpm.yml")


def test_folders_without_images(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "it contains no images and no folders" in run.error("--just_precompute", "--custom_train_dataset_dir", "empty")


def test_unreadable_images_are_skipped(run_learned, tiny, tmp_path, results, capsys):
    shutil.copytree(tiny.test, tmp_path / "some")
    (tmp_path / "some" / "00.png").write_bytes(b"no image")
    own = ("--custom_test_dataset_dir", "some")
    assert run_learned(*TEST, *own) == 0
    assert names(results / "test_images" / "4") == ["000001.png", "all.png"]
    assert "skipped: some/00.png cannot be read as an image" in capsys.readouterr().err
    for path in (tmp_path / "some").iterdir():
        path.write_bytes(b"no image")
    assert "some: none of the 2 images could be read" in run_learned.error(*TEST, *own)


def test_threshold_that_is_never_reached(run_learned, tiny):
    keep_curve(open_tiny(tiny), top=0.2)
    assert "LPIPS(x_0, P_t) never reaches" in run_learned.error(*TEST, "--lpips_edit_th", "10", intervals=())
    message = run_learned.error(*TEST, "--lpips_addnoise_th", "1.2", intervals=("--user_defined_t_edit", "500"))
    assert "never reaches 1.200, its maximum is 0.200" in message


def test_no_curve(run):
    """No model takes another's by itself."""
    assert "no LPIPS curves for category CUSTOM: measure them with --lpips, choose others" in run.error(*TRAIN, intervals=())
    assert "no LPIPS curves named mine" in run.error(*TRAIN, "--custom_dataset_name", "mine", intervals=())


def test_editing_interval_without_steps(run):
    assert "t_edit 1000 is above every timestep" in run.error(*TRAIN, "--user_defined_t_edit", "1000")


@pytest.mark.parametrize("text", ["model: [1", "", "just words", "data: {image_size: 16}\nmodel: {type: ddpm}"])
def test_broken_yaml(run, tmp_path, text):
    (tmp_path / "broken.yml").write_text(text)
    assert "broken.yml" in run.error(*TEST, "--config", "broken.yml")


def test_nan_loss_in_first_batch(run, tiny, tmp_path):
    weights = torch.load(tiny.clip.with_suffix(".pt"), weights_only=True)
    torch.save(weights | {"visual.proj": weights["visual.proj"] * 1e38}, tmp_path / "huge.pt")
    shutil.copy(tiny.clip, tmp_path / "huge.json")
    said = run.error(*TRAIN, "--clip_model_name", "huge.json")
    assert "the loss is not finite at image 00.png, timestep 999" in said
    assert "(--lr_training 0.2, --clip_loss_w 3, --l1_loss_w 0, --id_loss_w 0): lower --lr_training" in said
    assert directions() == {}


def test_nan_loss_later_saves_the_previous_direction(run, monkeypatch):
    train_batch = training.train_batch

    def explode(unet, direction, batch, *rest):
        if batch.names == ["01.png"]:
            direction.block.conv1.weight.data.fill_(float("nan"))
            raise training.LossNotFinite("the loss is not finite")
        return train_batch(unet, direction, batch, *rest)

    assert run(*TRAIN, "--n_train_img", "1", "--exp", "runs/one") == 0
    monkeypatch.setattr(training, "train_batch", explode)
    assert f"--manual_checkpoint_name checkpoint/{NAME}_0_1.pth starts from the direction before that batch" in run.error(
        *TRAIN
    )
    saved = directions()
    assert tensors_equal(saved[f"{NAME}_0_1.pth"], saved[NAME.replace("smile", "one") + "_0.pth"])
    monkeypatch.setattr(training, "train_batch", train_batch)
    assert run(*TRAIN, "--manual_checkpoint_name", f"checkpoint/{NAME}_0_1.pth") == 0


def test_config_with_fewer_timesteps(run, tiny, tmp_path):
    shorter = yaml.safe_load((tiny.folder / "ddpm.yml").read_text()) | {"diffusion": {"num_diffusion_timesteps": 500}}
    (tmp_path / "short.yml").write_text(yaml.safe_dump(shorter))
    assert "--t_0 999: short.yml has 500 timesteps, numbered from 0" in run.error(*TEST, "--config", "short.yml")


def test_single_file_has_no_checkpoints_to_choose_among(run_learned):
    said = run_learned.error(*TEST, "--manual_checkpoint_name", f"{NAME}_0.pth", "--choose_checkpoint_num", "2")
    assert f"leave it out for checkpoint/{NAME}_0.pth" in said


def test_several_blocks_in_one_file(run_learned):
    contents = torch.load(f"checkpoint/{NAME}_0.pth", weights_only=True)
    torch.save(contents | {"1": contents["0"]}, f"checkpoint/{NAME}_0.pth")
    assert "contains 2 delta blocks: write each to its own file" in run_learned.error(*TEST)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--multiple_attr", "smile nobody", "--get_h_num", "2"), "no direction nobody"),
        (("--load_from_checkpoint", "nobody"), "no direction nobody"),
        (("--get_h_num", "0"), "--get_h_num 0 would edit nothing"),
    ],
)
def test_missing_flags_are_reported_before_loading(run_learned, monkeypatch, flags, message):
    def loaded(*args):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(asyrp.runner, "open_model", loaded)
    monkeypatch.setattr("asyrp.clip.ClipLoss", loaded)
    assert message in run_learned.error(*TEST, *flags)


def test_ctrl_c_exits_130(run, monkeypatch, capsys):
    def stop(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "invert", stop)
    assert run("--just_precompute") == 130
    assert "run the same command to resume" in capsys.readouterr().err


def test_old_flags_are_one_line(run, capsys):
    assert run("--just_precompute", "--n_precomp_img", "1", "--ni", "--img_path", "x.png") == 0
    assert capsys.readouterr().err.count("no effect, as in the 2023 release: --ni, --img_path") == 1


@pytest.mark.parametrize("prompts", [("--src_txts", "a", "b", "--trg_txts", "c", "d"), ("--edit_attr", "attribute")])
def test_training_wants_one_pair_of_prompts(run, prompts):
    kind = ("--run_train", "--train_delta_block")
    assert "--run_train learns one direction: give one attribute" in run.error(*kind, *prompts)


def test_number_of_the_yaml_has_the_range_of_its_flag(run, tiny, tmp_path):
    beyond = yaml.safe_load((tiny.folder / "ddpm.yml").read_text()) | {"editing": {"lr_training": 1e9}}
    (tmp_path / "beyond.yml").write_text(yaml.safe_dump(beyond))
    assert "beyond.yml, section editing: --lr_training" in run.error(*TEST, "--config", "beyond.yml")
