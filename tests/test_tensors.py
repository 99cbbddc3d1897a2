"""Files of tensors: the usual wrappings of weights, what is taken where there is a choice, and what is said of a bad file."""

import argparse
import logging
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils import tensors
from utils.errors import UserError
from utils.files import replacing

WEIGHTS = {
    "conv_in.weight": torch.arange(6.0).view(2, 3),
    "conv_in.bias": torch.tensor([1.0, 2.0]),
    "mid.block_1.temb_proj.weight": torch.full((2,), 3.0),
}
RAW = {name: -tensor - 1 for name, tensor in WEIGHTS.items()}


class Net(nn.Module):
    """A network with these names."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Linear(3, 2)
        self.mid = nn.Module()
        self.mid.block_1 = nn.Module()
        self.mid.block_1.temb_proj = nn.Module()
        self.mid.block_1.temb_proj.weight = nn.Parameter(torch.zeros(2))


def saved(contents, path):
    torch.save(contents, path)
    return path


def read(contents, tmp_path):
    """What is taken from a file that holds this."""
    path = saved(contents, tmp_path / "w.pt")
    return tensors.state_dict_of(tensors.load(path), path)


def under(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def dotless(weights):
    """As LitEma writes the names."""
    return {name.replace(".", ""): tensor for name, tensor in weights.items()}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def refused(path, complaint):
    """Reading must fail with one plain line that names the file."""
    with pytest.raises(UserError, match=complaint) as caught:
        tensors.state_dict_of(tensors.load(path), path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and "weights_only" not in message
    return message


# ---- where the weights are --------------------------------------------------------------------------------------------------

OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
LIGHTNING = {"epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.4", "optimizer_states": [OPTIMIZER], "loops": {}}
N = torch.tensor(7)


@pytest.mark.parametrize(
    "contents",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": WEIGHTS, "optimizer": OPTIMIZER},
        {"model": {"state_dict": WEIGHTS}},
        {"checkpoint": {"params": WEIGHTS}, "args": {"lr": 0.1}},
        under("module.", WEIGHTS),
        under("module.module.module.", WEIGHTS),
        under("_orig_mod.", WEIGHTS),
        under("module._orig_mod.", WEIGHTS),
        under("_orig_mod.module.model.", WEIGHTS),
        under("model.module.model.", WEIGHTS),
        {"conv_in._orig_mod." + name.removeprefix("conv_in."): t for name, t in WEIGHTS.items() if "conv_in" in name}
        | {"mid._orig_mod.block_1.temb_proj.weight": WEIGHTS["mid.block_1.temb_proj.weight"]},
        {"state_dict": under("module.", WEIGHTS)},
        {"n_averaged": N, **under("module.", WEIGHTS)},
        {"n_averaged": N, **under("module.module.", WEIGHTS)},
        {**LIGHTNING, "state_dict": under("model.", WEIGHTS)},
        {**LIGHTNING, "state_dict": {**under("model._orig_mod.", WEIGHTS), "betas": torch.zeros(9), "vgg.0.weight": N}},
        {**LIGHTNING, "state_dict": {**under("unet.", WEIGHTS), "betas": torch.zeros(9)}},
        [WEIGHTS, OPTIMIZER, 3, 100],
        [under("module.", WEIGHTS), OPTIMIZER, 3, 100],
    ],
    ids=lambda contents: "-".join(map(str, contents))[:60] if isinstance(contents, dict) else "a list",
)
def test_usual_wrappings(contents, tmp_path):
    assert same(read(contents, tmp_path), WEIGHTS)


AVERAGES = ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema_model", "model_ema_state_dict"]


@pytest.mark.parametrize(
    "contents",
    [{key: WEIGHTS} for key in AVERAGES]
    + [{"model": RAW, key: WEIGHTS} for key in AVERAGES]
    + [{key: WEIGHTS, "state_dict": RAW, "epoch": 3} for key in AVERAGES]
    + [
        {"model": {"state_dict": RAW, "model_ema": {"module": WEIGHTS}}},
        {"checkpoint": {"model": {"model": RAW, "ema": {"state_dict": under("module.", WEIGHTS)}}}},
        {"model": RAW, "ema": {"decay": 0.999, "num_updates": 7, "shadow": WEIGHTS}},
        {"model": RAW, "model_ema": {"n_averaged": N, **under("module.", WEIGHTS)}},
        {"ema": {"initted": N, "step": N, **under("online_model.", RAW), **under("ema_model.model.", WEIGHTS)}},
        {**LIGHTNING, "state_dict": {**under("model.", RAW), **under("ema.", WEIGHTS), "betas": torch.zeros(9)}},
        {**LIGHTNING, "state_dict": {**under("model.", RAW), **under("model_ema.", WEIGHTS)}},
        {**LIGHTNING, "state_dict": {**under("model.", RAW), **under("ema_model.module.", WEIGHTS), "ema_model.n_averaged": N}},
        {**LIGHTNING, "state_dict": under("module.", {**under("model.", RAW), **under("ema_model.", WEIGHTS)})},
        under("module._orig_mod.module.", {**under("model.", RAW), **under("ema_model.", WEIGHTS)}),
        {
            **LIGHTNING,
            "state_dict": {
                **under("model.", RAW),
                **under("model_ema.", dotless(WEIGHTS)),
                "model_ema.decay": N,
                "model_ema.num_updates": N,
            },
        },
        {"state_dict": {**under("model.module.", RAW), **under("model_ema.", dotless(under("module.", WEIGHTS)))}},
        [under("module.", RAW), OPTIMIZER, 3, 100, WEIGHTS],
        [under("module.", RAW), OPTIMIZER, 3, 100, under("module.", WEIGHTS)],
    ],
)
def test_average_is_taken_where_there_is_one(contents, tmp_path):
    assert same(read(contents, tmp_path), WEIGHTS)


def test_prefix_that_not_all_names_have_stays(tmp_path):
    """Then it is no wrapper's, and no tensor may go unnoticed."""
    contents = {**under("module.", WEIGHTS), "extra.weight": torch.zeros(1)}
    assert same(read(contents, tmp_path), contents)


