"""What was asked is done, or one line says why not: runs that once ended well and did another thing.

Each has misled its users without a word. About files of weights see test_unet_weights.py, about CLIP test_clip_loss.py, about
YAML keys test_configs.py.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from tiny_world import (
    INTERVALS,
    NAME,
    SMILE,
    TEST,
    TRAIN,
    Distance,
    keep_curve,
    names,
    open_tiny,
    settings,
    smooth_images,
    stored,
    tensors_equal,
)

import asyrp.runner
from asyrp import curves
from asyrp.config import Editing, load_config
from asyrp.parsing import parse_args
from asyrp.report.pictures import to_pil
from asyrp.settings import Settings, decide_t_edit
from asyrp.store import Store
from utils.files import ROOT

ALONE = ("--run_test", "--n_inv_step", "4", "--n_test_step", "4")  # and nothing about how the direction was trained


# ---- a direction is used as it was trained ----------------------------------------------------------------------------------


def test_strength_one_without_n_train_step(run_learned, results, generated, capsys):
    """Trained over 4 steps: "+1" is 1.0, whatever the flag's default is; over 8 steps each adds half."""
    for n, expected in (("4", 1.0), ("8", 0.5)):
        generated.clear()
        capsys.readouterr()
        assert run_learned(*ALONE, "--n_test_step", n, steps=()) == 0
        [call] = {id(call["edit"]): call for call in generated}.values()
        assert call["edit"].coefficients == [expected]
        assert f"t_edit 500 (flag) · {n} steps (flag) · strength +1 = coefficient {expected:g}" in capsys.readouterr().err
        assert settings(results, "test")["strengths"] == ["+1"]


def test_each_of_several_directions_has_the_strength_of_its_own_training(run_learned, generated):
    """One trained over 4 steps and one over 8, both edited over 4; divided by the root of two."""
    assert run_learned(*TRAIN, "--exp", "runs/second", "--edit_attr", "sad", "--n_train_step", "8") == 0
    assert run_learned(*ALONE, "--multiple_attr", "smile second", steps=()) == 0
    assert generated[0]["edit"].coefficients == pytest.approx([0.5**0.5, 2 * 0.5**0.5])


def test_given_n_train_step_is_used_and_logged(run_learned, generated, capsys):
    assert run_learned(*ALONE, "--n_train_step", "2", "--load_from_checkpoint", "smile", steps=()) == 0
    assert generated[0]["edit"].coefficients == [0.5]
    assert f"{NAME}_0.pth was trained with n_train_step 4; using --n_train_step 2" in capsys.readouterr().err


def test_t_edit_is_that_of_the_training(run_learned, results, capsys):
    assert run_learned(*ALONE, "--edit_attr", "smiling", intervals=("--user_defined_t_addnoise", "0"), steps=()) == 0
    assert settings(results, "test")["t_edit"] == 500
    assert f"t_edit 500 ({NAME}_0.pth)" in capsys.readouterr().err
    assert run_learned(*ALONE, "--user_defined_t_edit", "700", steps=()) == 0
    assert f"{NAME}_0.pth was trained with t_edit 500; using t_edit 700 (flag)" in capsys.readouterr().err


def test_shipped_direction_with_the_attribute_it_was_trained_for(run, tmp_path, generated):
    """`--edit_attr avatar_smiling` and the shipped smile: t_edit 335, as trained, and no boosting."""
    (tmp_path / "faces").mkdir()
    to_pil(smooth_images(1, 32)[0]).save(tmp_path / "faces" / "0.png")
    own = ("--config", "avatar.yml", "--custom_test_dataset_dir", "faces", "--n_test_img", "1", "--exp", "runs/x")
    shipped = (*ALONE, *own, "--edit_attr", "avatar_smiling", "--manual_checkpoint_name", "smiling")
    assert run(*shipped, intervals=(), steps=(), weights=False) == 0
    [call] = generated
    assert (call["t_edit"], call["t_boost"], call["edit"].coefficients) == (335, 0, [10.0])  # 40 steps in 4


# ---- what a script names is what it changes ---------------------------------------------------------------------------------


def flags_of(script, config, tmp_path):
    """The flags of main.py in one of scripts/*.sh, with another config written into it: "change it for another model"."""
    text = (ROOT / "scripts" / script).read_text()
    assert text.count('config="avatar.yml"') == 1
    (tmp_path / "scripts").mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts" / "env.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / script).write_text(text.replace('config="avatar.yml"', f'config="{config}"'))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(
        f"#!/bin/sh\n{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"\n"
    )
    python.chmod(0o755)
    env = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "ASYRP_NO_VENV": "1"}
    told = subprocess.run(["bash", tmp_path / "scripts" / script], env=env, check=True, capture_output=True, text=True).stdout
    main, *flags = json.loads(told.splitlines()[-1])
    assert main == "main.py"
    return flags


