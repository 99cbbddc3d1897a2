import os
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import yaml

from asyrp.config import CONFIGS, Editing, load_config, to_dict
from asyrp.options import FLAGS
from configs import paths_config
from configs.paths_config import ROOT, dataset_folder, weight_file, weight_place
from models import build_unet
from utils.errors import SettingsError, UserError

# A file of the 2023 release; `sampling` and much of `data` are those of DDIM.
OF_2023 = """
data:
    dataset: "{dataset}"
    category: "{category}"
    image_size: {image_size}
    channels: 3
    logit_transform: false
    uniform_dequantization: false
    gaussian_dequantization: false
    random_flip: true
    rescaled: true
    num_workers: 0
model:
    type: "simple"
    in_channels: 3
    out_ch: 3
    ch: 128
    ch_mult: [1, 1, 2, 2, 4, 4]
    num_res_blocks: 2
    attn_resolutions: [16, ]
    dropout: 0.0
    var_type: fixedsmall
    ema_rate: 0.999
    ema: True
    resamp_with_conv: True
diffusion:
    beta_schedule: linear
    beta_start: 0.0001
    beta_end: 0.02
    num_diffusion_timesteps: 1000
sampling:
    batch_size: 4
    last_only: True
"""
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
    "ffhq_p2.yml": (("FFHQ_P2", "FFHQ_P2"), IDDPM, (512, 8, 8)),
    "afhq_p2.yml": (("AFHQ_P2", "dog_P2"), IDDPM, (512, 8, 8)),
    "cub_p2.yml": (("CUB", "bird"), IDDPM, (512, 8, 8)),
    "flower_p2.yml": (("Flower", "flower"), IDDPM, (512, 8, 8)),
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
def test_network_is_the_published_one(name):
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


@pytest.mark.parametrize("name", [name for name, (_, counts, _) in MODELS.items() if counts])
def test_published_yaml_files_choose_the_same_network(name, tmp_path):
    """They say `type: simple` and leave the choice to data.dataset."""
    config = load_config(name)
    data = to_dict(config.data)
    (tmp_path / "published.yml").write_text(OF_2023.format(**data))
    published = load_config(tmp_path / "published.yml")
    assert (published.data, published.model, published.diffusion) == (config.data, config.model, config.diffusion)


@pytest.mark.parametrize("name", MODELS)
def test_editing_section(name):
    """What each shipped model is edited with unless a flag says otherwise."""
    steps = {"n_inv_step": 40, "n_train_step": 40, "n_test_step": 40}
    as_published = {
        "lpips_edit_th": 0.33,
        "lpips_addnoise_th": 1.2,
        "add_noise_from_xt": True,
        "n_train_img": 1000,
        "n_iter": 1,
    }
    as_published |= {"lr_training": 0.5, "clip_loss_w": 0.8, "l1_loss_w": 3, "clip_source": "x0"}
    as_measured = {"lpips_edit_th": 0.005, "user_defined_t_addnoise": 0, "n_train_img": 200, "n_iter": 2, "bs_train": 4}
    as_measured |= {"lr_training": 0.4, "scheduler_step_size": 1, "sch_gamma": 0.3, "inversion": "fixed_point"}
    as_measured |= {"clip_loss_w": 1, "l1_loss_w": 2, "clip_source": "origin"}
    assert load_config(name).editing.given() == steps | (as_measured if name.startswith("avatar") else as_published)


def test_network_for_small_pictures_has_small_groups():
    assert (load_config("avatar64").model.norm_groups, load_config("avatar").model.norm_groups) == (8, 8)


# ---- reading a config -------------------------------------------------------------------------------------------------------


def test_found_by_name_with_or_without_suffix_and_by_path(tmp_path):
    copy = tmp_path / "mine.yml"
    copy.write_text((CONFIGS / "celeba.yml").read_text())
    found = [load_config(name) for name in ("celeba", "celeba.yml", str(copy))]
    assert [to_dict(c.model) for c in found] == [to_dict(found[0].model)] * 3
    assert found[2].path == copy