def test_contents_that_contain_themselves(tmp_path):
    contents = {}
    contents["model"] = contents
    with pytest.raises(UserError, match="contains no state dict"):
        tensors.state_dict_of(contents, "w.pt")


def test_what_wrappers_of_torch_really_write(tmp_path):
    """AveragedModel, DataParallel and a compiled network, not our idea of their names."""
    net = Net()
    net.load_state_dict(WEIGHTS)
    for wrapped in (AveragedModel(net), nn.DataParallel(net), torch.compile(net), torch.compile(AveragedModel(net))):
        assert same(read(wrapped.state_dict(), tmp_path), WEIGHTS)


def test_choice_of_weights_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    read({"model": RAW, "deep": 1, "ema": {"state_dict": WEIGHTS}}, tmp_path)
    [line] = caplog.messages
    assert "w.pt: using the moving average under ema.state_dict, not those under model" in line
    caplog.clear()
    read({"state_dict": {**under("model.", RAW), **under("ema.", WEIGHTS)}}, tmp_path)
    assert "using the moving average under state_dict (ema.), not those under state_dict" in caplog.messages[0]
    caplog.clear()
    read({"state_dict": {**under("model.", WEIGHTS), "betas": torch.zeros(2)}}, tmp_path)
    assert caplog.messages == [f"{tmp_path / 'w.pt'}: ignored 1 tensors that are not part of the network (first: betas)"]
    caplog.clear()
    for contents in (WEIGHTS, {"model": WEIGHTS}, [WEIGHTS, OPTIMIZER, 3, 100], {"n_averaged": N, **under("module.", WEIGHTS)}):
        read(contents, tmp_path)
    assert not caplog.messages


def test_unusable_average_is_logged(tmp_path, caplog):
    """Those of torch_ema are a list without names."""
    assert same(read({"model": WEIGHTS, "ema": {"decay": 0.9, "shadow_params": list(RAW.values())}}, tmp_path), WEIGHTS)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "using the raw weights under model, not those under ema (an average without names)" in record.message


def test_half_precision_becomes_float32(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        half = {name: tensor.to(dtype) for name, tensor in WEIGHTS.items()} | {"number": N}
        found = read(half, tmp_path)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
        assert same(found, {name: tensor.float() for name, tensor in half.items() if name != "number"} | {"number": N})


def test_weights_come_without_gradients(tmp_path):
    assert not any(t.requires_grad for t in read({name: nn.Parameter(t) for name, t in WEIGHTS.items()}, tmp_path).values())


@pytest.mark.parametrize(
    "contents",
    [
        [1, 2],
        {"a": 3},
        {},
        {"model": {}},
        torch.zeros(2),
        [WEIGHTS, RAW],
        {"0": WEIGHTS, "optimizer": OPTIMIZER},
        {"optimizer": OPTIMIZER},
        {**WEIGHTS, "name": "x"},
    ],
    ids=["list", "number", "nothing", "no weights", "tensor", "two", "direction", "optimizer", "mixed"],
)
def test_other_contents(contents, tmp_path):
    refused(saved(contents, tmp_path / "other.pt"), "contains no state dict")


# ---- files that cannot be read ----------------------------------------------------------------------------------------------


@pytest.fixture
def large():
    return {"a.weight": torch.randn(300), "b.weight": torch.randn(20, 30)}


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 300, 1000, 0.5, 0.9, 0.99, -5])
def test_truncated_file_is_damaged(large, tmp_path, suffix, keep):
    if suffix == ".safetensors":
        save_file(large, tmp_path / "whole")
    else:
        torch.save(large, tmp_path / "whole", _use_new_zipfile_serialization=suffix == ".pt")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / f"part{suffix}"
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    refused(path, "cannot be read.*damaged.*download or save it again")


