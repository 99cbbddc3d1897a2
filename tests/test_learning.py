"""A training on disk: where it resumes, what it refuses to resume from, and the learning rate of each epoch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import DELTA_H, NAME, TRAIN, call, directions, losses, settings, tensors_equal

from asyrp import process
from asyrp.clip import Clip
from asyrp.directions import read
from asyrp.store import Store
from asyrp.training import learning_rate
from losses.clip_loss import ClipLoss

LONG = (*TRAIN, "--l1_loss_w", "1", "--shuffle_train_dataloader", "--scheduler_step_size", "2", "--n_train_img", "4")
EPOCHS = [f"{NAME}_{epoch}.pth" for epoch in range(3)]


@pytest.fixture(scope="session")
def three_epochs(tiny, tmp_path_factory):
    """The folder of three epochs in one go."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(tiny, *LONG, "--n_iter", "3") == 0
    return folder


@pytest.fixture
def run_after(run, three_epochs, tmp_path):
    """run_after(number of epochs that are done) -> `run` in a folder of its own."""

    def after(n):
        shutil.copytree(three_epochs, tmp_path, dirs_exist_ok=True)
        for name in EPOCHS[n:]:
            Path("checkpoint", name).unlink()
        return run

    return after


def rate(epoch):
    """The learning rate that an epoch was trained with."""
    contents = torch.load(f"checkpoint/{NAME}_{epoch}.pth", weights_only=True)
    return contents["optimizer"]["param_groups"][0]["lr"]


# ---- going on ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2])
def test_resumed_training_equals_uninterrupted_training(run_after, three_epochs, results, done):
    """Bit for bit; also in the learning rate, and in the order of the images, which is another one in each epoch."""
    run = run_after(done)
    assert run(*LONG, "--n_iter", "3") == 0
    assert tensors_equal(directions(), directions(three_epochs / "checkpoint"))
    assert losses(results) == losses(three_epochs / "runs" / NAME)
    assert [rate(epoch) for epoch in range(3)] == pytest.approx([0.2, 0.2, 0.02])


def test_finished_training_opens_no_clip_and_inverts_nothing(run_after, tiny, tmp_path, monkeypatch):
    """Also where t_edit is read off a curve: the cosine of the prompts is known."""
    run = run_after(3)
    assert run(*LONG, "--n_iter", "3") == 0  # notes where the CLIP of this folder lies

    def never(*args):
        raise AssertionError("it was opened")

    monkeypatch.setattr(ClipLoss, "__init__", never)
    monkeypatch.setattr(process, "invert", never)
    assert run(*LONG, "--n_iter", "3") == 0
    with pytest.raises(AssertionError, match="it was opened"):
        run(*LONG, "--n_iter", "3", "--retrain", "1")


def test_clip_identity_and_cosines_are_cached_until_files_change(tiny, tmp_path, monkeypatch):
    for name in ("clip.json", "clip.pt"):
        shutil.copy(tiny.folder / name, tmp_path / name)
    kept, opened = Store(tmp_path / "store"), []

    class Watched(ClipLoss):
        def __init__(self, *args):
            opened.append(args)
            super().__init__(*args)

    monkeypatch.setattr("asyrp.clip.ClipLoss", Watched)
    fresh = ClipLoss(str(tmp_path / "clip.json"))
    for _ in range(2):
        clip = Clip(str(tmp_path / "clip.json"), "cpu", kept)
        assert clip.identity == fresh.identity()
        assert clip.cosine("face", "smiling face") == fresh.cosine("face", "smiling face")
        assert len(opened) == 1
    settings = json.loads((tmp_path / "clip.json").read_text())
    (tmp_path / "clip.json").write_text(json.dumps(settings | {"quick_gelu": True}))
    changed = Clip(str(tmp_path / "clip.json"), "cpu", kept)
    assert changed.identity != fresh.identity()
    assert changed.cosine("face", "smiling face") != fresh.cosine("face", "smiling face")
    assert len(opened) == 2


