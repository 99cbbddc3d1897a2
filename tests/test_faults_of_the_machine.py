"""The table of faults, continued: disks that fill up, streams that break, signals, and terminals that know little."""

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import MODES, NAME, Distance, names, pixels, tensors_equal
from tiny_world import directions as directions_in

from asyrp import process, training
from asyrp.config import ROOT

RESULTS = Path("runs") / NAME
TESTS = Path(__file__).parent


# ---- a disk that takes no more ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size):
    """No file can be made larger, which the system refuses as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ROOM = {
    # mode, flags, bytes that a file may have: words of the error
    "latents": ("precompute", ("--re_precompute",), 1_000, "precomputed/latent"),
    "a checkpoint": ("retrain", (), 50_000, f"checkpoint/{NAME}_0.pth"),
    "curves": ("lpips", ("--n_train_img", "3"), 500, "precomputed/curve"),
    "a plot": ("lpips", (), 20_000, "lpips_CUSTOM.png"),
    "a report": ("evaluate", (), 20_000, "report.html"),
    "settings": ("test", (), 2_000, "settings_test.yml"),
    "metrics": ("evaluate", ("--exp", "runs/other", "--load_from_checkpoint", "smile"), 1_000, "runs/other"),
}


@pytest.mark.parametrize("what", ROOM)
def test_full_disk(site, what):
    mode, flags, size, said = ROOM[what]
    before = directions_in()
    with files_up_to(size):
        status, _, err = site.run(mode, *flags)
    assert status == 2 and said in err[-1], err
    assert "raise the limit (ulimit -f)" in err[-1] or "free some disk space, then start again" in err[-1]
    assert tensors_equal(directions_in(), before)
    assert not [path for path in site.root.rglob(".*.*.*") if path.is_file()]  # nothing half is left
    assert site.run(mode, *flags)[0] == 0


def test_unwritable_checkpoint_is_saved_elsewhere(site):
    (site.root / "checkpoint").rename(site.root / "kept")
    status, _, err = site.run("retrain")
    assert status == 0  # a folder that is missing is made
    done = site.root / "checkpoint" / f"{NAME}_0.pth"
    whole = done.read_bytes()
    done.unlink()
    done.mkdir()
    status, _, err = site.run("retrain")
    assert status == 2 and "there is a folder where a file is needed" in err[-1], err
    kept = RESULTS / done.name
    assert f"The direction was saved as {kept}: move it to checkpoint/{done.name}" in err[-1]
    done.rmdir()
    kept.rename(done)
    assert len(done.read_bytes()) == len(whole)
    assert site.run("train")[0] == 0


# ---- streams ----------------------------------------------------------------------------------------------------------------


def full():
    return open("/dev/full", "w")


def closed():
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


def without_a_reader():
    """As `| head` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def ascii_only():
    return io.TextIOWrapper(open(os.devnull, "wb"), encoding="ascii")


def none():
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", [full, closed, without_a_reader, ascii_only, none])
def test_closed_stdout_loses_no_results(site, monkeypatch, stream, mode):
    monkeypatch.setattr(sys, "stdout", stream())
    monkeypatch.setattr(sys, "stderr", stream())
    done = {path: path.stat().st_mtime_ns for path in site.root.rglob("*") if path.is_file()}
    assert site.run(mode, "--exp", "runs/Lächeln 笑", "--load_from_checkpoint", "smile")[0] == 0
    made = [path.name for path in site.root.rglob("*") if path.is_file() and path.stat().st_mtime_ns != done.get(path)]
    wanted = {"lpips": "lpips_CUSTOM.csv", "precompute": "", "test": "report.html", "evaluate": "evaluation.json"}
    assert any(wanted.get(mode, "report.html") in name for name in made) or mode == "precompute"


