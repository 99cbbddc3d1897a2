"""scripts/download.py: what it lists, fetches and says; and that every published file is known to it."""

import sys

import pytest
import torch
from local_server import WEIGHTS, begun
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from asyrp.config import ROOT, load_config
from configs import paths_config
from models import build_unet
from models.irse import IRSE50
from utils import download
from utils.weights import PUBLISHED

sys.path.insert(0, str(ROOT / "scripts"))

import download as script


@pytest.fixture
def command(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return script.main


def table(capsys):
    """--list -> {name: its line}"""
    capsys.readouterr()
    assert script.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines if not line.startswith(" ")}, lines


def test_list(command, server, tmp_path, capsys):
    rows, lines = table(capsys)
    models = {"afhq", "bedroom", "celeba", "church", "custom", "ffhq", "imagenet", "metface"}
    models |= {"celeba_p2", "ffhq_p2", "afhq_p2", "cub_p2", "flower_p2"}
    assert set(rows) == models | {"ir_se50", "fid_inception", "deltas", "name"}
    assert rows["celeba"].split()[1:4] == ["missing", "~3", "MB"]
    assert rows["celeba"].endswith(str(tmp_path / "pretrained" / "celeba_hq.ckpt"))
    assert f"            {server.url('/first.pt')}" in lines
    begun(tmp_path / "pretrained" / "celeba_hq.ckpt", server.url("/first.pt"), WEIGHTS[:1_200_000])
    assert "incomplete (1.2 MB)" in table(capsys)[0]["celeba"]
    assert command(["celeba"]) == 0
    assert table(capsys)[0]["celeba"].split()[1:4] == ["present", "3", "MB"]


def test_existing_file_is_verified_and_not_downloaded(command, server, tmp_path, capsys):
    assert command(["celeba", "custom"]) == 0  # the same file
    assert len(server.asked) == 1
    assert "already exists" in capsys.readouterr().out
    (tmp_path / "pretrained" / "celeba_hq.ckpt").write_bytes(b"x")
    assert command(["celeba"]) == 1
    assert "has changed since it was downloaded" in capsys.readouterr().err


def test_one_failure_does_not_stop_the_others(command, closed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PUBLISHED, "FFHQ", PUBLISHED["FFHQ"]._replace(sources=(closed,)))
    assert command(["ffhq", "celeba"]) == 1
    assert "ffhq_10m.pt could not be downloaded (the connection to 127.0.0.1" in capsys.readouterr().err
    assert (tmp_path / "pretrained" / "celeba_hq.ckpt").exists()


@pytest.mark.parametrize(("arguments", "said"), [(["celebaa"], "the names are afhq, "), ([], ", or --list")])
def test_unknown_names_exit_2(command, server, arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        command(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def listing(server, monkeypatch):
    """A folder of directions in the form of GitHub's contents API."""
    names = ["smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth", "dog_happy_LC_dog_t999_ninv40_ngen40_0.pth", "README.md"]
    for name in names:
        server.files[f"/raw/{name}"] = b"PK\x03\x04" + name.encode()
    entries = [
        {"name": name, "path": f"checkpoint/{name}", "size": 4 + len(name), "download_url": server.url(f"/raw/{name}")}
        for name in names
    ]
    server.files["/contents/checkpoint"] = entries
    monkeypatch.setattr(download, "DIRECTIONS_LISTING", server.url("/contents/checkpoint"))
    return entries


def test_listed_directions_are_downloaded(command, listing, server, tmp_path, capsys):
    assert command(["deltas"]) == 0
    names = {p.name for p in (tmp_path / "checkpoint").iterdir()}
    assert names == {entry["name"] for entry in listing[:2]} | {"sha256.json"}
    server.asked.clear()
    assert command(["deltas"]) == 0
    assert server.asked == [("/contents/checkpoint", None)]
    assert "2 present" in table(capsys)[0]["deltas"]


def test_missing_direction_is_named_and_the_others_downloaded(command, listing, server, tmp_path, capsys):
    server.answers[f"/raw/{listing[0]['name']}"] = 404
    assert command(["deltas"]) == 1
    assert f"returned 404): get checkpoint/{listing[0]['name']} from" in capsys.readouterr().err
    assert (tmp_path / "checkpoint" / listing[1]["name"]).exists()


@pytest.mark.parametrize("answer", ["403", "unexpected response", b"no JSON", "the connection"])
def test_missing_listing_error_says_what_to_do(command, listing, server, answer, closed, monkeypatch, capsys):
    server.files["/contents/checkpoint"] = answer if isinstance(answer, bytes) else [{"message": "moved"}]
    if answer == "403":
        server.answers["/contents/checkpoint"] = 403
    elif answer == "the connection":
        monkeypatch.setattr(download, "DIRECTIONS_LISTING", closed)
    assert command(["deltas"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the list of published directions is not available" in line
    assert ("unexpected response" if isinstance(answer, bytes) else answer) in line
    assert "get the files in the folder checkpoint from https://github.com/" in line


def network_of(name, monkeypatch):
    """The network, without values, that scripts/download.py fetches under this name."""
    with torch.device("meta"), monkeypatch.context() as patch:
        if name == "ir_se50":
            return IRSE50()
        if name == "fid_inception":
            patch.setattr(torch, "load", lambda *args, **kwargs: {})
            patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
            return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
        return build_unet(load_config(name))


def test_every_published_file_has_a_place_and_the_size_of_its_network(monkeypatch):
    places = [*paths_config.PLACES.values(), paths_config.IR_SE50, paths_config.FID_INCEPTION]
    names = {place.name for place in places}
    assert set(PUBLISHED) <= names
    assert names - set(PUBLISHED) == {"AVATAR", "AVATAR64"}
    for name, place in script.known_places().items():
        network = network_of(name, monkeypatch)
        assert sum(p.numel() for p in network.parameters()) == PUBLISHED[place.name].parameters, name
