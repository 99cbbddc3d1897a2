"""What is added to h: directions in h-space and their coefficients (paper section 3.2-3.4, eq. 6).

A direction is a function `direction(h, emb, t)` -> delta_h, with h (B, C, h, w), emb (B, E) and t a Python int. An `Edit`
sums directions with their coefficients; it is what `process.generate` takes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

DeltaOfH = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # direction(h, emb, t) -> delta_h
Totals = dict[int, tuple[torch.Tensor, int]]  # {t: (sum of delta_h, number of images)}


class BlockDirection(nn.Module):
    """delta_h = f_t(h), predicted by a delta block; without the time embedding if `ignore_timesteps`."""

    def __init__(self, block: nn.Module, ignore_timesteps: bool = False) -> None:
        super().__init__()
        self.block, self.ignore_timesteps = block, ignore_timesteps

    def forward(self, h: torch.Tensor, emb: torch.Tensor, t: int) -> torch.Tensor:
        return self.block(h, None if self.ignore_timesteps else emb)


class GivenDirection(nn.Module):
    """A fixed delta_h, the same for every image: one tensor for all timesteps, or one per timestep.

    deltas: dict {timestep: tensor (1, C, h, w)}; the key None holds the tensor for all timesteps. A timestep without a tensor
    uses that of the nearest one, so that a direction trained on 40 steps also works with 1000.
    """

    def __init__(self, deltas: Mapping[int | None, torch.Tensor]) -> None:
        super().__init__()
        self.keys: list[int | None] = [*deltas]
        self.deltas = nn.ParameterList(nn.Parameter(d.clone()) for d in deltas.values())

    @classmethod
    def zeros(cls, shape: tuple[int, ...], timesteps: Iterable[int | None]) -> "GivenDirection":
        """A direction to be trained: zeros of `shape` (1, C, h, w) for each of `timesteps` ([None]: one tensor for all)."""
        return cls({t: torch.zeros(shape) for t in timesteps})

    def items(self) -> list[tuple[int | None, torch.Tensor]]:
        """(timestep or None, tensor) pairs, as stored in a checkpoint."""
        return [(key, delta.detach()) for key, delta in zip(self.keys, self.deltas, strict=True)]

    def forward(self, h: torch.Tensor, emb: torch.Tensor, t: int) -> torch.Tensor:
        timesteps = [key for key in self.keys if key is not None]
        if not timesteps:
            return self.deltas[0]
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))
        return self.deltas[nearest]


class Edit:
    """h -> c_0 h + sum_i c_i delta_h_i over the directions that act at t. Every direction sees the unedited h.

    t_edits: an int or None (always) per direction, which acts while t >= its t_edit; None: all act always. `origin` is c_0 and
    scales h at every t. Raises ValueError if the numbers of directions, coefficients and t_edits differ.
    """

    def __init__(
        self,
        directions: Sequence[DeltaOfH],
        coefficients: Sequence[float],
        origin: float = 1.0,
        t_edits: Sequence[int | None] | None = None,
    ) -> None:
        t_edits = [None] * len(directions) if t_edits is None else t_edits
        for what, given in (("coefficients", coefficients), ("t_edits", t_edits)):
            if len(directions) != len(given):
                raise ValueError(f"{len(directions)} directions but {len(given)} {what}: give one per direction")
        self.directions, self.coefficients, self.origin = directions, coefficients, origin
        self.t_edits = [0 if t_edit is None else t_edit for t_edit in t_edits]

    @property
    def t_edit(self) -> int:
        """The lowest t_edit, for `process.generate`: below it no direction acts."""
        return min(self.t_edits, default=0)

    def __call__(self, h: torch.Tensor, emb: torch.Tensor, t: int) -> torch.Tensor:
        edited = self.origin * h
        for direction, c, t_edit in zip(self.directions, self.coefficients, self.t_edits, strict=True):
            if t >= t_edit:
                edited = edited + c * direction(h, emb, t)
        return edited


def coefficients(
    strength: float, n_directions: int, n_train_step: int, n_test_step: int, each: Sequence[float] | None = None
) -> list[float]:
    """The coefficient of each direction -> list of float.

    strength: `hs_coeff_delta_h`. The effect adds up over steps, so the strength is scaled by n_train_step / n_test_step; for
    several directions it is divided by the square root of their number. each: one factor per direction
    (`multiple_hs_coeff`, or a point of an interpolation), 1 by default. Raises ValueError for a number of steps below 1.
    """
    if min(n_train_step, n_test_step) < 1:
        raise ValueError(f"numbers of steps must be 1 or more, not {n_train_step} and {n_test_step}")
    scale = strength * n_train_step / n_test_step / math.sqrt(n_directions)
    return [scale * factor for factor in (each or [1.0] * n_directions)]


class MeanRecorder:
    """Wraps a direction and accumulates the mean of its delta_h, per timestep."""

    def __init__(self, direction: DeltaOfH) -> None:
        self.direction = direction
        self.sums: dict[int, torch.Tensor] = {}
        self.counts: dict[int, int] = defaultdict(int)

    def __call__(self, h: torch.Tensor, emb: torch.Tensor, t: int) -> torch.Tensor:
        delta = self.direction(h, emb, t)
        total = delta.detach().sum(0, keepdim=True)
        self.sums[t] = self.sums[t] + total if t in self.sums else total
        self.counts[t] += len(h)
        return delta

    def totals(self) -> Totals:
        """{t: (sum of delta_h on the CPU, number of images)}."""
        return {t: (total.cpu(), self.counts[t]) for t, total in self.sums.items()}

    def merge(self, recorded: Iterable[Totals]) -> None:
        """Replace the totals by the sum of those of several recorders, including this one."""
        self.sums, self.counts = {}, defaultdict(int)
        for totals in recorded:
            for t, (total, n) in totals.items():
                self.sums[t] = self.sums[t] + total if t in self.sums else total
                self.counts[t] += n

    def mean(self, over_timesteps: bool = False) -> GivenDirection:
        """The global direction -> GivenDirection; over_timesteps: also averaged over timesteps (paper section 3.4)."""
        means: dict[int | None, torch.Tensor] = {t: total.cpu() / self.counts[t] for t, total in self.sums.items()}
        if over_timesteps:
            means = {None: torch.stack(list(means.values())).mean(0)}
        return GivenDirection(means)
