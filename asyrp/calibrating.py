"""Measure a Calibration: a direction on a few images, at several strengths."""

import torch

from asyrp.calibration import STRENGTHS, Calibration
from asyrp.data.pairs import Batch
from asyrp.editing import Editor, Reverse, Use, edits_of, points_of
from asyrp.evaluation import gauges
from asyrp.model import check_interval, interval_of
from asyrp.settings import Value
from losses.clip_loss import ClipLoss
from utils.devices import to_device
from utils.errors import UserError

# measure -> the metric of --evaluate that is the size of the change
METRICS = {"lpips": "LPIPS to the reconstruction", "s_dir": "S_dir"}


class Measuring:
    """Accumulates the change of images at each strength. gauge: from gauges.py, with the metric of `measure`, on `device`."""

    def __init__(self, measure, gauge, device, strengths=STRENGTHS):
        self.measure, self.gauge, self.device, self.strengths = measure, gauge, device, strengths
        self.sums, self.n = torch.zeros(len(strengths), dtype=torch.float64), 0

    def run(self, editor, use, batches, origin=1.0, progress=lambda n: None):
        """Edit batches with the Use of a direction and add them. origin: factor of h itself. progress(n) is called with the
        size of each batch."""
        edits = edits_of([use], points_of(1, [self.strengths]), origin=origin)
        for batch in batches:
            # The plain process is boosted too: boosting is not part of the direction's effect.
            before, edited = editor.pictures_of(batch, edits, original=True, plain=True, boost_plain=True)
            self.add(*(images for _, images in before), [images for _, images in edited])
            progress(len(batch.indices))

    @torch.no_grad()
    def add(self, original, plain, edited):
        """Images (B, 3, H, W) in [-1, 1]: originals, unedited reconstructions, and a list of edits, one per strength."""
        original, plain = (to_device(images, self.device) for images in (original, plain))
        self.gauge.before(original, plain)
        # S_dir is measured from the original, so the reconstruction already has some.
        start = self._sum("plain", plain)
        for i, (strength, images) in enumerate(zip(self.strengths, edited, strict=True)):
            change = self._sum(f"{strength:+g}", to_device(images, self.device)) - start
            self.sums[i] += change if strength > 0 or self.measure == "lpips" else -change
        self.n += len(original)

    def _sum(self, label, images):
        return self.gauge.after(label, images)[METRICS[self.measure]].double().sum().cpu()

    def result(self, **about):
        """The Calibration of the images so far. about: further entries for its record."""
        return Calibration.of(self.strengths, (self.sums / self.n).tolist(), self.measure, {"n_images": self.n, **about})


def open_gauge(measure, clip, prompts, device):
    """The gauge for a measure. clip: function without arguments -> ClipLoss, and prompts (source, target), for s_dir. Raises
    UserError for an unknown measure or missing weights."""
    if measure not in METRICS:
        raise UserError(f"unknown measure {measure}: use {' or '.join(METRICS)}")
    return gauges.Lpips(device) if measure == "lpips" else gauges.Clip(clip(), *prompts)


def calibrate(model, direction, images, measure="lpips", *, clip=None, n_steps=40, t_edit=None, t_boost=0, batch_size=8):
    """Measure how far a direction moves images at each strength -> Calibration, which is also added to the direction's record.

    images: (N, 3, H, W) in [-1, 1]; a few are enough. measure: "lpips", the distance from the unedited image, or "s_dir", along
    the prompts in the direction's record; clip: a ClipLoss, or the name of one, by default the config's. n_steps, t_edit,
    t_boost: as in `Model.edit`. Use `directions.save` to write the record.

    Raises UserError for no images, no prompts, missing weights, and a direction that changes nothing.
    """
    if not len(images):
        raise UserError("there are no images to calibrate on: give at least one")
    prompts = direction.record.get("prompts")
    if measure == "s_dir" and not prompts:
        raise UserError(f"the record of {direction.name} has no prompts: calibrate it by lpips")

    def opened():
        return clip if isinstance(clip, ClipLoss) else ClipLoss(clip or model.config.clip_name(), model.device)

    def batches():
        for some in torch.arange(len(images)).split(batch_size):
            names = [f"image {i}" for i in some.tolist()]
            yield Batch(some.tolist(), names, images[some], model.invert(images[some], n_steps))

    timesteps = model.timesteps(n_steps)
    use = Use(direction, Value(interval_of(direction, t_edit), "calibrate"), direction.scale(len(timesteps)))
    check_interval(timesteps, [use.t_edit.value], [direction.name])
    measuring = Measuring(measure, open_gauge(measure, opened, prompts, model.device), model.device)
    measuring.run(Editor(model, Reverse(timesteps, t_boost)), use, batches())
    found = measuring.result(t_edit=t_edit, t_boost=t_boost, n_test_step=n_steps)
    direction.record["calibration"] = found.record()
    return found
