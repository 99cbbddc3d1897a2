import os
from types import SimpleNamespace

import pytest
import torch
import yaml

from asyrp.config import CONFIGS, load_config, to_dict
from utils.errors import UserError
from configs import paths_config
from configs.paths_config import ROOT, dataset_folder, weight_file, weight_place
from models import build_unet

DDPM = (113_673_219, 450, 788_992)
IDDPM = (93_563_910, 362, 790_016)
# file -> (dataset, category), (parameters, tensors, parameters of a delta block), shape of h for one image
MODELS = {
    "celeba.yml": (("CelebA_HQ", "CelebA_HQ"), DDPM, (512, 8, 8)),
    "bedroom.yml": (("LSUN", "bedroom"), DDPM, (512, 8, 8)),
    "church.yml": (("LSUN", "church_outdoor"), DDPM, (512, 8, 8)),
    "custom.yml": (("CelebA_HQ", "CUSTOM"), DDPM, (512, 8, 8)),
    "afhq.yml": (("AFHQ", "dog"), IDDPM, (512, 8, 8)),
    "ffhq.yml": (("FFHQ", "FFHQ"), IDDPM, (512, 8, 8)),
    "metface.yml": (("MetFACE", "metfaces"), IDDPM, (512, 8, 8)),
    "celeba_p2.yml": (("CelebA_HQ_P2", "CelebA_HQ_P2"), IDDPM, (512, 8, 8)),
    "imagenet.yml": (("IMAGENET", "IMAGENET"), (552_814_086, 566, 3_152_896), (1024, 8, 8)),
    "avatar.yml": (("AVATAR", "AVATAR"), None, (128, 8, 8)),
    "avatar64.yml": (("AVATAR", "AVATAR64"), None, (128, 8, 8)),
}


def on_meta(config):
    with torch.device("meta"):
        unet = build_unet(config)
        return unet, unet.new_delta_block()


def count(module):
    return sum(p.numel() for p in module.parameters())


def settings(dataset, category):
    return SimpleNamespace(data=SimpleNamespace(dataset=dataset, category=category))


def weights_of(config):
    return weight_file(weight_place(config))


def test_every_config_is_checked_here():
    assert {p.name for p in CONFIGS.glob("*.yml")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_the_published_one(name):
    pair, counts, h_shape = MODELS[name]
    config = load_config(name)
    assert (config.data.dataset, config.data.category) == pair
    unet, block = on_meta(config)
    if counts is not None:
        assert (count(unet), len(unet.state_dict()), count(block)) == counts
    size = config.data.image_size
    x, t = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, dtype=torch.long, device="meta")
    h, skips, emb = unet.encode(x, t)
    assert h.shape[1:] == h_shape
    assert block(h, emb).shape == h.shape
    assert unet.decode(h, skips, emb).shape[1] == (6 if config.model.type == "adm" else 3)


@pytest.mark.parametrize("name", MODELS)
def test_every_setting_is_read(name):
    """No dead setting: each key of the model section is one that the network takes."""
    config = load_config(name)
    network = type(on_meta(config)[0])
    accepted = set(network.__init__.__code__.co_varnames)
    assert set(to_dict(config.model)) - {"type"} <= accepted
    assert to_dict(config.diffusion) == {"beta_start": 1e-4, "beta_end": 2e-2, "num_diffusion_timesteps": 1000}


@pytest.mark.parametrize("name", [name for name, (_, counts, _) in MODELS.items() if counts])
def test_published_yaml_files_choose_the_same_network(name):
    """They say `type: simple` and leave the choice to data.dataset."""
    config = load_config(name)
    published = {"data": to_dict(config.data), "model": {"type": "simple", "ch": 1}}
    shapes = [{k: v.shape for k, v in on_meta(c)[0].state_dict().items()} for c in (config, published)]
    assert shapes[0] == shapes[1]


# ---- reading a config -------------------------------------------------------------------------------------------------------


