import re
from types import SimpleNamespace

import pytest
import torch
from golden_unets import golden_weights, settings
from safetensors.torch import save_file

from asyrp import checkpoints
from asyrp.config import load_config
from models import build_unet
from utils.errors import UserError


def config(name):
    """Settings of a tiny golden U-Net, as `load_config` would give them."""
    sections = settings(name)
    return SimpleNamespace(
        data=SimpleNamespace(**sections["data"]),
        model=SimpleNamespace(**sections["model"]),
        path=SimpleNamespace(name=f"{name}.yml"),
    )


@pytest.fixture
def weights():
    return golden_weights("ddpm")[0]


def saved(contents, path):
    torch.save(contents, path)
    return path


def refused(name, path, complaint):
    """Loading must fail with one plain line that names the file."""
    with pytest.raises(UserError, match=complaint) as caught:
        checkpoints.load_unet(config(name), path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message


# ---- U-Net weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w},
        lambda w: {"ema": w},
        lambda w: {f"module.{key}": value for key, value in w.items()},
        lambda w: {"state_dict": {f"module.{key}": value for key, value in w.items()}},
        lambda w: {"ema": {"state_dict": w}},
        lambda w: {"model": {key: 0 * value for key, value in w.items()}, "ema": w},
    ],
    ids=["plain", "state_dict", "model", "ema", "module", "state_dict and module", "ema and state_dict", "model and ema"],
)
def test_the_usual_wrappings_load(weights, tmp_path, wrap):
    unet = checkpoints.load_unet(config("ddpm"), saved(wrap(weights), tmp_path / "w.pt"))
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())


def test_half_precision_becomes_float32(weights, tmp_path):
    half = {key: value.half() for key, value in weights.items()}
    unet = checkpoints.load_unet(config("ddpm"), saved(half, tmp_path / "half.pt"))
    for key, value in unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[key].float())


def test_weights_of_another_architecture(tmp_path):
    refused("ddpm", saved(golden_weights("iddpm")[0], tmp_path / "w.pt"), r"\d+ missing .*iDDPM/ADM weights with ch 32")
    refused("iddpm", saved(golden_weights("ddpm")[0], tmp_path / "w.pt"), r"\d+ missing .*DDPM\+\+ weights with ch 32")
    refused("iddpm", saved(golden_weights("adm")[0], tmp_path / "w.pt"), "too many .*of another shape")


def refusal(module, state_dict):
    """-> what is said of tensors that do not fit."""
    with pytest.raises(UserError) as caught:
        checkpoints.load_strictly(module, state_dict, "w.pt", "the U-Net")
    return str(caught.value)


def test_the_shipped_configs_that_would_fit_are_named():
    with torch.device("meta"):
        ddpm, iddpm, adm = (build_unet(load_config(name)) for name in ("celeba", "ffhq", "imagenet"))
        blocks = [unet.new_delta_block() for unet in (ddpm, iddpm)]
    assert refusal(iddpm, ddpm.state_dict()).endswith("; it would fit bedroom.yml, celeba.yml, church.yml, custom.yml")
    assert refusal(ddpm, iddpm.state_dict()).endswith("; it would fit afhq.yml, celeba_p2.yml, ffhq.yml, metface.yml")
    assert refusal(ddpm, adm.state_dict()).endswith("; it would fit imagenet.yml")
    assert refusal(blocks[0], blocks[1].state_dict()).endswith("; it would fit afhq.yml, celeba_p2.yml, ffhq.yml, metface.yml")


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_one_wrong_tensor_is_enough(weights, tmp_path, change):
    changed = dict(weights)
    if change == "missing":
        del changed["mid.block_1.conv1.weight"]
    elif change == "surplus":
        changed["mid.block_3.conv1.weight"] = torch.zeros(1)
    else:
        changed["mid.block_1.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    complaint = {"missing": "1 missing", "surplus": "1 too many", "shape": "1 of another shape"}[change]
    refused("ddpm", saved(changed, tmp_path / "w.pt"), rf"{complaint} \(first: mid\.block_[13]\.conv1\.weight\)")


def test_nothing_is_loaded_when_something_does_not_fit(weights):
    unet = build_unet(settings("ddpm"))
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(UserError):
        checkpoints.load_strictly(unet, {**weights, "surplus": torch.zeros(1)}, "w.pt", "the U-Net")
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_direction_is_not_a_unet(tmp_path):
    block = golden_weights("ddpm")[1][0]
    refused("ddpm", saved({"0": block, "optimizer": {}}, tmp_path / "direction.pth"), "holds no state dict")
    refused("ddpm", saved({"0": torch.zeros(1, 64, 8, 8)}, tmp_path / "delta_h.pth"), "looks like a direction.*--model_path")


@pytest.mark.parametrize("contents", [[1, 2], {"a": 3}, torch.zeros(2)], ids=["list", "number", "tensor"])
def test_other_contents(tmp_path, contents):
    refused("ddpm", saved(contents, tmp_path / "other.pt"), "holds no state dict")


# ---- files that cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_file(weights, tmp_path, suffix, keep):
    if suffix == ".safetensors":
        save_file(weights, tmp_path / "whole")
    else:
        torch.save(weights, tmp_path / "whole", _use_new_zipfile_serialization=suffix == ".pt")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / f"part{suffix}"
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused("ddpm", path, "cannot be read")


@pytest.mark.parametrize("contents", [b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(100), b"GIF89a" * 9])
def test_a_file_of_another_kind(tmp_path, contents):
    path = tmp_path / "w.pt"
    path.write_bytes(contents)
    refused("ddpm", path, "cannot be read")


def test_a_pickle_that_would_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    refused("ddpm", saved({"a": Harmful()}, tmp_path / "w.pt"), "cannot be read")


def test_a_missing_file_and_a_folder(tmp_path):
    refused("ddpm", tmp_path / "nothing.pt", "no such file")
    refused("ddpm", tmp_path, "no such file")


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_safetensors_by_any_name(weights, tmp_path, name):
    save_file({f"module.{key}": value for key, value in weights.items()}, tmp_path / name)
    unet = checkpoints.load_unet(config("ddpm"), tmp_path / name)
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())


# ---- writing ----------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.pt"
    checkpoints.save({"a": torch.arange(3)}, path)
    assert torch.equal(checkpoints.load(path)["a"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, interruption):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(interruption), checkpoints.replacing(path) as beside:
        beside.write_text("half of the n")
        assert path.read_text() == "old"
        raise interruption
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_complete_write_replaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with checkpoints.replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_direction_that_cannot_be_pickled_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save({"a": torch.zeros(1)}, path)
    with pytest.raises(Exception, match=re.compile("pickle", re.IGNORECASE)):
        checkpoints.save({"a": lambda: None}, path)
    assert torch.equal(checkpoints.load(path)["a"], torch.zeros(1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
