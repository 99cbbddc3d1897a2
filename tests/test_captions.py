"""Captions, twins and styles that the CLIP of the default stack learns from."""

import random
import sys

import pytest
import torch

from utils.files import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "avatar"))

import captions
import faces
import render
import train_clip
import twins

N = len(render.LABELS)


def test_every_class_has_words():
    assert captions.WORDS.keys() == render.LABELS.keys()
    assert [len(captions.WORDS[label]) for label in render.LABELS] == [len(names) for names in render.LABELS.values()]
    assert train_clip.PROMPTS.keys() == {*render.LABELS, "style"}
    assert [len(prompts) for prompts in train_clip.PROMPTS.values()] == train_clip.Anchors(4).sizes


@pytest.mark.parametrize("style", range(len(captions.STYLES)))
def test_captions_contain_their_labels(style):
    rng, labels = random.Random(0), [1] * N
    told_style = 0
    for _ in range(200):
        text, told = captions.caption([*labels, style], rng)
        assert len(told) == N + 1 and set(told[:-1]) <= {1, captions.LEFT_OUT}
        named = any(word in text for word in ("sketch", "drawing", "pencil", "pixel", "8-bit"))
        # Prompt templates have sketches and drawings too: a style that is told is always named.
        assert told[-1] in (style, captions.LEFT_OUT) and (told[-1] == captions.LEFT_OUT or named)
        told_style += told[-1] != captions.LEFT_OUT
        if told[list(render.LABELS).index("glasses")] == 1:
            assert "glasses" in text or "spectacle" in text
    assert (told_style > 0) == (style > 0)


def test_styles_change_the_picture_and_keep_its_range():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, draw in faces.STYLES.items():
        styled = draw(image)
        assert styled.shape == image.shape and styled.abs().max() <= 1, name
        assert (styled - image).abs().mean() > 0.1
    assert torch.equal(faces.sketch(torch.zeros(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))
    squares = faces.pixel_art(image)
    assert torch.equal(squares[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), squares)


def test_each_image_is_in_its_own_style():
    image = torch.rand(3, 3, 32, 32) * 2 - 1
    styled = train_clip.in_styles(image, torch.tensor([0, 1, 2]))
    assert torch.equal(styled[0], image[0])
    assert torch.equal(styled[1:2], faces.sketch(image[1:2]))
    assert torch.equal(styled[2:], faces.pixel_art(image[2:]))


def test_twins_differ_in_one_label():
    change = (5, "glasses", None)
    face, edited, label, old, new = twins.twin(change, "test", 32)
    assert list(render.LABELS)[label] == "glasses" and old != new
    assert 0 < (face != edited).any(0).mean() < 0.4


def test_twins_are_spoiled_with_the_same_random_numbers():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    first, same = faces.alike(lambda batch: faces.noise(faces.recolour(batch, 0.1, 0.1), 0.2), images, images)
    assert torch.equal(first, same)
    assert not torch.equal(first, images)
    again, _ = faces.alike(lambda batch: faces.noise(batch, 0.2), images, images)
    assert not torch.equal(again, faces.alike(lambda batch: faces.noise(batch, 0.2), images)[0])
