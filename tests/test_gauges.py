"""The gauges of --evaluate, each with a network whose answers are known."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluations import Halves, found, rows
from tiny_world import smooth_images

from asyrp.config import ROOT
from asyrp.data.pairs import Batch
from asyrp.evaluation import gauges, metrics
from asyrp.evaluation.evaluation import Evaluation
from asyrp.evaluation.segmenter import open_segmenter
from models.judge import load_judge
from utils.errors import UserError

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import masks


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


def test_judge_measures_images_without_the_attribute():
    gauge = gauges.Judged(Colours(), ("bright", "yes"), ["bright", "red"])
    original = flat((-1, -1, -1), (1, -1, -1), (1, 1, 1))
    before = gauge.before(original, original)
    assert before["judge: bright yes"] == [0, 0, None]
    after = gauge.after("+1", flat((-1, 1, 1), (-1, 1, 1), (-1, -1, -1)))
    assert after["judge: bright yes"] == [1, 1, None]
    assert after["judge: red kept"] == [1, 0, None]
    assert "judge: bright kept" not in after
    assert after["judge: probability of bright yes"][0] > 0.99


def test_edit_precision_ratio_of_logits():
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


def test_shipped_segmenter_on_artwork():
    faces, drawn = zip(*(masks.face_and_mask(i, "test", 32) for i in range(3)), strict=True)
    drawn = torch.from_numpy(np.stack(drawn))
    segment = open_segmenter(ROOT / "pretrained/avatar/segmenter.pt", "cpu")
    read = segment(torch.from_numpy(np.stack(faces)) / 127.5 - 1)
    assert (read == drawn).float().mean() > 0.98
    # Hair is above the mouth in every face.
    hair, mouth = (list(masks.SEGMENTS).index(name) for name in ("hair", "mouth"))
    for face in drawn:
        assert (face == hair).nonzero()[:, 0].min() < (face == mouth).nonzero()[:, 0].min()


def test_monotone_score_is_reported():
    def evaluation_of(*brightness):
        evaluation = Evaluation({"judge": lambda: gauges.Judged(Colours(), ("bright", "yes"), [])}, {}, "cpu")
        dark = flat((-1, -1, -1))
        edits = [(f"{b:+g}", flat((b, b, b))) for b in brightness]
        evaluation.add(Batch([0], ["a.png"], dark, dark), [("reconstruction", dark)], edits)
        return evaluation.result()["monotone"]

    assert evaluation_of(-1, 0, 1) == {"judge: probability of bright yes": True}
    assert evaluation_of(0, -1, 1) == {"judge: probability of bright yes": False}


def test_metrics_of_only_some_batches(tmp_path):
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


@pytest.mark.slow
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


def test_judge_without_labels(tmp_path):
    torch.save({"model": {}}, tmp_path / "judge.pt")
    with pytest.raises(UserError, match=r"judge\.pt is not a judge"):
        load_judge(tmp_path / "judge.pt")


@pytest.mark.parametrize("labels", [3, ["hair"], {"hair": 3}, {"a.b": ["x"]}, {"hair": []}, {3: ["x"]}, {"": ["x"]}])
def test_judge_with_damaged_labels(tmp_path, labels):
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
def test_judge_without_the_label_or_class(aims, kept, said):
    with pytest.raises(UserError, match=said):
        load_judge(ROOT / "pretrained/avatar/judge.pt", "cpu", aims, kept)
