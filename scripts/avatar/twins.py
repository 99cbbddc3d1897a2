"""Twins: two renderings of one face that differ in one label and in nothing else, the ideal of an edit."""

import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from render import EXPRESSIONS, LABELS, artwork_options, draw, draw_labels

from utils.terminal import leave_signals_to_the_parent

# The artwork's options that a label other than the expression decides.
DECIDED_BY = {"hair": "hairColor", "skin": "skinColor", "beard": "beardProbability", "long_hair": "rearHairProbability"}
DECIDED_BY |= {"glasses": "glasses"}
ANY_LABELS = {label: names[0] for label, names in LABELS.items()}


class Twins(NamedTuple):
    """N pairs. faces, edited: (N, 3, H, W) uint8; label: (N,) positions in LABELS; old, new: (N,) classes of that label."""

    faces: torch.Tensor
    edited: torch.Tensor
    label: torch.Tensor
    old: torch.Tensor
    new: torch.Tensor


def pixels(options, size):
    """The artwork's options -> uint8 array (3, size, size)."""
    return np.asarray(draw(options, size)).transpose(2, 0, 1)


def edit_options(options, label, name):
    """A face's options with one label changed to the class `name`; of an expression's parts, those that fit it stay."""
    fresh = artwork_options({**ANY_LABELS, label: name}, random.Random(options["seed"]))
    if label != "expression":
        return {**options, DECIDED_BY[label]: fresh[DECIDED_BY[label]]}
    parts = {f"{part}Variant": variants for part, variants in EXPRESSIONS[name].items()}
    return options | {key: fresh[key] for key, variants in parts.items() if options[key][0] not in variants}


def twin(change, split, size):
    """change: (index of a face, label, new class or None for one drawn at random) -> (face, edited, label, old, new)."""
    index, label, new = change
    labels, rng = draw_labels(split, index)
    options = artwork_options(labels, rng)
    old = LABELS[label].index(labels[label])
    if new is None:
        new = rng.choice([k for k in range(len(LABELS[label])) if k != old])
    edited = edit_options(options, label, LABELS[label][new])
    return pixels(options, size), pixels(edited, size), list(LABELS).index(label), old, new


def collect(changes, split, size, workers=None):
    # Fresh processes: one forked from a program whose torch threads have started never comes back.
    with ProcessPoolExecutor(workers, get_context("spawn"), leave_signals_to_the_parent) as pool:
        rows = list(pool.map(partial(twin, split=split, size=size), changes, chunksize=16))
    faces, edited, label, old, new = zip(*rows, strict=True)
    faces, edited = (torch.from_numpy(np.stack(images)) for images in (faces, edited))
    return Twins(faces, edited, torch.tensor(label), torch.tensor(old), torch.tensor(new))


def random_twins(split, count, size=32):
    """`count` twins of the faces 0, 1, ... of `split`, the labels in turn; every other one changes the expression, the
    smallest difference and the hardest to learn."""
    labels = [label for other in list(LABELS)[1:] for label in ("expression", other)]
    return collect([(i, labels[i % len(labels)], None) for i in range(count)], split, size)


def all_twins(split, count, size=32):
    """Every change of one label of the faces 0 ... count - 1 of `split`."""
    changes = []
    for i in range(count):
        labels, _ = draw_labels(split, i)
        changes += [(i, k, v) for k, names in LABELS.items() for v in range(len(names)) if names[v] != labels[k]]
    return collect(changes, split, size)
