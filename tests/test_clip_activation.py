"""The activation that a CLIP file was trained with: QuickGELU as OpenAI's, or GELU as most others."""

import json
import warnings
import zipfile

import pytest
import torch
from clip_files import Archived, message_of, openai_weights

from losses import clip_loss
from losses.clip_loss import ClipLoss


class Block(torch.nn.Module):
    """An activation, as the code of a TorchScript archive has it."""

    def __init__(self, activation):
        super().__init__()
        self.act = activation

    def forward(self, x: torch.Tensor):
        return self.act(x)


class SigmoidGELU(torch.nn.Module):
    """OpenAI's QuickGELU, word for word."""

    def forward(self, x: torch.Tensor):
        return x * torch.sigmoid(1.702 * x)


def archive(path, *activations):
    """A TorchScript archive of the golden CLIP's tensors, with code that computes these activations."""
    module = Archived(openai_weights())
    for i, activation in enumerate(activations):
        module.add_module(f"computed{i}", Block(activation))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)
    return path


def activations(clip):
    """Names of the activations in both halves of a CLIP."""
    return {type(m).__name__ for m in clip.model.modules() if "GELU" in type(m).__name__}


def described(path, **changes):
    """An open_clip config of the golden CLIP."""
    weights = openai_weights()
    patch, (tokens, width) = weights["visual.conv1.weight"].shape[-1], weights["visual.positional_embedding"].shape
    text = {"context_length": len(weights["positional_embedding"]), "vocab_size": len(weights["token_embedding.weight"])}
    text |= {"width": len(weights["ln_final.weight"]), "heads": len(weights["ln_final.weight"]) // 64}
    text["layers"] = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks")})
    vision = {"image_size": patch * round((tokens - 1) ** 0.5), "width": width, "patch_size": patch}
    vision["layers"] = len({key.split(".")[3] for key in weights if key.startswith("visual.transformer.resblocks")})
    embed_dim = weights["text_projection"].shape[1]
    path.write_text(json.dumps({"model_cfg": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text} | changes}))


@pytest.mark.parametrize(
    ("computed", "name"), [(SigmoidGELU(), "QuickGELU"), (torch.nn.GELU(), "GELU")], ids=["QuickGELU", "GELU"]
)
def test_archive_is_read_with_the_activation_it_computes(tmp_path, caplog, computed, name):
    clip = ClipLoss(archive(tmp_path / "clip.pt", computed))
    assert activations(clip) == {name}
    assert not caplog.messages


@pytest.mark.parametrize("computed", [[], [SigmoidGELU(), torch.nn.GELU()]], ids=["none", "both"])
def test_archive_without_activation(tmp_path, caplog, computed):
    assert activations(ClipLoss(archive(tmp_path / "clip.pt", *computed))) == {"QuickGELU"}
    assert "does not specify its activation" in caplog.messages[0]


def test_archive_of_another_form_of_gelu(tmp_path):
    message = message_of(archive(tmp_path / "clip.pt", torch.nn.GELU(approximate="tanh")))
    assert "tanh form" in message and "open_clip config" in message


def test_plain_state_dict_is_read_as_openais_with_a_warning(tmp_path, caplog):
    torch.save(openai_weights(), tmp_path / "clip.pt")
    assert activations(ClipLoss(tmp_path / "clip.pt")) == {"QuickGELU"}
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "clip.pt does not specify its activation: using QuickGELU" in record.message
    assert "clip.json" in record.message and "--clip_model_name" in record.message


@pytest.mark.parametrize("beside", ["clip.json", "open_clip_config.json"])
@pytest.mark.parametrize("quick", [True, False])
def test_config_next_to_weights_decides(tmp_path, caplog, beside, quick):
    torch.save(openai_weights(), tmp_path / "clip.pt")
    described(tmp_path / beside, quick_gelu=quick)
    clip = ClipLoss(tmp_path / "clip.pt")
    assert activations(clip) == {"QuickGELU" if quick else "GELU"}
    assert not caplog.messages
    assert all(torch.equal(tensor, clip.model.state_dict()[name]) for name, tensor in openai_weights().items())


def test_config_of_file_precedes_config_of_folder(tmp_path):
    torch.save(openai_weights(), tmp_path / "clip.pt")
    described(tmp_path / "open_clip_config.json", quick_gelu=True)
    described(tmp_path / "clip.json", quick_gelu=False)
    assert activations(ClipLoss(tmp_path / "clip.pt")) == {"GELU"}
    (tmp_path / "clip.json").write_text('{"name": "of something else"}')
    assert activations(ClipLoss(tmp_path / "clip.pt")) == {"QuickGELU"}


def test_config_that_contradicts_its_archive(tmp_path):
    path = archive(tmp_path / "clip.pt", SigmoidGELU())
    described(tmp_path / "clip.json")
    assert "clip.pt uses quick_gelu true: correct the config" in message_of(path)
    described(tmp_path / "clip.json", quick_gelu=True)
    assert activations(ClipLoss(path)) == {"QuickGELU"}


def test_activation_matters(tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(openai_weights(), path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = [clip_loss.from_openai_layout(path, on) for on in (True, False)]
    quick, exact = (ClipLoss((model, *clip_loss.OPENAI_NORMALISATION)).encode_images(images) for model in models)
    assert (quick - exact).abs().max() > 1e-4


def test_openais_own_models_give_no_warning(tmp_path, monkeypatch, caplog):
    torch.save(openai_weights(), tmp_path / "fetched.pt")
    monkeypatch.setattr(clip_loss, "download_pretrained", lambda source, **_: str(tmp_path / "fetched.pt"))
    assert activations(ClipLoss("ViT-B/16")) == {"QuickGELU"}
    assert not caplog.messages


@pytest.mark.parametrize("where", [0.5, 0.99, "code"])
def test_damaged_archive(tmp_path, where):
    path = archive(tmp_path / "clip.pt", SigmoidGELU())
    whole = path.read_bytes()
    if where == "code":
        with zipfile.ZipFile(path) as opened:
            name = next(name for name in opened.namelist() if name.endswith(".py"))
            with opened.open(name) as stream:
                start = stream._fileobj.tell()
        path.write_bytes(whole[:start] + bytes(30) + whole[start + 30 :])
    else:
        path.write_bytes(whole[: int(where * len(whole))])
    assert "damaged" in message_of(path)
