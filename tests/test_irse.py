import pytest
import torch
import torch.nn.functional as F
from golden_weights import filled, golden_json

from losses.id_loss import IdLoss
from models.irse import IRSE50
from utils.errors import UserError

GOLDEN = golden_json("irse.json")
TOLERANCE = 1e-5  # embeddings are of unit length; the golden numbers have seven decimals


@pytest.fixture(scope="module")
def id_loss(tmp_path_factory):
    path = tmp_path_factory.mktemp("irse") / "model_ir_se50.pth"
    torch.save(filled(golden_json("keys_irse.json"), GOLDEN["seed"], unet=False), path)
    loss = IdLoss(path)
    path.unlink()  # 175 MB
    return loss


@pytest.fixture(scope="module")
def images():
    """(2, 3, 256, 256) in [-1, 1], as the golden numbers were measured on."""
    g = torch.Generator().manual_seed(GOLDEN["seed"] * 1000 + GOLDEN["image_seed"])
    return torch.tanh(F.interpolate(torch.randn(2, 3, 16, 16, generator=g), size=(256, 256), mode="bicubic"))


def test_keys_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        net = IRSE50()
    found = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert found == golden_json("keys_irse.json")


def test_golden_embeddings_and_loss(id_loss, images):
    with torch.no_grad():
        embeddings = id_loss.embed(images)
        loss = id_loss(images[:1], images[1:])
    assert (embeddings[:, :8] - torch.tensor(GOLDEN["embedding_first8"])).abs().max() < TOLERANCE
    assert torch.allclose(embeddings.norm(dim=1), torch.tensor(GOLDEN["norms"]), atol=TOLERANCE)
    assert float(embeddings[0] @ embeddings[1]) == pytest.approx(GOLDEN["cosine"], abs=TOLERANCE)
    assert float(loss) == pytest.approx(GOLDEN["id_loss"], abs=TOLERANCE)


def test_only_the_crop_counts(id_loss, images):
    """Rows 35:223 and columns 32:220 decide; one pixel further in on any side is seen, everything outside is not."""
    image = images[:1]
    outside = torch.zeros_like(image)
    outside[:, :, 35:223, 32:220] = image[:, :, 35:223, 32:220]
    edges = [(35, slice(32, 220)), (222, slice(32, 220)), (slice(35, 223), 32), (slice(35, 223), 219)]
    seen = []
    for rows, columns in edges:
        changed = image.clone()
        changed[:, :, rows, columns] = 1.0
        seen.append(changed)
    with torch.no_grad():
        reference, hidden, *shown = id_loss.embed(torch.cat([image, outside, *seen]))
    assert (reference - hidden).abs().max() < TOLERANCE
    assert min((reference - s).abs().max() for s in shown) > 20 * TOLERANCE


def test_gradient_reaches_the_edited_image_only(id_loss, images):
    edited = images[1:].clone().requires_grad_()
    id_loss(images[:1], edited).backward()
    assert edited.grad.abs().sum() > 0
    assert all(p.grad is None for p in id_loss.parameters())


def test_images_of_another_size_are_resized(id_loss, images):
    small = F.interpolate(images, size=(128, 128), mode="bilinear", antialias=True)
    with torch.no_grad():
        similarity = (id_loss.embed(small) * id_loss.embed(images)).sum(-1)
    assert similarity.min() > 0.98


def test_missing_file_is_one_plain_line(tmp_path):
    with pytest.raises(UserError) as caught:
        IdLoss(tmp_path / "nothing.pth")
    message = str(caught.value)
    assert "IR-SE50" in message
    assert "nothing.pth" in message
    assert "\n" not in message


def test_other_weights_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="397 missing"):
        IdLoss(tmp_path / "other.pth")
