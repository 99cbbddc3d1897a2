"""Measures shared by several claims: means with standard errors, ratios, and fractions of an edit's gain."""

import math
from dataclasses import dataclass, field

import numpy as np

from asyrp.evaluation.metrics import Summary, summary

ALIKE = 0.8  # smallest fraction of an edit's gain that counts as equivalent
CERTAIN = 2  # number of standard errors for significance


def surely(values):
    """Whether the mean of values (n,) is significantly above zero."""
    found = summary(values)
    return found.mean > CERTAIN * found.standard_error


def ratio(parts, wholes):
    """Ratio of two means over the same images (n,), with its standard error by linearisation -> Summary."""
    parts, wholes = parts.double(), wholes.double()
    share = parts.mean() / wholes.mean()
    se = (parts - share * wholes).std() / math.sqrt(len(parts)) / wholes.mean().abs()
    return Summary(share.item(), se.item(), len(parts))


@dataclass
class Result:
    """holds: whether the criterion is met. because: the deciding figures in words. table: rows {column name: value}.

    pictures: {column label: images (n, 3, H, W)}. curves: further data for the figure.
    """

    holds: bool
    because: str
    table: list
    pictures: dict
    curves: dict = field(default_factory=dict)


class Gains:
    """Gains in score over the plain images, as fractions of the gain of the edit at strength 1."""

    def __init__(self, subject, attribute=None, whole=None):
        self.subject, self.attribute = subject, attribute
        self.before = subject.score(subject.plain, attribute)
        self.whole = subject.score(subject.edited if whole is None else whole, attribute) - self.before

    def share(self, images):
        return ratio(self.subject.score(images, self.attribute) - self.before, self.whole)

    def enough(self, share):
        """Whether the edit has a significant gain and `share` is at least ALIKE of it."""
        return surely(self.whole) and share.mean >= ALIKE


def row(subject, condition, images):
    """A row of a table of conditions."""
    return {
        "condition": condition,
        "score": summary(subject.score(images)),
        "LPIPS to plain": summary(subject.lpips(images, subject.plain)),
    }


def r_squared(x, y):
    """Fraction of the variance of y explained by a straight line in x; 0 for constant y."""
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.std(y) else 0.0


def compared(subject, pictures, reference):
    """The Result for conditions that should have the gain of `reference` and give the same image."""
    gains = Gains(subject, whole=pictures[reference])
    table = [
        row(subject, label, images) | {f"LPIPS to {reference}": summary(subject.lpips(images, pictures[reference]))}
        for label, images in pictures.items()
    ]
    others = {label: images for label, images in pictures.items() if label not in ("plain", reference)}
    shares = {label: gains.share(images) for label, images in others.items()}
    moved = subject.lpips(subject.plain, pictures[reference]).mean()
    near = {label: (subject.lpips(images, pictures[reference]).mean() / moved).item() for label, images in others.items()}
    holds = all(gains.enough(share) for share in shares.values()) and all(value < 1 for value in near.values())
    because = "; ".join(
        f"{label}: {share} of the gain of {reference}, {near[label]:.2f} of the plain image's LPIPS to it"
        for label, share in shares.items()
    )
    return Result(holds, because, table, pictures)
