"""The directional CLIP loss: golden numbers, every way to name a model, and what is said when one cannot be had."""

import json
from email.message import Message
from urllib.error import HTTPError, URLError

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clip_files import Archived, message_of, openai_weights
from golden_weights import golden_json
from safetensors.torch import save_file

from losses import clip_loss
from losses.clip_loss import ClipLoss, clip_term, directional_loss
from utils.errors import UserError

NUMBERS = golden_json("clip.json")
PAIRS = [tuple(key.split(" -> ")) for key in NUMBERS if " -> " in key]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def smooth(noise):
    return F.interpolate(noise, size=256, mode="bicubic", align_corners=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "openai.pt"
    torch.save(openai_weights(), path)
    return ClipLoss(path)


@pytest.fixture(scope="module")
def images():
    """(source, edited) of the golden run, each (2, 3, 256, 256) in [-1, 1]."""
    generator = torch.Generator().manual_seed(9)
    source = torch.tanh(smooth(torch.randn(2, 3, 16, 16, generator=generator)))
    return source, torch.tanh(source + 0.5 * smooth(torch.randn(2, 3, 16, 16, generator=generator)))


@pytest.fixture
def tiny(tmp_path):
    """A function (suffix of the weights, changes to the config) -> path of the config, with its weights next to it."""

    def write(suffix=".safetensors", dtype=torch.float16, **changes):
        torch.manual_seed(0)
        weights = {k: v.to(dtype).contiguous() for k, v in open_clip.CLIP(**TINY).state_dict().items()}
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps(TINY | changes))
        (torch.save if suffix == ".pt" else save_file)(weights, path.with_suffix(suffix))
        return path

    return write


# The published implementation


@pytest.mark.parametrize(("src", "trg"), PAIRS)
def test_golden_text(clip, src, trg):
    expected = NUMBERS[f"{src} -> {trg}"]
    assert clip.cosine(src, trg) == pytest.approx(expected["cosine"], abs=2e-6)
    direction = clip.direction(src, trg)
    assert direction.shape == (1, 64)
    torch.testing.assert_close(direction[0, :8], torch.tensor(expected["direction_first8"]), atol=4e-6, rtol=0)


@pytest.mark.parametrize(("src", "trg"), PAIRS)
def test_golden_loss(clip, images, src, trg):
    source, edited = images
    assert clip(source, src, edited, trg).item() == pytest.approx(NUMBERS[f"{src} -> {trg}"]["directional_loss"], abs=4e-6)


def test_golden_image_features(clip, images):
    features = clip.encode_images(images[0])[:, :8]
    torch.testing.assert_close(features, torch.tensor(NUMBERS["image_features_first8"]), atol=4e-6, rtol=0)


def test_template_set():
    assert len(clip_loss.TEMPLATES) == 79
    assert not any("many" in template("x") for template in clip_loss.TEMPLATES)


# The loss


def test_source_features_can_be_shared(clip, images):
    source, edited = images
    L_dir = clip.directional(clip.encode_images(source), edited, *PAIRS[0])
    assert L_dir.shape == (2,)
    assert L_dir.mean() == clip(source, PAIRS[0][0], edited, PAIRS[0][1])


def test_gradients_reach_the_edited_images_only(clip, images):
    source, edited = (x.clone().requires_grad_() for x in images)
    clip(source, PAIRS[0][0], edited, PAIRS[0][1]).backward()
    assert source.grad is None
    assert edited.grad.isfinite().all() and edited.grad.abs().max() > 0
    assert not any(p.requires_grad for p in clip.model.parameters())


def test_no_change_has_a_finite_gradient(clip, images):
    source = images[0]
    edited = source.clone().requires_grad_()
    L_dir = clip.directional(clip.encode_images(source).detach(), edited, *PAIRS[0])
    L_dir.sum().backward()
    torch.testing.assert_close(L_dir.detach(), torch.ones(2))
    assert edited.grad.isfinite().all()


def test_directional_loss_and_its_term():
    direction = torch.tensor([[1.0, 0.0]])
    source = torch.zeros(3, 2)
    L_dir = directional_loss(source, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), direction)
    torch.testing.assert_close(L_dir, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(clip_term(L_dir[:2]), torch.tensor([0.0, 0.6931472]))


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (80, 64), (16, 16)])
def test_images_of_any_size(tiny, size):
    features = ClipLoss(tiny()).encode_images(torch.rand(2, 3, *size) * 2 - 1)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_text_is_encoded_once_per_pair(tiny, monkeypatch):
    clip, calls = ClipLoss(tiny()), []
    encode = clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda tokens: calls.append(len(tokens)) or encode(tokens))
    for _ in range(2):
        clip.cosine("face", "sad face")
        clip.direction("face", "sad face")
    assert calls == [2, 158]


def test_prompts_with_equal_features(clip):
    with pytest.raises(UserError, match="no difference"):
        clip.direction("Dog", "dog")
    with pytest.raises(UserError, match=r"80 tokens, but this CLIP reads at most 75: shorten it"):
        clip.cosine("face", "very " * 79 + "long")


# Naming a model


def test_openai_layout_keeps_float32(clip):
    weights = openai_weights()
    assert all(torch.equal(v, weights[k]) for k, v in clip.model.state_dict().items())


