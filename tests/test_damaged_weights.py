"""Files of weights that no program wrote so: damaged ones, checkpoints that hold themselves, what is no file at all."""

import os

import pytest
import torch

from utils import tensors
from utils.errors import UserError

WEIGHTS = {
    name: torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
    for i, name in enumerate(("down.0.conv.weight", "down.1.conv.bias", "mid.norm.weight"))
}
KEYS = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema_model", *tensors.RAW)


def complaint_of(path):
    with pytest.raises(UserError) as caught:
        tensors.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_file_that_needs_too_much_memory(tmp_path, monkeypatch, error):
    """As one with a flipped bit in a length does."""
    torch.save(WEIGHTS, tmp_path / "w.pt")

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    assert "it is damaged, or too large for the memory of this machine" in complaint_of(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantised"),
        (torch.eye(3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_unsupported_tensor_kinds(tmp_path, tensor, kind):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": [WEIGHTS, {"down": tensor}]}, path)
    assert f"contains {kind} tensors: save them as dense ones" in complaint_of(path)


def test_checkpoint_that_contains_itself(tmp_path):
    contents = {"epoch": 3}
    contents |= {key: contents for key in KEYS}
    path = tmp_path / "w.pt"
    torch.save(contents, path)
    with pytest.raises(UserError, match="contains no state dict"):
        tensors.state_dict_of(tensors.load(path), path)
    torch.save(contents | {"net": WEIGHTS, "self": contents}, path)
    assert tensors.state_dict_of(tensors.load(path), path).keys() == WEIGHTS.keys()


def test_state_dict_under_very_many_keys():
    contents = WEIGHTS
    for _ in range(5000):
        contents = {"ema": {"model": contents}, "model": [contents, {}, 3, 700]}
    with pytest.raises(UserError, match="contains no state dict"):
        tensors.state_dict_of(contents, "w.pt")


def test_empty_average_and_duplicate_network_are_not_reported(caplog):
    caplog.set_level("INFO")
    for contents in ({"model": WEIGHTS, "ema": {}}, {"model": WEIGHTS, "ema": WEIGHTS}):
        assert tensors.state_dict_of(contents, "w.pt").keys() == WEIGHTS.keys()
    assert not caplog.records


def test_paths_that_are_not_weight_files(tmp_path):
    assert "no such file: check the path" in complaint_of(tmp_path / "nothing.pt")
    assert "is a folder: give a weight file" in complaint_of(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in complaint_of(tmp_path / "fifo")


def test_litema_of_latent_diffusion():
    raw = {f"model.diffusion_model.{name}": tensor + 1 for name, tensor in WEIGHTS.items()}
    average = {f"model_ema.diffusion_model{name.replace('.', '')}": tensor for name, tensor in WEIGHTS.items()}
    contents = {"state_dict": raw | average | {"model_ema.decay": torch.tensor(0.9), "betas": torch.ones(5)}}
    found = tensors.state_dict_of(contents, "w.ckpt")
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in found)


def test_ambiguous_litema_names_are_not_guessed():
    raw = {"model.down.1.10.w": torch.zeros(1), "model.down.11.0.w": torch.zeros(1)}
    found = tensors.state_dict_of({"state_dict": raw | {"model_ema.down110w": torch.ones(1)}}, "w.ckpt")
    assert found.keys() == {"down110w"}  # no network has a tensor of this name: loading refuses it