BASE = "data: {dataset: A, category: B, image_size: 32}\n"
PLAN = "model: {type: ddpm, ch: 32, ch_mult: [1, 2], num_res_blocks: 1, attn_resolutions: [16]}\n"


def written(tmp_path, text):
    """The settings of a file with this text."""
    path = tmp_path / "mine.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(str(path))


def refused(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        written(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message and "mine.yml" in message and len(message) < 500


def test_defaults_of_a_short_file(tmp_path):
    config = written(tmp_path, BASE + PLAN + "diffusion: {beta_end: 3e-2}\n")  # text, for YAML 1.1
    expected = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.03, "num_diffusion_timesteps": 1000}
    assert to_dict(config.diffusion) == expected
    assert config.editing.given() == {}
    assert (config.clip, config.judge, config.segmenter, config.data.credit) == (None, None, None, "")


@pytest.mark.parametrize("name", ["afhq", "avatar"])
def test_settings_survive_being_written(tmp_path, name):
    config = load_config(name)
    again = written(tmp_path, yaml.safe_dump(to_dict(config)))
    assert to_dict(again) == to_dict(config) | {"path": str(tmp_path / "mine.yml")}
    assert (again.model, again.editing, again.judge) == (config.model, config.editing, config.judge)


def test_editing_has_only_given_values(tmp_path):
    text = "editing: {user_defined_t_edit: 0, lr_training: 1e-3, add_noise_from_xt: false, dt_lambda: null}\n"
    given = {"add_noise_from_xt": False, "user_defined_t_edit": 0, "lr_training": 1e-3}
    assert written(tmp_path, BASE + PLAN + text).editing.given() == given


def test_every_key_of_editing_is_a_flag():
    assert {f.name for f in fields(Editing)} <= FLAGS.keys()


@pytest.mark.subprocess
def test_yaml_is_read_as_utf_8_in_any_locale(tmp_path):
    (tmp_path / "mine.yml").write_bytes("\ufeff# Zoë\n".encode() + (BASE + PLAN).replace("B", "häuser").encode())
    code = "from asyrp.config import load_config; import sys; print(ascii(load_config(sys.argv[1]).data.category))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "mine.yml")]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == ascii("häuser"), told.stderr


@pytest.mark.subprocess
def test_settings_are_read_without_torch():
    code = "import sys, asyrp.config; asyrp.config.load_config('avatar'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data: [unclosed", "not valid YAML"),
        ("", "has no sections"),
        ("- a\n- list\n", "has no sections"),
        ("data: dataset category image_size\n", "section 'data' has no dataset, category, image_size"),
        (f"data: {{dataset: A, category: B}}\n{PLAN}", "section 'data' has no image_size"),
        (BASE, "section 'model' has no type"),
        (BASE + "model: {type: ddpm, ch: 32}\n", "section 'model' has no ch_mult, num_res_blocks, attn_resolutions"),
        (BASE + PLAN.replace("32", "40"), "section 'model': norm_groups 32 does not divide"),
        (BASE + PLAN.replace("ch_mult", "ch_mul"), "section 'model': unknown key 'ch_mul'; did you mean ch_mult"),
        (BASE.replace("32", "31") + PLAN, "image_size must be a multiple of 2, not 31"),
        (BASE.replace("B", "../other") + PLAN, "section 'data': category '../other': must be valid in a file name"),
        (BASE.replace("B", "..") + PLAN, "section 'data': category"),
        (BASE.replace("A", "a/b") + PLAN, "section 'data': dataset 'a/b'"),
        (BASE.replace("}", ", channels: 1}") + PLAN, "channels 1 is not supported: it must be 3"),
        (BASE.replace("}", ", rescaled: false}") + PLAN, "rescaled false is not supported"),
        (BASE + PLAN + "difusion: {}\n", "unknown section 'difusion'; did you mean diffusion"),
        (
            BASE + PLAN + "diffusion: {beta_strat: 0.5}\n",
            "section 'diffusion': unknown key 'beta_strat'; did you mean beta_start",
        ),
        (BASE + PLAN + "diffusion: {beta_schedule: quad}\n", "beta_schedule 'quad': must be 'linear' or 'cosine'"),
        (BASE + PLAN + "diffusion: {beta_end: .nan}\n", "beta_end nan: must be a number"),
        (BASE + PLAN + "diffusion: {beta_end: 1}\n", "must be above 0 and below 1"),
        (BASE + PLAN + "diffusion: {beta_start: 0.03}\n", r"beta_start 0\.03 is above beta_end 0\.02"),
        (BASE + PLAN + "diffusion: {beta_schedule: cosine, beta_end: 0.03}\n", "cosine does not use beta_start and beta_end"),
        (BASE + PLAN + "diffusion: {num_diffusion_timesteps: 1}\n", "num_diffusion_timesteps 1: must be 2 or more"),
        (BASE + PLAN + "diffusion: 1000\n", "section 'diffusion' is 1000, but must have keys and values"),
        (BASE + PLAN + "editing: {lr: 0.5}\n", "section 'editing': unknown key 'lr'"),
        (BASE + PLAN + "editing: {lpips_edit_th: -1}\n", "lpips_edit_th -1.0: must be 0 or more"),
        (BASE + PLAN + "editing: {n_inv_step: 1}\n", "n_inv_step 1: must be another value"),
        (BASE + PLAN + "editing: {add_noise_from_xt: 1}\n", "add_noise_from_xt 1: must be true or false"),
        (BASE + PLAN + "editing: {clip_source: x_0}\n", "clip_source 'x_0': must be 'x0' or 'origin'"),
        (BASE + PLAN + "editing: {t_0: 1000}\n", "t_0 1000: must be at most 999, with 1000 timesteps"),
        (BASE + PLAN + "editing: {user_defined_t_edit: 1001}\n", "user_defined_t_edit 1001: must be at most 1000"),
        (BASE + PLAN + "clip: {modle: x}\n", "section 'clip': unknown key 'modle'; did you mean model"),
        (BASE + PLAN + "judge: {weights: x}\n", "section 'judge' has no aims"),
        (BASE + PLAN + "judge: {weights: x, aims: {beard: [beard, yes]}}\n", "aims: beard true: must be text"),
        (BASE + PLAN + "segmenter: [x]\n", "segmenter"),
        (BASE + PLAN + BASE, "the key 'data' is given twice"),
        (BASE.replace("}", ", category: C}") + PLAN, "the key 'category' is given twice"),
        (BASE + PLAN + "---\n" + BASE, "not valid YAML"),
        (BASE + PLAN + "clip: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (BASE + PLAN + "clip: !!bool x\n", "not valid YAML"),
        (BASE + PLAN + "clip: 2020-13-45\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in pairwise("abcdefghijkl")), "aliases"),
        ("a: &a {<<: *a}\n", "not valid YAML|unknown section"),
        ("#" * 70_000, "larger than 64 KiB"),
        (b"data: {dataset: \xff}\n", "not UTF-8 text"),
        (b"PK\x03\x04\xff\xfe" * 9, "not valid YAML"),
        (b"data: \x00\n", "not valid YAML"),
    ],
)
def test_faulty_config_is_one_plain_line(tmp_path, text, complaint):
    refused(tmp_path, text, complaint)


def test_schedule_of_another_length(tmp_path):
    text = (
        "diffusion: {beta_schedule: cosine, num_diffusion_timesteps: 4000}\nediting: {t_0: 3999, user_defined_t_edit: 4000}\n"
    )
    assert written(tmp_path, BASE + PLAN + text).editing.t_0 == 3999


def test_settings_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        load_config("avatar").data.category = "other"


def test_faulty_setting_is_a_value_error_too(tmp_path):
    with pytest.raises(SettingsError):
        written(tmp_path, BASE)


def test_missing_config_error_lists_known_configs():
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


def test_environment_overrides(monkeypatch, tmp_path):
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


def test_unknown_pair_names_the_flags():
    with pytest.raises(UserError, match="AFHQ, category cat: pass --model_path"):
        weights_of(settings("AFHQ", "cat"))
    with pytest.raises(UserError, match="AFHQ, category cat: pass --custom_train_dataset_dir"):
        dataset_folder(settings("AFHQ", "cat"))