def test_found_by_name_with_or_without_suffix_and_by_path(tmp_path):
    copy = tmp_path / "mine.yml"
    copy.write_text((CONFIGS / "celeba.yml").read_text())
    found = [load_config(name) for name in ("celeba", "celeba.yml", str(copy))]
    assert [to_dict(c.model) for c in found] == [to_dict(found[0].model)] * 3
    assert found[2].path == copy


def test_diffusion_defaults(tmp_path):
    path = tmp_path / "short.yml"
    path.write_text("data: {dataset: A, category: B, image_size: 8}\nmodel: {type: ddpm}\ndiffusion: {beta_end: 0.03}\n")
    config = load_config(str(path))
    assert to_dict(config.diffusion) == {"beta_start": 1e-4, "beta_end": 0.03, "num_diffusion_timesteps": 1000}


def test_settings_survive_being_written(tmp_path):
    config = load_config("afhq")
    path = tmp_path / "saved.yml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    again = load_config(str(path))
    assert (to_dict(again.data), to_dict(again.model)) == (to_dict(config.data), to_dict(config.model))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data: [unclosed", "not valid YAML"),
        ("", "holds no sections"),
        ("- a\n- list\n", "holds no sections"),
        ("data: dataset category image_size\n", "section 'data' lacks dataset, category, image_size"),
        ("data: {dataset: A, category: B}\nmodel: {type: ddpm}\n", "lacks image_size"),
        ("data: {dataset: A, category: B, image_size: 8}\n", "section 'model' lacks type"),
    ],
)
def test_a_faulty_config_is_one_plain_line(tmp_path, text, complaint):
    path = tmp_path / "faulty.yml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)
    assert "faulty.yml" in str(caught.value)


def test_a_binary_file_is_no_config(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04\xff\xfe" * 9)
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(tmp_path / "weights.pt"))


def test_a_missing_config_names_the_ones_there_are():
    with pytest.raises(UserError, match=r"celebaa.*celeba\.yml, celeba_p2\.yml"):
        load_config("celebaa")


# ---- places -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("ASYRP_DATA_", "ASYRP_MODEL_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", MODELS)
def test_every_config_has_its_places(name):
    config = load_config(name)
    for path in (dataset_folder(config), weights_of(config)):
        assert path.is_relative_to(ROOT)
        assert path != ROOT


def test_places_of_the_default_stack():
    config = load_config("avatar")
    assert weights_of(config) == ROOT / "pretrained" / "avatar" / "ddpm.pt"
    assert dataset_folder(config) == ROOT / "data" / "avatar"


def test_weight_files_are_not_shared_by_different_models():
    files = [place.weights for place in paths_config.PLACES.values()]
    names = [place.name for place in paths_config.PLACES.values()]
    assert len(set(files)) == len(files)
    assert len(set(names)) == len(names)


def test_the_environment_overrides(monkeypatch, tmp_path):
    config = load_config("celeba")
    monkeypatch.setenv("ASYRP_DATA_CELEBA_HQ", str(tmp_path))
    monkeypatch.setenv("ASYRP_MODEL_CELEBA_HQ", "weights/mine.ckpt")
    assert dataset_folder(config) == tmp_path
    assert weights_of(config) == ROOT / "weights" / "mine.ckpt"
    assert dataset_folder(load_config("celeba_p2")) != tmp_path


def test_custom_images_take_the_weights_of_their_dataset_key():
    assert weights_of(settings("CelebA_HQ", "CUSTOM")) == weights_of(settings("CelebA_HQ", "CelebA_HQ"))
    assert dataset_folder(settings("CelebA_HQ", "CUSTOM")) == ROOT / "data" / "custom"
    with pytest.raises(UserError, match="--model_path"):  # bedroom or church?
        weights_of(settings("LSUN", "CUSTOM"))


def test_an_unknown_pair_names_the_flags():
    with pytest.raises(UserError, match="AFHQ, category cat: pass --model_path"):
        weights_of(settings("AFHQ", "cat"))
    with pytest.raises(UserError, match="AFHQ, category cat: pass --custom_train_dataset_dir"):
        dataset_folder(settings("AFHQ", "cat"))
