"""asyrp/segmenter.py: TorchScript files, torchvision's models, and what is neither."""

import zipfile

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from asyrp.evaluation.segmenter import find_segmenter, open_segmenter
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
SMALLEST = "lraspp_mobilenet_v3_large"


class Brightness(nn.Module):
    """Segment 1 where a pixel is above zero."""

    def forward(self, images):
        mean = images.mean(1, keepdim=True)
        return torch.cat([-mean, mean], 1)


class Nested(Brightness):
    def forward(self, images):
        mean = images.mean(1, keepdim=True)
        return {"out": torch.cat([-mean, mean], 1)}


@pytest.mark.parametrize("model", [Brightness, Nested])
def test_torchscript_file(model, tmp_path):
    path = tmp_path / "segmenter.pt"
    torch.jit.script(model()).save(str(path))
    segment = open_segmenter(find_segmenter(str(path)), "cpu")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(segment(images), (images.mean(1) > 0).long())


def test_files_that_are_not_a_segmenter(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"weights\.pt is not a TorchScript file: write one with torch\.jit\.save"):
        open_segmenter(find_segmenter(str(path)), "cpu")
    with pytest.raises(UserError, match="is missing: give another with --segmenter"):
        open_segmenter(tmp_path / "gone.pt", "cpu")
    # A network that gives one number an image.
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(10, 1))).save(str(path))
    with pytest.raises(UserError, match=r"weights\.pt cannot read images of \(3, 8, 8\)"):
        open_segmenter(path, "cpu")(torch.zeros(1, 3, 8, 8))


def test_a_file_with_operators_that_this_torch_lacks(tmp_path):
    path = tmp_path / "segmenter.pt"
    torch.jit.script(Brightness()).save(str(path))
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name).replace(b"torch.neg(", b"torch.new(") for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"cannot be read by torch .*: if a newer one wrote it, upgrade torch"):
        open_segmenter(path, "cpu")


def test_name_that_torchvision_does_not_have():
    assert find_segmenter(SMALLEST) == SMALLEST
    with pytest.raises(UserError, match="did you mean deeplabv3_resnet50"):
        find_segmenter("deeplab_resnet50")
    with pytest.raises(UserError, match=f"torchvision has .*{SMALLEST}"):
        find_segmenter("xyz")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder in which torchvision looks for weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_model_of_torchvision(hub):
    torch.manual_seed(0)
    weights = get_model_weights(SMALLEST).DEFAULT
    model = get_model(SMALLEST, weights=None, weights_backbone=None, num_classes=21).eval()
    # Random biases would decide every pixel alike.
    for layer in (model.classifier.low_classifier, model.classifier.high_classifier):
        nn.init.zeros_(layer.bias)
    torch.save(model.state_dict(), hub / weights.url.rpartition("/")[2])
    segment = open_segmenter(SMALLEST, "cpu")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = model(weights.transforms()((image + 1) / 2))["out"].argmax(1)
    assert expected.unique().numel() > 1
    assert torch.equal(segment(image), expected)


def test_weights_that_cannot_be_downloaded(hub, monkeypatch):
    def offline(*args, **more):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError, match=rf"check the network, or save https://.*lraspp.*\.pth in {hub}"):
        open_segmenter(SMALLEST, "cpu")
