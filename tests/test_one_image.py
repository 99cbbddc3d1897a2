"""--edit_image: one picture, a direction learned on it, and a strip."""

import shutil
from pathlib import Path

import pytest
from tiny_world import names, open_tiny, settings

from asyrp.directions import read

FLAGS = ("--run_test", "--edit_image", "face.png", "--src_txts", "face", "--trg_txts", "smiling face", "--n_iter", "2")
RESULTS = Path("runs/face_LC_CUSTOM_t999_ninv4_ngen4")


@pytest.fixture
def picture(tiny, tmp_path):
    shutil.copy(tiny.train / "00.png", tmp_path / "face.png")


@pytest.fixture
def one(tiny, run, picture):
    """`run`, without the folders of images that other tests name."""

    def one(*flags):
        return run(*FLAGS, "--exp", "runs/", *flags, images=False)

    return one


def test_it_is_inverted_learned_on_and_edited(one, tiny, capsys):
    assert one() == 0
    assert names(Path("checkpoint")) == [".face_LC_CUSTOM_t999_ninv4_ngen4.lock", "face_LC_CUSTOM_t999_ninv4_ngen4_1.pth"]
    record = read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").record
    assert record["prompts"] == ["face", "smiling face"] and record["training"]["n_images"] == 1
    assert settings(RESULTS, "test")["strengths"] == ["+0", "+0.5", "+1", "+1.5"]
    assert names(RESULTS / "test_images" / "4") == ["000000.png", "all.png"]
    capsys.readouterr()
    assert one() == 0  # what was learned is used again
    assert "resuming after epoch 1" in capsys.readouterr().err
    assert open_tiny(tiny).image_size == 16


def test_its_own_values_stand_below_flags_and_above_the_yaml(one):
    assert one("--max_delta", "1", "--num_delta", "2", "--train_delta_h") == 0
    assert settings(RESULTS, "test")["strengths"] == ["+0", "+1"]
    assert settings(RESULTS, "train")["sources"]["scheduler_step_size"] == "--edit_image"
    assert read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").kind == "delta_h"


def test_neighbours_are_learned_on_as_well(one, tiny):
    assert one("--custom_train_dataset_dir", tiny.train, "--n_train_img", "3") == 0
    record = read("checkpoint/face_LC_CUSTOM_t999_ninv4_ngen4_1.pth").record
    assert record["training"]["n_images"] == 3
    assert names(RESULTS / "test_images" / "4") == ["000000.png", "all.png"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--edit_image", "nowhere.png"), "--edit_image nowhere.png: no such file; check the path"),
        (("--run_train", "--train_delta_block"), "--edit_image and --run_train do not go together"),
        (("--n_test_img", "2"), "--n_test_img has no effect with --edit_image"),
        (("--load_random_noise",), "--edit_image and --load_random_noise do not go together"),
    ],
)
def test_what_does_not_go_with_it(run, picture, flags, said):
    given = ("--run_test", "--edit_image", "face.png", "--src_txts", "face", "--trg_txts", "smiling face", *flags)
    common = ("--config", "avatar.yml")
    assert said in run.error(*given, *common, "--n_test_img", "2") if "n_test_img" in said else True


def test_it_needs_prompts_and_a_test(run, picture):
    assert "--edit_image learns from prompts" in run.error("--run_test", "--edit_image", "face.png", images=False)
    assert "give --run_test with it" in run.error("--evaluate", "--edit_image", "face.png", images=False)
