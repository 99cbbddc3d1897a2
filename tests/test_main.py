"""Whole runs of the command line in a tiny world: every mode, and every error that a user can cause."""

import csv
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_world import DDPM, SMILE, directions, tensors_equal, write_unet

import asyrp.runner
from asyrp import checkpoints, process
from asyrp.intervals import Curve
from losses.lpips_alex import WEIGHTS as LPIPS_WEIGHTS

NAME = "smile_LC_CUSTOM_t999_ninv4_ngen4"
DELTA_H = ("--edit_attr", "smiling", "--train_delta_h")
TRAIN = ("--run_train", *SMILE, "--do_test", "0")
TEST = ("--run_test", *SMILE)


@pytest.fixture
def results(tmp_path):
    """The folder that runs of this name write to."""
    return tmp_path / "runs" / NAME


@pytest.fixture
def generated(monkeypatch):
    """What every call of the reverse process was given, and what came out of it."""
    calls, generate = [], process.generate

    def watched(unet, x_T, schedule, steps, **settings):
        x_0 = generate(unet, x_T, schedule, steps, **settings)
        calls.append({**settings, "steps": steps, "x_0": x_0})
        return x_0

    monkeypatch.setattr(process, "generate", watched)
    return calls


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def settings(results, mode):
    return yaml.safe_load((results / f"settings_{mode}.yml").read_text())


def write_curve(top=2.0):
    """Straight curves from 0 to `top`, where the program looks for them."""
    t = np.array([0, 999])
    Curve(t, t / 999 * top, t * 0, t / 999 * top, t * 0).write("precomputed/lpips_curves/celeba.csv")


# ---- --lpips ------------------------------------------------------------------------------------------------------------


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


# ---- --just_precompute --------------------------------------------------------------------------------------------------


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


# ---- --run_train --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ddpm", "adm"])
def test_training_writes_checkpoint_losses_and_pictures(run, results, model):
    assert run("--run_train", *SMILE, "--n_iter", "2", "--l1_loss_w", "1", model=model) == 0
    assert list(directions()) == [f"{NAME}_0.pth", f"{NAME}_1.pth"]
    contents = torch.load(f"checkpoint/{NAME}_1.pth", weights_only=True)
    assert list(contents) == ["0", "optimizer", "scheduler", "settings"]
    assert contents["settings"]["prompts"] == ["face", "smiling face"]
    with (results / "losses.csv").open() as stream:
        rows = list(csv.DictReader(stream))
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
    with (results / "losses.csv").open() as stream:
        rows = list(csv.DictReader(stream))
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


# ---- --run_test ---------------------------------------------------------------------------------------------------------


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
    assert (written["t_edit"], written["t_boost"], written["strengths"]) == (500, 0, ["+1"])
    assert "torch" in written["versions"]


def test_the_script_is_kept_beside_the_results(run_learned, results, tmp_path):
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


def test_without_prompts_the_t_edit_of_training_counts_and_of_several_the_highest(run_learned, results):
    later = ("--user_defined_t_edit", "700", "--user_defined_t_addnoise", "0")
    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "pixar", intervals=later) == 0
    found = {}
    for exp in ("smile", "second", "smile second"):
        one = ("--run_test", "--train_delta_block", "--multiple_attr", exp)
        assert run_learned(*one, intervals=("--user_defined_t_addnoise", "0")) == 0
        found[exp] = settings(results, "test")["t_edit"]
    assert found == {"smile": 500, "second": 700, "smile second": 700}


@pytest.mark.parametrize(("flags", "keys"), [([], ["999", "666"]), (["--ignore_timesteps"], ["0"])])
def test_mean_direction(run_learned, tmp_path, generated, flags, keys):
    mean = (*TEST, "--num_mean_of_delta_hs", "3", "--n_test_img", "1", *flags)
    assert run_learned(*mean) == 0
    [path] = (tmp_path / "checkpoint_latent").iterdir()
    state = checkpoints.load(path)
    assert sorted(state, key=int) == sorted(keys, key=int)
    assert all(tuple(delta.shape) == (1, 64, 8, 8) for delta in state.values())
    first, before = generated[-1]["x_0"], len(generated)
    assert run_learned(*mean) == 0
    assert len(generated) == before + 1  # the file is found again: only the test image is generated
    assert torch.equal(generated[-1]["x_0"], first)


def test_a_mean_of_one_image_edits_it_alike(run_learned, tiny, generated):
    """The mean over one image is that image's own delta_h at every timestep."""
    one = (*TEST, "--n_test_img", "1", "--custom_test_dataset_dir", tiny.train)
    assert run_learned(*one) == 0
    own = generated[-1]["x_0"]
    assert run_learned(*one, "--num_mean_of_delta_hs", "1") == 0
    assert torch.allclose(generated[-1]["x_0"], own, atol=1e-5)
    assert run_learned(*one, "--num_mean_of_delta_hs", "4") == 0
    assert not torch.allclose(generated[-1]["x_0"], own, atol=1e-5)


def test_random_latents(run_learned, results, tmp_path, generated):
    noise = (*TEST, "--load_random_noise", "--save_x0", "--use_x0_tensor", "--save_x_origin")
    assert run_learned(*noise, "--custom_test_dataset_dir", "not/needed") == 0
    # The real image is the plain sample, the same process as the reconstruction: never a grey image.
    original, reconstruction = generated[:2]
    assert torch.allclose(original["x_0"], reconstruction["x_0"], atol=1e-5)
    assert original["x_0"].std() > 0.1
    assert not list((tmp_path / "precomputed").glob("*noise*"))
    generated.clear()
    assert run_learned(*noise, "--seed", "1") == 0
    assert not torch.allclose(original["x_0"], generated[0]["x_0"], atol=0.1)


