"""Edits that are tried out: a picture, a slider for each direction, and what follows from where the sliders are."""

import numpy as np

from asyrp import regions
from asyrp.calibration import strength_at
from asyrp.directions import fitting
from asyrp.editing import check_finite
from asyrp.report import pictures
from asyrp.training import train_direction
from utils.digests import digest
from utils.errors import UserError

REACH = 1.5  # of a slider, to both sides
KEPT = 16  # inverted pictures that are remembered


class Session:
    """For whoever tries edits with a Model, in a page or a notebook.

    directions: {name: Direction}, by default those that there are for the model (`directions.fitting`). positions: {name: where
    its slider is, -REACH to REACH}; a position is a strength, but those of a calibrated direction move the picture in equal
    steps. settings: n_steps, t_edit, t_boost and seed of `Model.edit`. region: a Region, or None for everywhere. image: the
    picture to be edited, (3, H, W) in [-1, 1].
    """

    def __init__(self, model, directions=None):
        self.model, self.directions = model, dict(fitting(model) if directions is None else directions)
        own = model.config.editing.given()
        self.settings = {"n_steps": own.get("n_test_step", 40), "t_edit": None}
        self.settings |= {"t_boost": own.get("user_defined_t_addnoise", 0), "seed": 0}
        self.region, self.image, self.positions, self._kept = None, None, {}, {}

    def set_region(self, segments=(), mask=None, threshold=None):
        """Where the edit acts: segments of the config's segmenter (names), a mask (path of a picture), or where it changes most
        (a quantile, 0 to 1); without any, everywhere. Raises UserError for more than one, and as `regions` does."""
        if bool(segments) + bool(mask) + bool(threshold) > 1:
            raise UserError("an edit has one region: choose segments, or a mask, or a threshold")
        given = (mask, " ".join(segments), threshold or None, self.model.config.segmenter_path)
        self.region = regions.choose(self.model.image_size, self.model.device, *given)

    def inverted(self):
        """-> (x_T, reconstruction), each (1, 3, H, W); computed once for a picture and a number of steps. Raises UserError:
        there is no picture."""
        if self.image is None:
            raise UserError("there is no picture yet: upload one, or choose one")
        key = digest(self.image, self.settings["n_steps"])
        if key not in self._kept:
            x_T = self.model.invert(self.image[None], self.settings["n_steps"])
            self._kept[key] = x_T, self.model.generate(x_T, self.settings["n_steps"]).cpu()
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def strengths(self, share=1.0):
        """Of the sliders that are not at 0, or of a share of their way, -1 to 1 -> {name: strength}."""
        moved = {name: direction for name, direction in self.directions.items() if self.positions.get(name)}
        return {name: strength_at(d.record, name, share * self.positions[name], REACH) for name, d in moved.items()}

    def edit(self, strengths=None):
        """-> the picture (3, H, W) with these strengths {name: number}, by default the sliders'.

        Several directions act as each would alone; `Model.edit` and main.py divide them by the root of their number.
        """
        x_T, plain = self.inverted()
        strengths = self.strengths() if strengths is None else strengths
        if not any(strengths.values()):
            return plain[0]
        used = [self.directions[name] for name in strengths]
        each = [strength * len(used) ** 0.5 for strength in strengths.values()]
        mask = self.region and self.region.mask_of(self.image[None])
        edited = self.model.edit(x_T, used, each, mask=mask, **self.settings).cpu()
        check_finite(edited, ["this picture"], "the edit")
        return edited[0]

    def label(self):
        """What the edit is called, such as "smiling +1, beard -0.5"."""
        return ", ".join(f"{name} {strength:+.2g}" for name, strength in self.strengths().items()) or "no edit"

    def sides(self):
        """-> {label: picture (3, H, W)}: original, reconstruction, edit."""
        edited = self.edit()
        return {"original": self.image, "reconstruction": self.inverted()[1][0], self.label(): edited}

    def strip(self, n=5):
        """-> {label: picture}: the edit in steps, from the other side of the reconstruction to where the sliders are."""
        if not (names := [*self.strengths()]):
            raise UserError("a strip needs an edit: move a slider first")
        points = [self.strengths(share) for share in np.linspace(-1, 1, n).tolist()]
        labels = pictures.point_labels([[point[name] for name in names] for point in points])
        return {label: self.edit(point) for label, point in zip(labels, points, strict=True)}

    def about(self):
        """What made the edit, as plain data."""
        used = [
            {"name": name, "strength": strength, "digest": direction.digest(), "prompts": direction.record.get("prompts")}
            for name, strength in self.strengths().items()
            for direction in [self.directions[name]]
        ]
        found = {"model": self.model.identity, "directions": used, **self.settings}
        return found | {"region": self.region and self.region.about, "credit": self.model.config.data.credit}

    def learn(self, images, src, trg, **settings):
        """A new direction by `train_direction` -> Direction; its slider then stands at what it was trained as, the others at
        0."""
        if not (src.strip() and trg.strip()):
            raise UserError("a direction is learned from two prompts: say what there is, and what it should become")
        made = train_direction(self.model, images, src, trg, **settings)
        self.directions[made.name], self.positions = made, {made.name: 1.0}
        return made
