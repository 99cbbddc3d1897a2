"""Imports go one way, as the README's Layout says; read off the sources, so that imports inside functions count too."""

import ast

import pytest

from utils.files import ROOT

GROUND = ("utils", "models", "losses", "configs")
# From the top down; a part may import its own level and those below. What stands nowhere here may be imported by all of them.
LEVELS = (
    ("runner",),
    ("editing", "training", "learning", "uses", "evaluation", "report", "base_model"),
    ("model", "directions", "store", "data", "intervals"),
    ("process", "hspace"),
)
LEVEL = {part: i for i, level in enumerate(LEVELS) for part in level}


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path):
    """The modules that a file imports, with dots; of `from a import b`, both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by dots hide where they lead"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def parts_of_asyrp(path):
    """The parts of asyrp that a file imports: "process", "data", ..."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("asyrp.")}


@pytest.mark.parametrize("path", sources(*GROUND), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_ground_floor_knows_nothing_of_asyrp(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"asyrp", "main", "scripts"}


@pytest.mark.parametrize("path", sources("asyrp"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_within_asyrp_go_down(path):
    own = path.relative_to(ROOT / "asyrp").parts[0].removesuffix(".py")
    assert not {part for part in parts_of_asyrp(path) if LEVEL.get(part, 99) < LEVEL.get(own, 0)}
    if own != "__init__":
        assert "main" not in imported(path)


def test_the_equations_need_nothing_else_of_asyrp():
    assert parts_of_asyrp(ROOT / "asyrp" / "process.py") == set()
    assert parts_of_asyrp(ROOT / "asyrp" / "hspace.py") == set()


@pytest.mark.parametrize("path", sources("scripts"), ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_use_the_library_and_not_the_command_line(path):
    """No script writes or reads flags of main.py to get a model."""
    assert not parts_of_asyrp(path) & {"runner", "parsing", "options", "uses", "learning"}
    assert "main" not in imported(path)


def test_what_is_told_is_there():
    """The levels above are those of files that exist."""
    for part in LEVEL:
        assert (ROOT / "asyrp" / part).is_dir() or (ROOT / "asyrp" / f"{part}.py").is_file()
