"""A pipeline of diffusers as a model: its settings, what is refused, the hub, and whole runs."""

import inspect
import shutil
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
import yaml
from pipelines import change, flatten, network, save
from tiny_world import TEST, TRAIN, smooth_images

import asyrp
from asyrp import curves
from asyrp.config import load_config, to_dict
from asyrp.pipeline import BETAS, SCHEDULERS, Scheduler
from utils.errors import SettingsError, UserError
from utils.files import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import publish

SCHEDULER, UNET, INDEX = "scheduler/scheduler_config.json", "unet/config.json", "model_index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("pipelines") / "my.faces")[0]


@pytest.fixture
def mine(saved, tmp_path):
    """A pipeline of one's own, to be changed."""
    return shutil.copytree(saved, tmp_path / "my.faces")


# ---- settings ---------------------------------------------------------------------------------------------------------------


def test_sections_of_a_pipeline_folder(mine, tmp_path, monkeypatch):
    config = load_config(mine)
    assert (config.data.category, config.data.image_size, config.name, config.path) == ("my.faces", 16, "my.faces", mine)
    assert config.editing.given() == {} and config.clip_name() == "ViT-B/16"
    monkeypatch.chdir(mine)
    assert load_config(".") == config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(mine)
    assert load_config("my.faces") == config
    assert load_config("link").name == "link"


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("T", [1000, 300])
def test_schedule_is_the_schedulers(mine, kind, T):
    made = diffusers.DDPMScheduler(beta_schedule=kind, num_train_timesteps=T, beta_start=2e-4, beta_end=0.015)
    made.save_pretrained(mine / "scheduler")
    model = asyrp.open_model(mine, device="cpu")
    torch.testing.assert_close(torch.from_numpy(model.schedule.betas).float(), made.betas, rtol=2e-4, atol=1e-7)
    # The whole process, whatever its length.
    assert model.config.editing.given() == ({} if T == 1000 else {"t_0": T - 1})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_are_read(mine, name):
    """As the library saves them: no setting of theirs is unknown, and what one does not say is what the library takes."""
    kind = getattr(diffusers, f"{name}Scheduler")
    kind().save_pretrained(mine / "scheduler")
    change(mine / INDEX, scheduler=["diffusers", kind.__name__])
    config = load_config(mine)
    (mine / SCHEDULER).write_text("{}")
    assert load_config(mine).diffusion == config.diffusion
    theirs = {key: p.default for key, p in inspect.signature(kind.__init__).parameters.items()}
    assert vars(Scheduler()).items() <= theirs.items()