def test_two_epochs_and_one_more_equal_three(run, three_epochs):
    for n in ("2", "3"):
        assert run(*LONG, "--n_iter", n) == 0
    assert tensors_equal(directions(), directions(three_epochs / "checkpoint"))


def test_each_epoch_learns_and_is_shuffled(three_epochs):
    learned = directions(three_epochs / "checkpoint")
    assert list(learned) == EPOCHS
    assert not tensors_equal(learned[EPOCHS[0]], learned[EPOCHS[1]])
    assert not tensors_equal(learned[EPOCHS[1]], learned[EPOCHS[2]])
    rows = losses(three_epochs / "runs" / NAME)
    orders = {tuple(row["image"] for row in rows if row["epoch"] == epoch) for epoch in "012"}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(rows_of_one) for order in orders for rows_of_one in orders)


def test_resume_from_latest_epoch(run_after, three_epochs, capsys):
    run = run_after(2)
    assert run(*LONG, "--n_iter", "3") == 0
    assert f"resuming after epoch 1: checkpoint/{NAME}_1.pth" in capsys.readouterr().err
    assert Path("checkpoint", EPOCHS[0]).stat().st_mtime_ns == (three_epochs / "checkpoint" / EPOCHS[0]).stat().st_mtime_ns


def test_later_epochs_are_not_touched(run_after, three_epochs):
    run = run_after(3)
    assert run(*LONG, "--n_iter", "2") == 0
    assert tensors_equal(directions(), directions(three_epochs / "checkpoint"))


# ---- not going on -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--edit_attr", "sad"), "prompts ['face', 'smiling face'], but this run has ['face', 'sad face']"),
        (("--user_defined_t_edit", "300"), "t_edit 500, but this run has 300"),
        (("--ignore_timesteps",), "ignore_timesteps False, but this run has True"),
        (("--clip_loss_w", "1"), "clip_loss_w 3.0, but this run has 1.0"),
        (("--l1_loss_w", "0"), "l1_loss_w 1.0, but this run has 0.0"),
        (("--clip_source", "origin"), "clip_source x0, but this run has origin"),
        (("--bs_train", "2"), "bs_train 1, but this run has 2"),
        (("--seed", "1"), "seed 1234, but this run has 1"),
        (("--n_train_img", "3"), "n_images 4, but this run has 3"),
        (("--shuffle_train_dataloader", "0"), "shuffle True, but this run has False"),
        (("--precision", "bf16"), "precision fp32, but this run has bf16"),
    ],
)
def test_resume_with_other_settings_exits_2(run_after, flags, difference):
    """Neither with epochs to come nor without; the first difference is named, and both remedies."""
    run = run_after(2)
    for n in ("2", "3"):
        said = run.error(*LONG, "--n_iter", n, *flags)
        assert said == (
            f"checkpoint/{NAME}_1.pth was trained with {difference}: train from scratch with --retrain 1, or keep it and use "
            "another --exp"
        )


def test_resume_with_another_kind_exits_2(run_after):
    said = run_after(1).error("--run_train", *DELTA_H, "--do_test", "0")
    assert "was trained with kind delta_block, but this run has delta_h" in said


def test_resume_with_other_images_weights_or_clip_exits_2(run_after, tiny, tmp_path):
    run = run_after(1)
    assert "was trained with other images: train from scratch" in run.error(*LONG, "--custom_train_dataset_dir", tiny.test)
    weights = torch.load(tiny.folder / "ddpm.pt", weights_only=True)
    torch.save({key: 1.01 * value for key, value in weights.items()}, tmp_path / "other.pt")
    assert "was trained with other identity: train from scratch" in run.error(*LONG, "--model_path", "other.pt")
    weights = torch.load(tiny.clip.with_suffix(".pt"), weights_only=True)
    torch.save({key: 1.01 * value for key, value in weights.items()}, tmp_path / "clip.pt")
    shutil.copy(tiny.clip, tmp_path / "clip.json")
    assert "was trained with other clip: train from scratch" in run.error(*LONG, "--clip_model_name", "clip.json")


