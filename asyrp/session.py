"""Interactive editing: an image, a slider per direction, and the edits that follow from the slider positions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asyrp import regions
from asyrp.calibration import strength_at
from asyrp.directions import Direction, fitting
from asyrp.editing import check_finite
from asyrp.model import Model
from asyrp.report import pictures
from asyrp.training import train_direction
from utils.digests import digest
from utils.errors import UserError

REACH = 1.5  # range of a slider, to both sides
KEPT = 16  # number of inverted images kept in memory


class Session:
    """Interactive editing with a Model, for a web page or a notebook.

    directions: {name: Direction}, by default all that are available for the model (`directions.fitting`). positions: {name:
    slider position, -REACH to REACH}; a position is a strength, except that calibrated directions move the image in equal
    steps. settings: n_steps, t_edit, t_boost and seed of `Model.edit`. region: a Region, or None for everywhere. image: the
    image to edit, (3, H, W) in [-1, 1].
    """

    def __init__(self, model: Model, directions: Mapping[str, Direction] | None = None) -> None:
        self.model, self.directions = model, dict(fitting(model) if directions is None else directions)
        own = model.config.editing.given()
        self.settings: dict[str, Any] = {"n_steps": own.get("n_test_step", 40), "t_edit": None}
        self.settings |= {"t_boost": own.get("user_defined_t_addnoise", 0), "seed": 0}
        self.region: regions.Region | None = None
        self.image: torch.Tensor | None = None
        self.positions: dict[str, float] = {}
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def set_region(self, segments: Iterable[str] = (), mask: Path | str | None = None, threshold: float | None = None) -> None:
        """Set where the edit acts: segments of the config's segmenter (names), a mask (path of an image), or where it changes
        most (a quantile, 0 to 1); everywhere if none is given. Raises UserError for more than one, and as `regions.choose`."""
        if bool(segments) + bool(mask) + bool(threshold) > 1:
            raise UserError("an edit has only one region: choose segments, a mask or a threshold")
        given = (mask, " ".join(segments), threshold or None, self.model.config.segmenter_path)
        self.region = regions.choose(self.model.image_size, self.model.device, *given)

    def inverted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_T, reconstruction), each (1, 3, H, W); computed once per image and number of steps. Raises UserError without an
        image."""
        image = self._image()
        key = digest(image, self.settings["n_steps"])
        if key not in self._kept:
            x_T = self.model.invert(image[None], self.settings["n_steps"])
            self._kept[key] = x_T, self.model.generate(x_T, self.settings["n_steps"]).cpu()
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _image(self) -> torch.Tensor:
        if self.image is None:
            raise UserError("there is no image yet: upload or choose one")
        return self.image

    def strengths(self, share: float = 1.0) -> dict[str, float]:
        """The strengths of the sliders that are not at 0 -> {name: strength}. share: scales the positions, -1 to 1."""
        moved = {name: direction for name, direction in self.directions.items() if self.positions.get(name)}
        return {name: strength_at(d.record, name, share * self.positions[name], REACH) for name, d in moved.items()}

    def edit(self, strengths: Mapping[str, float] | None = None) -> torch.Tensor:
        """The edited image (3, H, W) for strengths {name: number}, by default those of the sliders.

        Several directions are each applied at full strength, while `Model.edit` and main.py divide by the root of their number.
        """
        x_T, plain = self.inverted()
        strengths = self.strengths() if strengths is None else strengths
        if not any(strengths.values()):
            return plain[0]
        used = [self.directions[name] for name in strengths]
        each = [strength * len(used) ** 0.5 for strength in strengths.values()]
        mask = None if self.region is None else self.region.mask_of(self._image()[None])
        edited = self.model.edit(x_T, used, each, mask=mask, **self.settings).cpu()
        check_finite(edited, ["this image"], "the edit")
        return edited[0]

    def label(self) -> str:
        """A label of the edit, such as "smiling +1, beard -0.5"."""
        return ", ".join(f"{name} {strength:+.2g}" for name, strength in self.strengths().items()) or "no edit"

    def sides(self) -> dict[str, torch.Tensor]:
        """{label: image (3, H, W)}: original, reconstruction, edit."""
        edited = self.edit()
        return {"original": self._image(), "reconstruction": self.inverted()[1][0], self.label(): edited}

    def strip(self, n: int = 5) -> dict[str, torch.Tensor]:
        """{label: image}: n steps of the edit, from the negated slider positions to the positions themselves."""
        if not (names := [*self.strengths()]):
            raise UserError("a strip needs an edit: move a slider first")
        points = [self.strengths(share) for share in np.linspace(-1, 1, n).tolist()]
        labels = pictures.point_labels([[point[name] for name in names] for point in points])
        return {label: self.edit(point) for label, point in zip(labels, points, strict=True)}

    def about(self) -> dict[str, Any]:
        """The settings of the edit, as plain data."""
        used = [
            {"name": name, "strength": strength, "digest": direction.digest(), "prompts": direction.record.get("prompts")}
            for name, strength in self.strengths().items()
            for direction in [self.directions[name]]
        ]
        found = {"model": self.model.identity, "directions": used, **self.settings}
        return found | {"region": self.region and self.region.about, "credit": self.model.config.data.credit}

    def learn(self, images: torch.Tensor, src: str, trg: str, **settings: Any) -> Direction:
        """Train a new direction with `train_direction` -> Direction. Its slider is set to 1 and the others to 0."""
        if not (src.strip() and trg.strip()):
            raise UserError("a direction is learned from two prompts: describe the image and what it should become")
        made = train_direction(self.model, images, src, trg, **settings)
        self.directions[made.name], self.positions = made, {made.name: 1.0}
        return made
