"""How often the U-Net and CLIP run in whole runs of the command line, an image of a batch counting as one.

40 steps of inversion, training and generation. t_edit 512 and 513 edit 20 and 19 of them: the timesteps around are 512 and 537.
"""

import pytest
from tiny_world import SMILE

import asyrp.clip
import asyrp.runner
from asyrp import training

FORTY = ("--n_inv_step", "40", "--n_train_step", "40", "--n_test_step", "40")
CASES = pytest.mark.parametrize(("t_edit", "k", "batch"), [("512", 20, "1"), ("513", 19, "2")])
IMAGES = 2


@pytest.fixture
def work(monkeypatch):
    """work() -> passes of (encoder, decoder, CLIP's image encoder) an image since the last call; work.epochs: of each epoch."""
    counts = {}

    def counted(name, function):
        def call(batch, *args):
            counts[name] = counts.get(name, 0) + len(batch)
            return function(batch, *args)

        return call

    def since():
        found = tuple(counts.get(name, 0) / IMAGES for name in ("encode", "decode", "clip"))
        counts.clear()
        return found

    def open_model(*args):
        model = opened(*args)
        model.unet.encode, model.unet.decode = counted("encode", model.unet.encode), counted("decode", model.unet.decode)
        return model

    def new_clip(*args):
        clip = clip_loss(*args)
        clip.encode_images = counted("clip", clip.encode_images)
        return clip

    def train_epoch(*args):
        since()
        yield from train(*args)
        epochs.append(since())

    opened, clip_loss, train, epochs = asyrp.runner.open_model, asyrp.clip.ClipLoss, training.train_epoch, []
    monkeypatch.setattr(asyrp.runner, "open_model", open_model)
    monkeypatch.setattr(asyrp.clip, "ClipLoss", new_clip)
    monkeypatch.setattr(training, "train_epoch", train_epoch)
    since.epochs = epochs
    return since


def test_precompute(run, work):
    assert run("--just_precompute", "--n_precomp_img", IMAGES, "--do_train", "0", *FORTY) == 0
    assert work() == (39, 39, 0)


@CASES
def test_edit(run_learned, work, t_edit, k, batch):
    edit = ("--run_test", *SMILE, "--load_from_checkpoint", "smile_LC_CUSTOM_t999_ninv4_ngen4", *FORTY)
    edit += ("--user_defined_t_edit", t_edit, "--bs_test", batch)
    assert run_learned(*edit) == 0
    assert work() == (39 + 40, 39 + 40 + k, 0)
    assert run_learned(*edit, "--delta_interpolation", "--num_delta", "3") == 0
    assert work() == (1 + 3 * 39, 1 + 3 * (39 + k), 0)
    # The unedited picture starts from the same frozen pass.
    assert run_learned(*edit, "--save_x_origin") == 0
    assert work() == (40 + 39, 40 + k + 39, 0)


@CASES
@pytest.mark.parametrize("source", ["x0", "origin"])
def test_training(run, work, t_edit, k, batch, source):
    flags = ("--user_defined_t_edit", t_edit, "--bs_train", batch, "--clip_source", source, "--l1_loss_w", "1")
    assert run("--run_train", *SMILE, "--do_test", "0", *FORTY, *flags, "--n_iter", "2") == 0
    # CLIP encodes the edited picture at each step, and what it is compared with once in the whole training.
    encoded_once = 1 if source == "x0" else k
    assert work.epochs == [(2 * k - 1, 3 * k - 1, k + encoded_once), (k, 2 * k, k)]


def test_training_without_a_kept_trajectory(run, work):
    """--cache_origin off computes it again; a loss that does not look at it needs none, and P_plain's features are kept."""
    train = ("--run_train", *SMILE, "--do_test", "0", *FORTY, "--user_defined_t_edit", "512", "--n_iter", "2")
    train += ("--cache_origin", "off")
    assert run(*train, "--l1_loss_w", "1") == 0
    assert run(*train, "--retrain") == 0
    assert run(*train, "--retrain", "--clip_source", "origin") == 0
    again, alone = (39, 59), (20, 40)
    assert [epoch[:2] for epoch in work.epochs] == [again, again, alone, alone, again, alone]


def test_plain_samples_are_computed_once_and_only_if_needed(run_learned, work):
    edit = ("--run_test", *SMILE, "--load_from_checkpoint", "smile_LC_CUSTOM_t999_ninv4_ngen4", *FORTY, "--load_random_noise")
    assert run_learned(*edit) == 0
    assert work()[0] == 40
    for sampled in (40, 0):
        assert run_learned(*edit, "--save_x0", "--use_x0_tensor") == 0
        assert work()[0] == 40 + sampled


def test_mean_direction_runs_only_the_editing_interval(run_learned, work):
    mean = ("--run_test", *SMILE, "--load_from_checkpoint", "smile_LC_CUSTOM_t999_ninv4_ngen4", *FORTY)
    mean += ("--user_defined_t_edit", "512", "--num_mean_of_delta_hs", IMAGES)
    assert run_learned(*mean) == 0
    inverted, watched, edited = 2 * 39, 20, 40
    assert work()[0] == inverted + watched + edited