@pytest.mark.subprocess
def test_training_script_works_with_other_configs(tmp_path):
    """With celeba.yml it does what the paper did: at cosine 0.90 t_edit is 514, and so are steps, rate and weights."""
    config = load_config("celeba.yml")
    found = Settings(parse_args(flags_of("script_train.sh", "celeba.yml", tmp_path))[0], config)
    curve, _ = curves.find_curve(Store(tmp_path), open_like(config))
    [t_edit] = decide_t_edit(found, [("smiling", {}, ("a", "b"))], lambda: curve, lambda src, trg: 0.9)
    assert (t_edit.value, t_edit.source) == (514, "LPIPS curve at 0.33 x cosine 0.900; threshold: celeba.yml")
    assert (found.n_train_step, found.n_inv_step, found.lr_training) == (40, 40, 0.5)
    assert (found.clip_loss_w, found.l1_loss_w, found.clip_source, found.n_train_img) == (0.8, 3, "x0", 1000)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("script", "own"),
    [
        ("script_get_lpips.sh", {"n_train_img", "n_inv_step"}),  # how many images and timesteps are measured
        ("script_precompute.sh", set()),
        ("script_train.sh", set()),
        ("script_inference.sh", set()),
    ],
)
def test_no_script_overrides_what_a_config_says(tmp_path, script, own):
    """A value that belongs to one model would go along to the next one."""
    given, notices = parse_args(flags_of(script, "celeba.yml", tmp_path))
    assert notices == []
    assert {f.name for f in fields(Editing)} & given.keys() == own


def open_like(config):
    """As much of a model as finding a curve needs."""

    class Model:
        identity, precision = "celeba", "fp32"

    Model.config = config
    return Model


# ---- what was made is found again only by what it was made of ---------------------------------------------------------------


def test_second_experiment_of_the_same_name(run_learned):
    """In another folder, with another learning rate, other images or loss: its checkpoints have the first one's names."""
    second = (*TRAIN, "--exp", "elsewhere/smile")
    for other, said in (
        (("--lr_training", "0.01"), "lr_training 0.2, but this run has 0.01"),
        (("--n_train_img", "3"), "n_images 2, but this run has 3"),
        (("--clip_loss_w", "1"), "clip_loss_w 3.0, but this run has 1.0"),
    ):
        message = run_learned.error(*second, *other)
        assert message.endswith(
            f"was trained with {said}: train from scratch with --retrain 1, or keep it and use another --exp"
        )
    assert not Path("elsewhere").exists()


def test_latents_depend_on_the_yaml(run, tiny, tmp_path):
    """The same weights fit both networks."""
    config = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    own = ("--just_precompute", "--n_precomp_img", "2", "--do_test", "0", "--config", "mine.yml")
    found = []
    for change in ({"norm_groups": 16}, {}):
        Path("mine.yml").write_text(yaml.safe_dump(config | {"model": config["model"] | change}))
        assert run(*own) == 0
        found.append(stored("latent"))
    wrong, both = found
    right = {key: both[key] for key in both.keys() - wrong.keys()}
    assert len(right) == len(wrong) == 2
    shutil.rmtree("precomputed")
    assert run(*own) == 0
    assert tensors_equal(stored("latent"), right)
    apart = [(a["x_T"] - b["x_T"]).abs().max() for a in wrong.values() for b in right.values()]
    assert min(apart) > 0.01


def test_curves_measured_on_one_model_change_no_other(run, tiny, results, monkeypatch):
    """Both are measured under the same name."""

    def t_edit():
        shutil.rmtree("checkpoint", ignore_errors=True)
        assert run(*TRAIN, "--lpips_edit_th", "0.5", intervals=()) == 0
        return settings(results, "train")["t_edit"]

    keep_curve(open_tiny(tiny, "ddpm"), top=1.0)
    before = t_edit()
    monkeypatch.setattr(asyrp.runner, "load_lpips", Distance)
    assert run("--lpips", model="adm") == 0
    assert {Store().about("curve", key)["name"] for key in stored("curve")} == {"CUSTOM"}
    assert len(stored("curve")) == 2
    assert t_edit() == before


def test_unknown_category_has_no_curves(run):
    said = run.error(*TRAIN, intervals=())
    assert said.startswith("no LPIPS curves for category CUSTOM: measure them with --lpips, choose others with")


def test_mean_direction_depends_on_the_images(run_learned, tiny, tmp_path, generated):
    """Under the names of the former ones."""
    shutil.copytree(tiny.train, tmp_path / "some")
    mean = (*TEST, "--num_mean_of_delta_hs", "2", "--custom_train_dataset_dir", "some", "--n_test_img", "1")
    pictures = []
    for images in (tiny.train, tiny.test, tiny.train):
        for path in Path("some").iterdir():
            path.write_bytes((images / path.name).read_bytes())
        assert run_learned(*mean) == 0
        pictures.append(generated[-1]["x_0"])
    assert len(stored("mean")) == 2
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4
    assert torch.equal(pictures[0], pictures[2])


# ---- labels and intervals ---------------------------------------------------------------------------------------------------


def test_close_strengths_have_separate_columns(run_learned, results):
    strip = ("--delta_interpolation", "--min_delta", "1.1", "--max_delta", "1.15", "--num_delta", "2")
    assert run_learned("--evaluate", *SMILE, *strip) == 0
    summary = json.loads((results / "evaluation.json").read_text())["summary"]
    assert list(summary) == ["reconstruction", "+1.1", "+1.15"]
    assert summary["+1.1"]["S_dir"]["mean"] != summary["+1.15"]["S_dir"]["mean"]


@pytest.mark.parametrize("mode", ["--run_test", "--evaluate"])
def test_run_test_with_t_edit_above_all_timesteps_exits_2(run_learned, results, mode):
    before = names(results)
    said = run_learned.error(mode, *SMILE, "--t_0", "200", "--user_defined_t_edit", "300", "--load_from_checkpoint", "smile")
    assert "t_edit 300" in said
    assert "is above every timestep (the highest is 200), so nothing would be edited: lower t_edit or raise t_0" in said
    assert names(results) == before


def test_run_train_with_t_edit_above_all_timesteps_exits_2(run):
    said = run.error(*TRAIN, "--t_0", "200", *INTERVALS)
    assert "t_edit 500 is above every timestep (the highest is 200), so nothing would be trained" in said
