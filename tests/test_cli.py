"""The program as it is installed: `asyrp`."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from test_extras import PROJECT

from utils.files import ROOT

pytestmark = pytest.mark.subprocess

# What pip writes into the folder of programs.
PROGRAM = """import sys
sys.path.insert(0, {root!r})
sys.argv[0] = "/usr/bin/asyrp"
from {module} import {attr}
sys.exit({attr}())
"""


@pytest.fixture
def asyrp(tmp_path):
    """asyrp(*flags) -> what the installed program leaves behind, started in an empty folder."""
    [(name, value)] = PROJECT["scripts"].items()
    point = EntryPoint(name, value, "console_scripts")
    code = PROGRAM.format(root=str(ROOT), module=point.module, attr=point.attr)

    def asyrp(*flags):
        return subprocess.run([sys.executable, "-c", code, *flags], cwd=tmp_path, capture_output=True, text=True)

    return asyrp


def test_it_helps_from_any_folder(asyrp):
    told = asyrp("--help")
    assert told.returncode == 0
    assert told.stdout.startswith("usage: asyrp --config YAML")


def test_a_wrong_flag_is_one_line(asyrp):
    told = asyrp("--run_tset")
    assert told.returncode == 2
    assert told.stderr.startswith("error: unknown flag --run_tset; did you mean --run_test?")


def test_it_finds_the_configs_of_the_repository(asyrp):
    told = asyrp("--config", "avatar.yml", "--just_precompute", "--do_test", "0", "--custom_train_dataset_dir", "nowhere")
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith("error: nowhere is not a folder of images")
