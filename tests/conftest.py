"""Fixtures: the tiny world of tiny_world.py, and whole runs in it."""

import shutil
import socket
from types import SimpleNamespace

import pytest
import torch
from local_hub import serving_hub
from local_server import PAGE, WEIGHTS, published, serving
from tiny_world import DEVICE, MODES, NAME, TRAIN, Distance, call, keep_curve, open_tiny, world_at, write_world

import asyrp.runner
from asyrp import process
from asyrp.acceleration import fast_unet
from asyrp.config import load_config
from configs import paths_config
from models import build_unet
from utils import download
from utils.weights import PUBLISHED

if DEVICE != "cpu":
    # A training that was interrupted is compared bit for bit with one that was not.
    torch.backends.cudnn.deterministic = True


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"


@pytest.fixture(scope="session", autouse=True)
def any_version_compiles():
    """Allow --compile with any version of PyTorch, because most tests replace the compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_unet, "COMPILE_ON_A_CPU", "2.4")
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The files of the tiny world; leave them as they are."""
    return write_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def unet(tiny):
    """The tiny DDPM++, loaded; leave it as it is."""
    unet = build_unet(load_config(tiny.folder / "ddpm.yml"))
    unet.load_state_dict(torch.load(tiny.folder / "ddpm.pt", weights_only=True))
    return unet


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """run(*flags, ...) -> exit status of main.py in tmp_path; run.error(*flags, ...) -> the one line of a user's error."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, **more):
        return call(tiny, *flags, **more)

    def error(*flags, **more):
        capsys.readouterr()
        assert run(*flags, **more) == 2
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert not any("Traceback" in line for line in lines)
        return lines[-1].removeprefix("error: ")

    run.error = error
    return run


@pytest.fixture(scope="session")
def learned(tiny, tmp_path_factory):
    """The folder of a run that has learned a direction: checkpoint/, precomputed/ and runs/."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(tiny, *TRAIN) == 0
    return folder


@pytest.fixture
def run_learned(run, learned, tmp_path):
    """`run` in a folder that has the direction "smile" already."""
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    return run


@pytest.fixture(scope="session")
def finished(learned, tiny, tmp_path_factory):
    """A folder with the tiny world and a run of every mode in it."""
    root = tmp_path_factory.mktemp("finished") / "place"
    shutil.copytree(learned, root)
    shutil.copytree(tiny.folder, root / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(asyrp.runner, "load_lpips", Distance)
        for mode in ("precompute", "lpips", "test", "evaluate"):
            assert call(world_at(root / "world"), *MODES[mode]) == 0
        keep_curve(open_tiny(world_at(root / "world")))
    return root


@pytest.fixture
def site(finished, tmp_path, monkeypatch, capsys):
    """A folder of its own like `finished`. `site.run(mode, *flags)` -> (status, lines of stdout, lines of stderr)."""
    root = tmp_path / "place"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(asyrp.runner, "load_lpips", Distance)
    world = world_at(root / "world")

    def run(mode, *flags, **more):
        capsys.readouterr()
        status = call(world, *MODES[mode], *flags, **more)
        told = capsys.readouterr()
        return status, told.out.splitlines(), told.err.replace("\r", "\n").splitlines()

    def found(pattern):
        paths = sorted(path for path in root.glob(pattern) if path.is_file())
        assert paths, f"nothing is called {pattern}"
        return paths

    return SimpleNamespace(root=root, world=world, run=run, found=found)


@pytest.fixture
def results(tmp_path):
    """The folder that runs of this name write to."""
    return tmp_path / "runs" / NAME


@pytest.fixture
def generated(monkeypatch):
    """What every call of the reverse process was given, and what came out of it."""
    calls, generate = [], process.generate

    def watched(unet, x_T, schedule, steps, **settings):
        x_0 = generate(unet, x_T, schedule, steps, **settings)
        calls.append({**settings, "steps": steps, "x_0": x_0})
        return x_0

    monkeypatch.setattr(process, "generate", watched)
    return calls


@pytest.fixture
def server(monkeypatch):
    """The local server, with a file of weights in two places and a page of HTML."""
    monkeypatch.setattr(download, "CHUNK", 100_000)
    with serving() as server:
        server.files = {"/first.pt": WEIGHTS, "/second.pt": WEIGHTS, "/page": PAGE}
        yield server


@pytest.fixture
def path(tmp_path):
    """Where a downloaded weight file goes."""
    return tmp_path / "pretrained" / "w.pt"


@pytest.fixture
def hub(tmp_path):
    """A Hugging Face hub on this machine."""
    with serving_hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def closed():
    """A URL that nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/w.pt"


@pytest.fixture
def place(server, tmp_path, monkeypatch):
    """The place of celeba.yml in a folder of its own, with its weights on the local server."""
    monkeypatch.setattr(paths_config, "ROOT", tmp_path)
    monkeypatch.delenv("ASYRP_MODEL_CELEBA_HQ", raising=False)
    monkeypatch.setitem(PUBLISHED, "CELEBA_HQ", published(server.url("/first.pt")))
    return paths_config.PLACES["CelebA_HQ", "CelebA_HQ"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, driven from here."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [found for name in BROWSERS if (found := shutil.which(name))]
    driver = shutil.which("chromedriver")
    if not programs or not driver:
        pytest.skip("there is no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*QUIET.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}", "window-size=1200,900"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()
