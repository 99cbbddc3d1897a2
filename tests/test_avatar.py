"""The default stack as it ships: faces, U-Net, CLIP, judge and directions, on a few faces that are drawn here."""

import sys

import pytest
import torch

from asyrp import checkpoints, hspace, process
from asyrp.config import ROOT, load_config
from asyrp.data.datasets import ImageFolder
from losses.clip_loss import ClipLoss
from utils.text_dic import PROMPTS

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import evaluate
import render

STACK = ROOT / "pretrained" / "avatar"
N = 24


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """-> (images (N, 3, 32, 32), rows of labels.csv), test faces."""
    folder = tmp_path_factory.mktemp("faces")
    render.render_folder("test", N, folder, size=32, workers=1)
    dataset = ImageFolder(folder, 32)
    return torch.stack([dataset[i] for i in range(N)]), render.read_labels(folder)


@pytest.fixture(scope="module")
def unet():
    return checkpoints.load_unet(load_config("avatar.yml"), STACK / "ddpm.pt")


@pytest.fixture(scope="module")
def judge():
    return checkpoints.load_judge(STACK / "judge.pt")


def test_a_face_is_decided_by_its_split_and_index():
    (a, labels), (b, again) = render.render_face("test", 3, 32), render.render_face("test", 3, 32)
    assert (a.tobytes(), labels) == (b.tobytes(), again)
    assert a.tobytes() != render.render_face("train", 3, 32)[0].tobytes()
    assert a.tobytes() != render.render_face("test", 4, 32)[0].tobytes()


def test_the_judge_reads_every_label(faces, judge):
    images, rows = faces
    for label, found in judge.names(images).items():
        assert evaluate.percent(a == row[label] for a, row in zip(found, rows, strict=True)) > 90, label


def test_the_clip_tells_expressions_apart(faces):
    images, rows = faces
    clip = ClipLoss(STACK / "clip.json")
    names = render.LABELS["expression"]
    nearest = (clip.encode_images(images) @ clip.encode_text([f"{name} face" for name in names]).T).argmax(1)
    assert evaluate.percent(names[i] == row["expression"] for i, row in zip(nearest.tolist(), rows, strict=True)) > 80


def test_the_judge_knows_what_the_directions_aim_at(judge):
    about = load_config("avatar.yml").judge
    assert sorted(path.stem for path in (STACK / "directions").glob("*.pth")) == sorted(evaluate.DIRECTIONS)
    for attribute, (label, wanted) in vars(about.aims).items():
        assert wanted in judge.labels[label]
        assert attribute in PROMPTS
    assert set(about.kept) < set(judge.labels)
    assert judge.labels == render.LABELS


def test_inversion_and_generation_keep_a_face_and_a_direction_changes_it(faces, unet, judge):
    images, rows = faces
    chosen = [i for i, row in enumerate(rows) if row["expression"] != "smiling"][:6]
    schedule, steps = process.Schedule.linear(), process.timesteps(30, 999)
    x_T = process.invert(unet, images[chosen], schedule, steps)
    assert (process.generate(unet, x_T, schedule, steps) - images[chosen]).square().mean() < 0.01
    direction, contents = checkpoints.load_direction(STACK / "directions" / "smiling.pth", unet)
    edit = hspace.Edit([direction], [1.0])
    with torch.no_grad():
        edited = process.generate(unet, x_T, schedule, steps, edit=edit, t_edit=contents["settings"]["t_edit"])
    smiling = render.LABELS["expression"].index("smiling")
    before, after = (judge.read(shown)["expression"][:, smiling].mean() for shown in (images[chosen], edited))
    assert before < 0.1
    assert after > 0.5


@pytest.mark.parametrize("name", evaluate.DIRECTIONS)
def test_a_direction_has_the_published_form_and_says_how_it_was_made(name, unet):
    direction, contents = checkpoints.load_direction(STACK / "directions" / f"{name}.pth", unet)
    assert set(contents) == {"0", "optimizer", "scheduler", "settings"}
    assert tuple(contents["settings"]["prompts"]) == PROMPTS[f"avatar_{name}"]
    assert isinstance(direction, hspace.BlockDirection)


def test_the_report_shows_what_falls_short():
    scores = dict.fromkeys(evaluate.STRENGTHS, 0.5)
    sad = {"n": 4, "t_edit": 300, "success": 25.0, "kept": {"hair": 75.0}, "scores": scores, "monotone": False}
    report = {"settings": {"strip_count": 2}, "directions": {"sad": sad}}
    report["plain"] = {"n": 4, "kept": {"hair": 50.0}, "kept_all": 50.0}
    table = evaluate.as_markdown(report)
    assert "| sad | 4 | 300 | 25 % | 80 % | 75 % |" in table
    assert table.splitlines()[-1].endswith("| no |")
