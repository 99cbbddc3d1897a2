"""Measuring a Calibration: a direction on a few images, at several strengths."""

import torch

from asyrp import process
from asyrp.calibration import STRENGTHS, Calibration
from asyrp.evaluation import gauges
from losses.clip_loss import ClipLoss
from utils.devices import to_device
from utils.errors import UserError

# measure -> the metric of --evaluate that is the size of the change
METRICS = {"lpips": "LPIPS to the reconstruction", "s_dir": "S_dir"}


class Measuring:
    """The change of pictures, batch by batch. gauge: of gauges.py, with the metric of `measure`, on `device`."""

    def __init__(self, measure, gauge, device, strengths=STRENGTHS):
        self.measure, self.gauge, self.device, self.strengths = measure, gauge, device, strengths
        self.sums, self.n = torch.zeros(len(strengths), dtype=torch.float64), 0

    @torch.no_grad()
    def add(self, original, plain, edited):
        """Images (B, 3, H, W) in [-1, 1]: the originals, those of the plain process, and a set for each strength."""
        original, plain = (to_device(images, self.device) for images in (original, plain))
        self.gauge.before(original, plain)
        # S_dir counts from the original: the reconstruction has some already.
        start = self._sum("plain", plain)
        for i, (strength, images) in enumerate(zip(self.strengths, edited, strict=True)):
            change = self._sum(f"{strength:+g}", to_device(images, self.device)) - start
            self.sums[i] += change if strength > 0 or self.measure == "lpips" else -change
        self.n += len(original)

    def _sum(self, label, images):
        return self.gauge.after(label, images)[METRICS[self.measure]].double().sum().cpu()

    def result(self, **about):
        """-> Calibration; about: what else its record says."""
        return Calibration.of(self.strengths, (self.sums / self.n).tolist(), self.measure, {"n_images": self.n, **about})


def open_gauge(measure, clip, prompts, device):
    """clip: function without arguments -> ClipLoss, and prompts (source, target), for s_dir. Raises UserError: no weights, no
    such measure."""
    if measure not in METRICS:
        raise UserError(f"a change is measured by {' or '.join(METRICS)}, not by {measure}")
    return gauges.Lpips(device) if measure == "lpips" else gauges.Clip(clip(), *prompts)


def calibrate(model, direction, images, measure="lpips", *, clip=None, n_steps=40, t_edit=None, t_boost=0, batch_size=8):
    """Measure how far a direction moves images at each strength -> Calibration, which is kept in the direction's record too.

    images: (N, 3, H, W) in [-1, 1]; a few are enough. measure: "lpips", of the edited from the plain picture, or "s_dir", by
    the prompts of the direction's record; clip: a ClipLoss, or what names one, by default the config's. The rest: as for
    `Model.edit`. `directions.save` writes the record.

    Raises UserError: no images, no prompts, a network without its weights, a direction that changes nothing.
    """
    if not len(images):
        raise UserError("there are no images to calibrate on: give one at least")
    prompts = direction.record.get("prompts")
    if measure == "s_dir" and not prompts:
        raise UserError(f"{direction.name} has no prompts in its record: calibrate it by lpips")

    def opened():
        return clip if isinstance(clip, ClipLoss) else ClipLoss(clip or model.config.clip_name(), model.device)

    measuring = Measuring(measure, open_gauge(measure, opened, prompts, model.device), model.device)
    for some in images.split(batch_size):
        x_T = model.invert(some, n_steps)
        edited = [model.edit(x_T, direction, [s], n_steps, t_edit, t_boost) for s in STRENGTHS]
        noise = process.image_noise(0, range(len(x_T)))  # what `edit` boosts with: boosting is no change by the direction
        plain = model.run(x_T, model.timesteps(n_steps), t_boost=t_boost, noise=noise)
        measuring.add(some, plain, edited)
    found = measuring.result(t_edit=t_edit, t_boost=t_boost, n_test_step=n_steps)
    direction.record["calibration"] = found.record()
    return found
