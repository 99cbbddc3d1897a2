"""--edit_image: one picture, a direction learned on it, and a strip."""

import logging
import shutil
from pathlib import Path

import pytest
from tiny_world import DEVICE, INTERVALS, STEPS, names, settings

import main
from asyrp.directions import read

FLAGS = ("--run_test", "--edit_image", "face.png", "--src_txts", "face", "--trg_txts", "smiling face", "--n_iter", "2")
RESULTS = Path("runs/face_LC_CUSTOM_t999_ninv4_ngen4")


@pytest.fixture
def one(tiny, tmp_path, monkeypatch, capsys):
    """one(*flags) -> (exit status, lines of stderr), with a picture face.png in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny.train / "00.png", tmp_path / "face.png")
    common = ["--config", tiny.folder / "ddpm.yml", "--model_path", tiny.folder / "ddpm.pt", "--device", DEVICE]
    common += ["--clip_model_name", tiny.clip, *STEPS, *INTERVALS]

    def one(*flags):
        handlers = logging.root.handlers[:]
        capsys.readouterr()
        try:
            status = main.main([str(flag) for flag in [*common, *flags]])
        finally:
            logging.root.handlers[:] = handlers
        return status, capsys.readouterr().err.replace("\r", "\n").splitlines()

    return one


def test_edit_image_inverts_trains_and_edits(one):
    assert one(*FLAGS)[0] == 0
    assert names(Path("checkpoint")) == [".face_LC_CUSTOM_t999_ninv4_ngen4.lock", "face_LC_CUSTOM_t999_ninv4_ngen4_1.pth"]
    record = read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").record
    assert record["prompts"] == ["face", "smiling face"] and record["training"]["n_images"] == 1
    assert settings(RESULTS, "test")["strengths"] == ["+0", "+0.5", "+1", "+1.5"]
    assert names(RESULTS / "test_images" / "4") == ["000000.png", "all.png"]
    status, said = one(*FLAGS)  # what was learned is used again
    assert status == 0 and any("resuming after epoch 1" in line for line in said)


def test_edit_image_defaults_override_yaml_but_not_flags(one):
    assert one(*FLAGS, "--max_delta", "1", "--num_delta", "2", "--train_delta_h")[0] == 0
    assert settings(RESULTS, "test")["strengths"] == ["+0", "+1"]
    assert settings(RESULTS, "train")["sources"]["scheduler_step_size"] == "--edit_image"
    assert read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").kind == "delta_h"


def test_edit_image_with_export(one):
    """With its own strip, and the number of pictures that it has."""
    assert one(*FLAGS, "--export", "share")[0] == 0
    assert settings(RESULTS, "test")["strengths"] == ["+0", "+0.5", "+1", "+1.5"]
    assert names(Path("share")) == ["README.md", "direction.safetensors", "strip.png"]
    assert "1 test image; the strength is above each column" in Path("share/README.md").read_text()


def test_edit_image_with_training_folder(one, tiny):
    assert one(*FLAGS, "--custom_train_dataset_dir", tiny.train, "--n_train_img", "3")[0] == 0
    record = read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").record
    assert record["training"]["n_images"] == 3
    assert names(RESULTS / "test_images" / "4") == ["000000.png", "all.png"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--edit_image", "nowhere.png"), "--edit_image nowhere.png: no such file: check the path"),
        (("--run_train", "--train_delta_block"), "--edit_image and --run_train cannot be combined"),
        (("--n_test_img", "2"), "--n_test_img has no effect with --edit_image"),
        (("--load_random_noise",), "--edit_image and --load_random_noise cannot be combined"),
        (("--inversion", "ddpm"), "--edit_image uses DDIM latents"),
    ],
)
def test_contradicting_flags_exit_2(one, flags, said):
    status, lines = one(*FLAGS, *flags)
    assert status == 2 and said in lines[-1]


def test_edit_image_needs_prompts_and_run_test(one):
    assert "--edit_image needs prompts" in one("--run_test", "--edit_image", "face.png")[1][-1]
    assert "add --run_test" in one("--evaluate", "--edit_image", "face.png")[1][-1]
