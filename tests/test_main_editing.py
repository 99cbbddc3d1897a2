"""Whole runs in a tiny world: editing test images."""

import shutil

import pytest
import torch
from tiny_world import NAME, SMILE, TEST, TRAIN, names, pixels, settings, stored

from asyrp.report import pictures


def test_editing(run_learned, results, generated):
    """Original, reconstruction and edit side by side; the direction is the one that was trained."""
    assert run_learned(*TEST, "--save_x0", "--use_x0_tensor", "--save_x_origin") == 0
    assert names(results / "test_images" / "4") == ["000000.png", "000001.png", "all.png"]
    plain, edited = generated[:2]
    assert plain["edit"] is None
    assert (edited["t_edit"], edited["t_boost"]) == (500, 0)
    assert (plain["x_0"] - edited["x_0"]).abs().max() > 1e-4
    columns = pixels(results / "test_images" / "4" / "000000.png").shape[1] // 96
    assert columns == 3
    written = settings(results, "test")
    assert written["flags"]["edit_attr"] == "smiling"
    assert written["config"]["model"]["ch"] == 32
    # What was not given as well, and where each value is from.
    assert (written["flags"]["n_train_step"], written["flags"]["dt_lambda"]) == (4, 1.0)
    assert (written["sources"]["n_train_step"], "dt_lambda" in written["sources"]) == ("flag", False)
    [used] = written["decided"]["directions"]
    assert (used["t_edit"], used["scale"], used["record"]["n_train_step"]) == ("500 (flag)", 1.0, 4)
    assert written["decided"]["t_boost"] == "0 (flag)"
    assert (written["t_edit"], written["t_boost"], written["strengths"]) == (500, 0, ["+1"])
    assert "torch" in written["versions"]


def test_script_is_copied_to_the_results(run_learned, results, tmp_path):
    (tmp_path / "go.sh").write_text("python main.py\n")
    assert run_learned(*TEST, "--sh_file_name", "go.sh") == 0
    assert (results / "go.sh").read_text() == "python main.py\n"
    assert run_learned(*TEST, "--sh_file_name", "script.sh") == 0  # the 2023 scripts name one that does not exist


@pytest.mark.parametrize(
    "flags",
    [
        ("--manual_checkpoint_name", f"{NAME}_0.pth"),
        ("--manual_checkpoint_name", f"checkpoint/{NAME}_0.pth"),
        ("--load_from_checkpoint", "smile"),
        ("--load_from_checkpoint", NAME),
        ("--multiple_attr", "smile"),
    ],
)
def test_ways_to_name_a_direction(run_learned, flags, capsys):
    assert run_learned(*TEST, "--exp", "runs/other", *flags) == 0
    assert f"direction: checkpoint/{NAME}_0.pth" in capsys.readouterr().err


def test_interpolation(run_learned, results, generated):
    strip = ("--delta_interpolation", "--min_delta", "-1", "--max_delta", "1", "--num_delta", "3", "--save_x_origin")
    assert run_learned(*TEST, *strip, "--n_test_img", "1") == 0
    plain, *strengths = generated
    assert [call["edit"].coefficients for call in strengths] == [[-1.0], [0.0], [1.0]]
    assert torch.allclose(strengths[1]["x_0"], plain["x_0"], atol=1e-5)
    assert settings(results, "test")["strengths"] == ["-1", "+0", "+1"]


def test_strength_counts_steps(run_learned, generated):
    assert run_learned(*TEST, "--hs_coeff_delta_h", "0.5", "--n_test_step", "8", "--hs_coeff_origin_h", "0.9") == 0
    [call] = generated[:1]
    assert call["edit"].coefficients == [0.25]
    assert call["edit"].origin == 0.9


