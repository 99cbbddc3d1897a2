"""Principal components as directions: those of CLIP features, used as training targets, and a contact sheet.

A component has no name. The sheet shows its effect and labels it with the words whose change in CLIP space is closest to the
change of the images.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from asyrp import fitting
from asyrp.report import pictures
from utils.errors import UserError
from utils.text_dic import attributes_of

log = logging.getLogger(__name__)

IMAGES = 3  # images per sheet
STRENGTH = {"h_pca": 3.0, "clip_pca": 1.0}  # strength on the sheet: in standard deviations of h; as trained


@torch.no_grad()
def clip_components(clip, batches, k):
    """The first k principal components of the images' CLIP features -> (list of k directions (1, D), normalised; (k,) fractions
    of the variance). clip: a ClipLoss. batches: an iterable of Batch. Raises UserError for too few images."""
    features = torch.cat([clip.encode_images(batch.x_0.to(clip.mean.device)).cpu() for batch in batches])
    components, shares = fitting.principal_components({0: features[:, :, None, None]}, k)
    return [F.normalize(found[0].flatten(1)).to(clip.mean.device) for found in components], shares[0]


class Words(NamedTuple):
    """Names, and the change in CLIP space towards each: (N, D), normalised."""

    names: list
    changes: torch.Tensor


def words_of(clip, category, path=None):
    """Candidate names for components: from a file, one per line, else the attributes of the category -> Words.

    Words from a file are taken as changes from their mean. Raises UserError as `read_words`.
    """
    if path is None:
        found = attributes_of(category)
        return Words([target for _, target in found.values()], torch.cat([clip.direction(*pair) for pair in found.values()]))
    names = read_words(path)
    features = clip.encode_text(names)
    return Words(names, F.normalize(features - features.mean(0), dim=-1))


def read_words(path):
    """A text file -> its distinct lines. Raises UserError for a file with fewer than two."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--words {path} cannot be read as UTF-8 text: check the path") from error
    names = list(dict.fromkeys(line for line in lines if line))
    if len(names) < 2:
        raise UserError(f"--words {path}: give at least two different words, one per line")
    return names


def nearest(change, words):
    """A change in CLIP space (D,) -> [(name, cosine) of the closest word, and of the word closest to its opposite]."""
    cosines = words.changes @ F.normalize(change, dim=-1)
    return [(words.names[int(i)], cosines[i].abs().item()) for i in (cosines.argmax(), cosines.argmin())]


class Sheet:
    """Directions applied to a few images, one row per direction: backward, unedited, forward.

    draw: function (direction, strength), or (None, None) for unedited images -> images (N, 3, H, W), N up to IMAGES. clip: a
    ClipLoss, and words: Words; without them directions are not named.
    """

    def __init__(self, draw, strength, clip=None, words=None):
        self.draw, self.strength, self.clip, self.words = draw, strength, clip, words
        self.plain, self.rows, self.names = draw(None, None), [], []

    @torch.no_grad()
    def add(self, direction, title):
        """Draw a row -> the words for the direction: [(word, cosine) forward, (word, cosine) backward], or []."""
        backward, forward = (self.draw(direction, sign * self.strength) for sign in (-1, 1))
        found, name = [], title
        if self.clip is not None:
            ahead, behind = (self.clip.encode_images(images).mean(0) for images in (forward, backward))
            found = nearest(ahead - behind, self.words)
            name = f"{title}: {found[0][0]} {found[0][1]:.2f}, back {found[1][0]} {found[1][1]:.2f}"
        triples = zip(backward.cpu(), self.plain.cpu(), forward.cpu(), strict=True)
        self.rows.append([image for triple in triples for image in triple])
        self.names.append(name)
        return found

    def save(self, path):
        labels = [f"{-self.strength:+g}", "plain", f"{self.strength:+g}"] * (len(self.rows[0]) // 3)
        pictures.save_grid(path, self.rows, labels, self.names)


def draw_sheet(path, made, kind, draw, clip, category, words=None):
    """Write the contact sheet of Directions -> the words for each, a list of strings. clip: function without arguments ->
    ClipLoss.

    Without a CLIP the sheet is still drawn, and a warning says why its rows have no words.
    """
    named = ()
    try:
        named = (clip(), words_of(clip(), category, words))
    except UserError as error:
        if words is not None:
            raise
        log.warning("components are not named: %s", error)
    sheet, called = Sheet(draw, STRENGTH[kind], *named), []
    for k, direction in enumerate(tqdm(made, desc="drawing components", unit="component")):
        found = sheet.add(direction, f"pc{k + 1}")
        called.append(", back: ".join(f"{word} ({cosine:.2f})" for word, cosine in found))
    sheet.save(path)
    return called
