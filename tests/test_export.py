"""--export: a folder to share a direction with, and hf:USER/REPO, which uses one from the Hugging Face hub."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from pipelines import save
from tiny_world import DELTA_H, INTERVALS, NAME, TEST, open_tiny, pixels, settings, smooth_images

import asyrp
from asyrp import directions, hspace
from asyrp.data.datasets import load_batch, open_folder
from asyrp.directions import Direction
from asyrp.parsing import parse_args
from asyrp.report import export
from utils import tensors
from utils.errors import UserError

FILES = ["README.md", "direction.safetensors", "strip.png"]
EXPORT = (*TEST, "--export", "share")


@pytest.fixture
def share(tmp_path):
    return tmp_path / "share"


@pytest.fixture
def exported(run_learned, share, tmp_path):
    """The folder of an export, and the run that made it."""
    assert run_learned(*EXPORT) == 0
    return share


@pytest.fixture
def shared(exported, hub, monkeypatch):
    """An export on the hub, as owner/smile, for this very process."""
    hub.use_here(monkeypatch)
    hub.models["owner/smile"] = exported
    return exported


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def card_of(folder):
    return (folder / "README.md").read_text()


def code_of(card, language):
    [code] = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
    return code


def images_of(tiny):
    """The first two test images."""
    return load_batch(open_folder(tiny.test, 16), [0, 1])[1]


def at_strength_one(generated):
    """The edits of a strip at strength 1, of all images."""
    edits = [call for call in generated if call.get("edit") and call["steps"][0] == 0]
    return torch.cat([call["x_0"] for call in edits if call["edit"].coefficients == [1.0]])


# ---- what is written --------------------------------------------------------------------------------------------------------


def test_three_files_and_how_to_share_them(run_learned, share, capsys):
    assert run_learned(*EXPORT) == 0
    assert names(share) == FILES
    assert "direction, strip and card: share; share them with hf upload USER/REPO share" in capsys.readouterr().out


def test_direction_is_the_checkpoint_without_what_training_needs(exported, tmp_path):
    stored = directions.read(exported / "direction.safetensors")
    [checkpoint] = [directions.read(path) for path in (tmp_path / "checkpoint").glob("*.pth")]
    assert (stored.record, stored.more) == (checkpoint.record, {})
    assert all(torch.equal(stored.parts[0][key], value) for key, value in checkpoint.parts[0].items())
    metadata = tensors.metadata_of(exported / "direction.safetensors")
    assert metadata["format"] == "asyrp direction" and json.loads(metadata["record"]) == stored.record


def test_strip_runs_from_below_zero_beyond_one(exported, results, tmp_path):
    """It is that of the run, whose own pictures show it too; with the originals before it."""
    assert settings(results, "test")["strengths"] == ["-1", "-0.5", "+0", "+0.5", "+1", "+1.5"]
    assert settings(results, "test")["sources"]["num_delta"] == "--export"
    strip, album = pixels(exported / "strip.png"), pixels(results / "test_images" / "4" / "all.png")
    assert strip.shape[1] > album.shape[1] - 40  # seven columns; the album has six, and the images' names
    cell = 96
    assert (strip[-cell - 4 : -4, -cell - 4 : -4] == album[-cell - 4 : -4, -cell - 4 : -4]).all()


def test_delta_interpolation_overrides_export_strip(run_learned, share, results):
    assert run_learned(*EXPORT, "--delta_interpolation", "--max_delta", "2", "--num_delta", "3") == 0
    assert settings(results, "test")["strengths"] == ["+0", "+1", "+2"]
    assert Image.open(share / "strip.png").width == 4 + 4 * 100


def test_model_card(exported):
    card = card_of(exported)
    data = ModelCard(card).data
    assert data.pipeline_tag == "image-to-image" and "h-space" in data.tags
    assert data.license is None and "\n# license: fill in" in card
    assert data.base_model is None
    rows = ["prompts | face -&gt; smiling face", "t_edit | 500", "training steps | 4", "lr_training | 0.2", "epochs | 1"]
    for row in rows:
        assert f"\n| {row} |\n" in card
    assert 'that edits images from "face" to "smiling face"' in card
    assert "2 test images; the strength is above each column. Inversion DDIM, 4 steps, t_edit 500, t_boost 0." in card
    assert "--config ddpm.yml" in code_of(card, "bash") and "hf:USER/REPO" in code_of(card, "bash")
    assert "You also need `ddpm.yml` and the weights of the model" in card
    assert "Evaluation" not in card


def test_card_has_only_the_evaluation_of_this_run(run_learned, share, results):
    """--evaluate makes test images too; a later run without it tells nothing of them."""
    assert run_learned("--evaluate", *TEST[1:], "--export", "share") == 0
    summary = json.loads((results / "evaluation.json").read_text())["summary"]
    psnr = summary["reconstruction"]["PSNR in dB"]["mean"]
    assert "| metric | reconstruction | -1 | -0.5 | +0 | +0.5 | +1 | +1.5 | n |\n| --- |" in card_of(share)
    assert re.search(rf"\n\| PSNR in dB \| {psnr:.3g} ± \S+ \|(  \|)+ 2 \|\n", card_of(share))
    assert "with CLIP clip.json; inversion DDIM" in card_of(share)
    assert run_learned(*EXPORT) == 0
    assert "PSNR" not in card_of(share)


def test_texts_are_escaped_in_tables():
    assert export.cell("a | b\n<c>") == "a \\| b\\n&lt;c&gt;"


def test_pipeline_on_the_hub_is_the_base_model(run, hub, share, monkeypatch):
    hub.use_here(monkeypatch)
    hub.models["owner/faces"] = save(share.parent / "pipeline")[0]
    own = ("--config", "owner/faces", "--run_train", *TEST[1:])
    assert run(*own, "--export", "share", weights=False) == 0
    assert ModelCard(card_of(share)).data.base_model == "owner/faces"
    assert 'asyrp.open_model("owner/faces")' in card_of(share)
    assert "You also need" not in card_of(share)


def test_shipped_config_is_named_and_its_images_are_credited(run, share, tmp_path):
    (tmp_path / "faces").mkdir()
    export.pictures.to_pil(smooth_images(1, 32)[0]).save(tmp_path / "faces" / "0.png")
    flags = ("--config", "avatar.yml", "--custom_test_dataset_dir", "faces", "--manual_checkpoint_name", "smiling")
    assert run("--run_test", *flags, "--export", "share", "--n_inv_step", "4", "--n_test_step", "4", weights=False) == 0
    card = card_of(share)
    assert '"Toon Head" by Johan Melin' in card and "--config avatar.yml" in card and "You also need" not in card


def test_mean_direction_is_exported(run_learned, share, generated, tiny):
    assert run_learned(*EXPORT, "--num_mean_of_delta_hs", "2") == 0
    strip = at_strength_one(generated)
    model = open_tiny(tiny)
    direction = asyrp.load_direction(share / "direction.safetensors", model)
    assert (direction.kind, direction.record["origin"]) == ("delta_h", "mean of 2 images")
    edited = model.edit(model.invert(images_of(tiny), 4), direction, [1.0], 4)
    assert torch.allclose(edited, strip, atol=1e-4)


def test_export_completes_the_record(run, share, tiny, tmp_path):
    """A file of one's own: its interval, prompts and steps are those of the run."""
    model = open_tiny(tiny)
    block = hspace.BlockDirection(model.unet.new_delta_block())
    (tmp_path / "checkpoint").mkdir()
    directions.save(Direction(block, {}, "mine"), tmp_path / "checkpoint" / "mine.safetensors")
    assert run(*EXPORT, "--manual_checkpoint_name", "mine") == 0
    record = asyrp.load_direction(share / "direction.safetensors", model).record
    assert (record["t_edit"], record["n_train_step"], record["prompts"]) == (500, 4, ["face", "smiling face"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--run_train", *TEST[1:]),
        ("--run_train", *DELTA_H),
        ("--run_train", *DELTA_H, "--ignore_timesteps"),
        ("--fit_direction", "labels", "--positive", "one", "--negative", "other", "--run_test"),
        (*TEST, "--manual_checkpoint_name", f"{NAME}_0.pth", "--load_random_noise"),
        (*TEST, "--manual_checkpoint_name", f"{NAME}_0.pth", "--inversion", "ddpm", "--bs_test", "2"),
    ],
    ids=lambda flags: " ".join(flags)[:40],
)
def test_every_kind_of_direction_and_of_test(run_learned, share, tiny, tmp_path, flags):
    for k, name in enumerate(("one", "other")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(smooth_images(3, 16, seed=k)):
            export.pictures.to_pil(image).save(tmp_path / name / f"{i}.png")
    assert run_learned(*flags, "--exp", "runs/new", "--export", "share") == 0
    model = open_tiny(tiny)
    direction = asyrp.load_direction(share / "direction.safetensors", model)
    x_T = model.invert(images_of(tiny), 4)
    assert (model.edit(x_T, direction, [1.0], 4) - model.generate(x_T, 4)).abs().max() > 1e-3
    assert Image.open(share / "strip.png").width > 4 * 100


# ---- where it is written ----------------------------------------------------------------------------------------------------


def test_earlier_export_is_replaced(run_learned, exported):
    strip = (exported / "strip.png").read_bytes()
    (exported / "strip.png").unlink()
    (exported / "direction.safetensors").write_bytes(b"cut off")
    assert run_learned(*EXPORT) == 0
    assert names(exported) == FILES and (exported / "strip.png").read_bytes() == strip
    assert directions.read(exported / "direction.safetensors").record["t_edit"] == 500


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("notes.txt", " contains notes.txt, which is not part of an export: give another folder"),
        ("direction.safetensors", ": its README.md is missing or was edited by hand: give another folder"),
        ("README.md", ": its README.md is missing or was edited by hand: give another folder"),
    ],
)
def test_folder_with_other_files_is_refused(run_learned, share, tmp_path, file, said):
    """And nothing is computed first."""
    share.mkdir()
    (share / file).write_text("mine")
    shutil.rmtree(tmp_path / "precomputed")
    assert run_learned.error(*EXPORT) == f"--export share{said}, or move that file"
    assert names(share) == [file] and (share / file).read_text() == "mine"
    assert not (tmp_path / "precomputed").exists()


