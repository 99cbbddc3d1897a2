"""LPIPS curves, and how t_edit and t_boost are chosen from them (paper section 3.3 and appendix B)."""

import csv
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from asyrp import process
from asyrp.ranks import ALONE, Ranks
from utils.errors import UserError
from utils.files import replacing
from utils.text import one_line

log = logging.getLogger(__name__)

EVERY_TIMESTEP = 2  # largest gap between rows in a table of every timestep; the published tables lack 998


@dataclass(frozen=True)
class Curve:
    """LPIPS along the inversion: mean and standard deviation over images, float64 arrays of equal length.

    t: the timesteps, ascending integers, 0 or more. lpips_x_t is LPIPS(x_0, x_t), lpips_x0_t is LPIPS(x_0, P_t).
    Raises ValueError if there are no rows, if timesteps are out of order, or if a value is negative or not a number.
    """

    t: np.ndarray
    lpips_x_t: np.ndarray
    lpips_x_t_std: np.ndarray
    lpips_x0_t: np.ndarray
    lpips_x0_t_std: np.ndarray

    def __post_init__(self) -> None:
        columns = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in NAMES}
        lengths = {column.shape for column in columns.values()}
        if len(lengths) != 1 or len(lengths.pop()) != 1:
            raise ValueError("its columns differ in length")
        t = columns["t"]
        if not len(t):
            raise ValueError("it has no rows")
        for name, column in columns.items():
            if wrong := column[~(np.isfinite(column) & (column >= 0))].tolist():
                raise ValueError(f"{name} cannot be {wrong[0]}")
        if (t % 1).any():
            raise ValueError(f"t cannot be {t[t % 1 != 0][0]}")
        if not (rising := np.diff(t) > 0).all():
            at = int(np.argmin(rising))
            raise ValueError(f"t = {t[at + 1]:.0f} follows t = {t[at]:.0f}")
        columns["t"] = t.astype(np.int64)
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    @classmethod
    def read(cls, path: Path | str) -> "Curve":
        """Read a CSV file (UTF-8) with a column for every field. Raises UserError, naming the file, if it is anything else."""
        try:
            with Path(path).open(encoding="utf-8-sig", newline="") as stream:
                table = csv.reader(stream, strict=True)
                header = next(table, None)
                if header is None:
                    raise ValueError("it is empty")
                if missing := [name for name in NAMES if header.count(name) != 1]:
                    raise ValueError(f"it has no column {missing[0]}, or two of that name")
                rows = [(table.line_num, row) for row in table if row]
            columns: dict[str, list[float]] = {name: [] for name in NAMES}
            for number, row in rows:
                if len(row) != len(header):
                    raise ValueError(f"line {number} has {len(row)} values, not {len(header)}")
                for name, text in zip(header, row, strict=True):
                    if name in columns:
                        columns[name].append(_number(text, number))
            return cls(**{name: np.array(column) for name, column in columns.items()})
        except (OSError, ValueError, csv.Error) as error:
            # UnicodeDecodeError is a ValueError too, and its message would show the bytes of the file.
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else one_line(error)
            raise UserError(f"{path} is not a table of LPIPS curves ({reason}): measure it again with --lpips") from error

    def write(self, path: Path | str) -> None:
        """Write a CSV file from which `read` restores exactly this curve."""
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(NAMES)
            writer.writerows(zip(*(getattr(self, name).tolist() for name in NAMES), strict=True))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """{field: float64 tensor (n,)}."""
        return {name: torch.from_numpy(getattr(self, name).astype(np.float64)) for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> "Curve":
        """The inverse of `to_tensors` -> Curve. Raises UserError if the tensors are not a curve."""
        try:
            return cls(**{name: tensors[name].numpy() for name in NAMES})
        except (KeyError, ValueError) as error:
            reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
            raise UserError(f"the stored LPIPS curve is invalid ({reason}): measure it again with --lpips") from error


NAMES = tuple(f.name for f in fields(Curve))


def _number(text: str, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"line {line} has {text!r} instead of a number") from None


def first_reaching(curve_t: np.ndarray, values: np.ndarray, threshold: float, what: str) -> int:
    """The first timestep (int) at which `values`, measured at the timesteps `curve_t`, reach `threshold`.

    In a table of every timestep it is the first row that reaches the threshold, as in the 2023 release. If the row before is
    more than EVERY_TIMESTEP timesteps below, the curve is interpolated linearly between the two.

    Raises UserError, stating the maximum, if they never reach it.
    """
    reached = np.flatnonzero(values >= threshold)
    if not len(reached):
        raise UserError(
            f"{what} never reaches {threshold:.3f}, its maximum is {values.max():.3f}: lower the threshold "
            "(--lpips_edit_th, --lpips_addnoise_th) or set --user_defined_t_edit / --user_defined_t_addnoise"
        )
    i = int(reached[0])
    if i == 0 or curve_t[i] - curve_t[i - 1] <= EVERY_TIMESTEP:
        return int(curve_t[i])
    below, t = int(curve_t[i - 1]), int(curve_t[i])
    share = (threshold - values[i - 1]) / (values[i] - values[i - 1])
    # Rounding must not lead back to the row below the threshold.
    return max(below + 1, math.ceil(below + share * (t - below)))


def choose_t_edit(curve: Curve, cosine: float, threshold: float = 0.33) -> int:
    """The first t with LPIPS(x_0, P_t) >= threshold * cosine (of the source and target prompts), paper section 3.3.

    The less similar the prompts, the longer the editing interval.
    """
    return first_reaching(curve.t, curve.lpips_x0_t, threshold * cosine, "LPIPS(x_0, P_t)")


def choose_t_boost(curve: Curve, threshold: float = 1.2, from_x_t: bool = True) -> int:
    """The first t with LPIPS(x_0, x_t) >= threshold, or with LPIPS(x_0, P_t) >= threshold if not `from_x_t`."""
    if from_x_t:
        return first_reaching(curve.t, curve.lpips_x_t, threshold, "LPIPS(x_0, x_t)")
    return first_reaching(curve.t, curve.lpips_x0_t, threshold, "LPIPS(x_0, P_t)")


def measure(
    unet: process.Network,
    batches: Iterable[tuple[Sequence[int], torch.Tensor | None, Sequence[str]]],
    schedule: process.Schedule,
    timesteps: Sequence[int],
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    device: torch.device | str,
    ranks: Ranks = ALONE,
    iterations: int = 0,
) -> Curve:
    """LPIPS curves along the DDIM inversion of images -> Curve.

    batches: an iterable of (indices, images (B, 3, H, W) in [-1, 1] or None, messages), as `load_batch` returns.
    distance: LPIPS, (B, 3, H, W) twice -> (B, 1, 1, 1). ranks: processes that share the images; `batches` are those of this
    process, and all processes get the same curve. iterations: see `process.invert`. Measuring the last of `timesteps` costs one
    more U-Net call.
    Raises UserError if no image can be read, or if a distance is not finite.
    """
    seen: list[tuple[np.ndarray | None, Sequence[str]]] = []
    told: set[str] = set()

    def tell(messages: Sequence[str]) -> None:
        for message in messages:
            if message not in told:
                log.warning("skipped: %s", message)
        told.update(messages)

    for _, x_0, messages in batches:
        tell(messages)
        if x_0 is None:
            seen.append((None, messages))
            continue
        x_0 = x_0.to(device)
        columns: list[torch.Tensor] = []

        def observe(
            i: int, t: int, x_t: torch.Tensor, P_t: torch.Tensor, x_0: torch.Tensor = x_0, columns: list[torch.Tensor] = columns
        ) -> None:
            columns.append(torch.stack([distance(x_0, x_t).flatten(), distance(x_0, P_t).flatten()]))

        with torch.no_grad():
            x_T = process.invert(unet, x_0, schedule, timesteps, observe, iterations)
            eps = process.frozen_branch(unet, x_T, timesteps[-1]).eps
            observe(len(timesteps) - 1, timesteps[-1], x_T, process.predict_x0(x_T, eps, timesteps[-1], schedule))
        seen.append((torch.stack(columns, dim=2).cpu().double().numpy(), messages))  # (2, B, len(timesteps))
    rows, left_out = [], 0
    for found, messages in ranks.gather(seen):
        rows += [] if found is None else [found]
        left_out += len(messages)
        tell(messages)
    if not rows:
        raise UserError("none of the images could be read, and LPIPS curves need at least one: check the files")
    x_t, x0_t = np.concatenate(rows, axis=1)
    if left_out:
        log.warning("%d of %d images could not be read and were skipped", left_out, left_out + len(x_t))
    try:
        return Curve(np.array(timesteps), x_t.mean(0), x_t.std(0), x0_t.mean(0), x0_t.std(0))
    except ValueError as error:
        raise UserError(f"the measured LPIPS curves are invalid ({error}): measure with --precision fp32") from error
