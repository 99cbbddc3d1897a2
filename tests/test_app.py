"""scripts/app.py in a real browser, on a tiny U-Net; and what it says where it cannot start."""

import base64
import copy
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_world import DEVICE, smooth_images, write_segmenter

import asyrp
from asyrp.config import load_config
from asyrp.data.datasets import read_image
from asyrp.report.pictures import enlarged, to_pil
from utils.errors import UserError
from utils.files import ROOT
from utils.terminal import guarded

sys.path.insert(0, str(ROOT / "scripts"))

import app

# The last picture that a selector finds, as a data: URI.
PIXELS = """
const picture = [...document.querySelectorAll(arguments[0])].pop();
if (!picture || !picture.complete || !picture.naturalWidth) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
canvas.getContext("2d").drawImage(picture, 0, 0);
return canvas.toDataURL("image/png");
"""
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def served(tiny, learned, tmp_path_factory):
    """The app on the tiny world with the direction "smile", many pictures to learn on, and a segmenter -> url, folders, session
    (a Session of the same model and directions)."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    folder = tmp_path_factory.mktemp("app")
    for name in ("images", "tmp"):
        (folder / name).mkdir()
    shutil.copytree(learned / "checkpoint", folder / "checkpoint")
    for i, image in enumerate(smooth_images(60)):
        to_pil(image).save(folder / "images" / f"{i:02d}.png")
    write_segmenter(folder / "segmenter.pt")
    own = yaml.safe_load((tiny.folder / "ddpm.yml").read_text()) | {"clip": {"model": str(tiny.clip)}}
    steps = {"n_test_step": 4, "n_train_step": 4, "user_defined_t_edit": 500, "n_iter": 3}
    own |= {"editing": steps, "segmenter": str(folder / "segmenter.pt")}
    (folder / "own.yml").write_text(yaml.safe_dump(own))
    port, weights = free_port(), tiny.folder / "ddpm.pt"
    command = [sys.executable, ROOT / "scripts/app.py", "--config", "own.yml", "--weights", weights, "--images", "images"]
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command), "--port", str(port), "--device", DEVICE],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[0]
        assert url == f"http://127.0.0.1:{port}"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            session = asyrp.Session(asyrp.open_model("own.yml", weights, DEVICE))
        session.image = read_image(folder / "images/00.png", 16)
        yield SimpleNamespace(url=url, port=port, folder=folder, session=session, process=process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert err.splitlines() == ["stopped"]
    assert not [*(folder / "tmp").glob("asyrp-app-*")]  # uploads and all


class Page:
    """A page of the app, just opened: what a user sees and does."""

    def __init__(self, browser, served):
        self.browser, self.session = browser, copy.copy(served.session)
        browser.get(served.url)
        self.wait(lambda: self.sliders() and self.find("#pair img"))
        self.shows_the_edit()

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def field(self, name):
        """What is called so, once it can be seen."""

        def seen(field):
            return field.accessible_name == name and field.is_displayed()

        return self.wait(lambda: [field for field in self.find("input, textarea") if seen(field)])[0]

    def fill(self, name, text):
        from selenium.webdriver import Keys

        self.field(name).send_keys(Keys.CONTROL, "a", Keys.NULL, text, Keys.TAB)

    def wait(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)
        return found

    def sliders(self):
        return {slider.accessible_name: slider for slider in self.find("input[aria-label^='range slider for']")}

    def slider(self, name):
        return self.sliders()[f"range slider for {name}"]

    def picture(self, selector):
        """The pixels of the last picture there, as the browser has them; None before it has any."""
        uri = self.browser.execute_script(PIXELS, selector)
        return uri and pixels(base64.b64decode(uri.partition(",")[2]))

    def width(self, selector):
        return self.wait(lambda: (shown := self.picture(selector)) is not None and shown.shape[1])

    def shows_the_edit(self):
        """Wait for what the library makes of where the sliders are said to be."""
        wanted = np.asarray(enlarged(self.session.edit(), app.SHOWN))
        self.wait(lambda: np.array_equal(self.picture("#pair img"), wanted))

    def click(self, name):
        self.wait(lambda: [button for button in self.find("button") if button.text.strip().startswith(name)])[0].click()

    def toast(self):
        return self.wait(lambda: [t for t in (e.text for e in self.find("[data-testid='toast-body']")) if "\n" in t])[-1]

    def downloads(self):
        return {link.get_attribute("download"): link.get_attribute("href") for link in self.find("#files a[download]")}


def read(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def page(served, browser):
    """The page, just opened; gone afterwards."""
    yield Page(browser, served)
    browser.get("about:blank")


# ---- in a browser -----------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.subprocess
def test_page_shows_a_picture_and_a_slider_for_every_direction(page, served):
    assert [name for name in page.sliders() if "Region" not in name] == ["range slider for smile"]
    assert (page.picture("#pair img") == np.asarray(enlarged(served.session.inverted()[1][0], app.SHOWN))).all()
    assert page.width("#sides img") > 3 * app.CELL
    fetched_from = page.browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert fetched_from and {url for url in fetched_from if not url.startswith(served.url)} == set()


@pytest.mark.browser
@pytest.mark.subprocess
def test_slider_changes_the_picture(page):
    from selenium.webdriver import ActionChains, Keys

    slider = page.slider("smile")
    half = slider.size["width"] // 2
    hold = ActionChains(page.browser).move_to_element_with_offset(slider, 0, 0).click_and_hold()
    hold.move_by_offset(half // 3, 0).move_by_offset(half // 3, 0).release().perform()
    page.session.positions = {"smile": float(slider.get_attribute("value"))}
    assert 0.5 < page.session.positions["smile"] < 1.5
    page.shows_the_edit()
    for key, position in ((Keys.HOME, -1.5), (Keys.ARROW_RIGHT, -1.45), (Keys.END, 1.5)):  # without a mouse
        slider.send_keys(key)
        page.session.positions["smile"] = position
        page.shows_the_edit()
    # What it offers is what it shows.
    page.wait(lambda: "edit.png" in page.downloads())
    assert (pixels(read(page.downloads()["edit.png"])) == np.asarray(to_pil(page.session.edit()))).all()
    assert json.loads(read(page.downloads()["edit.json"])) == page.session.about()
    page.click("Draw a strip")
    assert page.width("#strip img") > 5 * app.CELL
    assert "strip.png" in page.wait(lambda: "strip.png" in page.downloads() and page.downloads())


@pytest.mark.browser
@pytest.mark.subprocess
def test_upload_and_settings(page, served):
    from selenium.webdriver import Keys

    path = served.folder / "mine.jpg"
    to_pil(smooth_images(1, size=40, seed=9)[0]).convert("L").save(path)
    page.find("input[type=file]")[0].send_keys(str(path))
    page.session.image = read_image(path, 16)
    page.shows_the_edit()
    page.slider("smile").send_keys(Keys.END)
    page.session.positions = {"smile": 1.5}
    page.shows_the_edit()
    page.click("Settings")
    own_t_edit = "t_edit (empty: that of each direction)"
    for name, text in (("Steps", "5"), ("t_boost", "400"), ("Seed", "7"), (own_t_edit, "900")):
        page.fill(name, text)
    page.fill("number input for Region: largest changes, above this quantile", "0.5")
    page.click("Apply")
    page.session.settings = {"n_steps": 5, "t_edit": 900, "t_boost": 400, "seed": 7}
    page.session.set_region(threshold=0.5)
    page.shows_the_edit()
    page.fill(own_t_edit, "900x")
    page.click("Apply")
    assert "t_edit 900x: must be a whole number, 0 or more, or empty" in page.toast()


@pytest.mark.browser
@pytest.mark.subprocess
def test_direction_is_learned(page, served):
    page.click("Learn a new direction")
    learn(page, "sad face", 2)
    page.wait(lambda: "range slider for face to sad face" in page.sliders())
    assert page.slider("face to sad face").get_attribute("value") == "1"
    page.wait(lambda: "face_to_sad_face.safetensors" in page.downloads())
    path = served.folder / "sad.safetensors"
    path.write_bytes(read(page.downloads()["face_to_sad_face.safetensors"]))
    found = asyrp.load_direction(path, page.session.model)
    assert found.record["prompts"] == ["face", "sad face"]
    page.session.directions = {"face to sad face": found}
    page.session.positions = {"face to sad face": 1.0}
    page.shows_the_edit()


@pytest.mark.browser
@pytest.mark.subprocess
def test_training_can_be_cancelled(page):
    from selenium.webdriver import Keys

    page.click("Learn a new direction")
    learn(page, "old face", 60)
    page.wait(lambda: "training" in page.find("body")[0].text)
    page.click("Cancel")
    assert "training was cancelled: the new direction was not kept" in page.toast()
    assert not any("old face" in name for name in page.sliders())
    page.slider("smile").send_keys(Keys.END)
    page.session.positions = {"smile": 1.5}
    page.shows_the_edit()


def learn(page, prompt, n_images):
    page.fill("Target prompt", prompt)
    page.fill("number input for Training images", str(n_images))
    page.browser.find_element("xpath", "//button[normalize-space()='Learn']").click()


@pytest.mark.browser
@pytest.mark.subprocess
def test_upload_of_a_non_image(page, served):
    """The error is shown in a toast, and the page still works."""
    from selenium.webdriver import Keys

    path = served.folder / "<i>broken.png"
    path.write_bytes(b"no picture")
    page.find("input[type=file]")[0].send_keys(str(path))
    said = page.toast()
    assert "broken.png cannot be read as an image (unknown format)" in said
    assert "asyrp-app" not in said  # where it lies here means nothing to whom it belongs
    page.slider("smile").send_keys(Keys.END)
    page.session.positions = {"smile": 1.5}
    page.shows_the_edit()


@pytest.mark.browser
@pytest.mark.subprocess
def test_strip_without_an_edit(page):
    page.click("Draw a strip")
    assert "a strip needs an edit: move a slider first" in page.toast()


# ---- what it lets in and out ------------------------------------------------------------------------------------------------


def status(request):
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def upload(served, size):
    lines = [b"--x", b'Content-Disposition: form-data; name="files"; filename="a.png"', b"", b"0" * size, b"--x--", b""]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return urllib.request.Request(f"{served.url}/gradio_api/upload", b"\r\n".join(lines), headers)


@pytest.mark.subprocess
def test_uploads_are_bounded(served):
    assert status(upload(served, 1000)) == 200
    assert status(upload(served, 21_000_000)) == 413


@pytest.mark.subprocess
@pytest.mark.parametrize("path", [ROOT / "README.md", "own.yml", "images/00.png", "/etc/passwd"], ids=str)
def test_only_allowed_files_are_served(served, path):
    assert status(f"{served.url}/gradio_api/file={served.folder / path}") == 403


@pytest.mark.subprocess
def test_listens_on_localhost_only(served):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


# ---- where it cannot start --------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(*flags) -> the one line of its error."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        monkeypatch.setenv(name, "")  # and as it was afterwards

    def refused(*flags):
        assert guarded(app.main, list(map(str, flags))) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def test_without_gradio(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = refused()
    assert line.startswith("error: the page needs gradio (")
    assert line.endswith('): pip install -e ".[app]"')


@needs_gradio
def test_port_that_is_taken(refused, tiny):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        given = ("--config", tiny.folder / "ddpm.yml", "--weights", tiny.folder / "ddpm.pt", "--images", tiny.test)
        line = refused(*given, "--device", DEVICE, "--port", port)
    assert line == f"error: --port {port} of 127.0.0.1 is not available: give another --port"


@needs_gradio
def test_model_that_is_missing(refused):
    assert "--config gone.yml: no such file" in refused("--config", "gone.yml")


def test_faces_of_the_default_stack_are_drawn():
    drawn = app.faces(SimpleNamespace(config=load_config("avatar.yml"), image_size=32), None, "test", 2)
    assert drawn.shape == (2, 3, 32, 32)
    assert -1 <= drawn.min() < drawn.max() <= 1 and not torch.equal(drawn[0], drawn[1])


def test_without_a_renderer_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"drawing faces needs resvg_py \(.*\): pip install -e \"\.\[avatar\]\""):
        app.faces(SimpleNamespace(config=load_config("avatar.yml"), image_size=32), None, "test", 2)