@pytest.mark.subprocess
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}])
def test_ascii_locale(site, tiny, locale):
    """The whole program, whose files must not depend on it."""
    for path in site.found("world/test/*.png"):
        path.rename(path.with_name(f"gesicht ä 笑 {path.name}"))
    environment = {**os.environ, **locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT)])
    command = [sys.executable, TESTS / "victim.py", site.world.folder, "nowhere", "0", "--evaluate", "--run_test"]
    command += ["--train_delta_block", "--get_h_num", "1", "--load_from_checkpoint", "smile"]
    command += ["--src_txts", "Gesicht", "--trg_txts", "lächelndes Gesicht 笑"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert "lächelndes Gesicht 笑" in (RESULTS / "report.html").read_text(encoding="utf-8")
    assert "gesicht ä 笑 00.png" in (RESULTS / "evaluation.csv").read_text(encoding="utf-8")


# ---- signals ----------------------------------------------------------------------------------------------------------------

AMID = {
    "lpips": (Distance, "forward"),
    "precompute": (process, "invert"),
    "train": (training, "train_batch"),
    "retrain": (training, "train_batch"),
    "test": (process, "generate"),
    "evaluate": (process, "generate"),
}


@pytest.mark.parametrize(
    ("mode", "number", "expected"),
    [
        *((mode, number, 128 + number) for mode in MODES for number in (signal.SIGINT, signal.SIGTERM)),
        ("train", signal.SIGHUP, 129),
        ("test", signal.SIGXCPU, 152),
    ],
)
def test_signal_during_work(site, monkeypatch, request, mode, number, expected):
    own = signal.signal(number, signal.default_int_handler)  # some are ignored where tests run in the background
    request.addfinalizer(lambda: signal.signal(number, own))
    before = directions_in()
    home, name = AMID[mode]
    with monkeypatch.context() as patch:
        patch.setattr(home, name, lambda *args, **more: signal.raise_signal(number))
        status, _, err = site.run(mode, *(["--re_precompute"] if mode == "precompute" else []))
    assert status == expected
    assert any(line.startswith("stopped; latents, finished epochs and measured curves are kept") for line in err)
    assert tensors_equal(directions_in(), before)
    assert site.run(mode)[0] == 0


SCRIPTS = [
    path.relative_to(ROOT)
    for path in (*sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "scripts/avatar").glob("*.py")))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.subprocess
@pytest.mark.parametrize("script", ["main.py", *map(str, SCRIPTS)])
def test_signal_during_imports(script):
    """While torch is imported, or whatever else takes seconds."""
    begin = [
        "import signal, sys, builtins, runpy",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        f"sys.argv = ['{script}', '--config', 'avatar.yml', '--run_test']; sys.path.insert(0, '{(ROOT / script).parent}')",
        "real, seen = builtins.__import__, []",
        "def watched(name, *rest, **more):",
        "    if name.split('.')[0] in ('torch', 'numpy', 'resvg_py', 'asyrp') and 'asyrp.parsing' != name and not seen:",
        "        seen.append(name); signal.raise_signal(getattr(signal, sys.argv[0] and SIGNAL))",
        "    return real(name, *rest, **more)",
        "builtins.__import__ = watched",
        f"runpy.run_path('{ROOT / script}', run_name='__main__')",
    ]
    for number, expected in (("SIGINT", 130), ("SIGTERM", 143)):
        code = "\n".join([f"SIGNAL = '{number}'", *begin])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("stopped")


# ---- killed without notice --------------------------------------------------------------------------------------------------


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("mode", "where", "n"),
    [("lpips", "save_file", 1), ("test", "generate", 2), ("evaluate", "generate", 2), ("test", "save_file", 1)],
)
def test_resume_after_kill(site, mode, where, n):
    """All files are complete afterwards, and the same command then succeeds."""
    flags = ("--bs_test", "1", "--re_precompute") if mode != "lpips" else ("--n_train_img", "3")
    assert site.run(mode, *flags)[0] == 0
    pictures = [pixels(path) for path in sorted(RESULTS.glob("test_images/*/*.png"))]
    metrics, curves = (RESULTS / "evaluation.csv").read_text(), names(site.root / "precomputed" / "curve")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    command = [sys.executable, TESTS / "victim.py", site.world.folder, where, str(n), *MODES[mode], *flags]
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert site.run(mode, *flags)[0] == 0
    again = [pixels(path) for path in sorted(RESULTS.glob("test_images/*/*.png"))]
    assert all((a == b).all() for a, b in zip(pictures, again, strict=True))
    assert (RESULTS / "evaluation.csv").read_text() == metrics
    assert names(site.root / "precomputed" / "curve") == curves