def test_edited_card_is_not_overwritten(run_learned, exported):
    changed = card_of(exported).replace("# license: fill in, for example cc-by-4.0", "license: mit")
    (exported / "README.md").write_text(changed)
    assert "was edited by hand" in run_learned.error(*EXPORT)
    assert card_of(exported) == changed and ModelCard(changed).data.license == "mit"


def test_invalid_export_folder(run_learned, share):
    share.write_text("a file")
    assert run_learned.error(*EXPORT).startswith("share: File exists; there is a file where a folder is needed")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lpips", "--export", "share"), "--export draws a strip of test images: add --run_test"),
        ((*TEST, "--run_train", "--just_precompute", "--export", "share"), None),
        (("--run_train", *TEST[1:], "--do_test", "0", "--export", "share"), "--export draws a strip of test images"),
        ((*TEST[:1], "--multiple_attr", "a b", "--export", "share"), "writes one direction: leave out --multiple_attr"),
        ((*TEST, "--pass_editing", "--export", "share"), "--export writes one direction: leave out --pass_editing"),
    ],
)
def test_export_needs_a_test(flags, said):
    given = ["--config", "x.yml", *flags]
    if said is None:
        assert parse_args(given)[0]["export"] == "share"
    else:
        with pytest.raises(UserError, match=said):
            parse_args(given)