def test_settings_of_sampling_change_nothing(mine):
    config = load_config(mine)
    change(mine / SCHEDULER, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing")
    change(mine / SCHEDULER, variance_type="fixed_large", thresholding=True, timestep_values=None, something_new=False)
    assert load_config(mine) == config


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr true is not supported: it must be false"),
        (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "trained_betas .* is not supported: it must be null"),
        (SCHEDULER, {"prediction_type": "sample"}, "prediction_type 'sample': must be 'epsilon' or 'v_prediction'"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid': must be 'linear' or 'scaled_linear' or"),
        (SCHEDULER, {"snr_shift_scale": 3.0}, "unknown key 'snr_shift_scale'"),
        (SCHEDULER, {"beta_start": 0.5}, r"beta_start 0\.5 is above beta_end"),
        (SCHEDULER, {"num_train_timesteps": "many"}, "num_train_timesteps 'many': must be a whole number"),
        (INDEX, {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "a FlowMatchEulerDiscreteScheduler"),
        (INDEX, {"scheduler": [None, None]}, "the schedule of a None"),
        (INDEX, {"unet": ["diffusers", "UNet2DConditionModel"]}, "its unet is UNet2DConditionModel"),
        (INDEX, {"unet": None}, "its unet is missing"),
        (INDEX, {"vqvae": ["diffusers", "VQModel"]}, r"also has vqvae \(VQModel\)"),
        (UNET, {"in_channels": 4, "out_channels": 4}, "in_channels 4: must be 3"),
        (UNET, {"sample_size": [16, 32]}, r"sample_size \[16, 32\]: only square images"),
        (UNET, {"sample_size": None}, "has no sample_size"),
        (UNET, {"num_class_embeds": 1000}, "num_class_embeds 1000: the network takes class labels"),
        (UNET, {"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"),
        (UNET, {"_class_name": "UNet1DModel"}, "_class_name 'UNet1DModel' is not supported"),
        (UNET, {"attend_to": "all"}, "unknown key 'attend_to'"),
    ],
    ids=str,
)
def test_pipelines_that_are_refused(mine, file, changes, said):
    change(mine / file, **changes)
    with pytest.raises(SettingsError, match=said) as caught:
        load_config(mine)
    part = UNET if file == UNET else SCHEDULER if said.startswith(("a Flow", "the schedule")) else file
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [SCHEDULER, UNET, INDEX])
@pytest.mark.parametrize("contents", [None, b"{", b"[1]", b"\xff"])
def test_files_that_are_missing_or_damaged(mine, file, contents):
    (mine / file).unlink()
    if contents:
        (mine / file).write_bytes(contents)
    with pytest.raises(UserError) as caught:
        load_config(mine)
    said = "is a folder but not a pipeline" if (file, contents) == (INDEX, None) else file
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_missing_or_of_another_network(mine):
    weights = mine / "unet" / "diffusion_pytorch_model.safetensors"
    network(layers_per_block=1).save_pretrained(mine / "other")
    shutil.copy(mine / "other" / weights.name, weights)
    with pytest.raises(
        UserError, match=r"does not fit the U-Net of my\.faces.*weights of another UNet2DModel: pass the folder"
    ):
        asyrp.open_model(mine, device="cpu")
    weights.unlink()
    with pytest.raises(UserError, match=r"no weights at .*my\.faces/unet/diffusion_pytorch_model\.safetensors, nor a \.bin"):
        asyrp.open_model(mine, device="cpu")
    torch.save({"conv_in.weight": print}, weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="contains more than tensors"):
        asyrp.open_model(mine, device="cpu")


def test_weights_next_to_other_settings_are_refused(mine, tmp_path):
    """Their tensors fit; only config.json shows the difference."""
    network(norm_eps=1e-3).save_pretrained(tmp_path / "other")
    weights = tmp_path / "other" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(SettingsError, match=r"config\.json has norm_eps 0\.001 \(here 1e-05\): the network here would compute"):
        asyrp.open_model(mine, weights, "cpu")
    weights.with_name("config.json").unlink()
    assert asyrp.open_model(mine, weights, "cpu").identity


def test_no_model_takes_the_published_curves_by_the_name_of_its_folder(saved, tmp_path):
    for name in ("bedroom", "FFHQ"):
        config = load_config(shutil.copytree(saved, tmp_path / name))
        assert curves.name_of_curve(config) == name
        with pytest.raises(UserError, match=f"no LPIPS curves for category {name}"):
            curves.find_curve(SimpleNamespace(newest=lambda *_: None), SimpleNamespace(config=config, identity="a model"))


# ---- a YAML that names a pipeline -------------------------------------------------------------------------------------------


def written(path, **sections):
    path.write_text(yaml.safe_dump(sections))
    return path


def test_yaml_adds_to_a_pipeline(mine, tmp_path):
    change(mine / SCHEDULER, num_train_timesteps=300)
    model = {"type": "unet2d", "pipeline": str(mine)}
    path = written(tmp_path / "faces.yml", model=model, editing={"n_inv_step": 20}, data={"category": "FACES", "credit": "me"})
    config, bare = load_config(path), load_config(mine)
    assert (config.data.category, config.data.image_size, config.data.credit) == ("FACES", 16, "me")
    assert (config.model, config.diffusion, config.name) == (bare.model, bare.diffusion, "faces")
    assert config.editing.given() == {"t_0": 299, "n_inv_step": 20}
    assert asyrp.open_model(path, device="cpu").identity == asyrp.open_model(mine, device="cpu").identity
    (tmp_path / "again.yml").write_text(yaml.safe_dump(to_dict(config)))
    again = load_config(tmp_path / "again.yml")
    assert (again.model, again.diffusion, again.editing) == (config.model, config.diffusion, config.editing)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"diffusion": {"beta_end": 0.03}}, "section 'diffusion' is set by the pipeline .*: leave it out"),
        ({"model": {"norm_eps": 1e-6}}, "section 'model': norm_eps is set by the pipeline"),
        ({"model": {"pipeline": "nowhere"}}, "section 'model': pipeline nowhere: neither a folder"),
        ({"model": {"pipeline": 3}}, "section 'model': pipeline 3: must be text"),
        ({"model": {"type": "ddpm"}, "data": {"dataset": "A", "category": "B", "image_size": 16}}, "unknown key 'pipeline'"),
        ({"data": {"image_size": 32}}, "sample_size 16 and data.image_size 32 differ"),
        ({"data": "faces"}, "section 'data' has no dataset"),
    ],
    ids=str,
)
def test_yaml_that_contradicts_its_pipeline(saved, tmp_path, sections, said):
    model = {"type": "unet2d", "pipeline": str(saved)} | sections.get("model", {})
    with pytest.raises(UserError, match=said):
        load_config(written(tmp_path / "mine.yml", **sections | {"model": model}))


