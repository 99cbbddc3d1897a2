"""Several processes do what one does: shares, averages, and results that are put together."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_unets import golden_unet
from several import together
from tiny_world import (
    DELTA_H,
    INTERVALS,
    SMILE,
    STEPS,
    Distance,
    call,
    directions,
    losses,
    smooth_images,
    stored,
    tensors_equal,
)

import asyrp.runner
import main
from asyrp import process, ranks, training
from asyrp.data.pairs import Batch, parts
from asyrp.evaluation import gauges
from asyrp.hspace import BlockDirection
from asyrp.intervals import Curve
from asyrp.origin import PlainTrajectories
from asyrp.process import Schedule, timesteps
from asyrp.ranks import ALONE, Ranks

# One process with batches of so many images, against so many processes with single ones; the last batch is smaller.
WORLDS = pytest.mark.parametrize(("world", "images"), [(2, "3"), (3, "4")])


@pytest.fixture
def jobs(tiny, tmp_path, monkeypatch):
    """jobs(name, world, *flags) -> folder of a run by `world` processes."""
    monkeypatch.setattr(asyrp.runner, "load_lpips", Distance)

    def job(name, world, *flags, before=None, joined=True, ends=None):
        folder = tmp_path / name
        if before:
            shutil.copytree(before, folder)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        job.said = together(world, lambda rank: call(tiny, *flags), ends, folder=tmp_path, joined=joined)
        return folder

    return job


def inside(folder, function):
    """function() in a folder."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        return function()
    finally:
        os.chdir(here)


# ---- shares -----------------------------------------------------------------------------------------------------------------


def test_shares_are_a_partition():
    items = list(range(11))
    for world in (1, 2, 3, 16):
        several = [Ranks(rank, world) for rank in range(world)]
        assert sorted(item for one in several for item in one.share(items)) == items
        batches = [one.batches(items, 4) for one in several]
        assert sorted(batch for some in batches for batch in some) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert Ranks(1, 3).share(torch.arange(7)).tolist() == [1, 4]


def test_single_process_passes_everything_through():
    gradient = torch.ones(3)
    ALONE.average([gradient], 0.5)
    assert gradient.tolist() == [1, 1, 1]
    assert ALONE.gather(["a", "b"]) == ["a", "b"]
    with ALONE.first():
        ALONE.wait()


@pytest.mark.subprocess
def test_gather_and_average(tmp_path):
    def work(rank):
        with ranks.together() as several:
            several.join("cpu")
            items = list(range(7))
            assert several.gather([10 * item for item in several.share(items)]) == [10 * item for item in items]
            assert several.gather([rank] if rank else []) == [1, 2]
            a, b = torch.full((2, 2), float(rank)), torch.tensor(1.0 + rank)
            several.average([a, b], [0.5, 0.25, 0.25][rank])
            assert (a.tolist(), b.item()) == ([[0.75] * 2] * 2, 1.75)
            with several.first():
                order = several.rank == 0 or (tmp_path / "first").exists()
                (tmp_path / "first").touch()
            assert order

    together(3, work, folder=tmp_path)


def test_process_without_images_gets_a_placeholder():
    def load(indices):
        readable = [i for i in indices if i != 4]
        return Batch(readable, [f"{i}" for i in readable], None, torch.zeros(len(readable))) if readable else None

    def of(rank, world, size, indices):
        found = parts(load, indices, size, Ranks(rank, world))
        return [batch and (batch.indices, batch.counts) for batch in found]

    assert of(0, 1, 2, [0, 1, 4]) == [([0, 1], True), None]
    assert of(0, 2, 1, [0, 1, 2]) == [([0], True), ([2], True)]
    assert of(1, 2, 1, [0, 1, 2]) == [([1], True), ([2], False)]
    assert of(1, 2, 1, [0, 4, 2, 3]) == [([0], False), ([3], True)]
    assert of(1, 2, 1, [4]) == [None]


# ---- training ---------------------------------------------------------------------------------------------------------------