# ---- hf:USER/REPO -----------------------------------------------------------------------------------------------------------


def test_python_of_the_card_makes_the_pictures_of_the_strip(shared, hub, tiny, run, generated, monkeypatch):
    """As it stands there, with the model of this test and the images of the strip."""
    assert run(*EXPORT) == 0
    strip = at_strength_one(generated)
    code = code_of(card_of(shared), "python").replace("USER/REPO", "owner/smile")
    model = open_tiny(tiny)
    monkeypatch.setattr(asyrp, "open_model", lambda name: {"ddpm.yml": model}[name], raising=False)
    found = {"images": images_of(tiny)}
    exec(code, found)
    assert len(code.strip().splitlines()) == 6  # five, and an empty one
    assert torch.allclose(found["edited"], strip, atol=1e-4)
    assert found["direction"].name == "hf:owner/smile"
    assert hub.files_asked() == {"direction.safetensors"}


def test_command_line_edits_with_it(run, shared, results, capsys):
    own, pictures = ("--manual_checkpoint_name", "hf:owner/smile"), []
    for flags in ((), own, ("--load_from_checkpoint", "hf:owner/smile")):
        assert run(*TEST, *flags) == 0
        pictures.append((results / "test_images" / "4" / "all.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    assert run("--run_test", "--multiple_attr", "hf:owner/smile smile") == 0
    capsys.readouterr()
    assert run(*TEST, *own, intervals=INTERVALS[2:]) == 0
    assert "t_edit 500 (hf:owner/smile)" in capsys.readouterr().err
    assert run("--run_train", *TEST[1:], *own, "--do_test", "0", "--exp", "runs/on") == 0


def test_downloaded_direction_works_offline(run, shared, hub, monkeypatch):
    assert run(*TEST, "--manual_checkpoint_name", "hf:owner/smile") == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert run(*TEST, "--manual_checkpoint_name", "hf:owner/smile") == 0
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:owner/none", "owner/none is not available from the Hugging Face hub: no such model: check the name"),
        ("hf:owner/empty", "owner/empty on the Hugging Face hub has no file direction.safetensors: check the name"),
        ("hf:smile", "hf:smile: give a direction on the Hugging Face hub as hf:USER/REPO"),
        ("hf:../owner/smile", "hf:../owner/smile: give a direction on the Hugging Face hub as hf:USER/REPO"),
    ],
)
def test_hub_name_without_a_direction(run, shared, hub, tmp_path, name, said):
    hub.models["owner/empty"] = tmp_path / "empty"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing else")
    assert run.error(*TEST, "--manual_checkpoint_name", name).startswith(said)


def test_without_a_network(run, shared, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = run.error(*TEST, "--manual_checkpoint_name", "hf:owner/smile")
    assert said.startswith("owner/smile is not available from the Hugging Face hub: no connection, and the model")


def test_other_refused_uses_of_hub_names(run, shared, hub, tiny):
    own = ("--manual_checkpoint_name", "hf:owner/smile")
    assert "was trained on another architecture" in run.error(*TEST, *own, model="adm")
    assert "--choose_checkpoint_num chooses among" in run.error(*TEST, *own, "--choose_checkpoint_num", "1")
    assert "--calibrate writes to the direction's file" in run.error("--calibrate", *own)
    assert "was trained with --train_delta_block" in run.error("--run_test", *DELTA_H, *own)
    (shared / "direction.safetensors").write_bytes(b"PK\3\4 no tensors")
    hub.models["owner/other"] = shared
    assert "it is damaged or of another kind" in run.error(*TEST, "--manual_checkpoint_name", "hf:owner/other")
