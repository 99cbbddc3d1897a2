"""The report of an experiment: what it shows, that it needs nothing else, and that its slider works in a real browser."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_world import SMILE, call

from asyrp import process
from asyrp.config import load_config
from asyrp.intervals import Curve
from asyrp.report import page as report
from asyrp.report.page import Gallery, gallery_of, strength_sliders, write
from asyrp.report.pictures import save_animation, to_pil

STRIP = ("--delta_interpolation", "--min_delta", "-1", "--max_delta", "1", "--num_delta", "3", "--save_x_origin")


@pytest.fixture(scope="module")
def strip(tiny, learned, tmp_path_factory):
    """A test over three strengths after a training -> (experiment's folder, what the process made of each column)."""
    folder = tmp_path_factory.mktemp("strip")
    shutil.copytree(learned, folder, dirs_exist_ok=True)
    made, generate = [], process.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(process, "generate", lambda *args, **more: made.append(generate(*args, **more)) or made[-1])
        assert call(tiny, "--run_test", *SMILE, *STRIP, "--bs_test", "2", "--save_animation", "gif") == 0
    [results] = (folder / "runs").iterdir()
    return results, made


@pytest.fixture
def results(strip, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(strip[0], tmp_path / "smile_LC_copy")


def decoded(uri):
    """data: URI -> (format, pixels)."""
    assert uri.startswith("data:image/")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return picture.format, np.asarray(picture.convert("RGB"))


def shown(page):
    """{alt text: pixels} of the pictures in a page that are not hidden."""
    tags = [tag for tag in re.findall("<img [^>]*>", page) if not tag.endswith(" hidden>")]
    return {html.unescape(re.search('alt="([^"]*)"', tag)[1]): decoded(re.search('src="([^"]*)"', tag)[1])[1] for tag in tags}


def change_settings(results, mode, **changes):
    path = results / f"settings_{mode}.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def page_of(results, *curve):
    return write(results, *curve).read_text(encoding="utf-8")


def solid(*levels):
    """Grey images of 16 px, one for each level in [-1, 1]."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).float()


def save_gallery(folder, columns, n_edits, directions=(), tested=1):
    """A Gallery of one image."""
    pictures = Gallery(folder, list(directions), n_edits, tested)
    pictures.add(SimpleNamespace(names=["a.png"], x_0=solid(-1)), columns[:-n_edits], columns[-n_edits:])
    pictures.save()


# ---- what a report shows ------------------------------------------------------------------------------------------------


def test_training_writes_a_report(learned):
    [results] = (learned / "runs").iterdir()
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "<h1>face → smiling face</h1>" in page
    assert re.findall('<h2 id="([a-z]+)">', page) == ["intervals", "losses", "settings"]
    assert "<img" not in page
    assert "<script" not in page


def test_test_adds_its_pictures(strip):
    results, (plain, *edited) = strip
    page = (results / "report.html").read_text(encoding="utf-8")
    assert re.findall('<h2 id="([a-z]+)">', page) == ["pictures", "intervals", "losses", "settings"]
    found = shown(page)
    assert list(found) == [f"0{i}, {label}" for i in range(2) for label in ("original", "reconstruction", "+1")]
    for i in range(2):
        assert (found[f"0{i}, reconstruction"] == np.asarray(to_pil(plain[i]))).all()
        assert (found[f"0{i}, +1"] == np.asarray(to_pil(edited[2][i]))).all()
        # The inversion of four steps is no exact one: the original is another picture.
        assert (found[f"0{i}, original"] != found[f"0{i}, reconstruction"]).any()


def test_report_needs_nothing_outside_the_file(strip):
    links = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                if name in ("src", "href", "srcset", "data", "action", "poster"):
                    links.append((tag, name, value[:11]))

    page = (strip[0] / "report.html").read_text(encoding="utf-8")
    Reader().feed(page)
    assert set(links) == {("img", "src", "data:image/")}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_user_text_is_escaped(results):
    change_settings(results, "test", prompts=[["<script>alert(1)</script>", 'a "face" & more']])
    page = page_of(results)
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt; → a &#34;face&#34; &amp; more</h1>" in page
    assert "<script>alert" not in page


def test_flags_that_differ_are_shown_first(strip):
    page = (strip[0] / "report.html").read_text(encoding="utf-8")
    differing, _, others = page.partition("All other flags")
    assert re.search(r"--num_delta</code></th><td>5</td><td>3</td>\s*<td class=\"quiet\">5</td>", differing)
    assert "--num_delta" not in others
    assert "--seed" in others
    assert "--seed" not in differing


def test_metrics_are_shown_when_there_are_any(results):
    assert "Metrics" not in page_of(results)
    cell = {"mean": 0.12345, "standard_error": 0.01, "n": 7}
    single = {"mean": 0.5, "standard_error": None, "n": 1}
    evaluation = {
        "settings": {"clip": "ViT-B/16"},
        "summary": {"reconstruction": {"PSNR": single}, "+1": {"S_dir": cell}},
        "distances": {"+1": {"KID": {"value": 0.02, "n": 500}}},
        "images": [],
        "left_out": {"identity": "no weights; fetch them"},
    }
    (results / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(results)
    cells = [re.findall(">([^<>]+)</t[hd]>", row) for row in re.findall("<tr>.*</tr>", page.partition("Metrics</h2>")[2])]
    assert cells[:4] == [
        ["metric", "reconstruction", "+1", "n"],
        ["PSNR", "0.5", "–", "1"],
        ["S_dir", "–", "0.123 ± 0.01", "7"],
        ["KID", "–", "0.02", "500"],
    ]
    assert "CLIP: ViT-B/16." in page
    assert "Not measured: identity: no weights; fetch them" in page


def test_credit_of_the_default_stack_is_shown(results):
    assert "Artwork" not in page_of(results)
    change_settings(
        results,
        "test",
        config={
            **yaml.safe_load((results / "settings_test.yml").read_text())["config"],
            "data": vars(load_config("avatar.yml").data),
        },
    )
    page = page_of(results)
    assert "&#34;Toon Head&#34; by Johan Melin" in page
    assert '<a href="https://creativecommons.org/licenses/by/4.0/"' in page


def test_intervals_are_marked_on_the_curves(results):
    t = np.array([0, 500, 1000])
    curve = Curve(t, t / 1000, t / 9000, t / 2000, t / 9000)
    change_settings(results, "test", t_edit=500, t_boost=250)
    page = page_of(results, curve, "mine")
    (start, width), (zero, boosted) = (
        map(float, pair) for pair in re.findall('<rect class=".." x="(.*?)" y=".." width="(.*?)"', page)
    )
    assert boosted == width / 2
    assert start - zero == width
    assert "LPIPS rises with the timestep. t_edit = 500, t = 500 to 1000; t_boost = 250, t = 0 to 250" in page
    assert "“mine”" in page
    assert "there are no LPIPS curves" not in page.lower()
    change_settings(results, "test", t_edit=None, t_boost=0)
    page = page_of(results, curve, "mine")
    assert "<rect" not in page
    assert "Nothing was edited." in page
    assert "There are no LPIPS curves for this model" in page_of(results)


def test_report_marks_pictures_older_than_training(results):
    change_settings(results, "test", date="2026-01-02T03:04:05")
    change_settings(results, "train", date="2026-01-02T03:04:04")
    assert "older than the training" not in page_of(results)
    change_settings(results, "train", date="2026-01-02T03:04:06")
    page = page_of(results)
    assert "These pictures are older than the training below" in page
    assert "train 2026-01-02 03:04:06 · test 2026-01-02 03:04:05" in page


# ---- pictures -----------------------------------------------------------------------------------------------------------


def test_number_and_size_of_pictures_are_bounded(tmp_path):
    pictures = Gallery(tmp_path, [], 9, 100)
    for start in range(0, 100, 20):
        batch = SimpleNamespace(names=[f"{i}.png" for i in range(start, start + 20)], x_0=solid(*[0] * 20))
        pictures.add(batch, [], [(f"+{k}", solid(*[0] * 20)) for k in range(9)])
    pictures.save()
    found = gallery_of((tmp_path / report.PICTURES).read_text())
    assert len(found["images"]) == 51  # 512 pictures, ten an image
    assert found["images"][50]["name"] == "50"
    assert found["tested"] == 100
    kind, pixels = decoded(report.data_uri(torch.zeros(3, 1024, 1024)))
    assert (kind, pixels.shape) == ("WEBP", (256, 256, 3))


def test_small_pictures_keep_every_pixel():
    image = torch.rand(3, 64, 64) * 2 - 1
    kind, pixels = decoded(report.data_uri(image))
    assert kind == "PNG"
    assert (pixels == np.asarray(to_pil(image))).all()


def test_single_edit_is_the_last_stop_after_original_and_reconstruction(tmp_path):
    save_gallery(tmp_path, [("reconstruction", solid(0)), ("+0.5", solid(1))], 1)
    found = gallery_of((tmp_path / report.PICTURES).read_text())
    assert found["sliders"] == [{"name": "Shown", "stops": ["original", "reconstruction", "+0.5"], "start": 2}]
    [image] = found["images"]
    assert [label for label, _ in image["unedited"]] == ["original", "reconstruction"]
    assert [decoded(uri)[1].max() for _, uri in image["stops"]] == [0, 128, 255]


def test_grid_of_strengths_has_a_slider_for_each_direction():
    labels = [f"{a}, {b}" for a in ("-1", "+0", "+1") for b in ("-0.5", "+0", "+0.5")]
    first, second = strength_sliders(labels, ["smiling", "beard"])
    assert first == {"name": "Strength of smiling", "stops": ["-1", "+0", "+1"]}
    assert second == {"name": "Strength of beard", "stops": ["-0.5", "+0", "+0.5"]}


def test_strengths_that_round_to_one_label_stay_two_stops():
    assert strength_sliders(["+0.1", "+0.1", "+0.11"], [])[0]["stops"] == ["+0.1", "+0.1", "+0.11"]


# ---- animations ---------------------------------------------------------------------------------------------------------


def test_animation_runs_over_the_strengths_and_back(strip):
    results, (_, *edited) = strip
    folder = results / "test_images" / "4"
    assert sorted(path.name for path in folder.glob("*.gif")) == ["000000.gif", "000001.gif", "all.gif"]
    for name, cells in (("000001", [1]), ("all", [0, 1])):
        with Image.open(folder / f"{name}.gif") as animation:
            assert (animation.n_frames, animation.info["loop"]) == (4, 0)
            frames = []
            for k in range(4):
                animation.seek(k)
                frames.append(np.asarray(animation.convert("RGB")).astype(int))
        assert abs(frames[1] - frames[3]).max() <= 8  # palettes differ a little
        labels = [frame[: frame.shape[0] - 100] for frame in frames]
        assert all((label < 128).any() for label in labels[:3])
        assert (labels[0] != labels[1]).any()
        for frame, k in zip(frames, (0, 1, 2, 1), strict=True):
            for x, i in enumerate(cells):
                cell = frame[-100:-4, 4 + 100 * x : 100 + 100 * x][3::6, 3::6]
                assert abs(cell - np.asarray(to_pil(edited[k][i]))).mean() < 8


def test_animation_as_webp_keeps_small_pictures_as_they_are(tmp_path):
    save_animation([[*solid(-0.5, 0, 0.5)]], ["-1", "+0", "+1"], tmp_path / "new" / "a.webp")
    with Image.open(tmp_path / "new" / "a.webp") as animation:
        assert (animation.format, animation.n_frames, animation.info["loop"]) == ("WEBP", 4, 0)
        animation.seek(2)
        assert (np.asarray(animation.convert("RGB"))[-100:-4, 4:100] == 191).all()


# ---- in a browser -------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_slider_changes_the_pictures(browser, strip):
    from selenium.webdriver import ActionChains, Keys

    results, (_, *edited) = strip
    browser.get((results / "report.html").resolve().as_uri())
    slider = browser.find_element("css selector", "input[type=range]")
    stops = browser.find_elements("css selector", ".stops")

    def check(label, k):
        for i, figure in enumerate(stops):
            [picture] = [p for p in figure.find_elements("tag name", "img") if p.is_displayed()]
            assert picture.get_attribute("alt") == f"0{i}, {label}"
            assert (decoded(picture.get_attribute("src"))[1] == np.asarray(to_pil(edited[k][i]))).all()
            assert figure.find_element("tag name", "figcaption").text == label
        assert slider.get_attribute("aria-valuetext") == browser.find_element("tag name", "output").text == label
        return stops[0].screenshot_as_png

    assert slider.accessible_name == "Strength"
    seen = {check("+1", 2)}
    slider.send_keys(Keys.ARROW_LEFT)
    seen.add(check("+0", 1))
    slider.send_keys(Keys.HOME)
    seen.add(check("-1", 0))
    assert len(seen) == 3  # three pictures on the screen, not only in the page
    # With the mouse: hold the handle, at the left end, and draw it to the right end.
    half = slider.size["width"] // 2
    ActionChains(browser).move_to_element_with_offset(slider, 8 - half, 0).click_and_hold().move_by_offset(
        2 * half - 16, 0
    ).release().perform()
    assert check("+1", 2) in seen
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_two_sliders_choose_from_a_grid(browser, results):
    from selenium.webdriver import Keys

    levels = [round(-0.8 + 0.2 * k, 1) for k in range(9)]
    labels = [f"{a}, {b}" for a in ("-1", "+0", "+1") for b in ("-0.5", "+0", "+1")]
    save_gallery(results, [(label, solid(level)) for label, level in zip(labels, levels, strict=True)], 9, ["first", "second"])
    browser.get(write(results).resolve().as_uri())
    first, second = browser.find_elements("css selector", "input[type=range]")
    assert (first.accessible_name, second.accessible_name) == ("Strength of first", "Strength of second")

    def shows(k):
        [picture] = [p for p in browser.find_elements("css selector", ".stops img") if p.is_displayed()]
        assert picture.get_attribute("alt") == f"a, {labels[k]}"
        assert (decoded(picture.get_attribute("src"))[1] == np.asarray(to_pil(solid(levels[k])[0]))).all()

    shows(8)
    first.send_keys(Keys.ARROW_LEFT)
    shows(5)
    second.send_keys(Keys.HOME)
    shows(3)
    first.send_keys(Keys.ARROW_LEFT)
    shows(0)


@pytest.mark.browser
def test_report_fits_a_phone_and_the_dark(browser, strip):
    browser.get((strip[0] / "report.html").resolve().as_uri())
    colours = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