def test_two_attributes_and_their_grid(run_learned, generated):
    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "sad") == 0
    both = ("--run_test", "--train_delta_block", "--multiple_attr", "smile second", "--get_h_num", "2", "--n_test_img", "1")
    assert run_learned(*both, "--edit_attr", "attribute", "--multiple_hs_coeff", "1 -0.5") == 0
    [call] = generated
    assert call["edit"].coefficients == pytest.approx([1 / 2**0.5, -0.5 / 2**0.5])
    generated.clear()
    assert run_learned(*both, "--delta_interpolation", "--num_delta", "2") == 0
    points = [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [call["edit"].coefficients for call in generated] == [pytest.approx([a / 2**0.5 for a in p]) for p in points]
    assert (generated[1]["x_0"] - generated[2]["x_0"]).abs().max() > 1e-4


def test_two_attributes_make_a_square(run_learned, results, monkeypatch):
    drawn, labelled_grid = {}, pictures.labelled_grid

    def watched(rows, columns, names=None):
        drawn["rows"], drawn["columns"], drawn["names"] = rows, columns, names
        return labelled_grid(rows, columns, names)

    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "sad") == 0
    monkeypatch.setattr(pictures, "labelled_grid", watched)
    square = ("--multiple_attr", "smile second", "--get_h_num", "2", "--delta_interpolation", "--num_delta", "3")
    assert run_learned(*TEST, *square, "--save_x_origin", "--n_test_img", "2") == 0
    assert drawn["columns"] == ["reconstruction", "second +0", "second +0.5", "second +1"]
    assert drawn["names"] == [f"0{i} smile {strength}" for i in range(2) for strength in ("+0", "+0.5", "+1")]
    assert [[cell is None for cell in row] for row in drawn["rows"][:2]] == [[False] * 4, [True, False, False, False]]
    # Nothing is added in the first cell; the first attribute grows downward, the second to the right.
    square, half = drawn["rows"], str(0.5**0.5)
    assert torch.allclose(square[0][0], square[0][1], atol=1e-5)
    for exp, cell in (("smile", square[2][1]), ("second", square[0][3])):
        assert run_learned(*TEST, "--load_from_checkpoint", exp, "--hs_coeff_delta_h", half, "--n_test_img", "1") == 0
        # Values reach 20, and a picture on its own decodes both branches of its first step at once.
        assert torch.allclose(drawn["rows"][0][0], cell, atol=1e-4)


def test_each_of_several_directions_has_its_own_interval(run_learned, results, generated):
    """Nobody names prompts or t_edit: what each was trained with counts."""
    later = ("--user_defined_t_edit", "700", "--user_defined_t_addnoise", "0")
    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "pixar", intervals=later) == 0
    found = {}
    for exp in ("smile", "second", "smile second"):
        one = ("--run_test", "--train_delta_block", "--multiple_attr", exp)
        assert run_learned(*one, intervals=("--user_defined_t_addnoise", "0")) == 0
        found[exp] = settings(results, "test")["t_edit"]
    assert found == {"smile": 500, "second": 700, "smile second": [500, 700]}
    edit = generated[-1]["edit"]
    assert (edit.t_edits, edit.t_edit, generated[-1]["t_edit"]) == ([500, 700], 500, 500)


@pytest.mark.parametrize(("flags", "keys"), [([], ["666", "999"]), (["--ignore_timesteps"], ["0"])])
def test_mean_direction(run_learned, generated, flags, keys):
    mean = (*TEST, "--num_mean_of_delta_hs", "3", "--n_test_img", "1", *flags)
    assert run_learned(*mean) == 0
    [state] = stored("mean").values()
    assert sorted(state) == keys
    assert all(tuple(delta.shape) == (1, 64, 8, 8) for delta in state.values())
    first, before = generated[-1]["x_0"], len(generated)
    assert run_learned(*mean) == 0
    assert len(generated) == before + 1  # the mean is found again: only the test image is generated
    assert torch.equal(generated[-1]["x_0"], first)


