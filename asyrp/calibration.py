"""Equal steps: how far a direction moves the image at each strength, measured once, and the inverse of that curve.

The change is the distance of the edited image from the unedited one (LPIPS), or S_dir, averaged over a few images. Strips and
sliders then move by equal changes instead of equal strengths; the meaning of a strength stays the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import UserError

STRENGTHS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # measured; at 0 the change is 0
MEASURES = ("lpips", "s_dir")
FLAT = 0.1  # a direction is saturated where the change grows at less than this fraction of its mean rate so far


def saturation(strengths: Sequence[float] | np.ndarray, changes: Sequence[float] | np.ndarray) -> float | None:
    """The strength beyond which the change hardly grows, or None if it grows to the end. Both lists are ordered outward from
    0."""
    for s, c in list(zip(strengths, changes, strict=True))[:-1]:
        if c > 0 and (changes[-1] - c) / (strengths[-1] - s) < FLAT * c / s:
            return float(s)
    return None


@dataclass(frozen=True)
class Calibration:
    """strengths, changes: ascending, including (0, 0); changes below strength 0 are negative. measure: one of MEASURES.

    saturates: (low, high), the strengths beyond which the change hardly grows, or None. about: what it was measured with, as
    plain data.
    """

    strengths: tuple[float, ...]
    changes: tuple[float, ...]
    measure: str
    saturates: tuple[float | None, float | None]
    about: dict[str, Any]

    @classmethod
    def of(
        cls, strengths: Sequence[float], sizes: Sequence[float], measure: str, about: dict[str, Any] | None = None
    ) -> "Calibration":
        """strengths: of one sign or both, without 0. sizes: the mean change at each, 0 or more. -> Calibration.

        The change must grow outward from 0: a strength at which it is no larger than at a smaller strength is dropped, so that
        the curve can be inverted. Raises UserError for a direction that changes nothing.
        """
        known, saturates = {0.0: 0.0}, list[float | None]()
        for sign in (-1, 1):
            side = sorted((sign * s, c) for s, c in zip(strengths, sizes, strict=True) if sign * s > 0)
            s, c = np.array(side).T if side else np.empty((2, 0))
            c = np.maximum.accumulate(np.maximum(c, 0.0))
            limit = saturation(s, c)
            saturates.append(None if limit is None else sign * limit)
            new = np.diff(c, prepend=0.0) > 0
            known |= dict(zip((sign * s[new]).tolist(), (sign * c[new]).tolist(), strict=True))
        if len(known) < 2:
            raise UserError("the direction has no measurable effect, so it cannot be calibrated: check that it was trained")
        ascending, changes = zip(*sorted(known.items()), strict=True)
        low, high = saturates
        return cls(ascending, changes, measure, (low, high), about or {})

    # ---- what it is for -----------------------------------------------------------------------------------------------------

    def change(self, strength: float) -> float:
        """The change at a strength, interpolated linearly; extrapolated beyond the measured ones."""
        return _line(strength, self.strengths, self.changes)

    def strength(self, change: float) -> float:
        """The strength that gives a change: the inverse of `change`."""
        return _line(change, self.changes, self.strengths)

    def spaced(self, low: float, high: float, n: int) -> list[float]:
        """n strengths from low to high, spaced by equal changes -> list of float."""
        inner = [self.strength(c) for c in np.linspace(self.change(low), self.change(high), n)[1:-1]]
        return [float(low), *inner, float(high)]

    def beyond(self, low: float, high: float) -> list[float]:
        """The saturation limits that the range low to high exceeds -> list of strengths."""
        ends = zip((low, high), self.saturates, (np.less, np.greater), strict=True)
        return [limit for end, limit, passes in ends if limit is not None and passes(end, limit)]

    def __str__(self) -> str:
        """One line for the log: the change at each strength, and where it saturates."""
        said = ", ".join(f"{s:+g}: {c:.3g}" for s, c in zip(self.strengths, self.changes, strict=True) if s)
        limits = [f"{limit:+g}" for limit in self.saturates if limit is not None]
        return f"{self.measure} at strength {said}" + (f"; saturated beyond {' and '.join(limits)}" if limits else "")

    # ---- in a record --------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Plain data, for a direction's record."""
        found = {"measure": self.measure, "strengths": list(self.strengths), "changes": list(self.changes)}
        return found | {"saturates": list(self.saturates)} | self.about

    @classmethod
    def of_record(cls, record: Mapping[str, Any], name: str) -> "Calibration | None":
        """The entry `calibration` of a direction's record -> Calibration, or None if there is none.

        Raises UserError, with the direction's name, for an invalid entry.
        """
        if (entry := record.get("calibration")) is None:
            return None
        about = dict(entry) if isinstance(entry, dict) else {}
        try:
            own = [about.pop(key) for key in ("strengths", "changes", "measure", "saturates")]
            strengths, changes, measure, saturates = tuple(map(float, own[0])), tuple(map(float, own[1])), own[2], own[3]
            limits = tuple(None if limit is None else float(limit) for limit in saturates)
            numbers = np.array([strengths, changes])
            sound = np.isfinite(numbers).all() and (np.diff(numbers) > 0).all() and numbers.shape[1] >= 2
            starts_at_zero = (0.0, 0.0) in zip(strengths, changes, strict=True)
            if not (sound and starts_at_zero and measure in MEASURES and len(limits) == 2):
                raise ValueError("not a calibration")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the calibration of {name} is damaged: measure it again with --calibrate") from error
        return cls(strengths, changes, measure, (limits[0], limits[1]), about)


def strength_at(record: Mapping[str, Any], name: str, position: float, reach: float) -> float:
    """The strength at a slider position, -reach to reach: the position itself, or for a calibrated direction the strength
    whose change is the same fraction of the change at the end. record, name: those of the direction."""
    calibration = Calibration.of_record(record, name)
    if calibration is None or not position:
        return float(position)
    end = math.copysign(reach, position)
    return calibration.strength(position / end * calibration.change(end))


def _line(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Linear interpolation, extrapolated at both ends with the slope of the last segment."""
    i = int(np.clip(np.searchsorted(xs, x), 1, len(xs) - 1))
    return float(ys[i - 1] + (x - xs[i - 1]) * (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1]))