def test_a_saved_draw_of_random_latents(run_learned, tmp_path, generated):
    noise = (*TEST, "--load_random_noise", "--saved_random_noise", "--n_test_img", "1")
    assert run_learned(*noise) == 0
    first = generated[-1]["x_0"]
    assert run_learned(*noise, "--seed", "1") == 0
    assert torch.equal(generated[-1]["x_0"], first)
    [folder] = (tmp_path / "precomputed").glob("*noise*")
    assert len(names(folder)) == 1


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


def test_the_batch_size_changes_no_pixel(run_learned, results):
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


def test_the_reconstruction_is_boosted_on_request_only(run_learned, generated):
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


# ---- errors a user can cause ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--edit_attr", "smilling"), "smiling"),
        (("--custom_test_dataset_dir", "nowhere"), "nowhere: no such folder"),
        (("--model_path", "nowhere.pt"), "nowhere.pt: no such file"),
        (("--clip_model_name", "nowhere.json"), "nowhere.json: no such file"),
        (("--config", "nowhere.yml"), "nowhere.yml: no such file; give a path, or one of"),
        (("--device", "cuda:99"), "--device cuda:99 cannot be used here"),
        (("--target_image_id", "4"), "there are 4 images, numbered from 0"),
        (("--start_image_id", "4"), "there are 4 images, numbered from 0"),
        (("--load_from_checkpoint", "nobody"), "no direction nobody"),
        (("--manual_checkpoint_name", "nobody.pth"), "no direction nobody.pth"),
        (("--n_test_stp", "4"), "did you mean --n_test_step?"),
    ],
)
def test_errors(run_learned, flags, message):
    assert message in run_learned.error(*TEST, *flags, intervals=())


def test_a_direction_that_was_not_trained(run):
    assert "train it with --run_train" in run.error(*TEST)


def test_the_kind_of_direction_must_be_right(run_learned):
    assert "was trained with --train_delta_block" in run_learned.error("--run_test", *DELTA_H)


@pytest.mark.parametrize(("model", "other", "said"), [("ddpm", "adm", "iDDPM/ADM"), ("adm", "ddpm", "DDPM++")])
def test_weights_of_another_architecture(run, tiny, model, other, said):
    message = run.error(*TRAIN, "--model_path", tiny.folder / f"{other}.pt", model=model)
    assert f"{other}.pt does not fit the U-Net of {model}.yml" in message
    assert f"these are {said} weights" in message


def test_a_direction_of_another_model(run_learned):
    assert "does not fit the delta block of this model" in run_learned.error(*TEST, model="adm")


def test_a_delta_h_of_another_model(run, tmp_path):
    torch.save({"999": torch.zeros(1, 32, 8, 8)}, tmp_path / "narrow.pth")
    message = run.error("--run_test", *DELTA_H, "--manual_checkpoint_name", "narrow.pth")
    assert "direction of another model: its delta_h is not 64 x 8 x 8" in message


def test_a_file_that_is_no_direction(run, tiny):
    assert "holds no direction" in run.error(*TEST, "--manual_checkpoint_name", tiny.folder / "ddpm.pt")
    assert "cannot be read as a file of weights" in run.error(*TEST, "--manual_checkpoint_name", tiny.folder / "ddpm.yml")


def test_folders_without_images(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: holds no image" in run.error("--just_precompute", "--custom_train_dataset_dir", "empty")


def test_unreadable_images_are_left_out(run_learned, tiny, tmp_path, results, capsys):
    shutil.copytree(tiny.test, tmp_path / "some")
    (tmp_path / "some" / "00.png").write_bytes(b"no image")
    own = ("--custom_test_dataset_dir", "some")
    assert run_learned(*TEST, *own) == 0
    assert names(results / "test_images" / "4") == ["000001.png", "all.png"]
    assert "left out: some/00.png cannot be read as an image" in capsys.readouterr().err
    for path in (tmp_path / "some").iterdir():
        path.write_bytes(b"no image")
    assert "some: none of the 2 images could be read" in run_learned.error(*TEST, *own)


def test_a_threshold_that_is_never_reached(run_learned):
    write_curve(top=0.2)
    assert "LPIPS(x_0, P_t) never reaches" in run_learned.error(*TEST, intervals=())
    message = run_learned.error(*TEST, "--lpips_addnoise_th", "1.2", intervals=("--user_defined_t_edit", "500"))
    assert "never reaches 1.200: its maximum is 0.200" in message


def test_no_curve(run_learned):
    assert "no LPIPS curves named mine" in run_learned.error(*TEST, "--custom_dataset_name", "mine", intervals=())


def test_an_editing_interval_without_steps(run):
    assert "t_edit 1000 lies above every timestep" in run.error(*TRAIN, "--user_defined_t_edit", "1000")


@pytest.mark.parametrize("text", ["model: [1", "", "just words", "data: {image_size: 16}\nmodel: {type: ddpm}"])
def test_broken_yaml(run, tmp_path, text):
    (tmp_path / "broken.yml").write_text(text)
    assert "broken.yml" in run.error(*TEST, "--config", "broken.yml")


def test_a_loss_that_explodes(run, tmp_path):
    assert "the loss is not finite at image 00.png" in run.error(*TRAIN, "--lr_training", "1e30")
    assert not (tmp_path / "checkpoint").exists()


def test_stopping_is_not_a_crash(run, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "invert", stop)
    assert run("--just_precompute") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_old_flags_are_one_line(run, capsys):
    assert run("--just_precompute", "--n_precomp_img", "1", "--ni", "--img_path", "x.png") == 0
    assert capsys.readouterr().err.count("has no effect") == 2
