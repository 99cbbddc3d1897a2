"""Equal steps: how far a direction moves the picture at each strength, measured once, and the inverse of that.

The change is a distance of the edited picture from the plain one (LPIPS), or S_dir, in the mean over a few images. Strips and
sliders then move by equal changes in place of equal strengths; strengths keep their meaning.
"""

import math
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

STRENGTHS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # measured; 0 is no change by definition
MEASURES = ("lpips", "s_dir")
FLAT = 0.1  # a direction is saturated where the change grows at less than this share of its rate up to there


def saturation(strengths, changes):
    """The strength from which on the change hardly grows, or None where it grows to the end. Both count outward from 0."""
    for s, c in list(zip(strengths, changes, strict=True))[:-1]:
        if c > 0 and (changes[-1] - c) / (strengths[-1] - s) < FLAT * c / s:
            return float(s)
    return None


@dataclass(frozen=True)
class Calibration:
    """strengths, changes: ascending, with 0 for 0 among them; changes below strength 0 are negative. measure: of MEASURES.

    saturates: (low, high), the strengths beyond which the change hardly grows, None where it grows all the way. about: what it
    was measured with, plain data.
    """

    strengths: tuple
    changes: tuple
    measure: str
    saturates: tuple
    about: dict

    @classmethod
    def of(cls, strengths, sizes, measure, about=None):
        """strengths: of one sign or both, without 0. sizes: the mean change at each, 0 or more. -> Calibration

        Outward from 0 the change never falls: a strength at which it is no larger than at a smaller one is left out, so that
        every change has one strength. Raises UserError for a direction that changes nothing.
        """
        known, saturates = {0.0: 0.0}, []
        for sign in (-1, 1):
            side = sorted((sign * s, c) for s, c in zip(strengths, sizes, strict=True) if sign * s > 0)
            s, c = np.array(side).T if side else np.empty((2, 0))
            c = np.maximum.accumulate(np.maximum(c, 0.0))
            limit = saturation(s, c)
            saturates.append(None if limit is None else sign * limit)
            new = np.diff(c, prepend=0.0) > 0
            known |= dict(zip((sign * s[new]).tolist(), (sign * c[new]).tolist(), strict=True))
        if len(known) < 2:
            raise UserError("the direction changes nothing that could be measured: there is nothing to calibrate")
        return cls(*zip(*sorted(known.items()), strict=True), measure, tuple(saturates), about or {})

    # ---- what it is for -----------------------------------------------------------------------------------------------------

    def change(self, strength):
        """The change at a strength; beyond those that were measured it goes on as at the last of them."""
        return _line(strength, self.strengths, self.changes)

    def strength(self, change):
        """The strength of a change: the inverse of `change`."""
        return _line(change, self.changes, self.strengths)

    def spaced(self, low, high, n):
        """n strengths from low to high, equal changes apart -> list of float."""
        inner = [self.strength(c) for c in np.linspace(self.change(low), self.change(high), n)[1:-1]]
        return [float(low), *inner, float(high)]

    def beyond(self, low, high):
        """The ends of a range that lie beyond saturation -> list of the saturated strengths."""
        ends = zip((low, high), self.saturates, (np.less, np.greater), strict=True)
        return [limit for end, limit, passes in ends if limit is not None and passes(end, limit)]

    def __str__(self):
        """For a log: the change at each strength, and where it ends."""
        said = ", ".join(f"{s:+g}: {c:.3g}" for s, c in zip(self.strengths, self.changes, strict=True) if s)
        limits = [f"{limit:+g}" for limit in self.saturates if limit is not None]
        return f"{self.measure} by strength {said}" + (f"; saturated beyond {' and '.join(limits)}" if limits else "")

    # ---- in a record --------------------------------------------------------------------------------------------------------

    def record(self):
        """As plain data, for a direction's record."""
        found = {"measure": self.measure, "strengths": list(self.strengths), "changes": list(self.changes)}
        return found | {"saturates": list(self.saturates)} | self.about

    @classmethod
    def of_record(cls, record, name):
        """The entry `calibration` of a direction's record -> Calibration, or None where there is none.

        Raises UserError, with the direction's name, for one that cannot be what it should be.
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
                raise ValueError("no calibration")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the calibration of {name} is damaged: --calibrate measures it anew") from error
        return cls(strengths, changes, measure, limits, about)


def strength_at(record, name, position, reach):
    """The strength at a slider's position, -reach to reach: the position itself, or, of a calibrated direction, the strength
    whose change is the position's share of that at the end. record, name: of the direction."""
    calibration = Calibration.of_record(record, name)
    if calibration is None or not position:
        return float(position)
    end = math.copysign(reach, position)
    return calibration.strength(position / end * calibration.change(end))


def _line(x, xs, ys):
    """Linear interpolation, going on beyond both ends with the slope of the last stretch."""
    i = int(np.clip(np.searchsorted(xs, x), 1, len(xs) - 1))
    return float(ys[i - 1] + (x - xs[i - 1]) * (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1]))
