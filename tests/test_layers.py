"""Imports go one way, files stay short, and --help does not import torch."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import asyrp
from utils.files import ROOT

# From top to bottom. A module imports only from its own row and those below it. Modules of a package are in the row of the
# package unless they are listed themselves.
ROWS = (
    ("main",),
    ("asyrp.cli",),
    ("asyrp.runner",),
    ("asyrp.parts",),
    (
        *("asyrp.uses", "asyrp.learning", "asyrp.results", "asyrp.images", "asyrp.fits", "asyrp.calibrating"),
        *("asyrp.components", "asyrp.session"),
    ),
    (
        "asyrp.editing",
        "asyrp.training",
        "asyrp.evaluation",
        "asyrp.report",
        "asyrp.experiment",
        "asyrp.base_model",
        "asyrp.regions",
        "asyrp.fitting",
    ),
    (
        *("asyrp.settings", "asyrp.model", "asyrp.directions", "asyrp.curves", "asyrp.origin", "asyrp.data", "asyrp.store"),
        *("asyrp.intervals", "asyrp.config", "asyrp.pipeline", "asyrp.parsing", "asyrp.clip"),
    ),
    ("asyrp.noise_maps", "asyrp.hspace", "asyrp.blending", "asyrp.calibration", "asyrp.acceleration", "asyrp.options", "asyrp"),
    ("asyrp.ranks", "asyrp.watch"),
    ("asyrp.process",),  # independent of the kinds of edits and inversions
    ("models", "losses"),
    ("configs", "utils"),
)
GROUND = ("utils", "models", "losses", "configs")
# Modules that may read flags: the command line, and the module that decides settings.
KNOW_FLAGS = {
    *("main", "asyrp.cli", "asyrp.parsing", "asyrp.settings", "asyrp.runner", "asyrp.parts", "asyrp.images"),
    "utils.arguments",
}
FLAGS = {"asyrp.options", "asyrp.parsing"}
# Modules with equations only: no files, no printing, no configuration.
PURE = (
    *("asyrp.process", "asyrp.noise_maps", "asyrp.hspace", "asyrp.blending"),
    *("models.schedule", "models.ddpm", "models.adm", "models.unet2d"),
)
NOT_PURE = {"argparse", "logging", "os", "pathlib", "sys", "tqdm", "utils.files", "utils.tensors", "print", "open"}


@cache
def modules():
    """{name: path} of the program and its library."""
    paths = [ROOT / "main.py", *(path for top in ("asyrp", *GROUND) for path in (ROOT / top).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def imported(path):
    """Names of the modules that a file imports, anywhere in it; `from a import b` counts as a.b if that is our module. Imports
    for type checkers only, which never run, do not count."""
    found, tree = set(), ast.parse(Path(path).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unused = {inner for block in blocks for inner in ast.walk(block)}
    for node in (node for node in ast.walk(tree) if node not in unused):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in names}
    return found


def ours(name):
    return imported(modules()[name]) & modules().keys()


def row(name):
    """The row of a module: that of the longest name in ROWS that equals or contains it."""
    places = [(len(part), i) for i, parts in enumerate(ROWS) for part in parts if f"{name}.".startswith(f"{part}.")]
    # The row of `asyrp` is only for the package itself; its modules must be listed.
    places = [place for place in places if name == "asyrp" or place[0] > len("asyrp") or not name.startswith("asyrp")]
    assert places, f"{name} has no row in ROWS"
    return max(places)[1]


@pytest.mark.parametrize("name", modules())
def test_imports_go_one_way(name):
    upward = {other for other in ours(name) if row(other) < row(name)}
    assert not upward


def test_no_import_cycles():
    list(TopologicalSorter({name: ours(name) for name in modules()}).static_order())


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in GROUND])
def test_ground_modules_do_not_import_asyrp(name):
    assert not {other for other in imported(modules()[name]) if other.split(".")[0] == "asyrp"}


@pytest.mark.parametrize("name", sorted(modules().keys() - KNOW_FLAGS))
def test_no_flag_is_read_below_the_runner(name):
    assert not ours(name) & FLAGS
    assert "argparse" not in imported(modules()[name])


def test_stub_has_what_the_library_exports():
    tree = ast.parse((ROOT / "asyrp" / "__init__.pyi").read_text(encoding="utf-8"))
    assert {alias.asname: node.module for node in tree.body for alias in node.names} == asyrp._PUBLIC


def test_every_module_in_rows_exists():
    for name in (part for parts in ROWS for part in parts):
        assert name in modules() or any(other.startswith(f"{name}.") for other in modules())


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_only_the_process(name):
    """`asyrp.process` is allowed."""
    assert {other for other in imported(modules()[name]) if other.split(".")[0] == "asyrp"} <= {"asyrp.process"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_use_no_files_and_print_nothing(name):
    called = {node.id for node in ast.walk(ast.parse(modules()[name].read_text())) if isinstance(node, ast.Name)}
    assert not (imported(modules()[name]) | called) & NOT_PURE


SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_parses_the_flags_of_another(path):
    """Scripts use the library instead."""
    names = imported(path)
    assert not names & (FLAGS | {"main", "asyrp.cli", "asyrp.runner", "asyrp.uses", "asyrp.learning"})
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not {alias.name for alias in node.names} & {"parse_args", "build_parser", "main"}


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", [*modules().values(), *SCRIPTS, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


# ---- without torch ----------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "PIL", "open_clip", "yaml", "matplotlib", "diffusers", "huggingface_hub")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--help"], 0, "--config YAML"),
        (["--n_test_stp", "3"], 2, "error: unknown flag --n_test_stp; did you mean --n_test_step?"),
        (["--run_test"], 2, "error: no model: give --config"),
        (["--config", "avatar.yml", "--run_test", "--n_test_img", "0"], 2, "error: --n_test_img 0: must be 1 or more"),
    ],
)
def test_help_and_a_wrong_flag_import_no_torch(flags, status, said):
    code = f"""
import sys, main
try:
    status = main.main({flags!r})
except SystemExit as end:
    status = end.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("status", status, "heavy", heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"status {status} heavy []"