@pytest.mark.slow
def test_mean_key_depends_on_everything(run_learned, tiny):
    """Another strength, interval, process, direction or set of images is another mean; another batch or test image is none."""
    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "sad") == 0
    mean = (*TEST, "--num_mean_of_delta_hs", "2", "--n_test_img", "1", "--load_from_checkpoint", "smile")
    for same in ((), ("--bs_test", "2", "--custom_test_dataset_dir", tiny.train, "--seed", "7")):
        assert run_learned(*mean, *same) == 0
        assert len(stored("mean")) == 1
    others = [
        ("--hs_coeff_delta_h", "2"),
        ("--hs_coeff_origin_h", "0.9"),
        ("--user_defined_t_edit", "900"),
        ("--n_test_step", "5"),
        ("--n_inv_step", "5"),
        ("--custom_train_dataset_dir", tiny.test),
        ("--sample_type", "ddpm"),
        ("--sample_type", "ddpm", "--seed", "7"),
        ("--load_from_checkpoint", "second"),
    ]
    for n, other in enumerate(others, 2):
        assert run_learned(*mean, *other) == 0
        assert len(stored("mean")) == n, other
    assert run_learned(*mean, *others[0]) == 0
    assert len(stored("mean")) == len(others) + 1


def test_mean_of_one_image_equals_its_own_edit(run_learned, tiny, generated):
    """The mean over one image is that image's own delta_h at every timestep."""
    one = (*TEST, "--n_test_img", "1", "--custom_test_dataset_dir", tiny.train)
    assert run_learned(*one) == 0
    own = generated[-1]["x_0"]
    assert run_learned(*one, "--num_mean_of_delta_hs", "1") == 0
    assert torch.allclose(generated[-1]["x_0"], own, atol=1e-5)
    assert run_learned(*one, "--num_mean_of_delta_hs", "4") == 0
    assert not torch.allclose(generated[-1]["x_0"], own, atol=1e-5)


def test_random_latents(run_learned, generated):
    noise = (*TEST, "--load_random_noise", "--save_x0", "--use_x0_tensor", "--save_x_origin")
    assert run_learned(*noise, "--custom_test_dataset_dir", "not/needed") == 0
    # The real image is the plain sample, the same process as the reconstruction: never a grey image.
    original, reconstruction = generated[:2]
    assert torch.allclose(original["x_0"], reconstruction["x_0"], atol=1e-5)
    assert original["x_0"].std() > 0.1
    assert stored("noise") == {}
    generated.clear()
    assert run_learned(*noise, "--seed", "1") == 0
    assert not torch.allclose(original["x_0"], generated[0]["x_0"], atol=0.1)


def test_saved_random_noise(run_learned, generated):
    noise = (*TEST, "--load_random_noise", "--saved_random_noise", "--n_test_img", "1")
    assert run_learned(*noise) == 0
    first = generated[-1]["x_0"]
    assert run_learned(*noise, "--seed", "1") == 0
    assert torch.equal(generated[-1]["x_0"], first)
    assert len(stored("noise")) == 1


def test_training_on_random_latents(run, generated):
    assert run("--run_train", *SMILE, "--load_random_noise", "--custom_train_dataset_dir", "not/needed") == 0
    trained_on, tested_on = generated[0]["x_0"], generated[2]["x_0"]
    assert not torch.allclose(trained_on, tested_on, atol=0.1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--target_image_id", "3 1"), ["000001.png", "000003.png"]),
        (("--start_image_id", "3"), ["000003.png"]),
        (("--start_image_id", "1", "--n_test_img", "2"), ["000001.png", "000002.png"]),
    ],
)
def test_which_images(run_learned, results, flags, expected):
    assert run_learned(*TEST, *flags) == 0
    assert names(results / "test_images" / "4") == [*expected, "all.png"]