def test_openai_layout_with_its_numbers_in_half_precision(tmp_path):
    numbers = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    torch.save({k: v.half() for k, v in openai_weights().items()} | numbers, tmp_path / "half.pt")
    clip = ClipLoss(str(tmp_path / "half.pt"))
    assert {v.dtype for v in clip.state_dict().values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of writing the archive
def test_openai_layout_in_a_torchscript_archive(tmp_path, clip):
    torch.jit.save(torch.jit.script(Archived(openai_weights())), tmp_path / "ViT-tiny.pt")
    again = ClipLoss(tmp_path / "ViT-tiny.pt").model.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in clip.model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_config_with_weights(tiny, suffix):
    path = tiny(suffix, preprocess_cfg={"mean": [0, 0, 0], "std": [1, 1, 1]})
    clip = ClipLoss(path)
    assert clip.image_size == 32 and clip.mean.flatten().tolist() == [0, 0, 0]
    assert {p.dtype for p in clip.parameters()} == {torch.float32}
    assert clip.direction("face", "smiling face").shape == (1, 16)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_folder_as_open_clip_publishes_it(tiny, name):
    path = tiny(".pt" if name.endswith("bin") else ".safetensors")
    path.with_suffix(".pt" if name.endswith("bin") else ".safetensors").rename(path.with_name(name))
    config = path.rename(path.with_name("open_clip_config.json"))
    assert ClipLoss(config).image_size == 32
    path.with_name(name).unlink()
    assert "or open_clip_pytorch_model.bin next to it" in message_of(config)


def test_config_with_sections(tiny):
    path = tiny()
    path.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    assert ClipLoss(path).mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-B-16"])
def test_openai_name(name, tmp_path, monkeypatch):
    torch.save(openai_weights(), tmp_path / "fetched.pt")
    asked = []
    monkeypatch.setattr(
        clip_loss, "download_pretrained", lambda source, **_: asked.append(source["url"]) or str(tmp_path / "fetched.pt")
    )
    assert ClipLoss(name).image_size == 224
    assert asked[0].endswith("/ViT-B-16.pt")


def test_openai_names_are_known_to_open_clip():
    known = open_clip.list_openai_models()
    assert all(clip_loss._open_clip_name(name) in known for name in clip_loss.OPENAI_NAMES)


def test_model_hub_when_the_server_refuses(tmp_path, monkeypatch):
    torch.save(openai_weights(), tmp_path / "hub.pt")

    def download(source, prefer_hf_hub=True):
        if not prefer_hf_hub:
            raise HTTPError(source["url"], 403, "forbidden", Message(), None)
        return str(tmp_path / "hub.pt")

    monkeypatch.setattr(clip_loss, "download_pretrained", download)
    assert ClipLoss("ViT-B/16").image_size == 224


# Identity


def test_identity_is_that_of_the_content(tiny, tmp_path):
    first, again = ClipLoss(tiny()), ClipLoss(tiny(".pt"))
    assert first.identity() == again.identity() and len(first.identity()) == 16
    with torch.no_grad():
        again = ClipLoss(tiny())
        again.model.token_embedding.weight[7, 3] += 1e-4
    identities = {
        "itself": first.identity(),
        "weights": again.identity(),
        "heads": ClipLoss(tiny(text_cfg=TINY["text_cfg"] | {"heads": 4})).identity(),
        "activation": ClipLoss(tiny(quick_gelu=True)).identity(),
        "colours": ClipLoss(tiny(preprocess_cfg={"mean": [0, 0, 0]})).identity(),
    }
    assert len(set(identities.values())) == len(identities), identities


def test_identity_of_openais_layout_knows_the_activation(tmp_path):
    torch.save(openai_weights(), tmp_path / "clip.pt")
    models = [clip_loss.from_openai_layout(tmp_path / "clip.pt", quick) for quick in (True, False, True)]
    quick, exact, again = (ClipLoss((model, *clip_loss.OPENAI_NORMALISATION)).identity() for model in models)
    assert quick == again != exact


def test_identity_is_computed_once(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(clip_loss, "digest", lambda *parts: calls.append(parts) or "0123456789abcdef")
    clip = ClipLoss(tiny())
    assert not calls
    assert clip.identity() == clip.identity() == "0123456789abcdef"
    assert len(calls) == 1


# What is said when there is no model


def test_no_network(monkeypatch):
    def download(source, **_):
        raise URLError("Name or service not known")

    monkeypatch.setattr(clip_loss, "download_pretrained", download)
    message = message_of("ViT-B/16")
    assert "could not be downloaded" in message and "ViT-B-16.pt" in message


def test_unknown_names():
    assert "did you mean ViT-B/16" in message_of("vit-b/16")
    assert "the names are ViT-B/16" in message_of("qqqq")


@pytest.mark.parametrize("name", ["no.json", "no.pt", "no.safetensors"])
def test_missing_files(tmp_path, name):
    assert "no such file" in message_of(tmp_path / name)


def test_config_without_weights(tiny):
    path = tiny()
    path.with_suffix(".safetensors").unlink()
    assert "put tiny.safetensors or tiny.pt next to it" in message_of(path)


def test_weights_of_another_model(tiny):
    message = message_of(tiny(embed_dim=8))
    assert "does not fit the CLIP of tiny.json" in message and "of another shape" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_cfg": {"wdith": 3}}, "wdith"),
        ({"unknown": 1}, "unknown"),
        ({"text_cfg": TINY["text_cfg"] | {"vocab_size": 100}}, "vocab_size 100"),
        ({"text_cfg": TINY["text_cfg"] | {"hf_tokenizer_name": "x"}}, "another tokenizer"),
    ],
)
def test_configs_that_do_not_describe_a_clip(tiny, changes, said):
    assert said in message_of(tiny(**changes))


def test_files_that_are_not_a_config(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "bad.json").write_text(text)
        assert "bad.json" in message_of(tmp_path / "bad.json")


def test_files_that_are_not_a_clip(tmp_path):
    torch.save({"conv_in.weight": torch.zeros(3)}, tmp_path / "unet.pt")
    assert "OpenAI's layout" in message_of(tmp_path / "unet.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK torn")
    assert "cannot be read" in message_of(tmp_path / "torn.pt")
