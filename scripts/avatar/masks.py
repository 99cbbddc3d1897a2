"""Which part of the artwork every pixel of a rendered face shows: what the segmenter of the default stack learns from.

mask = draw_mask(options, size=32)     # options as of render.py; (32, 32) uint8, positions in SEGMENTS
"""

import re
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from render import artwork_options, as_svg, draw, draw_labels, rasterised
from tqdm import tqdm

from utils.terminal import leave_signals_to_the_parent

# segment -> the components that draw it
SEGMENTS = {
    "background": (),
    "skin": ("body", "head"),
    "clothes": ("clothes",),
    "hair": ("rearHair", "hair"),
    "beard": ("beard",),
    "mouth": ("mouth",),
    "eyes": ("eyes", "glasses"),
    "brows": ("eyebrows",),
}
# Corners of the RGB cube: far apart, so that a blend at an edge is nearest to one of the two that meet there.
KEYS = np.array([[255 * bool(i & bit) for bit in (1, 2, 4)] for i in range(len(SEGMENTS))])
FINE = 8  # a pixel is drawn as so many squared; the segment that most of them show is the pixel's


def in_one_colour(group, colour):
    """Every shape below an SVG element filled and outlined in `colour`, opaque."""
    for shape in group.iter():
        for paint in ("fill", "stroke"):
            if shape.get(paint) not in (None, "none"):
                shape.set(paint, colour)
            shape.attrib.pop(f"{paint}-opacity", None)
        shape.attrib.pop("opacity", None)


def draw_mask(options, size):
    """The artwork's options -> (size, size) uint8, positions in SEGMENTS."""
    svg = ET.fromstring(as_svg(options | {"backgroundColor": ["#000000"]}))
    segment_of = {part: i for i, parts in enumerate(SEGMENTS.values()) for part in parts}
    for element in svg.iter():
        part = re.match(r"(\w+)-", element.get("id", ""))
        if part and part[1] in segment_of:
            red, green, blue = KEYS[segment_of[part[1]]]
            in_one_colour(element, f"#{red:02x}{green:02x}{blue:02x}")
    pixels = np.asarray(rasterised(ET.tostring(svg, "unicode"), FINE * size)).astype(int)
    nearest = ((pixels[..., None, :] - KEYS) ** 2).sum(-1).argmin(-1)
    counts = np.eye(len(SEGMENTS), dtype=int)[nearest].reshape(size, FINE, size, FINE, -1).sum((1, 3))
    return counts.argmax(-1).astype(np.uint8)


def face_and_mask(index, split, size):
    """Face `index` of a split, as render.py draws it -> (3, size, size) uint8, and its mask (size, size) uint8."""
    options = artwork_options(*draw_labels(split, index))
    return np.asarray(draw(options, size)).transpose(2, 0, 1), draw_mask(options, size)


def faces_and_masks(split, count, size, workers=None):
    """The first `count` faces of a split -> (faces (N, 3, size, size), masks (N, size, size)), uint8 arrays."""
    job = partial(face_and_mask, split=split, size=size)
    # Fresh processes: one forked from a program whose torch threads have started never comes back.
    with ProcessPoolExecutor(workers, get_context("spawn"), leave_signals_to_the_parent) as pool:
        rows = list(tqdm(pool.map(job, range(count), chunksize=32), total=count, desc=f"drawing {split} faces and masks"))
    faces, masks = zip(*rows, strict=True)
    return np.stack(faces), np.stack(masks)
