"""main.py --evaluate: the metrics of a direction, on the tiny world; and its gauges, each with a network of known answers."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny_world import DEVICE, SMILE, TEST, call, names, settings, smooth_images
from torch import nn

from asyrp import process
from asyrp.config import ROOT
from asyrp.data.datasets import ImageFolder
from asyrp.data.pairs import Batch
from asyrp.evaluation import gauges, metrics
from asyrp.evaluation.evaluation import Evaluation
from asyrp.evaluation.segmenter import open_segmenter
from losses.clip_loss import ClipLoss
from models.judge import load_judge
from utils.errors import UserError

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import masks
import render

EVALUATE = ("--evaluate", *SMILE)
STRENGTHS = ("--delta_interpolation", "--min_delta", "-1", "--max_delta", "1", "--num_delta", "3")


def found(results):
    """evaluation.json, which must be JSON in the strict sense."""
    return json.loads((results / "evaluation.json").read_text(), parse_constant=pytest.fail)


def rows(results):
    """evaluation.csv"""
    with (results / "evaluation.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def values(results, picture, metric):
    """One column of evaluation.csv, of one of the pictures."""
    return [float(row[metric]) for row in rows(results) if row["picture"] == picture]


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


def test_the_summary_is_that_of_the_rows(run_learned, results, capsys):
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


def test_what_is_missing_is_left_out_with_the_remedy(run_learned, results, capsys):
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


def test_one_generation_serves_pictures_and_metrics(run_learned, results, generated):
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


def test_metrics_that_are_older_than_the_training_are_called_so(run_learned, results):
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


# ---- gauges -----------------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Segment 1 where a pixel is above zero."""

    def forward(self, images):
        mean = images.mean(1, keepdim=True)
        return torch.cat([-mean, mean], 1)


class Colours:
    """A judge that sees two labels: bright (the mean is above zero) and red (the first channel is above zero)."""

    labels = {"bright": ("no", "yes"), "red": ("no", "yes")}

    def read(self, images):
        return {"bright": self._sure(images.mean((1, 2, 3))), "red": self._sure(images[:, 0].mean((1, 2)))}

    def named(self, read):
        return {label: [self.labels[label][i] for i in p.argmax(1).tolist()] for label, p in read.items()}

    def _sure(self, x):
        return torch.stack([-10 * x, 10 * x], 1).softmax(1)


def flat(*colours):
    """Images of one colour each."""
    return torch.tensor(colours, dtype=torch.float32).view(-1, 3, 1, 1).expand(-1, -1, 8, 8).clone()


def test_the_judge_looks_at_what_lacks_the_attribute():
    gauge = gauges.Judged(Colours(), ("bright", "yes"), ["bright", "red"])
    original = flat((-1, -1, -1), (1, -1, -1), (1, 1, 1))
    before = gauge.before(original, original)
    assert before["judge: bright yes"] == [0, 0, None]
    after = gauge.after("+1", flat((-1, 1, 1), (-1, 1, 1), (-1, -1, -1)))
    assert after["judge: bright yes"] == [1, 1, None]
    assert after["judge: red kept"] == [1, 0, None]
    assert "judge: bright kept" not in after
    assert after["judge: probability of bright yes"][0] > 0.99


def test_the_edit_precision_ratio_is_of_logits_aimed_at_and_others():
    dark, both, bright = flat((-1, -1, -1)), flat((1, 1, 1)), flat((-0.5, 1, 1))
    ratios = []
    for edited in (both, bright):
        evaluation = Evaluation({"judge": lambda: gauges.Judged(Colours(), ("bright", "yes"), [])}, {}, "cpu")
        evaluation.add(Batch([0], ["a.png"], dark, dark), [("reconstruction", dark)], [("+1", edited)])
        distances = evaluation.result()["distances"]
        assert "reconstruction" not in distances
        ratios.append(distances["+1"]["EPR"]["value"])
        assert distances["+1"]["EPR"]["n"] == 1
    assert ratios[0] < 2 < ratios[1]  # what turns red as well is the less precise edit
    assert metrics.edit_precision_ratio(3.0, 1.5) == 2 and metrics.edit_precision_ratio(1.0, 0.0) is None
    odds = metrics.log_odds(torch.tensor([0.0, 0.5, 0.75, 1.0]))
    assert odds.isfinite().all() and odds[1] == 0 and odds[2].item() == pytest.approx(math.log(3))