def test_batch_size_changes_no_pixel(run_learned, results):
    """Also with noise in the process, and with a last batch that is not full."""
    pictures = []
    for size in ("1", "3"):
        shutil.rmtree(results, ignore_errors=True)
        boosted = ("--user_defined_t_addnoise", "700", "--origin_process_addnoise", "--save_x_origin")
        assert run_learned(*TEST, *boosted, "--n_test_img", "4", "--bs_test", size) == 0
        pictures.append({path.name: pixels(path) for path in sorted((results / "test_images" / "4").iterdir())})
    assert list(pictures[0]) == ["000000.png", "000001.png", "000002.png", "000003.png", "all.png"]
    # Sums in another order may round one grey level up or down.
    assert all(abs(pictures[0][name] - pictures[1][name]).max() <= 1 for name in pictures[0])


def test_boosting_adds_noise_that_the_seed_decides(run_learned, generated):
    for flags in (("--seed", "1"), ("--seed", "1"), ("--seed", "2"), ("--user_defined_t_addnoise", "0")):
        assert run_learned(*TEST, "--n_test_img", "1", "--user_defined_t_addnoise", "700", *flags) == 0
    one, again, other, without = (call["x_0"] for call in generated)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=0.01)
    assert not torch.allclose(one, without, atol=0.01)


def test_reconstruction_is_boosted_on_request_only(run_learned, generated):
    boosted = (*TEST, "--n_test_img", "1", "--user_defined_t_addnoise", "700", "--save_x_origin")
    assert run_learned(*boosted) == 0
    assert run_learned(*boosted, "--origin_process_addnoise") == 0
    assert [call["t_boost"] for call in generated] == [0, 700, 700, 700]


def test_pass_editing_needs_no_direction(run, results, generated):
    assert run("--run_test", "--pass_editing", "--save_x_origin", intervals=("--user_defined_t_addnoise", "0")) == 0
    plain, passed = generated[:2]
    assert passed["edit"] is None
    assert torch.allclose(plain["x_0"], passed["x_0"], atol=1e-5)


@pytest.mark.parametrize("model", ["ddpm", "adm"])
def test_ancestral_sampling(run, generated, model):
    assert run("--run_train", *SMILE, "--sample_type", "ddpm", model=model) == 0
    assert run(*TEST, "--sample_type", "ddim", model=model) == 0
    assert [call["sample_type"] for call in generated] == ["ddpm"] * 2 + ["ddim"] * 2
    assert not torch.allclose(generated[0]["x_0"], generated[2]["x_0"], atol=0.01)
    assert generated[0]["x_0"].isfinite().all()


def test_dt_lambda(run_learned, generated):
    for value in ("1", "0.5"):
        assert run_learned(*TEST, "--dt_lambda", value, "--n_test_img", "1") == 0
    assert not torch.allclose(generated[0]["x_0"], generated[1]["x_0"], atol=0.01)


def test_pictures_of_the_process(run_learned, results):
    samples = results / "image_samples"
    assert run_learned(*TEST, "--save_process_origin", "--save_process_delta_h") == 0
    assert names(samples) == ["process_delta_h", "process_origin"]
    assert names(samples / "process_delta_h") == names(samples / "process_origin") == ["000000.png", "000001.png"]
    origin, edited = (pixels(samples / name / "000000.png") for name in names(samples))
    assert origin.shape == edited.shape
    assert (origin != edited).any()


def test_every_strength_has_its_own_picture_of_the_process(run_learned, results):
    assert run_learned(*TEST, "--save_process_delta_h", "--delta_interpolation", "--num_delta", "2") == 0
    assert names(results / "image_samples" / "process_delta_h") == ["+0", "+1"]


def test_training_and_testing_in_one_go_tests_once(run, generated):
    assert run("--run_train", *TEST) == 0
    assert len(generated) == 2


def test_single_image_decodes_both_branches_at_once(run_learned, generated):
    for size, paired in (("1", True), ("2", False)):
        generated.clear()
        assert run_learned(*TEST, "--n_test_img", "2", "--bs_test", size) == 0
        assert {call["paired"] for call in generated} == {paired}
