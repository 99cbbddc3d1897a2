"""The default stack as it ships: faces, U-Net, CLIP, judge and directions, on a few faces that are drawn here."""

import json
import random
import sys

import numpy as np
import pytest
import torch
from tiny_world import DEVICE

import asyrp
from asyrp import directions
from asyrp.config import load_config
from asyrp.data.datasets import ImageFolder
from losses.clip_loss import ClipLoss
from models.judge import load_judge
from utils.errors import UserError
from utils.files import ROOT
from utils.terminal import guarded
from utils.text_dic import PROMPTS

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import evaluate
import looks
import render
from looks import HAIR, LOOK, SKIN

STACK = ROOT / "pretrained" / "avatar"
N = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Test faces, with labels.csv."""
    folder = tmp_path_factory.mktemp("faces")
    render.render_folder("test", N, folder, size=32, workers=1)
    return folder


@pytest.fixture(scope="module")
def faces(folder):
    """-> (images (N, 3, 32, 32), rows of labels.csv)."""
    dataset = ImageFolder(folder, 32)
    return torch.stack([dataset[i] for i in range(N)]), render.read_labels(folder)


@pytest.fixture(scope="module")
def model():
    return asyrp.open_model("avatar.yml", STACK / "ddpm.pt", DEVICE)


@pytest.fixture(scope="module")
def judge():
    return load_judge(STACK / "judge.pt", DEVICE)


def test_face_is_decided_by_its_split_and_index():
    (a, labels), (b, again) = render.render_face("test", 3, 32), render.render_face("test", 3, 32)
    assert (a.tobytes(), labels) == (b.tobytes(), again)
    assert a.tobytes() != render.render_face("train", 3, 32)[0].tobytes()
    assert a.tobytes() != render.render_face("test", 4, 32)[0].tobytes()


def test_glasses_change_nothing_else_of_a_face():
    with_glasses, without = (render.render_face("test", 3, 32, LOOK._replace(glasses=share)) for share in (1.0, 0.0))
    assert (with_glasses[1]["glasses"], without[1]["glasses"]) == ("yes", "no")
    assert with_glasses[1] | {"glasses": "no"} == without[1]
    changed = (np.asarray(with_glasses[0]) != np.asarray(without[0])).any(2)
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    # A band over the eyes, in the middle of the picture.
    assert rows.min() > 8 and rows.max() < 24 and rows.max() - rows.min() < 12
    assert columns.max() - columns.min() > 12
    share = sum(render.draw_labels("test", i, 0.25)[0]["glasses"] == "yes" for i in range(400)) / 400
    assert 0.18 < share < 0.32


def test_grain_belongs_to_the_face():
    image, _ = render.render_face("test", 3, 32, LOOK._replace(grain=0.0))
    grained, again, other = (looks.with_grain(image, "test", i, 0.02) for i in (3, 3, 4))
    assert grained.tobytes() == again.tobytes() != other.tobytes()
    change = (np.asarray(grained).astype(float) - np.asarray(image)) / 127.5
    # One part per size, all alike and independent of each other.
    assert change.std() == pytest.approx(0.02 * len(looks.GRAIN_SIZES) ** 0.5, rel=0.2) and abs(change.mean()) < 0.02


def test_colours_vary_but_stay_nearest_to_their_label():
    rng = random.Random(0)
    for colours in (HAIR, SKIN):
        points = {name: np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) for name, colour in colours.items()}
        for name in colours:
            found = [LOOK.shade(colours, name, rng) for _ in range(200)]
            assert len(set(found)) > 100
            for colour in found:
                point = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
                assert min(points, key=lambda other: np.abs(points[other] - point).sum()) == name


def test_folder_drawn_with_other_settings_is_refused(tmp_path):
    folder = tmp_path / "faces"
    render.render_folder("test", 3, folder, 32, 1)
    before = (folder / "labels.csv").stat()
    render.render_folder("test", 3, folder, 32, 1)
    assert (folder / "labels.csv").stat() == before
    for split, size, look in (("test", 32, LOOK._replace(blend=0.3)), ("test", 64, LOOK), ("train", 32, LOOK)):
        with pytest.raises(UserError, match="other settings"):
            render.render_folder(split, 3, folder, size, 1, look)
    (folder / "look.json").unlink()  # as in a folder from before there was this file
    with pytest.raises(UserError, match="other settings"):
        render.render_folder("test", 3, folder, 32, 1)


def test_judge_reads_every_label(faces, judge):
    images, rows = faces
    for label, found in judge.names(images.to(DEVICE)).items():
        assert evaluate.percent(a == row[label] for a, row in zip(found, rows, strict=True)) > 90, label


def test_clip_tells_expressions_apart(faces):
    images, rows = faces
    clip = ClipLoss(STACK / "clip.json", DEVICE)
    names = render.LABELS["expression"]
    nearest = (clip.encode_images(images) @ clip.encode_text([f"{name} face" for name in names]).T).argmax(1)
    assert evaluate.percent(names[i] == row["expression"] for i, row in zip(nearest.tolist(), rows, strict=True)) > 80


def test_judge_knows_what_the_directions_aim_at(judge):
    about = load_config("avatar.yml").judge
    # The judge and CLIP know long hair and tanned skin, too; no direction for them ships yet.
    assert directions.shipped("AVATAR").keys() == about.by_direction().keys() - {"long_hair", "tanned"}
    for attribute, (label, wanted) in about.aims.items():
        assert wanted in judge.labels[label]
        assert attribute in PROMPTS
    assert set(about.kept) < set(judge.labels)
    assert judge.labels == render.LABELS


def test_inversion_and_generation_keep_a_face_and_a_direction_changes_it(faces, model, judge):
    images, rows = faces
    chosen = [i for i, row in enumerate(rows) if row["expression"] != "smiling"][:6]
    originals = images[chosen].to(DEVICE)
    x_T = model.invert(originals, n_steps=30)
    assert (model.generate(x_T, n_steps=30) - originals).square().mean() < 0.01
    # By its path: a name could be one of checkpoint/.
    edited = model.edit(x_T, asyrp.load_direction(STACK / "directions" / "smiling.pth", model), n_steps=30)
    smiling = render.LABELS["expression"].index("smiling")
    before, after = (judge.read(shown)["expression"][:, smiling].mean() for shown in (originals, edited))
    assert before < 0.1
    assert after > 0.5


@pytest.mark.parametrize("name", directions.shipped("AVATAR"))
def test_direction_that_ships_says_how_it_was_made(name, model):
    direction = asyrp.load_direction(directions.shipped("AVATAR")[name], model)
    record = direction.record
    assert tuple(record["prompts"]) == PROMPTS[f"avatar_{name}"]
    assert direction.kind == "delta_block"
    assert record["model"]["identity"] == model.identity
    assert (record["t_0"], record["n_inv_step"], record["n_train_step"]) == (999, 40, 40)
    assert 0 < record["t_edit"] < 999


def test_report_shows_what_falls_short():
    scores = dict.fromkeys(evaluate.STRENGTHS, 0.5)
    sad = {"n": 4, "t_edit": 300, "success": 25.0, "kept": {"hair": 75.0}, "background_moved": 0.03}
    sad |= {"scores": scores, "monotone": False}
    hat = {**sad, "kept": {"hair": 75.0, "skin": 50.0}, "monotone": True}
    report = {"settings": {"strip_count": 2}, "directions": {"sad": sad, "hat": hat}}
    report["plain"] = {"n": 4, "kept": {"hair": 50.0}, "kept_all": 50.0}
    table = evaluate.as_markdown(report)
    assert "| sad | 4 | 300 | 25 % | 75 % |  | 0.030 |" in table
    assert "| hat | 4 | 300 | 25 % | 75 % | 50 % | 0.030 |" in table
    assert [line.rpartition("| ")[2] for line in table.splitlines()[-2:]] == ["no |", "yes |"]


# ---- evaluate.py ------------------------------------------------------------------------------------------------------------


def evaluated(folder, *flags):
    """The exit status of evaluate.py, on few faces and steps."""
    given = ["--images", folder, "--count", 4, "--strip_count", 2, "--steps", 4, "--batch_size", 3, "--out", "out"]
    return guarded(evaluate.main, [str(flag) for flag in [*given, "--device", DEVICE, *flags]])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_judged_is_what_the_library_edits(folder, faces, model, judge, here, capsys):
    images, rows = faces
    assert evaluated(folder, "--directions", f"sad={STACK / 'directions' / 'sad.pth'}") == 0
    report = json.loads((here / "out/report.json").read_text(), parse_constant=pytest.fail)
    assert report["settings"]["model"] == model.identity
    found = report["directions"]["sad"]
    direction = asyrp.load_direction(STACK / "directions" / "sad.pth", model)
    assert (found["t_edit"], found["direction"]) == (direction.record["t_edit"], direction.digest())
    chosen = [i for i, row in enumerate(rows) if row["expression"] != "sad"][:4]
    x_T, sad = model.invert(images[chosen], n_steps=4), render.LABELS["expression"].index("sad")
    for strength, score in found["scores"].items():
        # Ten times fewer steps than in training: the library makes each ten times as strong.
        edited = model.edit(x_T, direction, [float(strength)], n_steps=4)
        assert score == pytest.approx(judge.read(edited[:2])["expression"][:, sad].mean().item(), abs=1e-3)
    after = judge.names(model.edit(x_T, direction, n_steps=4))
    assert found["n"] == 4
    assert found["success"] == evaluate.percent(name == "sad" for name in after["expression"])
    kept = {key: evaluate.percent(after[key][k] == rows[i][key] for k, i in enumerate(chosen)) for key in found["kept"]}
    assert found["kept"] == kept
    assert set(kept) == {"hair", "skin", "beard", "long_hair", "glasses"}
    assert 0 < found["background_moved"] < 0.2
    # Inversion and plain generation of the first faces, whatever they show.
    plain = judge.names(model.generate(model.invert(images[:4], n_steps=4), n_steps=4))
    truth = {key: [row[key] for row in rows[:4]] for key in judge.labels}
    assert report["plain"]["kept"] == evaluate.keep_rates(truth, plain, judge.labels)
    text = (here / "out/report.md").read_text()
    assert text in capsys.readouterr().out
    assert {path.name for path in (here / "out").iterdir()} == {"sad.png", "overview.png", "report.json", "report.md"}


def test_colour_moved():
    before = torch.zeros(3, 3, 4, 4)
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :, 0] = masks[1, 0, :] = True  # the third has no background
    after = before.clone()
    after[0, :, :, 0], after[0, :, :, 1:] = 0.3, 1.0
    after[1, 0, 0] = 0.6
    assert evaluate.colour_moved(before, after, masks) == pytest.approx((0.3 + 0.6 / 3) / 2)


def test_direction_without_a_class_of_the_judge_is_only_drawn(folder, here, monkeypatch):
    monkeypatch.setitem(evaluate.PROMPTS, "avatar_sketch", ("face", "sketch of a face"))
    sad, sketch = (f"{name}={STACK / 'directions' / 'sad.pth'}" for name in ("sad", "sketch"))
    assert evaluated(folder, "--directions", sad, sketch) == 0
    assert set(json.loads((here / "out/report.json").read_text())["directions"]) == {"sad"}
    assert (here / "out/sketch.png").is_file()


def test_directions_that_ship_are_judged_by_default(here):
    judged = load_config("avatar.yml").judge.by_direction()
    found = evaluate.find_directions(None, judged, "AVATAR")
    names = ["smiling", "sad", "angry", "surprised", "beard", "blond_hair", "glasses"]
    assert found == {name: STACK / "directions" / f"{name}.pth" for name in names}
    assert list(found) == [name for name in judged if name in names]


def test_latents_are_reused(folder, here, monkeypatch):
    sad = ("--directions", f"sad={STACK / 'directions' / 'sad.pth'}")
    assert evaluated(folder, *sad) == 0
    table = (here / "out/report.md").read_text()

    def never(*args):
        raise AssertionError("inverted again")

    monkeypatch.setattr("asyrp.process.invert", never)
    assert evaluated(folder, *sad) == 0
    assert (here / "out/report.md").read_text() == table


def test_evaluate_errors(folder, here, capsys):
    def error(*flags, folder=folder):
        assert evaluated(folder, *flags) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "no labelled faces; draw them with scripts/avatar/render.py" in error(folder=here)
    assert "it names no judge" in error("--config", "celeba.yml")
    assert "give NAME=PATH with a name of smiling, sad" in error("--directions", "hat=hat.pth")
    assert "no direction gone.pth" in error("--directions", "sad=gone.pth")
    sad = ("--directions", f"sad={STACK / 'directions' / 'sad.pth'}")
    assert f"faces without sad, and --count is {N}: render more" in error("--count", N, *sad)