def numbers(rows):
    names = ("t", *training.COLUMNS)
    return [row["image"] for row in rows], torch.tensor([[float(row[name]) for name in names] for row in rows])


@pytest.mark.subprocess
@WORLDS
@pytest.mark.parametrize("kind", [SMILE, DELTA_H], ids=["delta_block", "delta_h"])
def test_training_is_that_of_one_process(jobs, world, images, kind):
    flags = ("--run_train", *kind, "--do_test", "0", "--n_train_img", images, "--n_iter", "2", "--bs_precompute", "2")
    flags += ("--shuffle_train_dataloader",)
    # A delta_h begins at zero: there a difference to P_plain is rounding, and its sign is chance.
    flags += ("--clip_source", "origin", "--l1_loss_w", "1") if kind == SMILE else ()
    one = jobs("one", 1, *flags, "--bs_train", world)
    several = jobs("several", world, *flags, "--bs_train", 1)
    assert jobs.said[1:] == [[]] * (world - 1)  # one of them tells
    [results] = one.glob("runs/*")
    (names, expected), (found_names, found) = (numbers(losses(folder / "runs" / results.name)) for folder in (one, several))
    assert found_names == names
    assert [len(some.split()) for some in names[::2]] == [world, 1] * 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted, learned = inside(one, directions), inside(several, directions)
    torch.testing.assert_close(learned, wanted, rtol=0, atol=1e-5)
    assert tensors_equal(inside(one, lambda: stored("latent")), inside(several, lambda: stored("latent")))
    assert sorted(path.name for path in several.rglob("*.png")) == sorted(path.name for path in one.rglob("*.png"))


@pytest.mark.subprocess
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_the_whole_batch(tmp_path, world):
    """In float64 no more than rounding is left."""
    unet, (block, _) = copy.deepcopy(golden_unet("ddpm"))
    unet, block = unet.double(), block.double()
    unet.temb.dense[0].register_forward_pre_hook(lambda module, inputs: tuple(x.double() for x in inputs))
    start = copy.deepcopy(block.state_dict())
    x_0, x_T = smooth_images(5, size=32).double(), torch.randn(5, 3, 32, 32, dtype=torch.float64)
    weights = torch.randn(16, 48, dtype=torch.float64)
    towards = F.normalize(weights[:1, :16], dim=-1)

    def encode(images):
        return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1) @ weights.T, dim=-1)

    def load(indices):
        return Batch(indices, [f"{i}" for i in indices], x_0[indices], x_T[indices])

    def learn(several, size):
        block.load_state_dict(start)
        direction = BlockDirection(block).requires_grad_()
        loss = training.EditLoss(encode, towards, 1.0, training.Weights(clip=1, l1=1))
        model = type("Model", (), {"unet": unet, "schedule": Schedule.linear(), "device": torch.device("cpu")})
        batches, steps = parts(load, list(range(5)), size, several), training.edit_steps(timesteps(4, 999), 500)
        how = (steps, loss, torch.optim.SGD(direction.parameters(), lr=0.1), PlainTrajectories(dtype=torch.float64))
        results = [result for _, result in training.train_epoch(model, direction, batches, *how, ranks=several)]
        return [result.losses for result in results], dict(block.state_dict())

    def work(rank):
        with ranks.together() as several:
            several.join("cpu")
            torch.save(learn(several, 1), tmp_path / f"{rank}.pt")

    together(world, work, folder=tmp_path)
    expected = learn(ALONE, world)
    assert not tensors_equal(expected[1], dict(start))
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.subprocess
def test_resume_with_another_number_of_processes(jobs):
    flags = ("--run_train", *SMILE, "--do_test", "0", "--n_train_img", "4")
    first = jobs("first", 2, *flags, "--n_iter", "1", "--bs_train", "2")
    then = jobs("then", 1, *flags, "--n_iter", "2", "--bs_train", "4", before=first)
    whole = jobs("whole", 4, *flags, "--n_iter", "2", "--bs_train", "1")
    torch.testing.assert_close(inside(then, directions), inside(whole, directions), rtol=0, atol=1e-5)