def test_second_experiment_of_the_same_last_name_is_not_the_first_one(run_after):
    """In another folder: its checkpoints have the names of the first one's."""
    run = run_after(3)
    same = (*LONG, "--n_iter", "3", "--exp", "elsewhere/smile")
    assert "was trained with lr_training 0.2, but this run has 0.01" in run.error(*same, "--lr_training", "0.01")
    assert not Path("elsewhere").exists()
    assert run(*same, "--lr_training", "0.01", "--retrain", "1") == 0
    assert settings(Path("elsewhere", NAME), "train")["record"]["training"]["lr_training"] == 0.01


@pytest.mark.parametrize(
    "flags", [("--device", "cpu"), ("--save_train_image", "0"), ("--bs_precompute", "1"), ("--do_test", "0")]
)
def test_resume_with_irrelevant_differences(run_after, flags):
    assert run_after(2)(*LONG, "--n_iter", "2", *flags) == 0


# ---- learning rates ---------------------------------------------------------------------------------------------------------


def test_learning_rate_schedule():
    assert [learning_rate(0.5, 2, 0.1, epoch) for epoch in range(5)] == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_resume_with_another_learning_rate(run_after, capsys):
    run = run_after(1)
    assert run(*LONG, "--n_iter", "3", "--lr_training", "0.1", "--sch_gamma", "0.5") == 0
    assert [rate(epoch) for epoch in range(3)] == pytest.approx([0.2, 0.1, 0.05])
    said = capsys.readouterr().err
    assert "earlier epochs were trained with lr_training 0.2; from here on it is 0.1" in said
    assert "earlier epochs were trained with sch_gamma 0.1; from here on it is 0.5" in said
    assert read(f"checkpoint/{NAME}_2.pth").record["training"]["lr_training"] == 0.1


def as_in_2023(epoch, last_epoch, lr=0.5):
    """Turn an epoch's checkpoint into one as the 2023 release saved it: before the epoch's step of its scheduler."""
    path = Path("checkpoint", f"{NAME}_{epoch}.pth")
    contents = torch.load(path, weights_only=True)
    scheduler = {"step_size": 20, "gamma": 0.9, "base_lrs": [0.5], "last_epoch": last_epoch, "_step_count": last_epoch + 1}
    scheduler |= {"verbose": False, "_get_lr_called_within_step": False, "_last_lr": [lr]}
    contents["optimizer"]["param_groups"][0]["lr"] = lr
    torch.save({"0": contents["0"], "optimizer": contents["optimizer"], "scheduler": scheduler}, path)


def rates_of_2023(last_epoch, n, lr=0.5):
    """What that program did: load optimizer and scheduler, step, and step after each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.9)
    for _ in range(last_epoch):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    rates = []
    for _ in range(n):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("last_epoch", "lr"), [(0, 0.5), (18, 0.5), (19, 0.5), (38, 0.45), (39, 0.45)])
def test_resume_2023_checkpoint_as_in_the_release(run_after, last_epoch, lr):
    """Step size 20, gamma 0.9: of the scheduler's two saved numbers the step that is still to come decides."""
    run = run_after(1)
    as_in_2023(0, last_epoch, lr)
    assert run(*TRAIN, "--n_iter", "3") == 0
    assert [rate(epoch) for epoch in (1, 2)] == pytest.approx(rates_of_2023(last_epoch, 2, lr))
    record = read(f"checkpoint/{NAME}_2.pth").record["training"]
    assert (record["lr_training"], record["scheduler_step_size"], record["sch_gamma"]) == (0.5, 20, 0.9)


