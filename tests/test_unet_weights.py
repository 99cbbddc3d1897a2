"""A config and a weight file -> U-Net: what fits, and what is said of what does not."""

from types import SimpleNamespace

import pytest
import torch
from golden_unets import golden_weights, settings

from asyrp.config import load_config
from asyrp.model import fitting_configs, load_unet
from models import build_unet
from utils.errors import UserError
from utils.files import ROOT


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
        load_unet(config(name), path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message


def test_loaded_whole_frozen_and_in_eval_mode(weights, tmp_path):
    contents = {"model": {key: 0 * value for key, value in weights.items()}, "model_ema": {"module": weights}}
    unet = load_unet(config("ddpm"), saved(contents, tmp_path / "w.pt"))
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())


def test_weights_of_another_architecture(tmp_path):
    refused("ddpm", saved(golden_weights("iddpm")[0], tmp_path / "w.pt"), r"\d+ missing .*iDDPM/ADM weights with ch 32")
    refused("iddpm", saved(golden_weights("ddpm")[0], tmp_path / "w.pt"), r"\d+ missing .*DDPM\+\+ weights with ch 32")
    refused("iddpm", saved(golden_weights("adm")[0], tmp_path / "w.pt"), "unexpected .*of another shape")


def test_shipped_configs_that_would_fit_are_named():
    with torch.device("meta"):
        ddpm, iddpm, adm = (build_unet(load_config(name)) for name in ("celeba", "ffhq", "imagenet"))
        blocks = [unet.new_delta_block() for unet in (ddpm, iddpm)]
    of_ddpm = [f"{name}.yml" for name in ("bedroom", "celeba", "church", "custom")]
    of_iddpm = [f"{name}.yml" for name in ("afhq", "celeba_p2", "ffhq", "metface", "ffhq_p2", "afhq_p2", "cub_p2", "flower_p2")]
    of_iddpm.sort()
    found = [fitting_configs(module.state_dict()) for module in (ddpm, iddpm, adm, *blocks)]
    assert found == [of_ddpm, of_iddpm, ["imagenet.yml"], of_ddpm, of_iddpm]


def test_weights_of_a_shipped_model_name_its_configs(tmp_path):
    avatar = torch.load(ROOT / "pretrained" / "avatar" / "ddpm.pt", weights_only=True)
    refused("iddpm", saved(avatar, tmp_path / "w.pt"), r"they would fit avatar\.yml$")


def test_direction_is_not_a_unet(tmp_path):
    block = golden_weights("ddpm")[1][0]
    refused("ddpm", saved({"0": block, "optimizer": {}}, tmp_path / "direction.pth"), "contains no state dict")
    refused("ddpm", saved({"0": torch.zeros(1, 64, 8, 8)}, tmp_path / "delta_h.pth"), "looks like a direction.*--model_path")
