"""The four command blocks of the published README and scripts, with their optional lines, run as they stand there.

Only sizes are smaller: they come last, and the last value of a flag counts.
"""

import shlex

import pytest
from tiny_world import Distance, call, directions, settings, stored

import asyrp.runner

SMALL = "--n_train_img 2 --n_test_img 2 --n_precomp_img 2 --n_inv_step 4 --n_train_step 4 --n_test_step 4 --n_iter 2"
GET_LPIPS = """
    --lpips --exp ./runs/tmp --edit_attr test --n_train_img 100 --n_inv_step 1000
"""
PRECOMPUTE = """
    --run_train --just_precompute --exp ./runs/tmp --edit_attr test --n_inv_step 40 --n_train_img 1000 --n_test_img 100
    --bs_train 1 --t_0 999 --do_train 1 --do_test 1
"""
TRAIN = """
    --run_train --exp ./runs/smiling --edit_attr smiling --do_train 1 --do_test 1 --n_train_img 100 --n_test_img 32 --n_iter 5
    --bs_train 1 --t_0 999 --n_inv_step 50 --n_train_step 50 --n_test_step 50 --get_h_num 1 --train_delta_block
    --sh_file_name script.sh --save_x0 --use_x0_tensor --hs_coeff_delta_h 1.0 --lr_training 0.5 --clip_loss_w 1.0
    --l1_loss_w 3.0 --retrain 1 --add_noise_from_xt --lpips_addnoise_th 1.2 --lpips_edit_th 0.33 --custom_dataset_name celeba
"""
INFERENCE = """
    --run_test --exp ./runs/smiling --edit_attr smiling --do_train 0 --do_test 1 --n_train_img 100 --n_test_img 32
    --n_iter 5 --bs_train 1 --t_0 999 --n_inv_step 50 --n_train_step 50 --n_test_step 50 --get_h_num 1 --train_delta_block
    --add_noise_from_xt --lpips_addnoise_th 1.2 --lpips_edit_th 0.33 --sh_file_name script.sh --save_x0 --use_x0_tensor
    --hs_coeff_delta_h 1.0 --custom_dataset_name celeba
"""
SUFFIX = "_LC_CUSTOM_t999_ninv4_ngen4"
# What the blocks of training and inference carry as further lines.
TRAINING_LINES = (
    "--user_defined_t_edit 500 --user_defined_t_addnoise 200",
    "--shuffle_train_dataloader 1",
    "--start_iter_when_you_use_pretrained 1",
    "--load_random_noise",
    "--train_delta_block --ignore_timesteps",
)
INFERENCE_LINES = (
    "--delta_interpolation --max_delta 1.0 --min_delta -1.0 --num_delta 3",
    f"--manual_checkpoint_name smiling{SUFFIX}_1.pth",
    "--load_from_checkpoint smiling",
    "--user_defined_t_edit 500 --user_defined_t_addnoise 200",
    "--num_mean_of_delta_hs 2",
    "--load_random_noise --saved_random_noise",
    "--save_process_delta_h --save_process_origin --save_x_origin",
    "--target_image_id '0 1' --start_image_id 0",
    "--edit_attr attribute --multiple_attr 'smiling smiling' --multiple_hs_coeff '1 0.5' --get_h_num 2",
)


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """A folder in which the first three blocks have run: world(block, *lines) -> exit status."""

    def run(*lines):
        return call(tiny, *shlex.split(" ".join([*lines[:1], SMALL, *lines[1:]])), intervals=())

    with pytest.MonkeyPatch.context() as patch:
        run.folder = tmp_path_factory.mktemp("published")
        patch.chdir(run.folder)
        patch.setattr(asyrp.runner, "load_lpips", Distance)
        run.statuses = [run(GET_LPIPS), run(PRECOMPUTE)]
        run.precomputed, run.trained_too_early = stored("latent"), directions()
        run.statuses.append(run(TRAIN))
        run.learned, run.inverted = list(directions()), stored("latent")
        run.settings = [settings(run.folder / f"runs/smiling{SUFFIX}", mode) for mode in ("train", "test")]
        yield run


def test_first_three_blocks(world):
    assert world.statuses == [0, 0, 0]
    assert len(stored("curve")) == 1
    assert world.learned == [f"smiling{SUFFIX}_0.pth", f"smiling{SUFFIX}_1.pth"]
    assert (world.folder / f"runs/smiling{SUFFIX}/test_images/4/all.png").exists()


def test_precomputing_stops_before_training(world):
    """The published script gives --run_train as well; and training then inverts nothing again."""
    assert len(world.precomputed) == 4
    assert world.trained_too_early == {}
    assert world.inverted.keys() == world.precomputed.keys()


def test_published_thresholds_on_the_published_curves(world):
    """0.33 times the cosine of the prompts, and 1.2: with celeba's curves t_boost is 167."""
    for found in world.settings:
        assert found["t_boost"] == 167
        assert 300 < found["t_edit"] < 538


@pytest.mark.parametrize("lines", TRAINING_LINES)
def test_training_with_its_optional_lines(world, lines):
    assert world(TRAIN, "--exp ./runs/other", lines) == 0


@pytest.mark.parametrize("lines", ["", *INFERENCE_LINES])
def test_inference_with_its_optional_lines(world, lines):
    assert world(INFERENCE, lines) == 0
