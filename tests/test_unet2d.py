"""UNet2DModel of diffusers as a base model: what it computes is what the library computes."""

import copy
import inspect
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from golden_unets import gradient_at_h, relative_l2
from pipelines import FIVE, SMALL, ByTheLibrary, change, flatten, network, save
from tiny_world import ADM, DDPM, smooth_images

import asyrp
from asyrp.acceleration.fast_unet import COMPILE_ON_A_CPU, LOW, FastUNet
from asyrp.base_model.settings import Settings
from asyrp.base_model.trainer import Trainer
from asyrp.config import load_config
from models import build_unet
from models.unet import UNet
from models.zoo import UNet2DSettings, unet_settings
from utils.errors import SettingsError, UserError
from utils.files import ROOT

# T -> a number of steps whose timesteps, from 0 to T - 1, are evenly spread.
STEPS = {1000: 10, 300: 14}
x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
t = torch.tensor([7, 801])


def images(size):
    return smooth_images(2, size)


def noise(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def built(prediction_type="epsilon", unet=None, **settings):
    """Our network, with the weights of the library's."""
    section = {"type": "unet2d", "prediction_type": prediction_type, **SMALL, **settings}
    ours = build_unet({"data": {"image_size": section["sample_size"]}, "model": section})
    ours.load_state_dict((unet or network(**settings)).state_dict())
    return ours


# ---- the five configurations ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(name, kind) for name in FIVE for kind in ("epsilon", "v_prediction")], ids=str)
def world(request, tmp_path_factory):
    """A pipeline's model as it is opened, and the same by the library."""
    name, kind = request.param
    settings, scheduled = FIVE[name]
    place = tmp_path_factory.mktemp("pipelines") / "mine"
    folder, unet, scheduler = save(place, network(**settings), prediction_type=kind, **scheduled)
    if name == "google's":
        flatten(folder)
    return asyrp.open_model(folder, device="cpu"), ByTheLibrary(unet, scheduler)


def test_eps_equals_diffusers(world):
    model, theirs = world
    x, t = noise(model.image_size), torch.tensor([3, model.T - 1])
    h, skips, emb = model.unet.encode(x, t)
    eps = model.unet.decode(h, skips, emb)
    assert eps.dtype == torch.float32
    assert relative_l2(eps, theirs.eps(x, t)) < 1e-5
    assert h.shape[1:] == (model.unet.h_ch, model.unet.h_size, model.unet.h_size)


def test_inversion_and_generation_equal_diffusers(world):
    model, theirs = world
    n, size = STEPS[model.T], model.image_size
    timesteps = model.timesteps(n)
    assert timesteps[-1] == model.T - 1
    assert relative_l2(model.invert(images(size), n), theirs.invert(images(size), timesteps)) < 1e-4
    # Where a cosine schedule begins, alpha_bar is 2e-9: of v, float32 holds three digits in eps.
    coarse = theirs.scheduler.alphas_cumprod[-1] < 1e-8 and theirs.scheduler.config.prediction_type == "v_prediction"
    found, expected = model.generate(noise(size), n), theirs.generate(noise(size), timesteps)
    assert relative_l2(found, expected) < (5e-4 if coarse else 1e-4)


# ---- the network ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
        },
        {"down_block_types": ("AttnDownBlock2D",) * 2, "downsample_type": "resnet"},
        {"up_block_types": ("AttnUpBlock2D",) * 2, "upsample_type": "resnet"},
        {"mid_block_type": None},
        {"mid_block_scale_factor": 1.4, "add_attention": False, "act_fn": "gelu"},
        {"center_input_sample": True},
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        {"time_embedding_dim": 48, "freq_shift": 1, "flip_sin_to_cos": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_of_the_library(settings):
    theirs = network(**settings)
    unet = built(unet=theirs, **settings)
    with torch.no_grad():
        h, skips, emb = unet.encode(x, t)
        expected = theirs(x, t).sample
        assert torch.equal(unet.decode(h, skips, emb), expected)
        assert relative_l2(network()(x, t).sample, expected) > 1e-3  # the setting matters
        assert unet.new_delta_block()(h, emb).shape == h.shape == (2, unet.h_ch, unet.h_size, unet.h_size)


def test_unet_interface():
    for model in ({"type": "unet2d", **SMALL}, DDPM, ADM):
        assert isinstance(build_unet({"data": {"image_size": 16}, "model": model}), UNet)
    assert not isinstance(network(), UNet)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_skips_are_not_modified_and_can_be_doubled(kind):
    """As `process.both_branches` does."""
    unet = built(kind)
    with torch.no_grad():
        h, skips, emb = unet.encode(x, t)
        kept = [skip.clone() for skip in skips]
        first = unet.decode(h, skips, emb)
        twice = unet.decode(torch.cat([h, h]), tuple(torch.cat([skip, skip]) for skip in skips), torch.cat([emb, emb]))
    assert all(torch.equal(*pair) for pair in zip(kept, skips, strict=True))
    assert relative_l2(twice, torch.cat([first, first])) < 1e-6


def test_delta_block_is_that_of_a_ddpm_at_this_width():
    block = built(norm_num_groups=8).new_delta_block()
    expected = {"conv1.weight": (64, 64, 1, 1), "temb_proj.weight": (64, 128), "norm2.weight": (64,)}
    assert expected.items() <= {key: tuple(value.shape) for key, value in block.state_dict().items()}.items()
    assert block.norm2.num_groups == 8


def test_defaults_equal_diffusers():
    """They stand in zoo.py, for an identity that does not change with the library's version."""
    theirs = {name: p.default for name, p in inspect.signature(UNet2DModel.__init__).parameters.items() if name != "self"}
    ours = {field.name: field.default for field in fields(UNet2DSettings)}
    assert theirs.keys() - ours.keys() == {"sample_size", "class_embed_type", "num_class_embeds"}
    assert ours.keys() - theirs.keys() == {"type", "prediction_type"}
    assert {name: theirs[name] for name in ours.keys() & theirs.keys()} == {
        name: ours[name] for name in ours.keys() & theirs.keys()
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 1}, "in_channels 1: must be 3"),
        ({"out_channels": 6}, "out_channels 6: must be 3"),
        ({"sample_size": [16, 32]}, r"sample_size \[16, 32\]: only square images"),
        ({"sample_size": 32}, "sample_size 32 and data.image_size 16 differ"),
        ({"num_class_embeds": 10}, "num_class_embeds 10: the network takes class labels"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep: the network takes class labels"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier': must be 'positional' or 'learned'"),
        ({"time_embedding_type": "learned"}, "time_embedding_type learned needs num_train_timesteps"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 500}, "num_train_timesteps 500: the schedule has 1000"),
        ({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "down_block_types 'KDownBlock2D': must be 'DownBlock2D' or"),
        ({"down_block_types": ["DownBlock2D"]}, "must have the same number of entries, not 2 and 1 and 2"),
        ({"block_out_channels": [32, 48]}, "diffusers cannot build a UNet2DModel with these settings: num_channels"),
        ({"act_fn": "sinus"}, "diffusers cannot build a UNet2DModel with these settings"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial': must be 'default' or 'scale_shift'"),
        ({"prediction_type": "sample"}, "prediction_type 'sample': must be 'epsilon' or 'v_prediction'"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name 'UNet2DConditionModel' is not supported"),
        ({"norm_groups": 8}, "unknown key 'norm_groups'; did you mean norm_num_groups"),
    ],
    ids=str,
)
def test_networks_that_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said) as caught:
        build_unet({"data": {"image_size": 16}, "model": {"type": "unet2d", **SMALL, **changes}})
    assert "\n" not in str(caught.value)


