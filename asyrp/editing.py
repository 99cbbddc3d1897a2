"""Apply directions to latents: one strength, a strip of strengths, a grid of two directions, and the mean direction."""

import logging
from dataclasses import dataclass
from itertools import chain, product

import numpy as np
import torch
from tqdm import tqdm

from asyrp import hspace, process, store
from asyrp.directions import Direction
from asyrp.noise_maps import replayed
from asyrp.ranks import ALONE
from asyrp.report import pictures
from asyrp.settings import Value
from utils.devices import to_device
from utils.errors import UserError

log = logging.getLogger(__name__)

MOST_STATES = 40  # states x_t of a process that are drawn side by side


@dataclass(frozen=True)
class Use:
    """A direction as a run uses it: its t_edit, and `scale`, the coefficient that corresponds to strength 1."""

    direction: Direction
    t_edit: Value
    scale: float


@dataclass(frozen=True)
class Reverse:
    """Settings of the reverse process. timesteps: ascending. noise_maps: whether every step adds the noise maps of the batch
    instead of drawing noise."""

    timesteps: list
    t_boost: int = 0
    sample_type: str = "ddim"
    dt_lambda: float = 1.0
    seed: int = 0
    noise_maps: bool = False

    def content(self):
        """Everything the result depends on, as plain data; the seed only if noise is drawn."""
        noisy = self.sample_type == "ddpm" or self.t_boost > 0 or self.noise_maps
        content = [self.timesteps, self.t_boost, self.sample_type, self.dt_lambda, self.seed if noisy else None]
        return [*content, "noise maps"] if self.noise_maps else content


def points_of(n, axes=None):
    """Strengths of `n` directions, one tuple per picture: a single (1, ...), or the product of `axes`, one list per
    direction."""
    return [(1.0,) * n] if axes is None else list(product(*axes))


def edits_of(uses, points, strength=1.0, each=None, origin=1.0):
    """The edits of a run -> list of (label, Edit).

    uses: list of Use; points: from `points_of`. strength: `--hs_coeff_delta_h`; each: a factor per direction; origin: the
    factor of h itself.
    """
    each = each or [1.0] * len(uses)
    factors = [[strength * a * b for a, b in zip(each, point, strict=True)] for point in points]
    t_edits = [use.t_edit.value for use in uses]
    directions = [use.direction for use in uses]
    edits = []
    for label, point in zip(pictures.point_labels(factors), factors, strict=True):
        c = [use.scale * factor for use, factor in zip(uses, point, strict=True)]
        edits.append((label, hspace.Edit(directions, c, origin, t_edits)))
    return edits


def check_finite(images, names, what):
    """Raise UserError, naming the image, if a tensor (B, ...) has a value that is not finite."""
    wrong = (~images.isfinite()).flatten(1).any(1)
    if wrong.any():
        name = names[int(wrong.nonzero()[0])]
        raise UserError(
            f"{what} of {name} is not finite: lower the strength (--hs_coeff_delta_h, --max_delta), or use --precision fp32 "
            "instead of fp16; if it happens without an edit, the weights are damaged"
        )


def spread(states):
    """At most MOST_STATES entries of a list, evenly spaced, including the first and the last."""
    if len(states) <= MOST_STATES:
        return states
    return [states[round(i)] for i in np.linspace(0, len(states) - 1, MOST_STATES)]


