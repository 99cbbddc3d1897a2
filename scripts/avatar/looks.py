"""Colours and texture of the rendered faces: every face has its own colours, and texture; some wear glasses.

Why not a few flat colours: the distribution of the images would be a set of separate points. A good diffusion model decides
within a few steps which of them a latent leads to; 40 steps are too coarse for that, so plain DDIM inversion ends at another
colour, and an edit either snaps back or jumps (docs/avatar/recipe.md).
"""

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image

# label -> "#rrggbb", in an order in which neighbours are similar.
HAIR = {"black": "#2c1b18", "brown": "#724133", "red": "#a55728", "blond": "#d6b370"}
SKIN = {"pale": "#f1c3a5", "tanned": "#c69a74", "brown": "#93604a", "dark": "#5c3829"}
# Saturation and value of backgrounds and clothes; they have any hue.
PASTEL, STRONG = ((0.12, 0.32), (0.86, 1.0)), ((0.35, 0.85), (0.25, 0.9))
GRAIN_SIZES = (1, 2, 4, 8, 16)  # pixels


class Look(NamedTuple):
    """blend: largest share of a neighbour's colour in the colours of hair and skin (below 0.5, so that the label stays
    visible); jitter: standard deviation of the noise added to a colour, whose channels are in [0, 1]. glasses: share of the
    faces that wear them. grain: see `with_grain`."""

    blend: float = 0.15
    jitter: float = 0.015
    glasses: float = 0.25
    grain: float = 0.02

    def colours(self, labels, rng):
        """The colours of a face with these labels, as options of the artwork."""
        return {
            "hairColor": [self.shade(HAIR, labels["hair"], rng)],
            "skinColor": [self.shade(SKIN, labels["skin"], rng)],
            "backgroundColor": [any_hue(*PASTEL, rng)],
            "clothesColor": [any_hue(*STRONG, rng)],
        }

    def shade(self, colours, name, rng):
        """A colour near that of `name`, towards a neighbour's."""
        names = list(colours)
        i = names.index(name)
        other = rng.choice([names[k] for k in (i - 1, i + 1) if 0 <= k < len(names)])
        share = rng.uniform(0, self.blend)
        own, neighbour = ([int(colours[n][k : k + 2], 16) / 255 for k in (1, 3, 5)] for n in (name, other))
        return as_hex((1 - share) * a + share * b + rng.gauss(0, self.jitter) for a, b in zip(own, neighbour, strict=True))


LOOK = Look()


def as_hex(colour):
    """(red, green, blue) in [0, 1], clipped -> "#rrggbb"."""
    return "#" + "".join(f"{round(255 * min(max(channel, 0), 1)):02x}" for channel in colour)


def any_hue(saturation, value, rng):
    """A random colour; saturation, value: (low, high) in [0, 1]."""
    return as_hex(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def with_grain(image, split, index, grain):
    """An image with texture: noise of each of GRAIN_SIZES, with this standard deviation (images are in [-1, 1]). It is part of
    the face: the same call gives the same image.

    DDIM inversion treats an image as the state at t = 0, which has noise of sqrt(1 - alpha_bar_0) = 0.01. A model that has
    learned that flat colours have none predicts none, and inverts them to latents that are too small. Photographs have texture.
    """
    rng = np.random.default_rng(list(f"avatar/{split}/{index}/grain".encode()))
    noise = np.zeros((image.height, image.width, 3))
    for size in GRAIN_SIZES:
        coarse = rng.standard_normal((-(-image.height // size), -(-image.width // size), 3))
        noise += coarse.repeat(size, 0).repeat(size, 1)[: image.height, : image.width]
    return Image.fromarray((np.asarray(image) + 127.5 * grain * noise).round().clip(0, 255).astype(np.uint8))