def test_resume_a_training_resumed_from_2023(run_after):
    run = run_after(1)
    as_in_2023(0, 18)
    assert run(*TRAIN, "--n_iter", "3") == 0
    at_once = directions()
    for name in EPOCHS[2:]:
        Path("checkpoint", name).unlink()
    assert run(*TRAIN, "--n_iter", "3") == 0
    assert rate(2) == pytest.approx(0.45)
    assert tensors_equal(directions(), at_once)
    assert run(*TRAIN, "--n_iter", "3") == 0  # nothing is left to do, and nothing to complain of


def test_given_flags_override_the_2023_schedule(run_after, capsys):
    run = run_after(1)
    as_in_2023(0, 18)
    assert run(*TRAIN, "--n_iter", "2", "--lr_training", "0.1") == 0
    assert f"checkpoint/{NAME}_0.pth has its own learning rate; using that of the flags" in capsys.readouterr().err
    assert rate(1) == 0.1


@pytest.mark.parametrize("spoil", [{"scheduler": {}}, {"optimizer": {}}, {"scheduler": {"step_size": 0, "last_epoch": 1}}])
def test_optimizer_of_2023_that_cannot_be_read(run_after, spoil):
    run = run_after(1)
    as_in_2023(0, 18)
    path = Path("checkpoint", EPOCHS[0])
    torch.save(torch.load(path, weights_only=True) | spoil, path)
    assert "its optimizer state is invalid: train from scratch with --retrain 1" in run.error(*TRAIN, "--n_iter", "2")


# ---- a direction to begin at ------------------------------------------------------------------------------------------------


def test_training_may_begin_at_another_direction(run_learned, learned):
    begin = ("--exp", "runs/other", "--load_from_checkpoint", "smile", "--edit_attr", "sad")
    assert run_learned(*TRAIN, *begin, "--lr_training", "0") == 0
    [before] = directions(learned / "checkpoint").values()
    assert tensors_equal(directions()[NAME.replace("smile", "other") + "_0.pth"], before)
    assert "no direction nobody" in run_learned.error(*TRAIN, "--exp", "runs/third", "--load_from_checkpoint", "nobody")


def test_started_from_is_part_of_the_settings(run_learned):
    other = (*TRAIN, "--exp", "runs/other")
    assert run_learned(*other, "--load_from_checkpoint", "smile") == 0
    began = read(f"checkpoint/{NAME.replace('smile', 'other')}_0.pth").record["training"]["started_from"]
    assert len(began) == 16
    # The same command goes on, and so does one that does not say again where it began.
    assert run_learned(*other, "--load_from_checkpoint", "smile", "--n_iter", "2") == 0
    assert run_learned(*other, "--n_iter", "3") == 0
    assert read(f"checkpoint/{NAME.replace('smile', 'other')}_2.pth").record["training"]["started_from"] == began
    assert run_learned(*TRAIN, "--exp", "runs/third", "--edit_attr", "sad") == 0
    assert "was trained with other started_from" in run_learned.error(
        *other, "--load_from_checkpoint", "third", "--n_iter", "4"
    )


@pytest.mark.slow
def test_delta_h_starts_from_its_own_timesteps(run, tmp_path):
    """Whatever the order in the file; and not at those of another training."""
    first = ("--run_train", *DELTA_H, "--do_test", "0")
    assert run(*first) == 0
    contents = torch.load(f"checkpoint/{NAME}_0.pth", weights_only=True)
    torch.save({"666": contents["666"], "999": contents["999"]}, "turned.pth")
    torch.save({"555": contents["666"], "999": contents["999"]}, "others.pth")
    begin = (*first, "--exp", "runs/other", "--lr_training", "0", "--manual_checkpoint_name")
    assert run(*begin, "turned.pth") == 0
    assert tensors_equal(directions()[NAME.replace("smile", "other") + "_0.pth"], directions()[f"{NAME}_0.pth"])
    said = run.error(*begin, "others.pth", "--retrain", "1")
    assert "was trained on other timesteps: use the number of steps it was trained with" in said