def test_size_that_cannot_be_halved_so_often():
    with pytest.raises(SettingsError, match="the image size must be a multiple of 2, not 17"):
        unet_settings({"type": "unet2d", **SMALL, "sample_size": None}, {"image_size": 17})


# ---- without the library ----------------------------------------------------------------------------------------------------


def test_without_diffusers_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    folder, _, _ = save(tmp_path / "mine")
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers" or name == "models.unet2d"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call in (lambda: asyrp.open_model(folder), lambda: unet_settings({"type": "unet2d", **SMALL}, {"image_size": 16})):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == 'type unet2d needs diffusers: pip install -e ".[diffusers]"'
    assert asyrp.open_model("avatar.yml", device="cpu").image_size == 32


@pytest.mark.subprocess
def test_other_models_do_not_need_diffusers():
    code = "import sys, asyrp; asyrp.open_model('avatar.yml', device='cpu'); sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- fast -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision(kind, precision):
    plain = built(kind)
    fast = FastUNet(copy.deepcopy(plain), precision, layout="contiguous")
    h, skips, emb = fast.encode(x, t)
    eps = fast.decode(h, skips, emb)
    assert h.dtype == emb.dtype == eps.dtype == torch.float32
    difference = relative_l2(eps, plain(x, t))
    assert difference == 0 if precision == "fp32" else 0 < difference < 0.03
    assert LOW.get(precision, torch.float32) in {skip.dtype for skip in skips}