@pytest.mark.parametrize(
    "contents", [b"<html>no</html>", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(100), b"GIF89a" * 9, b".", b"PK"]
)
def test_file_of_another_kind(tmp_path, contents):
    (tmp_path / "w.pt").write_bytes(contents)
    refused(tmp_path / "w.pt", "cannot be read as a weight file.*damaged or of another kind")


class Harmful:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize("form", ["zip", "old", "pickle 0", "pickle 2", "pickle 4"])
def test_pickle_that_would_run_code_is_not_run(tmp_path, form, capsys):
    path = tmp_path / "w.pt"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"a": Harmful()}, protocol=int(form[-1])))
    else:
        torch.save({"a": Harmful()}, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path, "contains more than tensors.* so it was not loaded: .* only its state_dict")
    assert "download" not in message
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "named"), [(argparse.Namespace(lr=1), "argparse.Namespace"), (np.zeros(2), "numpy"), (Net(), "test_tensors.Net")]
)
def test_checkpoint_with_more_than_tensors_is_not_called_damaged(tmp_path, more, named):
    path = saved({**LIGHTNING, "state_dict": under("model.", WEIGHTS), "hyper_parameters": more}, tmp_path / "last.ckpt")
    message = refused(path, rf"contains more than tensors \({re.escape(named)}.*\), so it was not loaded")
    assert "download" not in message and "damaged" not in message


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archive_is_called_so(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert tensors.is_torchscript(tmp_path / "w.pt")
    assert not tensors.is_torchscript(saved(WEIGHTS, tmp_path / "plain.pt"))
    refused(tmp_path / "w.pt", "is a TorchScript archive, which contains code")


def test_missing_file_and_a_folder(tmp_path):
    refused(tmp_path / "nothing.pt", "no such file")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_safetensors_by_any_name(tmp_path, name):
    save_file(under("module.", WEIGHTS), tmp_path / name)
    assert tensors.is_safetensors(tmp_path / name)
    assert same(tensors.state_dict_of(tensors.load(tmp_path / name), name), WEIGHTS)


# ---- into a network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_one_wrong_tensor_is_enough(change):
    """And then nothing at all is loaded."""
    changed = dict(WEIGHTS)
    if change == "missing":
        del changed["mid.block_1.temb_proj.weight"]
    elif change == "surplus":
        changed["mid.block_1.more"] = torch.zeros(1)
    else:
        changed["mid.block_1.temb_proj.weight"] = torch.zeros(3)
    complaint = {"missing": "1 missing", "surplus": "1 unexpected", "shape": "1 of another shape"}[change]
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(tensors.Misfit, match=rf"w\.pt does not fit the net: {complaint} \(first: mid\.block_1\.") as caught:
        tensors.load_strictly(net, changed, "w.pt", "the net")
    assert caught.value.state_dict is changed
    assert same(net.state_dict(), before)


def test_into_a_network_without_memory():
    with torch.device("meta"):
        net = Net()
    tensors.load_strictly(net, WEIGHTS, "w.pt", "the net")
    assert same(net.state_dict(), WEIGHTS)


# ---- writing ----------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.pt"
    tensors.save({"a": torch.arange(3)}, path)
    assert torch.equal(tensors.load(path)["a"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_safetensors_with_metadata(tmp_path):
    path = tmp_path / "deep" / "a.safetensors"
    tensors.save_safetensors({"a": torch.arange(6).view(2, 3).T}, path, {"about": "ä"})
    assert torch.equal(tensors.load(path)["a"], torch.arange(6).view(2, 3).T)
    assert tensors.metadata_of(path) == {"about": "ä"}
    assert tensors.metadata_of(saved(WEIGHTS, tmp_path / "w.pt")) == {}
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged"):
        tensors.metadata_of(path)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_the_old_file(tmp_path, interruption):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(interruption), replacing(path) as beside:
        beside.write_text("half of the n")
        assert path.read_text() == "old"
        raise interruption
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_complete_write_replaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_pickling_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    tensors.save({"a": torch.zeros(1)}, path)
    with pytest.raises(Exception, match=re.compile("pickle", re.IGNORECASE)):
        tensors.save({"a": lambda: None}, path)
    assert torch.equal(tensors.load(path)["a"], torch.zeros(1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
