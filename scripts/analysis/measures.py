"""Figures of merit that several claims share: means with their standard errors, ratios, and shares of an edit's gain."""

import math
from dataclasses import dataclass, field

import numpy as np

from asyrp.evaluation.metrics import Summary, summary

ALIKE = 0.8  # what is as good as the edit gains at least this share of its gain in score
CERTAIN = 2  # so many standard errors are beyond doubt


def surely(values):
    """Whether the mean of values (n,) is above zero beyond doubt."""
    found = summary(values)
    return found.mean > CERTAIN * found.standard_error


def ratio(parts, wholes):
    """Ratio of two means over the same images (n,), its standard error by linearisation -> Summary."""
    parts, wholes = parts.double(), wholes.double()
    share = parts.mean() / wholes.mean()
    se = (parts - share * wholes).std() / math.sqrt(len(parts)) / wholes.mean().abs()
    return Summary(share.item(), se.item(), len(parts))


@dataclass
class Result:
    """holds: by the claim's criterion. because: the figures that decide, in words. table: rows, column name -> value.

    pictures: column label -> images (n, 3, H, W). curves: what a figure draws beside the table.
    """

    holds: bool
    because: str
    table: list
    pictures: dict
    curves: dict = field(default_factory=dict)


class Gains:
    """Scores of edited images against those of the plain ones, as shares of what the edit at strength 1 gains."""

    def __init__(self, subject, attribute=None, whole=None):
        self.subject, self.attribute = subject, attribute
        self.before = subject.score(subject.plain, attribute)
        self.whole = subject.score(subject.edited if whole is None else whole, attribute) - self.before

    def share(self, images):
        return ratio(self.subject.score(images, self.attribute) - self.before, self.whole)

    def enough(self, share):
        """Whether the edit gains anything that a share could be taken of, and the share is large enough."""
        return surely(self.whole) and share.mean >= ALIKE


def row(subject, condition, images):
    """What every table of conditions shows."""
    return {
        "condition": condition,
        "score": summary(subject.score(images)),
        "LPIPS to plain": summary(subject.lpips(images, subject.plain)),
    }


def r_squared(x, y):
    """Share of y's variance that a straight line in x explains; 0 for a constant y."""
    return float(np.corrcoef(x, y)[0, 1] ** 2) if np.std(y) else 0.0


def compared(subject, pictures, reference):
    """Result of conditions that should gain what `reference` gains, and give the same picture."""
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
