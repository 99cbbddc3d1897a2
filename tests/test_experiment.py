"""Names, folders and settings files of experiments."""

from pathlib import Path

import pytest
import yaml

from asyrp.config import load_config
from asyrp.experiment import Experiment
from asyrp.settings import Settings

SUFFIX = "_LC_CelebA_HQ_t999_ninv40_ngen40"


def experiment(config="celeba", record=None, **given):
    return Experiment(Settings(given, load_config(config), record, "sad.pth"))


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"exp": "runs/smiling"}, f"runs/smiling{SUFFIX}"),
        ({"exp": "./runs/deep/smiling"}, f"runs/deep/smiling{SUFFIX}"),
        ({"exp": "smiling"}, f"smiling{SUFFIX}"),
        ({"exp": "/smiling"}, f"/smiling{SUFFIX}"),
        ({"exp": "runs/", "edit_attr": "sad"}, f"runs/sad{SUFFIX}"),
        ({"exp": "runs/"}, f"runs/celeba{SUFFIX}"),
        ({}, f"runs/celeba{SUFFIX}"),
        ({"exp": "runs/x", "t_0": 500, "n_inv_step": 50, "n_train_step": 0}, "runs/x_LC_CelebA_HQ_t500_ninv50_ngen0"),
    ],
)
def test_names_are_those_of_the_2023_release(given, folder):
    found = experiment(**given)
    assert found.folder == Path(folder)
    assert found.checkpoint(3) == Path(f"checkpoint/{Path(folder).name}_3.pth")
    assert found.checkpoint(3, 200) == Path(f"checkpoint/{Path(folder).name}_3_200.pth")


def test_inversion_ddpm_has_its_own_folder():
    ddim, ddpm = (experiment(exp="runs/x", inversion=inversion) for inversion in ("ddim", "ddpm"))
    assert ddpm.folder == Path(f"{ddim.folder}_ddpm") and ddpm.name == ddim.name


def test_direction_names_the_steps_it_was_trained_with():
    assert experiment(exp="runs/x", record={"n_train_step": 20, "n_inv_step": 30}).name == "x_LC_CelebA_HQ_t999_ninv30_ngen20"


def test_settings_are_written_with_their_sources_as_plain_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("go.sh").write_text("python main.py\n")
    found = experiment(exp="runs/x", seed=3, sh_file_name="go.sh")
    found.write_settings("test", t_edit=[500, 700], decided={"path": Path("a/b")})
    written = yaml.safe_load((found.folder / "settings_test.yml").read_text())
    assert (written["flags"]["seed"], written["flags"]["lr_training"], written["flags"]["n_test_img"]) == (3, 0.5, 10)
    assert written["sources"] == {"seed": "flag", "exp": "flag", "sh_file_name": "flag"} | dict.fromkeys(
        load_config("celeba").editing.given(), "celeba.yml"
    )
    assert (written["t_edit"], written["decided"]) == ([500, 700], {"path": "a/b"})
    assert written["config"]["data"]["category"] == "CelebA_HQ"
    assert (found.folder / "go.sh").read_text() == "python main.py\n"


@pytest.mark.parametrize("name", ["settings_test.yml", "report.html", "go"])
def test_sh_file_name_never_overwrites_a_result(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("not a result")
    found = experiment(exp="runs/x", sh_file_name=name)
    found.write_settings("test")
    assert "not a result" not in (found.folder / "settings_test.yml").read_text()
    assert (found.folder / f"{name}.sh").read_text() == "not a result"


def test_sh_file_name_may_be_the_copy_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = experiment(exp="runs/x").folder / "go.sh"
    copy.parent.mkdir(parents=True)
    copy.write_text("python main.py\n")
    experiment(exp="runs/x", sh_file_name=str(copy)).write_settings("test")
    assert copy.read_text() == "python main.py\n"