def test_identity(monkeypatch):
    class Recogniser:
        def __init__(self, *args):
            pass

        def embed(self, images):
            return F.normalize(images.mean((2, 3)))

    monkeypatch.setattr(gauges, "IdLoss", Recogniser)
    monkeypatch.setattr(gauges, "weights_of", lambda place: None)
    gauge = gauges.Identity("cpu")
    original = flat((1, 0, 0), (0, 1, 0))
    assert gauge.before(original, 0.5 * original)["identity"].tolist() == pytest.approx([1, 1])
    assert gauge.after("+1", flat((0, 1, 0), (0, 1, 1)))["identity"].tolist() == pytest.approx([0, 0.5**0.5])


def test_lpips():
    gauge, images = gauges.Lpips("cpu"), smooth_images(2, size=32)
    assert gauge.before(images, images)["LPIPS to the original"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (gauge.after("+1", -images)["LPIPS to the reconstruction"] > 0.05).all()


def test_segments():
    gauge = gauges.Segments(lambda images: Halves()(images).argmax(1))
    images = flat((1, 1, 1), (-1, -1, -1))
    images[0, :, 0] = -1
    assert gauge.before(images, images)["segments kept, mean IoU"].tolist() == [1, 1]
    after = gauge.after("+1", images.flip(2))
    assert after["segments kept, pixels"].tolist() == [0.75, 1]
    assert after["segments kept, mean IoU"].tolist() == pytest.approx([6 / 8 / 2, 1])


def test_the_segmenter_that_ships_sees_the_artworks_parts():
    faces, drawn = zip(*(masks.face_and_mask(i, "test", 32) for i in range(3)), strict=True)
    drawn = torch.from_numpy(np.stack(drawn))
    segment = open_segmenter(ROOT / "pretrained/avatar/segmenter.pt", "cpu")
    read = segment(torch.from_numpy(np.stack(faces)) / 127.5 - 1)
    assert (read == drawn).float().mean() > 0.98
    # Hair is above the mouth in every face.
    hair, mouth = (list(masks.SEGMENTS).index(name) for name in ("hair", "mouth"))
    for face in drawn:
        assert (face == hair).nonzero()[:, 0].min() < (face == mouth).nonzero()[:, 0].min()


def test_a_monotone_score_is_told():
    def evaluation_of(*brightness):
        evaluation = Evaluation({"judge": lambda: gauges.Judged(Colours(), ("bright", "yes"), [])}, {}, "cpu")
        dark = flat((-1, -1, -1))
        edits = [(f"{b:+g}", flat((b, b, b))) for b in brightness]
        evaluation.add(Batch([0], ["a.png"], dark, dark), [("reconstruction", dark)], edits)
        return evaluation.result()["monotone"]

    assert evaluation_of(-1, 0, 1) == {"judge: probability of bright yes": True}
    assert evaluation_of(0, -1, 1) == {"judge: probability of bright yes": False}


def test_metrics_that_come_late_or_end_early_have_a_column_or_leave_it_empty(tmp_path):
    """Of n images memory holds no rows; the file on disk is there when it is whole."""

    class Ends:
        name = "ends"

        def before(self, original, reconstruction):
            if original.mean() > 0:
                raise UserError("this image cannot be measured")
            return {"a": [1.0], "b": [None]}

        def after(self, label, edited):
            return {"a": [2.0], "c": [3.0]}

    class Stays(Ends):
        name = "stays"

        def before(self, original, reconstruction):
            return {"d": [4.0]}

        def after(self, label, edited):
            return {"d": [5.0]}

    evaluation = Evaluation({"ends": Ends, "stays": Stays}, {"prompts": ("a", "b"), "clip": "c"}, "cpu", tmp_path)
    for name, brightness in (("1.png", -1), ("2.png", 1), ("3\udcff.png", -1)):
        image = flat((brightness,) * 3)
        evaluation.add(Batch([0], [name], image, image), [("reconstruction", image)], [("+1", image)])
        assert not (tmp_path / "evaluation.csv").exists()
    evaluation.save()
    table = rows(tmp_path)
    assert list(table[0]) == ["image", "picture", "a", "b", "d", "c"]
    assert [row["image"] for row in table] == ["1.png", "1.png", "2.png", "2.png", "3\\xff.png", "3\\xff.png"]
    assert [(row["a"], row["b"], row["c"], row["d"]) for row in table] == [
        ("1.0", "", "", "4.0"),
        ("2.0", "", "3.0", "5.0"),
        *[("", "", "", "4.0"), ("", "", "", "5.0")] * 2,
    ]
    result = found(tmp_path)
    assert result["left_out"] == {"ends": "this image cannot be measured"}
    assert result["summary"]["+1"]["c"] == {"mean": 3, "standard_error": None, "n": 1}
    assert "b" not in result["summary"]["reconstruction"]


def test_inception(tmp_path, monkeypatch):
    """FID with random weights in torch-fidelity's layout: the real ones are 95 MB."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    path = tmp_path / "inception.pth"
    monkeypatch.setattr(gauges, "weight_file", lambda place: path)
    with pytest.raises(UserError, match=r"is missing: download it with python scripts/download\.py fid_inception"):
        gauges.Inception("cpu")
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="does not contain torch-fidelity's Inception"):
        gauges.Inception("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        random = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(random.state_dict(), path)
    monkeypatch.setattr(gauges, "LEAST", 3)
    gauge, images = gauges.Inception("cpu"), smooth_images(3, size=32)
    gauge.before(images, images)
    gauge.after("same", images)
    gauge.after("other", -images)
    distances = gauge.distances()
    [same], [other] = (distances[label].values() for label in ("same", "other"))
    assert same["value"] == pytest.approx(0, abs=1e-3)
    assert other["value"] > 10 * abs(same["value"])


def test_a_judge_without_labels(tmp_path):
    torch.save({"model": {}}, tmp_path / "judge.pt")
    with pytest.raises(UserError, match=r"judge\.pt is not a judge"):
        load_judge(tmp_path / "judge.pt")


@pytest.mark.parametrize("labels", [3, ["hair"], {"hair": 3}, {"a.b": ["x"]}, {"hair": []}, {3: ["x"]}, {"": ["x"]}])
def test_a_judge_with_damaged_labels(tmp_path, labels):
    torch.save({"model": {}, "labels": labels}, tmp_path / "judge.pt")
    with pytest.raises(UserError):
        load_judge(tmp_path / "judge.pt")


@pytest.mark.parametrize(
    ("aims", "kept", "said"),
    [
        ([("nose", "long")], [], "has no label nose: use one of "),
        ([("expression", "bored")], [], "has no class bored for the label expression: use one of "),
        ([("expression", "smiling")], ["hair", "nose"], "has no label nose"),
    ],
)
def test_a_judge_that_does_not_know_what_it_is_to_judge(aims, kept, said):
    with pytest.raises(UserError, match=said):
        load_judge(ROOT / "pretrained/avatar/judge.pt", "cpu", aims, kept)


def test_the_default_stack_is_evaluated(tiny, tmp_path, monkeypatch):
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
    assert "it judges avatar_smiling, avatar_sad" in found(results)["left_out"]["judge"]
