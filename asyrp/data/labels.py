"""Labelled images for fitting a direction: two folders, a table of labels, or what CLIP reads from two prompts."""

import csv

import torch

from utils.errors import UserError
from utils.text import one_line

FILE = "file"  # column of a table that names the image


def read_table(path, wanted):
    """A CSV with a column `file` and one for each label -> {file name: whether its label is `wanted`}.

    wanted: "NAME=VALUE". Raises UserError for a table that cannot be read, and where no image or every one has the value.
    """
    label, _, value = wanted.partition("=")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
            columns = list(rows[0]) if rows else []
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no table of labels ({one_line(error)}): a CSV in UTF-8 is expected") from error
    for name in (FILE, label):
        if name not in columns:
            raise UserError(f"{path} has no column {name}: its columns are {', '.join(map(str, columns)) or 'none'}")
    found = {row[FILE]: (row[label] or "").strip() == value for row in rows}
    if len(set(found.values())) != 2:
        there = ", ".join(sorted({(row[label] or "").strip() for row in rows})[:20])
        raise UserError(f"{path}: {label}={value} must divide the images, and its values are {there}")
    return found


def balanced(positive, n):
    """Positions of at most `n` images of each class, in their order. positive: list of bool; None: an image without a label."""
    chosen = []
    for wanted in (True, False):
        chosen += [i for i, one in enumerate(positive) if one is not None and one == wanted][:n]
    return sorted(chosen)


def extremes(scores, n):
    """Scores (N,) -> list of bool or None: the `n` highest are positive, the `n` lowest negative; halves where that is more."""
    n = min(n, len(scores) // 2)
    order = torch.as_tensor(scores).argsort().tolist()
    found = [None] * len(order)
    for i in order[:n]:
        found[i] = False
    for i in order[len(order) - n :]:
        found[i] = True
    return found
