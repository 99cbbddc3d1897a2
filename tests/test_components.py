"""Principal components of CLIP's features, learned; the contact sheet of components, and their words."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_world import call, keep_curve, open_tiny, pixels, settings

from asyrp import components, directions
from asyrp.data.pairs import Batch
from utils.errors import UserError
from utils.text_dic import AVATARS, FACES, attributes_of

RESULTS = Path("runs/x_LC_CUSTOM_t999_ninv4_ngen4")
CLIP_PCA = ("--fit_direction", "clip_pca", "--exp", "runs/x", "--n_train_img", "4", "--n_components", "2")


class Colours:
    """A CLIP whose features are the mean colour of an image; its words are colours."""

    mean = torch.zeros(1)
    words = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def encode_images(self, images):
        return images.mean((2, 3))

    def encode_text(self, words):
        return F.normalize(torch.tensor([self.words[word] for word in words], dtype=torch.float32), dim=-1)


def batch(colours):
    images = torch.tensor(colours, dtype=torch.float32)[:, :, None, None].expand(-1, 3, 4, 4)
    return Batch(list(range(len(colours))), ["x"] * len(colours), images, images)


def test_components_of_clip_are_directions_of_length_one():
    found, shares = components.clip_components(Colours(), [batch([(0, 0, 0), (2, 0, 0)]), batch([(4, 0.1, 0), (6, 0, 0)])], 2)
    assert found[0].abs().flatten().tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert [direction.norm().item() for direction in found] == pytest.approx([1, 1])
    assert shares[0] > 0.99 and shares.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="more than 2 images"):
        components.clip_components(Colours(), [batch([(0, 0, 0), (1, 0, 0)])], 2)


@pytest.fixture
def colours(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("red\n\n  green \nblue\nred\n")
    return components.words_of(Colours(), "CUSTOM", path)


def test_words_of_a_file(colours):
    assert colours.names == ["red", "green", "blue"]
    assert colours.changes.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_nearest_word_and_that_of_the_opposite(colours):
    ahead, behind = components.nearest(torch.tensor([1.0, 0.1, -1.0]), colours)
    assert (ahead[0], behind[0]) == ("red", "blue")
    assert 0 < ahead[1] < 1 and 0 < behind[1] < 1


@pytest.mark.parametrize("text", ["", "red\n", "red\nred\n"])
def test_one_word_is_too_few(tmp_path, text):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(UserError, match="two different words"):
        components.words_of(Colours(), "CUSTOM", tmp_path / "words.txt")


def test_attributes_of_a_category():
    assert attributes_of("AVATAR64") is AVATARS
    assert attributes_of("my own") is FACES
    assert "dog_yorkshire" in attributes_of("dog")


def draw(direction, strength):
    """Grey images, which a direction (a colour) changes."""
    change = 0 if direction is None else strength * direction.colour
    return (torch.zeros(2, 3) + change)[:, :, None, None].expand(-1, 3, 40, 40)


def test_sheet_has_a_row_for_each_direction(tmp_path, monkeypatch, colours):
    monkeypatch.setattr(components, "words_of", lambda *args: colours)
    made = [SimpleNamespace(colour=torch.tensor(colour)) for colour in ((0.2, -0.3, 0.0), (0.0, 0.1, -0.3))]
    called = components.draw_sheet(tmp_path / "sheet.png", made, "h_pca", draw, Colours, "CUSTOM")
    assert [name.split(" ")[0] for name in called] == ["red", "green"]
    assert ["back: green" in called[0], "back: blue" in called[1]] == [True, True]
    height, width, _ = pixels(tmp_path / "sheet.png").shape
    assert height > 2 * 40 and width > 6 * 40


def test_without_a_clip_the_sheet_is_drawn_without_words(tmp_path, caplog):
    def missing():
        raise UserError("the CLIP is not there")

    made = [SimpleNamespace(colour=torch.tensor((0.2, 0.0, 0.0)))]
    assert components.draw_sheet(tmp_path / "sheet.png", made, "h_pca", draw, missing, "CUSTOM") == [""]
    assert (tmp_path / "sheet.png").is_file()
    assert "not named: the CLIP is not there" in caplog.text


def test_components_of_clip_are_trained_tested_and_resumed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *CLIP_PCA) == 0
    said = capsys.readouterr().err
    assert "of the variance of CLIP's features" in said
    files = sorted(Path("checkpoint").glob("*.pth"))
    assert [path.name.partition("_LC_")[0] for path in files] == ["x_pc1", "x_pc2"]
    first, second = map(directions.read, files)
    assert (first.kind, first.record["training"]["clip_component"], first.record["prompts"]) == ("delta_block", 1, None)
    assert not torch.equal(first.parts[0]["conv1.weight"], second.parts[0]["conv1.weight"])
    assert len(settings(RESULTS, "fit")["components"]) == 2
    assert (RESULTS / "components.png").is_file()
    assert call(tiny, "--run_test", "--exp", "runs/x_pc2") == 0

    before = {path: path.read_bytes() for path in files}
    assert call(tiny, *CLIP_PCA, "--n_iter", "2") == 0
    assert {path: path.read_bytes() for path in files} == before
    assert [path.name[-6:] for path in sorted(Path("checkpoint").glob("x_pc1*"))] == ["_0.pth", "_1.pth"]


def test_component_can_be_a_delta_h(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *CLIP_PCA, "--n_components", "1", "--train_delta_h") == 0
    assert directions.read(next(Path("checkpoint").glob("*.pth"))).kind == "delta_h"


def test_threshold_without_prompts_is_not_scaled(tiny, tmp_path, monkeypatch, capsys):
    """Their cosine is 1: straight curves that rise to 2 at t = 999 reach 0.5 at t = 250."""
    monkeypatch.chdir(tmp_path)
    keep_curve(open_tiny(tiny), top=2.0)
    flags = ("--fit_direction", "h_pca", "--exp", "runs/x", "--n_components", "1", "--n_train_img", "4")
    assert call(tiny, *flags, "--lpips_edit_th", "0.5", intervals=()) == 0
    assert settings(RESULTS, "fit")["t_edit"] == 250
    assert "cosine 1.000" in settings(RESULTS, "fit")["decided"]["t_edit"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--fit_direction", "clip_pca", "--evaluate"), "--fit_direction clip_pca produces several directions"),
        (("--fit_direction", "clip_pca", "--precision", "fp16"), "fp16 cannot train"),
        (("--fit_direction", "clip_pca", "--clip_loss_w", "0"), "trains with the CLIP loss"),
        (("--run_test", "--words", "x.txt"), "--words needs --fit_direction h_pca or clip_pca"),
        ((*CLIP_PCA, "--words", "nowhere.txt"), "--words nowhere.txt cannot be read"),
    ],
)
def test_errors_of_components(tiny, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    assert call(tiny, *flags) == 2
    assert said in capsys.readouterr().err
