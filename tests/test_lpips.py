import importlib.util
import pickle
import urllib.error
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch

from losses.lpips_alex import WEIGHTS, load_lpips
from utils.errors import UserError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "convert_alexnet.py"


@pytest.fixture(scope="module")
def distance():
    return load_lpips()


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def converter():
    spec = importlib.util.spec_from_file_location("convert_alexnet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_frozen_and_silent(capsys, recwarn):
    metric = load_lpips()
    assert not metric.training
    assert not any(p.requires_grad for p in metric.parameters())
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


def test_loading_leaves_the_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_lpips()
    assert torch.equal(torch.rand(1), expected)


def test_convolutions_are_those_of_the_file(distance):
    tensors = torch.load(WEIGHTS, weights_only=True)
    assert sum(t.numel() for t in tensors.values()) == 2_469_696
    assert torch.equal(distance.net.slice2[1].weight, tensors["features.3.weight"])
    assert torch.equal(distance.net.slice5[-2].bias, tensors["features.10.bias"])


def test_distances(distance, images):
    """Zero to itself, symmetric, one number an image, and growing with noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool2d(images, 9, 1, 4)
    little, much = distance(smooth, smooth + 0.05 * noise), distance(smooth, smooth + 0.5 * noise)
    assert little.shape == (3, 1, 1, 1)
    assert float(distance(smooth, smooth).abs().max()) == 0
    assert torch.allclose(distance(smooth, images), distance(images, smooth), atol=1e-6)
    assert (little > 0).all()
    assert (2 * little < much).all()


def test_values_of_a_second_implementation(distance):
    """Numbers from a second implementation: LPIPS written out in functions that read the HWIO kernels of alexnet.ckpt."""
    ramp = torch.linspace(-1, 1, 64)
    a = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])[None]
    b = a.flip(1)
    c = (torch.sin(8 * a.sum(1, keepdim=True)) * 0.8).expand(1, 3, 64, 64)
    found = [float(distance(a, b)), float(distance(a, c))]
    assert found == pytest.approx([0.1394, 0.8479], abs=1e-4)


@pytest.mark.parametrize("size", [31, 32, 48])
def test_small_images_are_measured_as_they_are(distance, images, size):
    a, b = images[:1, :, :size, :size], images[1:2, :, :size, :size]
    assert 0.01 < float(distance(a, b)) < 2


def test_broken_file_is_refused(tmp_path):
    tensors = torch.load(WEIGHTS, weights_only=True)
    del tensors["features.3.bias"]
    torch.save(tensors, tmp_path / "half.pt")
    with pytest.raises(UserError, match=r"half\.pt does not fit AlexNet's convolutions: 1 missing"):
        load_lpips(tmp_path / "half.pt")


def test_missing_file_is_loaded_from_torchvision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("losses.lpips_alex.LPIPS", lambda **kwargs: asked.append(kwargs) or torch.nn.Linear(1, 1))
    assert not load_lpips(tmp_path / "nothing.pt").weight.requires_grad
    assert [kwargs["pnet_rand"] for kwargs in asked] == [False]


def test_missing_file_without_network_error(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(lpips.pretrained_networks.tv, "alexnet", no_network)
    with pytest.raises(UserError, match=r"scripts/convert_alexnet\.py") as caught:
        load_lpips(tmp_path / "nothing.pt")
    assert "\n" not in str(caught.value)


def test_conversion_gives_the_file_of_the_repository(converter, distance):
    """The tree of alexnet.ckpt, made from the file itself, converts back to it."""
    tensors = torch.load(WEIGHTS, weights_only=True)
    tree = {
        f"Conv_{i}": {
            "kernel": tensors[f"features.{n}.weight"].permute(2, 3, 1, 0).numpy(),
            "bias": tensors[f"features.{n}.bias"].numpy(),
        }
        for i, n in enumerate(converter.TORCHVISION_INDICES)
    }
    assert tree["Conv_0"]["kernel"].shape == (11, 11, 3, 64)
    converted = converter.to_torchvision({"AlexNet_0": tree})
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)


def test_unpickler_reads_arrays_only(converter, tmp_path):
    def read(obj):
        path = tmp_path / "a.pkl"
        path.write_bytes(pickle.dumps(obj, protocol=4))
        with path.open("rb") as stream:
            return converter.ArrayUnpickler(stream).load()

    assert np.array_equal(read({"a": np.arange(3.0)})["a"], np.arange(3.0))
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        read(print)


def test_another_source_file_is_refused(converter, tmp_path):
    (tmp_path / "alexnet.ckpt").write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-256"):
        converter.convert(tmp_path / "alexnet.ckpt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    with pytest.raises(UserError, match="no such file"):
        converter.convert(tmp_path / "nothing.ckpt", tmp_path / "out.pt")
