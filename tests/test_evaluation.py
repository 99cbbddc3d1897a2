"""main.py --evaluate: the metrics of a direction, on the tiny world; and its gauges, each with a network of known answers."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
import yaml
from evaluations import Halves, found, rows, values
from tiny_world import DEVICE, SMILE, TEST, call, names, settings

from asyrp import process
from asyrp.config import ROOT
from asyrp.data.datasets import ImageFolder
from asyrp.evaluation import gauges, metrics
from losses.clip_loss import ClipLoss

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import render

EVALUATE = ("--evaluate", *SMILE)
STRENGTHS = ("--delta_interpolation", "--min_delta", "-1", "--max_delta", "1", "--num_delta", "3")


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_s_dir_of_a_run_is_that_of_its_pictures(run_learned, results, tiny, generated):
    assert run_learned(*EVALUATE, "--bs_test", "2") == 0
    result = found(results)
    plain, edited = (call["x_0"] for call in generated)
    clip, prompts = ClipLoss(str(tiny.clip), DEVICE), ("face", "smiling face")
    original = torch.stack([ImageFolder(tiny.test, 16)[i] for i in range(2)]).to(DEVICE)
    features = [clip.encode_images(images) for images in (original, plain, edited)]
    for metric, before, templates in (
        ("S_dir", 0, True),
        ("S_dir, no templates", 0, False),
        ("S_dir from the reconstruction", 1, True),
    ):
        change = F.normalize(features[2] - features[before])
        expected = (change * clip.direction(*prompts, templates=templates)).sum(1)
        assert values(results, "+1", metric) == pytest.approx(expected.tolist(), abs=1e-5)
    assert values(results, "reconstruction", "PSNR in dB") == pytest.approx(metrics.psnr(plain, original).tolist())
    # The text direction itself, with templates and without: not the same one.
    assert values(results, "+1", "S_dir") != values(results, "+1", "S_dir, no templates")
    assert result["settings"]["prompts"] == list(prompts)
    assert result["settings"]["clip"] == str(tiny.clip)


def test_summary_is_that_of_the_rows(run_learned, results, capsys):
    assert run_learned(*EVALUATE, "--n_test_img", "4", "--bs_test", "3") == 0
    result = found(results)
    table = rows(results)
    assert [(row["image"], row["picture"]) for row in table] == [
        (f"{i:02d}.png", picture) for batch in ((0, 1, 2), (3,)) for picture in ("reconstruction", "+1") for i in batch
    ]
    for picture, columns in result["summary"].items():
        for metric, cell in columns.items():
            column = [float(row[metric]) for row in table if row["picture"] == picture]
            assert cell["n"] == len(column) == 4
            assert cell["mean"] == pytest.approx(sum(column) / 4)
            assert cell["standard_error"] == pytest.approx(torch.tensor(column).std().item() / 2, rel=1e-4)
    told = capsys.readouterr().out
    assert f"{result['summary']['+1']['S_dir']['mean']:.3g} ± " in told
    assert "| metric " in told
    assert f'"face" -> "smiling face", CLIP {result["settings"]["clip"]}: mean ± standard error' in told


def test_missing_metrics_are_omitted_with_advice(run_learned, results, capsys):
    assert run_learned(*EVALUATE) == 0
    result, told = found(results), capsys.readouterr().out
    assert set(result["left_out"]) == {
        "LPIPS",
        "segmentation consistency",
        "identity",
        "FID",
        "KID, Fréchet distance",
    }
    assert "31 pixels or more" in result["left_out"]["LPIPS"]
    assert "give --segmenter" in result["left_out"]["segmentation consistency"]
    assert "model_ir_se50.pth is missing: download it with python scripts/download.py ir_se50" in result["left_out"]["identity"]
    assert "scripts/download.py fid_inception" in result["left_out"]["FID"]
    assert "--n_test_img 500" in result["left_out"]["KID, Fréchet distance"]
    for name, reason in result["left_out"].items():
        assert f"not measured: {name}: {reason}" in told
    measured = {metric for columns in result["summary"].values() for metric in columns}
    assert not any("LPIPS" in metric or "identity" in metric or "segment" in metric for metric in measured)
    assert result["distances"] == {}


def test_latents_in_the_cache_are_not_inverted_again(run_learned, results, monkeypatch):
    assert run_learned(*TEST) == 0

    def never(*args):
        raise AssertionError("inverted again")

    monkeypatch.setattr(process, "invert", never)
    assert run_learned(*EVALUATE) == 0
    assert (results / "evaluation.json").exists()


def test_pictures_and_metrics_share_one_generation(run_learned, results, generated):
    assert run_learned(*TEST, "--evaluate", "--bs_test", "2") == 0
    assert len(generated) == 2  # the reconstruction and the edit
    assert (results / "test_images" / "4" / "all.png").exists()
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "S_dir, no templates" in page
    assert "Not measured: identity" in page
    assert {"settings_evaluate.yml", "settings_test.yml"} <= set(names(results))


def test_metrics_alone_draw_no_pictures(run_learned, results):
    assert run_learned(*EVALUATE) == 0
    assert not (results / "test_images").exists()
    assert "S_dir, no templates" in (results / "report.html").read_text(encoding="utf-8")


def test_training_can_end_in_an_evaluation(run, results):
    assert run("--run_train", "--evaluate", *SMILE, "--do_test", "0") == 0
    assert list(found(results)["summary"]) == ["reconstruction", "+1"]


def test_report_marks_metrics_older_than_training(run_learned, results):
    def page():
        assert run_learned(*EVALUATE, "--n_test_img", "1") == 0
        return (results / "report.html").read_text(encoding="utf-8")

    assert "older than the training" not in page()
    path = results / "settings_train.yml"
    path.write_text(yaml.safe_dump({**settings(results, "train"), "date": "2999-01-01T00:00:00"}))
    assert "These figures are older than the training below" in page()


def test_every_strength_is_measured(run_learned, results):
    assert run_learned(*EVALUATE, *STRENGTHS, "--bs_test", "2") == 0
    result = found(results)
    assert list(result["summary"]) == ["reconstruction", "-1", "+0", "+1"]
    assert values(results, "+0", "S_dir from the reconstruction") == pytest.approx([0, 0], abs=1e-5)
    assert values(results, "-1", "S_dir") != values(results, "+1", "S_dir")


def test_prompts_come_from_the_direction(run_learned, results, monkeypatch):
    flags = ("--evaluate", "--train_delta_block", "--get_h_num", "1")
    assert run_learned(*flags) == 0
    assert found(results)["settings"]["prompts"] == ["face", "smiling face"]
    # A published direction knows none.
    [path] = (results.parents[1] / "checkpoint").glob("*.pth")
    contents = torch.load(path, weights_only=True)
    torch.save({"0": contents["0"]}, path)
    assert run_learned.error(*flags).startswith("--evaluate needs the prompts of the edit: give --edit_attr")


def test_flags_that_contradict_evaluation(run):
    assert "disables it" in run.error("--evaluate", *SMILE, "--pass_editing")
    assert "leave out --multiple_attr" in run.error("--evaluate", "--train_delta_block", "--multiple_attr", "a b")
    assert run.error(*TEST, "--segmenter", "x.pt") == "--segmenter needs --evaluate or --edit_region"
    assert "give --get_h_num 1" in run.error("--evaluate", "--get_h_num", "0", "--edit_attr", "smiling")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_segmenter_flag(run_learned, results, tmp_path):
    torch.jit.script(Halves()).save(str(tmp_path / "halves.pt"))
    assert run_learned(*EVALUATE, "--segmenter", "halves.pt") == 0
    result = found(results)
    assert result["settings"]["segmenter"] == "halves.pt"
    kept = values(results, "+1", "segments kept, pixels")
    assert all(0 < share < 1 for share in kept)
    assert "neither a file nor a segmentation model of torchvision" in run_learned.error(*EVALUATE, "--segmenter", "gone.pt")


def test_distances_with_images_enough(run_learned, results, tiny, monkeypatch):
    monkeypatch.setattr(gauges, "LEAST", 4)
    assert run_learned(*EVALUATE, "--n_test_img", "4") == 0
    result = found(results)
    measured = result["distances"]["+1"]
    assert set(measured) == {"Fréchet distance, CLIP", "KID, CLIP"}
    assert measured["KID, CLIP"]["subset_size"] == 2
    assert all(cell["n"] == 4 and math.isfinite(cell["value"]) for cell in measured.values())
    assert "KID, Fréchet distance" not in result["left_out"]


@pytest.mark.slow
def test_default_stack_is_evaluated(tiny, tmp_path, monkeypatch):
    """Judge, segmenter, CLIP and LPIPS of avatar.yml on two drawn faces, by a direction that ships."""
    monkeypatch.chdir(tmp_path)
    render.render_folder("test", 2, tmp_path / "faces", size=32, workers=1)
    flags = ["--config", "avatar.yml", "--model_path", ROOT / "pretrained/avatar/ddpm.pt", "--clip_model_name"]
    flags += [ROOT / "pretrained/avatar/clip.json", "--custom_test_dataset_dir", "faces", "--n_test_step", "4"]
    flags += ["--n_inv_step", "4", "--n_train_step", "4", "--exp", "runs/smile", "--train_delta_block", "--get_h_num", "1"]
    flags += ["--manual_checkpoint_name", ROOT / "pretrained/avatar/directions/smiling.pth", "--bs_test", "2"]
    assert call(tiny, "--evaluate", *flags) == 0
    [results] = (tmp_path / "runs").iterdir()
    result = found(results)
    assert set(result["left_out"]) == {"identity", "FID", "KID, Fréchet distance"}
    assert {"judge: expression smiling", "judge: hair kept", "segments kept, mean IoU", "S_dir"} <= set(result["summary"]["+1"])
    # Other prompts than those of its attributes: the judge says what it knows.
    assert call(tiny, "--evaluate", *flags, "--src_txts", "face", "--trg_txts", "green face") == 0
    assert "it only judges avatar_smiling, avatar_sad" in found(results)["left_out"]["judge"]
