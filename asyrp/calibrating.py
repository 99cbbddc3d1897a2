"""Measure a Calibration: a direction on a few images, at several strengths."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from asyrp.calibration import STRENGTHS, Calibration
from asyrp.data.pairs import Batch, inverted_in_memory
from asyrp.directions import Direction
from asyrp.editing import Editor, Reverse, Use, edits_of, points_of
from asyrp.evaluation import gauges
from asyrp.model import Model, check_interval, interval_of
from asyrp.settings import Value
from losses.clip_loss import ClipLoss
from utils.devices import to_device
from utils.errors import UserError

# measure -> the metric of --evaluate that is the size of the change
METRICS = {"lpips": "LPIPS to the reconstruction", "s_dir": "S_dir"}


Gauge = gauges.Lpips | gauges.Clip


class Measuring:
    """Accumulates the change of images at each strength. gauge: from gauges.py, with the metric of `measure`, on `device`."""

    def __init__(self, measure: str, gauge: Gauge, device: torch.device | str, strengths: Sequence[float] = STRENGTHS) -> None:
        self.measure, self.gauge, self.device, self.strengths = measure, gauge, device, strengths
        self.sums, self.n = torch.zeros(len(strengths), dtype=torch.float64), 0

    def run(
        self,
        editor: Editor,
        use: Use,
        batches: Iterable[Batch],
        origin: float = 1.0,
        progress: Callable[[int], object] = lambda n: None,
    ) -> None:
        """Edit batches with the Use of a direction and add them. origin: factor of h itself. progress(n) is called with the
        size of each batch."""
        edits = edits_of([use], points_of(1, [self.strengths]), origin=origin)
        for batch in batches:
            # The plain process is boosted too: boosting is not part of the direction's effect.
            before, edited = editor.pictures_of(batch, edits, original=True, plain=True, boost_plain=True)
            (_, original), (_, plain) = before
            self.add(original, plain, [images for _, images in edited])
            progress(len(batch.indices))

    @torch.no_grad()
    def add(self, original: torch.Tensor, plain: torch.Tensor, edited: Sequence[torch.Tensor]) -> None:
        """Images (B, 3, H, W) in [-1, 1]: originals, unedited reconstructions, and a list of edits, one per strength."""
        original, plain = (to_device(images, self.device) for images in (original, plain))
        self.gauge.before(original, plain)
        # S_dir is measured from the original, so the reconstruction already has some.
        start = self._sum("plain", plain)
        for i, (strength, images) in enumerate(zip(self.strengths, edited, strict=True)):
            change = self._sum(f"{strength:+g}", to_device(images, self.device)) - start
            self.sums[i] += change if strength > 0 or self.measure == "lpips" else -change
        self.n += len(original)

    def _sum(self, label: str, images: torch.Tensor) -> torch.Tensor:
        return self.gauge.after(label, images)[METRICS[self.measure]].double().sum().cpu()

    def result(self, **about: Any) -> Calibration:
        """The Calibration of the images so far. about: further entries for its record."""
        return Calibration.of(self.strengths, (self.sums / self.n).tolist(), self.measure, {"n_images": self.n, **about})


def open_gauge(measure: str, clip: Callable[[], ClipLoss], prompts: Sequence[str], device: torch.device | str) -> Gauge:
    """The gauge for a measure. clip: function without arguments -> ClipLoss, and prompts (source, target), for s_dir. Raises
    UserError for an unknown measure or missing weights."""
    if measure not in METRICS:
        raise UserError(f"unknown measure {measure}: use {' or '.join(METRICS)}")
    return gauges.Lpips(device) if measure == "lpips" else gauges.Clip(clip(), *prompts)


def calibrate(
    model: Model,
    direction: Direction,
    images: torch.Tensor,
    measure: str = "lpips",
    *,
    clip: ClipLoss | str | None = None,
    n_steps: int = 40,
    t_edit: int | None = None,
    t_boost: int = 0,
    batch_size: int = 8,
) -> Calibration:
    """Measure how far a direction moves images at each strength -> Calibration, which is also added to the direction's record.

    images: (N, 3, H, W) in [-1, 1]; a few are enough. measure: "lpips", the distance from the unedited image, or "s_dir", along
    the prompts in the direction's record; clip: a ClipLoss, or the name of one, by default the config's. n_steps, t_edit,
    t_boost: as in `Model.edit`. Use `directions.save` to write the record.

    Raises UserError for no images, no prompts, missing weights, and a direction that changes nothing.
    """
    if not len(images):
        raise UserError("there are no images to calibrate on: give at least one")
    prompts = direction.record.get("prompts") or ()
    if measure == "s_dir" and not prompts:
        raise UserError(f"the record of {direction.name} has no prompts: calibrate it by lpips")

    def opened() -> ClipLoss:
        return clip if isinstance(clip, ClipLoss) else ClipLoss(clip or model.config.clip_name(), model.device)

    timesteps = model.timesteps(n_steps)
    start = interval_of(direction, t_edit)
    check_interval(timesteps, [start], [direction.name])
    use = Use(direction, Value(start, "calibrate"), direction.scale(len(timesteps)))
    measuring = Measuring(measure, open_gauge(measure, opened, prompts, model.device), model.device)
    measuring.run(Editor(model, Reverse(timesteps, t_boost)), use, inverted_in_memory(model, images, batch_size, n_steps))
    found = measuring.result(t_edit=t_edit, t_boost=t_boost, n_test_step=n_steps)
    direction.record["calibration"] = found.record()
    return found