# ---- what is measured and made ----------------------------------------------------------------------------------------------


@pytest.mark.subprocess
@pytest.mark.parametrize("world", [2, 3])
def test_curves_and_latents_are_those_of_one_process(jobs, tiny, tmp_path, world):
    """Bit for bit, because whole batches are shared. Unreadable images are reported once, by the first process."""
    shutil.copytree(tiny.train, tmp_path / "some")
    (tmp_path / "some" / "01.png").write_bytes(b"no image")
    flags = ("--lpips", "--just_precompute", "--n_train_img", "4", "--n_precomp_img", "4", "--bs_precompute", "1")
    flags += ("--custom_train_dataset_dir", str(tmp_path / "some"))
    one, several = jobs("one", 1, *flags), jobs("several", world, *flags)
    curve, expected = (Curve.read(*folder.glob("runs/*/lpips_CUSTOM.csv")) for folder in (several, one))
    torch.testing.assert_close(curve.to_tensors(), expected.to_tensors(), rtol=0, atol=0)
    for kind, n in (("latent", 7), ("curve", 1)):
        found = inside(several, lambda kind=kind: stored(kind))
        assert len(found) == n
        assert tensors_equal(found, inside(one, lambda kind=kind: stored(kind)))
    terminal, *others = jobs.said
    assert len([line for line in terminal if "cannot be read as an image" in line]) == 2  # the curves and the latents
    assert "1 of 4 images could not be read and were skipped" in terminal
    assert "train: 3 latents ready" in terminal
    assert others == [[]] * (world - 1)


@pytest.mark.subprocess
def test_no_readable_images_fail_on_all_processes(jobs, tmp_path):
    (tmp_path / "bad").mkdir()
    for i in range(2):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no image")
    flags = ("--just_precompute", "--do_test", "0", "--custom_train_dataset_dir", str(tmp_path / "bad"))
    assert jobs("bad", 3, *flags, ends=[2, 2, 2])
    assert "none of the 2 images could be read" in jobs.said[0][-1]
    assert jobs.said[1:] == [[], []]


@pytest.mark.subprocess
def test_mean_direction_is_that_of_one_process(jobs, learned):
    flags = ("--run_test", *SMILE, "--num_mean_of_delta_hs", "4")
    one, several = (jobs(name, world, *flags, before=learned) for name, world in (("one", 1), ("several", 3)))
    [[expected], [found]] = (list(inside(folder, lambda: stored("mean")).values()) for folder in (one, several))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.subprocess
def test_fit_is_that_of_one_process(jobs):
    flags = ("--fit_direction", "labels", "--edit_attr", "smiling", "--n_examples", "2", "--n_train_img", "4", "--run_test")
    one, several = jobs("one", 1, *flags), jobs("several", 2, *flags)
    assert tensors_equal(inside(several, directions), inside(one, directions))
    assert len(left_behind(one)) > 5
    assert left_behind(several).keys() == left_behind(one).keys()


@pytest.mark.subprocess
def test_kept_noise_is_drawn_by_all(jobs):
    flags = ("--just_precompute", "--load_random_noise", "--saved_random_noise", "--n_precomp_img", "3")
    one, several = jobs("one", 1, *flags), jobs("several", 2, *flags)
    assert len(inside(one, lambda: stored("noise"))) == 6
    assert tensors_equal(inside(several, lambda: stored("noise")), inside(one, lambda: stored("noise")))