def test_recomputed_activations_give_the_same_gradient_from_less_memory():
    def gradient(recompute):
        fast, kept = FastUNet(built(), "fp32", False, recompute, layout="contiguous"), {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return gradient_at_h(fast, x, t), sum(kept.values())

    (plain, much), (again, little) = gradient(False), gradient(True)
    assert torch.equal(plain, again)
    assert little < 0.6 * much


@pytest.mark.skipif(torch.__version__ < COMPILE_ON_A_CPU, reason="this PyTorch is too old to compile on a CPU")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")  # as models/unet2d.py does
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_compiles_without_a_break(kind, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part: compile(part, backend="eager", fullgraph=True))
    fast = [FastUNet(built(kind), "bf16", compiled, compiled, layout="contiguous") for compiled in (False, True)]
    assert torch.equal(*(gradient_at_h(unet, x, t) for unet in fast))


def test_winograd_serves_wide_ones():
    """What serves our own networks is told by `ch` and `image_size` alone."""
    wide = {"block_out_channels": (64, 64), "sample_size": 32}
    theirs = network(**wide)
    fast = FastUNet(built(unet=theirs, **wide))
    if fast.winograd:
        assert relative_l2(fast(noise(32), t), theirs(noise(32), t).sample) < 1e-4
    assert not FastUNet(built()).winograd


# ---- training one -----------------------------------------------------------------------------------------------------------


def test_network_of_this_kind_can_be_trained(tmp_path):
    """And the library reads what was trained."""
    section = {"type": "unet2d", **{key: list(v) if isinstance(v, tuple) else v for key, v in SMALL.items()}}
    described = {"data": {"dataset": "MINE", "category": "CUSTOM", "image_size": 16}, "model": section}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(described))
    config = load_config(tmp_path / "mine.yml")
    trainer = Trainer(config, Settings(total_images=40, batch_size=4, lr=1e-3))
    before = copy.deepcopy(trainer.averaged_weights())
    for _ in range(3):
        trainer.step(smooth_images(4))
    weights = trainer.averaged_weights()
    assert not torch.equal(weights["conv_in.weight"], before["conv_in.weight"])
    network().load_state_dict(weights)
    described["model"]["prediction_type"] = "v_prediction"
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(described))
    with pytest.raises(UserError, match="prediction_type v_prediction cannot be trained here"):
        Trainer(load_config(tmp_path / "mine.yml"), Settings(total_images=40))


# ---- identity ---------------------------------------------------------------------------------------------------------------


def test_identity_is_of_content(tmp_path):
    """Of settings, schedule and weights; not of the folder's name and form, nor of what the settings leave unsaid."""
    folder, unet, _ = save(tmp_path / "one")
    model = asyrp.open_model(folder, device="cpu")
    assert model.identity.startswith("unet2d-16-")
    flat, _, _ = save(tmp_path / "two", unet)
    flatten(flat)
    section = {"type": "unet2d", **{key: list(v) if isinstance(v, tuple) else v for key, v in SMALL.items()}}
    described = {"data": {"dataset": "MINE", "category": "CUSTOM", "image_size": 16}, "model": section}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(described))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for again in (asyrp.open_model(flat, device="cpu"), asyrp.open_model(tmp_path / "mine.yml", weights, "cpu")):
        assert (again.identity, again.architecture) == (model.identity, model.architecture)


SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        (SCHEDULER, {"beta_end": 0.03}),
        (SCHEDULER, {"beta_schedule": "scaled_linear"}),
        (SCHEDULER, {"num_train_timesteps": 500}),
        (SCHEDULER, {"prediction_type": "v_prediction"}),
        (UNET, {"norm_eps": 1e-6}),
        (UNET, {"attention_head_dim": 16}),
        (None, "weights"),
    ],
    ids=str,
)
def test_what_the_identity_depends_on(tmp_path, file, changed):
    folder, unet, _ = save(tmp_path / "mine")
    model = asyrp.open_model(folder, device="cpu")
    if file:
        change(folder / file, **changed)
    else:
        unet.conv_out.bias[0] += 1e-6
        unet.save_pretrained(folder / "unet")
    other = asyrp.open_model(folder, device="cpu")
    assert other.identity != model.identity
    assert (other.architecture == model.architecture) == (file != UNET and "prediction_type" not in changed)