# ---- whole runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [{}, {"prediction_type": "v_prediction", "num_train_timesteps": 300}], ids=str)
def test_direction_is_trained_used_and_published(run, tiny, tmp_path, scheduled):
    save(tmp_path / "my.faces", **scheduled)
    T = scheduled.get("num_train_timesteps", 1000)
    middle = ("--config", "my.faces", "--user_defined_t_edit", str(T // 2))
    assert run(*TRAIN, *middle, "--checkpoint_decoder", weights=False) == 0
    name = f"smile_LC_my.faces_t{T - 1}_ninv4_ngen4"
    checkpoint = tmp_path / "checkpoint" / f"{name}_0.pth"
    assert run(*TEST, *middle, weights=False) == 0
    assert run(*TEST, *middle, "--precision", "bf16", "--edit_threshold", "0.5", weights=False) == 0
    assert (tmp_path / "runs" / name / "test_images" / "4" / "all.png").is_file()
    publish.publish(checkpoint, tmp_path / "smile.safetensors")
    model = asyrp.open_model("my.faces", device="cpu")
    direction = asyrp.load_direction(tmp_path / "smile.safetensors", model)
    assert direction.record["model"]["identity"] == model.identity
    x_T = model.invert(smooth_images(2), 4)
    assert (model.edit(x_T, direction, n_steps=4) - model.generate(x_T, 4)).abs().max() > 1e-3
    assert torch.equal(
        model.edit(x_T, direction, n_steps=4), model.edit(x_T, asyrp.load_direction(checkpoint, model), n_steps=4)
    )
    with pytest.raises(UserError, match="another architecture"):
        asyrp.load_direction(checkpoint, asyrp.open_model(tiny.folder / "ddpm.yml", tiny.folder / "ddpm.pt", "cpu"))


def test_curves_latents_and_images(run, saved, tmp_path):
    assert run("--just_precompute", "--n_precomp_img", "1", "--config", saved, weights=False) == 0
    assert len(list((tmp_path / "precomputed" / "latent").rglob("*.safetensors"))) == 2
    said = run.error("--just_precompute", "--config", saved, weights=False, images=False)
    assert said.startswith(
        "there is no default image folder for dataset diffusers, category my.faces: pass --custom_train_dataset_dir"
    )


# ---- the hub ----------------------------------------------------------------------------------------------------------------

LOADING = "from asyrp.config import load_config\n"
SETTINGS = LOADING + 'print(told(lambda: (c := load_config("owner/faces")).name + " " + str(c.path)))'
WEIGHTS = LOADING + 'print(told(lambda: load_config("owner/faces").pipeline.weights()))'


@pytest.mark.subprocess
@pytest.mark.parametrize("flat", [False, True])
def test_name_on_the_hub(hub, mine, flat):
    """Its settings at first, its weights when they are needed, and nothing else; then from the cache."""
    if flat:
        flatten(mine)
    (mine / "README.md").write_text("of no use here")
    hub.models["owner/faces"] = mine
    assert hub.say(SETTINGS, HF_TOKEN="hf_secret") == "faces owner/faces"
    settings = {INDEX, "config.json", "scheduler_config.json"} if flat else {INDEX, UNET, SCHEDULER}
    assert hub.files_asked() == settings
    assert {token for path, token in hub.asked if "owner/faces" in path} == {"Bearer hf_secret"}
    weights = "diffusion_pytorch_model.bin" if flat else "unet/diffusion_pytorch_model.safetensors"
    path = hub.say(WEIGHTS)
    assert path.endswith(weights) and hub.files_asked() == settings | {weights}
    hub.asked.clear()
    assert hub.say(WEIGHTS, HF_HUB_OFFLINE="1") == path
    assert not hub.asked


@pytest.mark.subprocess
def test_weights_that_the_hub_lacks(hub, mine):
    (mine / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    hub.models["owner/faces"] = mine
    assert hub.say(WEIGHTS).endswith("nor a .bin: save or download owner/faces again")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no such model: check the name, or set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "no connection, and the model is not cached: check the network"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection, and the model is not cached"),
    ],
    ids=["not there", "offline", "nobody answers"],
)
def test_unknown_config_name(hub, environment, said):
    """A mistyped path looks like a name on the hub: the line says both."""
    begins = "error: --config owner/faces: no such file or folder; owner/faces is not available from the Hugging Face hub: "
    assert hub.say(SETTINGS, **environment).startswith(begins + said)


@pytest.mark.parametrize("name", ["nowhere", "configs/nowhere.yml", "a/b/c", "./mine", "/mine", "runs/"])
def test_invalid_hub_names_are_not_requested(monkeypatch, name):
    monkeypatch.setattr("utils.hub.fetch", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=r"no such file: give a path, one of .*, or a diffusers pipeline"):
        load_config(name)


def test_invalid_pipeline_is_a_one_line_error(run, mine):
    change(mine / SCHEDULER, rescale_betas_zero_snr=True)
    assert "rescale_betas_zero_snr true is not supported" in run.error("--lpips", "--config", mine, weights=False)