@pytest.mark.subprocess
def test_one_picture_is_learned_on_by_several(tiny, tmp_path, monkeypatch):
    """The second process works on the first one's picture, which counts once."""
    given = ["--config", tiny.folder / "ddpm.yml", "--model_path", tiny.folder / "ddpm.pt", "--clip_model_name", tiny.clip]
    given += [
        "--device",
        "cpu",
        "--run_test",
        "--edit_image",
        tiny.test / "00.png",
        "--src_txts",
        "face",
        "--trg_txts",
        "sad face",
    ]
    given = [str(flag) for flag in (*given, "--n_iter", "2", *STEPS, *INTERVALS)]
    learned = []
    for world in (1, 2):
        (tmp_path / f"{world}").mkdir()
        monkeypatch.chdir(tmp_path / f"{world}")
        together(world, lambda rank: main.main(given), folder=tmp_path)
        learned.append(directions())
    torch.testing.assert_close(*learned, rtol=0, atol=1e-5)


def left_behind(folder):
    """{file: contents} under runs/, without dates."""
    dates = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
    paths = [path for path in sorted(folder.glob("runs/**/*")) if path.is_file()]
    return {str(path.relative_to(folder)): dates.sub(b"", path.read_bytes()) for path in paths}


ROUTES = ("--run_test", "--evaluate", *SMILE, "--n_test_img", "4", "--delta_interpolation", "--num_delta", "2")
ROUTES += ("--save_x_origin", "--save_animation", "gif", "--user_defined_t_addnoise", "400")


@pytest.fixture
def few(monkeypatch):
    """Sets of images are compared however small they are."""
    monkeypatch.setattr(gauges, "LEAST", 2)


@pytest.mark.subprocess
@pytest.mark.parametrize(("world", "batch"), [(2, "1"), (3, "1"), (2, "3"), (6, "1")])
def test_pictures_metrics_and_the_report_are_those_of_one_process(jobs, learned, few, world, batch):
    """Bit for bit; also with noise (boosting), and with more processes than images."""
    flags = (*ROUTES, "--bs_test", batch)
    one, several = (jobs(name, n, *flags, before=learned) for name, n in (("one", 1), ("several", world)))
    expected, found = left_behind(one), left_behind(several)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    [evaluation] = (json.loads(text) for name, text in found.items() if name.endswith("evaluation.json"))
    assert evaluation["distances"]["+1"]["Fréchet distance, CLIP"]["n"] == 4
    assert [len(some) > 0 for some in jobs.said] == [True] + [False] * (world - 1)


@pytest.mark.subprocess
def test_separate_tasks_and_a_last_call_that_collects(jobs, learned, few, monkeypatch):
    precompute = ("--just_precompute", "--n_precomp_img", "4", "--bs_precompute", "2", "--do_train", "0")
    one = jobs("one", 1, *precompute, before=learned)
    jobs("one", 1, *ROUTES)
    several = jobs("several", 3, *precompute, before=learned, joined=False)
    assert [len(some) > 0 for some in jobs.said] == [True] * 3  # each is a run of its own
    jobs("several", 3, *ROUTES, joined=False)
    for rank, terminal in enumerate(jobs.said):
        assert terminal[-1].startswith(f"share {rank} of 3: runs/")
    assert not list(several.glob("runs/*/evaluation.json"))
    for missing in several.glob("runs/*/shares/1_of_3.pt"):
        away = missing.rename(missing.with_suffix(".away"))
        jobs("several", 1, *ROUTES, "--collect", ends=[2])
        assert jobs.said[0][-1].endswith("missing shares 1_of_3.pt: run those tasks first")
        away.rename(missing)
    jobs("several", 1, *ROUTES, "--collect", "--max_delta", "2", ends=[2])
    assert "0_of_3.pt was made with other settings or another model" in jobs.said[0][-1]
    monkeypatch.setattr(process, "generate", None)  # nothing is edited again
    jobs("several", 1, *ROUTES, "--collect")
    expected, found = left_behind(one), left_behind(several)
    assert found.keys() == expected.keys()
    differ = [name for name in expected if found[name] != expected[name]]
    assert [name for name in differ if "settings_" not in name and "report.html" not in name] == []
    jobs("several", 1, *ROUTES, "--collect", ends=[2])
    assert "--collect: there are no shares in" in jobs.said[0][-1]
