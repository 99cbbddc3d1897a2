"""Names, folders and settings files of experiments."""

import subprocess
from pathlib import Path

import pytest
import yaml

from asyrp.config import load_config
from asyrp.experiment import Experiment
from asyrp.settings import Settings
from utils.revision import commit

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


# ---- the commit of the repository -------------------------------------------------------------------------------------------


def git(folder, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one file, committed. The cache of `commit` is cleared afterwards."""
    git(tmp_path, "init")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "a")
    yield tmp_path
    commit.cache_clear()


@pytest.mark.subprocess
def test_commit(repository):
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "v1")
    (repository / "results.txt").write_text("made by a run\n")
    assert commit(repository) == head
    commit.cache_clear()
    (repository / "a.py").write_text("a = 2\n")
    assert commit(repository) == f"{head} (modified)"


def test_commit_is_written_with_the_settings(tmp_path, monkeypatch):
    for known in ("0123abc (modified)", None):
        monkeypatch.setattr("asyrp.experiment.commit", lambda known=known: known)
        found = experiment(exp=f"{tmp_path}/x")
        found.write_settings("test")
        assert yaml.safe_load((found.folder / "settings_test.yml").read_text()).get("commit") == known


@pytest.mark.subprocess
def test_without_git_there_is_no_commit(repository, monkeypatch):
    (repository / "inner").mkdir()
    assert commit(repository / "inner") is None  # the repository around it is another one
    monkeypatch.setenv("PATH", "")
    assert commit(repository) is None


@pytest.mark.subprocess
def test_damaged_repository_has_no_commit(repository):
    (repository / ".git" / "HEAD").write_text("nonsense")
    assert commit(repository) is None
