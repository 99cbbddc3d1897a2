"""Helpers for tests of --evaluate: reading its files, and a segmenter."""

import csv
import json

import pytest
import torch
from torch import nn


def found(results):
    """evaluation.json, which must be JSON in the strict sense."""
    return json.loads((results / "evaluation.json").read_text(), parse_constant=pytest.fail)


def rows(results):
    """evaluation.csv"""
    with (results / "evaluation.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def values(results, picture, metric):
    """One column of evaluation.csv, of one of the pictures."""
    return [float(row[metric]) for row in rows(results) if row["picture"] == picture]


class Halves(nn.Module):
    """Segment 1 where a pixel is above zero."""

    def forward(self, images):
        mean = images.mean(1, keepdim=True)
        return torch.cat([-mean, mean], 1)
