"""LPIPS curves -> t_edit and t_boost (paper section 3.3 and appendix B)."""

import csv
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from asyrp import process
from utils.files import replacing
from utils.errors import UserError

log = logging.getLogger(__name__)

# Whose curves a category uses. A category that is not here has curves under the name --custom_dataset_name.
CURVES = {
    "CelebA_HQ": "celeba",
    "CelebA_HQ_P2": "celeba",
    "FFHQ": "celeba",
    "dog": "afhq",
    "bedroom": "bedroom",
    "church_outdoor": "church",
    "metfaces": "metface",
    "AVATAR": "avatar",
}


@dataclass(frozen=True)
class Curve:
    """LPIPS along the inversion, arrays over the ascending timesteps `t`: mean and standard deviation over images.

    lpips_x_t is LPIPS(x_0, x_t), lpips_x0_t is LPIPS(x_0, P_t).
    """

    t: np.ndarray
    lpips_x_t: np.ndarray
    lpips_x_t_std: np.ndarray
    lpips_x0_t: np.ndarray
    lpips_x0_t_std: np.ndarray

    @classmethod
    def read(cls, path):
        """A CSV with a column for every field. Raises UserError when a column is missing or holds no number."""
        try:
            with Path(path).open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            if not rows:
                raise ValueError("it has no rows")
            columns = {f.name: np.array([float(row[f.name]) for row in rows]) for f in fields(cls)}
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a table of LPIPS curves ({error}); measure it again with --lpips") from error
        return cls(**columns)

    def write(self, path):
        with replacing(path) as beside, beside.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(f.name for f in fields(self))
            for t, *values in zip(*(getattr(self, f.name) for f in fields(self)), strict=True):
                writer.writerow([int(t), *(f"{v:.4f}" for v in values)])


def first_reaching(curve_t, values, threshold, what):
    """The first timestep (int) at which `values`, joined by straight lines, reach `threshold`.

    Raises UserError with the curve's maximum when they never do.
    """
    reached = np.flatnonzero(values >= threshold)
    if not len(reached):
        raise UserError(
            f"{what} never reaches {threshold:.3f}: its maximum is {values.max():.3f}; lower the threshold "
            "(--lpips_edit_th, --lpips_addnoise_th) or set --user_defined_t_edit / --user_defined_t_addnoise"
        )
    i = reached[0]
    if i == 0:
        return int(curve_t[0])
    share = (threshold - values[i - 1]) / (values[i] - values[i - 1])
    return int(np.ceil(curve_t[i - 1] + share * (curve_t[i] - curve_t[i - 1])))


def choose_t_edit(curve, cosine, threshold=0.33):
    """The first t with LPIPS(x_0, P_t) >= threshold * cosine, cosine being that of the source and target prompts.

    The less the prompts have in common, the longer the editing interval.
    """
    return first_reaching(curve.t, curve.lpips_x0_t, threshold * cosine, "LPIPS(x_0, P_t)")


def choose_t_boost(curve, threshold=1.2, from_x_t=True):
    """The first t with LPIPS(x_0, x_t) >= threshold; of LPIPS(x_0, P_t) when not `from_x_t`."""
    if from_x_t:
        return first_reaching(curve.t, curve.lpips_x_t, threshold, "LPIPS(x_0, x_t)")
    return first_reaching(curve.t, curve.lpips_x0_t, threshold, "LPIPS(x_0, P_t)")


def measure(unet, batches, schedule, timesteps, distance, device):
    """LPIPS curves along the DDIM inversion of images -> Curve.

    batches: an iterable of (indices, images (B, 3, H, W) in [-1, 1] or None, messages), as `load_batch` gives.
    distance: LPIPS, (B, 3, H, W) twice -> (B, 1, 1, 1).
    The last timestep of `timesteps` is measured as well, at the cost of one more U-Net call.
    """
    x_t_rows, x0_t_rows = [], []
    measured = left_out = 0
    for good, x_0, messages in batches:
        measured += len(good)
        left_out += len(messages)
        for message in messages:
            log.warning("left out: %s", message)
        if x_0 is None:
            continue
        x_0 = x_0.to(device)
        columns = []

        def observe(i, t, x_t, P_t, x_0=x_0, columns=columns):
            columns.append(torch.stack([distance(x_0, x_t).flatten(), distance(x_0, P_t).flatten()]))

        with torch.no_grad():
            x_T = process.invert(unet, x_0, schedule, timesteps, observe)
            eps = process.frozen_branch(unet, x_T, timesteps[-1]).eps
            observe(None, timesteps[-1], x_T, process.predict_x0(x_T, eps, timesteps[-1], schedule))
        x_t, x0_t = torch.stack(columns, dim=2).cpu().double().numpy()  # each (B, len(timesteps))
        x_t_rows.append(x_t)
        x0_t_rows.append(x0_t)
    if not x_t_rows:
        raise UserError("none of the images could be read; LPIPS curves need at least one")
    if left_out:
        log.warning("%d of %d images could not be read and are left out", left_out, measured + left_out)
    x_t, x0_t = np.concatenate(x_t_rows), np.concatenate(x0_t_rows)
    return Curve(np.array(timesteps), x_t.mean(0), x_t.std(0), x0_t.mean(0), x0_t.std(0))
