"""Every flag does something: those that the runs of test_main_*.py do not show are shown here."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_world import NAME, TRAIN, directions, losses, tensors_equal

import asyrp.learning
from asyrp import process
from asyrp.options import build_parser

FLAGS = sorted({option for action in build_parser()._actions for option in action.option_strings} - {"-h", "--help"})
RUNS = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))


@pytest.mark.parametrize("flag", FLAGS)
def test_a_run_of_the_tests_gives_the_flag(flag):
    assert re.search(rf'"{flag}[" =]', RUNS)


def learned_with(run, *flags):
    """Train anew with these flags -> {file name: direction}."""
    assert run(*TRAIN, "--retrain", "1", *flags) == 0
    return directions()


def test_clip_source(run):
    assert not tensors_equal(learned_with(run), learned_with(run, "--clip_source", "origin"))


def test_sch_gamma(run):
    epochs = ("--n_iter", "2", "--scheduler_step_size", "1")
    slower, same = learned_with(run, *epochs), learned_with(run, *epochs, "--sch_gamma", "1")
    assert tensors_equal(slower[f"{NAME}_0.pth"], same[f"{NAME}_0.pth"])
    assert not tensors_equal(slower[f"{NAME}_1.pth"], same[f"{NAME}_1.pth"])


def test_bs_precompute(run, monkeypatch):
    sizes, invert = [], process.invert

    def watched(unet, x_0, *rest):
        sizes.append(len(x_0))
        return invert(unet, x_0, *rest)

    monkeypatch.setattr(process, "invert", watched)
    assert run("--just_precompute", "--n_precomp_img", "4", "--bs_precompute", "3", "--do_test", "0") == 0
    assert sizes == [3, 1]


def test_verbose(run, capsys):
    assert run("--just_precompute") == 0
    assert "latents ready" in capsys.readouterr().err
    assert run("--just_precompute", "--verbose", "warning") == 0
    assert "latents ready" not in capsys.readouterr().err


def test_use_id_loss(run, results, monkeypatch):
    """With a recogniser of our own: the real one is 170 MB, and tests/test_irse.py checks it."""

    class Recogniser:
        def __init__(self, *args):
            pass

        def embed(self, images):
            return F.normalize(F.avg_pool2d(images, 4).flatten(1))

    before = learned_with(run)
    assert {row["id"] for row in losses(results)} == {"0"}
    monkeypatch.setattr(asyrp.learning, "IdLoss", Recogniser)
    monkeypatch.setattr(asyrp.learning, "weights_at", lambda place: None)
    assert not tensors_equal(before, learned_with(run, "--use_id_loss", "--id_loss_w", "1"))
    assert all(float(row["id"]) > 0 for row in losses(results))


def test_compile(run, monkeypatch):
    """Which parts are given to the compiler; compiling itself takes a minute."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda part, **options: compiled.append(part.__name__) or part)
    assert run("--just_precompute", "--compile") == 0
    assert compiled == ["encode", "decode"]
