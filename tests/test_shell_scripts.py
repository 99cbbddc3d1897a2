"""The shell scripts: what they ask main.py for, on the default stack and with another config at their top."""

import os
import shlex
import shutil
import subprocess

import pytest

from asyrp.config import load_config
from asyrp.options import MODES
from asyrp.parsing import parse_args
from asyrp.settings import Settings
from utils.files import ROOT

pytestmark = pytest.mark.subprocess

# In place of Python: notes what it was called with, a line a call.
PYTHON = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$CALLS"
echo >>"$CALLS"
"""
SCRIPTS = {
    "script_get_lpips.sh": ("lpips", ("edit_attr",)),
    "script_precompute.sh": ("just_precompute", ()),
    "script_train.sh": ("run_train", ("guid",)),
    "script_inference.sh": ("run_test", ("guid",)),
}


@pytest.fixture
def called(tmp_path):
    """called(script, *arguments, **variables) -> the calls of Python, each a list of words.

    variables: what is set at the top of the script instead of what stands there; environment: more of it.
    """
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls = tmp_path / "calls"
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls), "ASYRP_NO_VENV": "1"}

    def called(script, *arguments, environment=(), **variables):
        path = tmp_path / "scripts" / script
        text = path.read_text()
        for name, value in variables.items():
            [line] = [line for line in text.splitlines() if line.startswith(f"{name}=")]
            text = text.replace(line, f'{name}="{value}"')
        path.write_text(text)
        subprocess.run(["bash", path, *arguments], check=True, env=env | dict(environment), capture_output=True)
        return [shlex.split(line) for line in calls.read_text().splitlines()]

    return called


def settings_of(call):
    """The arguments of main.py -> (what was given, the settings that follow)."""
    given, notices = parse_args(call[1:])
    assert not notices
    return given, Settings(given, load_config(given["config"]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_on_the_default_stack(called, script):
    mode, _ = SCRIPTS[script]
    *faces, call = called(script)
    assert [words[0] for words in faces] == ["scripts/avatar/render.py"] * 2
    assert call[0] == "main.py"
    given, _ = settings_of(call)
    assert [name for name in MODES if given.get(name)] == [mode]
    assert given["config"] == "avatar.yml"
    assert given["sh_file_name"] == f"scripts/{script}"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("config", ["celeba.yml", "avatar.yml"])
def test_what_belongs_to_a_model_comes_from_its_config(called, script, config):
    """With celeba.yml at the top, and an attribute of photographs, each does what the paper did."""
    _, attributes = SCRIPTS[script]
    call = called(script, config=config, **dict.fromkeys(attributes, "smiling"))[-1]
    given, settings = settings_of(call)
    # How many images and steps are measured is no matter of the model.
    measured = {"n_train_img", "n_inv_step"} if given.get("lpips") else set()
    published = load_config(config).editing.given()
    assert len(published) > 8
    for name in published.keys() - measured:
        assert settings.get(name).source == config
    if attributes:
        assert settings.edit_attr == "smiling"


def test_no_faces_are_drawn_for_another_model(called):
    assert [words[0] for words in called("script_train.sh", config="celeba.yml", guid="smiling")] == ["main.py"]


def test_inference_script_uses_the_record(called):
    given, _ = settings_of(called("script_inference.sh")[-1])
    assert not {"train_delta_block", "train_delta_h", "get_h_num", "user_defined_t_edit"} & given.keys()


def test_demo(called):
    *faces, lpips, train, judge = called("demo.sh")
    assert [words[0] for words in faces] == ["scripts/avatar/render.py"] * 2
    assert settings_of(lpips)[0]["lpips"]
    given, settings = settings_of(train)
    assert given["run_train"] and given["train_delta_block"]
    assert (settings.lr_training, settings.get("lr_training").source) == (0.8, "flag")
    assert (settings.n_iter, settings.get("n_iter").source) == (2, "avatar.yml")
    # What is judged is what was trained.
    assert judge[0] == "scripts/avatar/evaluate.py"
    assert "smiling=smiling_LC_AVATAR_t999_ninv40_ngen40" in judge
    assert given["exp"] == "runs/demo/smiling"
    assert (settings.t_0, settings.n_inv_step, settings.n_train_step) == (999, 40, 40)


def test_directions_of_the_default_stack(called, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    written = tmp_path / "checkpoint" / "avatar_beard_LC_AVATAR_t999_ninv40_ngen40_1.pth"
    written.write_text("the last epoch")
    [call] = [words for words in called("avatar/train_directions.sh", "beard") if words[0] == "main.py"]
    given, settings = settings_of(call)
    assert (given["edit_attr"], given["exp"]) == ("avatar_beard", "runs/avatar_beard")
    assert (settings.n_train_img, settings.n_iter, settings.l1_loss_w, settings.lr_training) == (200, 2, 4, 0.3)
    assert (settings.clip_source, settings.sch_gamma, settings.lpips_edit_th) == ("origin", 0.3, 0.005)
    assert (tmp_path / "pretrained/avatar/directions/beard.pth").read_text() == "the last epoch"


@pytest.mark.parametrize(("script", "mode"), [("train.sbatch", "run_train"), ("precompute.sbatch", "just_precompute")])
def test_jobs_for_slurm(called, tmp_path, script, mode):
    """As sbatch runs them: from where it was called, with what the lines of #SBATCH ask for."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    shutil.copy(tmp_path / "bin/python", tmp_path / "bin/torchrun")
    asked = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    [call] = called(f"slurm/{script}", environment=asked)
    if script == "train.sbatch":
        assert call[:3] == ["--standalone", "--nproc_per_node", "8"]
    given, settings = settings_of(call[call.index("main.py") :])
    assert [name for name in MODES if given.get(name)] == [mode]
    assert settings.slurm_array == (script == "precompute.sbatch")
    assert settings.config.path.name == "celeba.yml"


def test_direction_without_settings_is_refused(called, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        called("avatar/train_directions.sh", "hat")
    assert b"no settings for hat" in caught.value.stderr