class Editor:
    """Runs the reverse process of a model with the settings of one run.

    save: function (path, *arguments of `pictures.save_grid`) that draws the steps of a process, in `folder`. region: a Region
    that edits are restricted to, or None.
    """

    def __init__(self, model, reverse, folder=None, save=None, region=None):
        self.model, self.reverse, self.folder, self.save, self.region = model, reverse, folder, save, region

    def sample(self, batch, edit=None, t_boost=None, first=None, watched=None, down_to=0, mask=None):
        """Run the reverse process for a Batch -> x_0 (B, 3, H, W). watched: name of the folder for pictures of every step.

        t_boost: overrides that of the run; ignored with noise maps. down_to: skip the timesteps below it, when only the edit is
        of interest and not the image. mask: where the edit acts, see `Model.edit`.
        """
        r, seen = self.reverse, []
        shown = set(spread(r.timesteps))

        def watch(i, t, x_t, P_t):
            if t in shown:
                seen.append((t, x_t.cpu(), P_t.cpu()))

        noisy = {"t_boost": r.t_boost if t_boost is None else t_boost, "noise": process.image_noise(r.seed, batch.indices)}
        x_0 = self.model.run(
            batch.x_T,
            [t for t in r.timesteps if t >= down_to],
            edit,
            mask,
            t_edit=edit.t_edit if edit is not None else 0,
            sample_type=r.sample_type,
            dt_lambda=r.dt_lambda,
            first=first,
            callback=watch if watched else None,
            **(noisy | replayed(batch.z, r.timesteps)),
        )
        for i, index in enumerate(batch.indices if watched else []):
            rows = [[x_t[i] for _, x_t, _ in seen], [P_t[i] for _, _, P_t in seen]]
            path = self.folder / watched / f"{index:06d}.png"
            self.save(path, rows, [f"t = {t}" for t, _, _ in seen], ["x_t", "P_t"])
        return x_0

    def pictures_of(self, batch, edits, original, plain, boost_plain=False, watch_plain=None, watch_edit=None):
        """The pictures of a batch -> two lists of (label, images (B, 3, H, W)): the unedited ones and the edits.

        original, plain: whether to include the image itself and its reconstruction by the plain process. boost_plain: apply
        quality boosting to the plain process too.
        """
        batch = batch._replace(x_T=to_device(batch.x_T, self.model.device))
        before, edited = [], []
        if original:
            before.append(("original", batch.x_0))
        mask = None if self.region is None else self.region.mask_of(batch.x_0)
        first = None
        if len(edits) + bool(plain) > 1:
            # All pictures start from the same x_T and share the frozen pass of their first step.
            with torch.no_grad():
                first = process.frozen_branch(self.model.within(mask), batch.x_T, self.reverse.timesteps[-1])
        if plain:
            boost = None if boost_plain else 0
            x_0 = self.sample(batch, None, boost, first, watch_plain, mask=mask)
            before.append(("reconstruction", x_0.cpu()))
        for label, edit in edits:
            watched = watch_edit and (watch_edit if len(edits) == 1 else f"{watch_edit}/{label.replace(', ', '_')}")
            edited.append((label, self.sample(batch, edit, None, first, watched, mask=mask).cpu()))
        for label, x_0 in [*before, *edited]:
            check_finite(x_0, batch.names, f"the picture {label}")
        return before, edited

    def mean_direction(self, use, strength, origin, pairs, indices, batch_size, over_timesteps, kept, ranks=ALONE):
        """The mean delta_h over images, per timestep or over all: the global direction (paper section 3.4) -> Direction.

        ranks: processes that share the images; all get the same direction.
        """
        edit = hspace.Edit([use.direction], [strength * use.scale], origin, [use.t_edit.value])
        key = store.mean_key(
            self.model,
            [pairs.timesteps, *self.reverse.content()],
            [use.direction.digest()],
            edit.coefficients,
            origin,
            use.t_edit.value,
            over_timesteps,
            pairs.names_of_content(indices),
        )
        found = ranks.gather([kept.read("mean", key)])[0]  # whether the first process has it decides for all
        if found is None:
            recorder = hspace.MeanRecorder(use.direction)
            edit = hspace.Edit([recorder], edit.coefficients, origin, [use.t_edit.value])
            own = list(chain(*ranks.batches(indices, batch_size)))
            for batch in tqdm(pairs.batches(own, batch_size), desc="mean delta_h", unit="batch"):
                self.sample(batch, edit, down_to=use.t_edit.value)
            recorder.merge(ranks.gather([recorder.totals()]))
            found = {str(0 if t is None else t): delta for t, delta in recorder.mean(over_timesteps).items()}
            if ranks.leads:
                kept.write("mean", key, found, {"direction": use.direction.name, "images": len(indices)})
        log.info("mean direction of %d images: %s", len(indices), kept.path("mean", key))
        deltas = {None if over_timesteps else int(t): delta for t, delta in found.items()}
        record = use.direction.record | {"kind": "delta_h", "ignore_timesteps": over_timesteps}
        record |= {"origin": f"mean of {len(indices)} images"}
        record.pop("calibration", None)  # measured on the original direction
        function = hspace.GivenDirection(deltas)
        return Direction(function, record, f"mean of {use.direction.name}").requires_grad_(False).to(self.model.device)
