"""scripts/analyze.py, the whole script on a tiny U-Net."""

import json
import sys

import pytest
import torch
from tiny_world import DDPM, DEVICE, write_images, write_unet

import asyrp
from asyrp import directions as saved
from asyrp import hspace
from utils.files import ROOT
from utils.terminal import guarded

sys.path.insert(0, str(ROOT / "scripts"))

import analyze
from analysis import claims, report


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """A U-Net of 32 px, which LPIPS needs, with images and two directions -> (folder, call of the script)."""
    folder = tmp_path_factory.mktemp("analysis")
    write_unet(folder, "ddpm", DDPM, size=32)
    write_images(folder / "images", 4, seed=5)
    model = asyrp.open_model(folder / "ddpm.yml", folder / "ddpm.pt", DEVICE)
    for i, name in enumerate(("smile", "frown")):
        torch.manual_seed(i)
        record = {"prompts": ["face", f"{name} face"], "t_edit": 500, "n_train_step": 4}
        block = hspace.BlockDirection(model.unet.new_delta_block())
        saved.save(saved.Direction(block, record, name), folder / f"{name}.pth")
    given = ["--config", folder / "ddpm.yml", "--model_path", folder / "ddpm.pt", "--images", folder / "images"]
    given += ["--clip_model_name", tiny.clip, "--n", 2, "--steps", 4, "--t_boost", 300, "--device", DEVICE, "--out", "out"]
    directions = ["--direction", *(f"{name}={folder / name}.pth" for name in ("smile", "frown"))]

    def call(*flags, directions=directions):
        return guarded(analyze.main, list(map(str, [*given, *directions, *flags])))

    return call


def test_script_writes_every_claim(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert world("--claims", 2, 7) == 0
    assert world("--claims", 1, 3, 4, 5, 6) == 0  # finds the first two in the report
    found = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
    assert list(found["claims"]) == [str(number) for number in claims.CLAIMS]
    text = (tmp_path / "out/report.md").read_text()
    for number, claim in claims.CLAIMS.items():
        entry = found["claims"][str(number)]
        assert list(entry["results"]) == (["smile + frown"] if claim.together else ["smile", "frown"])
        assert claim.criterion in text
        for file in (entry["figure"], *(result["faces"] for result in entry["results"].values())):
            assert (tmp_path / "out" / file).stat().st_size > 1000
            assert f"]({file})" in text
    assert 'S_dir, reconstruction to edited, "face" to "smile face"' in text
    assert f"1 asymmetry: {report.verdict(found['claims']['1']['results']).strip('*')}" in capsys.readouterr().out
    # Other settings, another report.
    assert world("--claims", 2, "--seed", 7) == 0
    assert list(json.loads((tmp_path / "out/report.json").read_text())["claims"]) == ["2"]


def test_finished_claims_are_kept(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def failing(subject):
        raise RuntimeError

    monkeypatch.setitem(claims.CLAIMS, 5, claims.Claim("broken", "", "", failing, None))
    with pytest.raises(RuntimeError):
        world("--claims", 2, 5)
    assert list(json.loads((tmp_path / "out/report.json").read_text())["claims"]) == ["2"]


def test_script_errors_name_what_is_missing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = {
        "4 images without smile, but 10 are needed": ["--n", 5, "--claims", 2],
        "two images": ["--n", 1],
        "no faces: render them": ["--config", "avatar.yml", "--images", tmp_path / "none"],
    }
    for message, flags in cases.items():
        assert world(*flags) == 2
        assert message in capsys.readouterr().err
    assert world(directions=[]) == 2
    assert "give --direction NAME=CHECKPOINT" in capsys.readouterr().err
