"""Labels for fitting a direction: from two folders, a table, or CLIP scores for two prompts."""

import csv

import torch

from utils.errors import UserError
from utils.text import one_line

FILE = "file"  # the column of a table with the image name


def read_table(path, wanted):
    """A CSV with a column `file` and one column per label -> {file name: whether its label is `wanted`}.

    wanted: "NAME=VALUE". Raises UserError if the table cannot be read, or if all or none of the images have the value.
    """
    label, _, value = wanted.partition("=")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
            columns = list(rows[0]) if rows else []
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of labels ({one_line(error)}): give a CSV file in UTF-8") from error
    for name in (FILE, label):
        if name not in columns:
            raise UserError(f"{path} has no column {name}: its columns are {', '.join(map(str, columns)) or 'none'}")
    found = {row[FILE]: (row[label] or "").strip() == value for row in rows}
    if len(set(found.values())) != 2:
        there = ", ".join(sorted({(row[label] or "").strip() for row in rows})[:20])
        raise UserError(f"{path}: {label}={value} must apply to some images but not all; the values are {there}")
    return found


def balanced(positive, n):
    """Positions of at most `n` images per class, ascending. positive: list of bool, None for an image without a label."""
    chosen = []
    for wanted in (True, False):
        chosen += [i for i, one in enumerate(positive) if one is not None and one == wanted][:n]
    return sorted(chosen)


def extremes(scores, n):
    """Scores (N,) -> list of bool or None: the `n` highest are positive, the `n` lowest negative (n is at most N // 2)."""
    n = min(n, len(scores) // 2)
    order = torch.as_tensor(scores).argsort().tolist()
    found = [None] * len(order)
    for i in order[:n]:
        found[i] = False
    for i in order[len(order) - n :]:
        found[i] = True
    return found
