"""The plain trajectory of training: P_plain of an image at the editing steps, which no training changes, computed once."""

import logging

import torch

from asyrp import checkpoints
from utils.errors import UserError
from asyrp.data.pairs import digest

log = logging.getLogger(__name__)


class PlainTrajectories:
    """P_plain of every image and timestep, kept from the first epoch on.

    budget: bytes of memory to use. folder: where images beyond it are kept, one file an image, named like a latent by the hash
    of x_T; None: they are computed again. dtype: float32, or float16 in half the room. The folder's name must change with
    everything P_plain depends on besides x_T: weights, noise schedule and timesteps.
    """

    def __init__(self, budget=0, folder=None, dtype=torch.float32):
        self.left, self.folder, self.dtype = budget, folder, dtype
        self.kept = {}

    def get(self, batch, n):
        """P_plain of the first `n` steps (B, n, 3, H, W) on the CPU, or None unless it is kept for every image."""
        rows = [self._find(index, x_T) for index, x_T in zip(batch.indices, batch.x_T, strict=True)]
        if any(row is None or len(row) < n for row in rows):
            return None
        return torch.stack([row[:n] for row in rows])

    def put(self, batch, P_plain):
        """Keep P_plain (B, steps, 3, H, W), where there is room."""
        rows = P_plain.to(self.dtype).cpu()
        for index, x_T, row in zip(batch.indices, batch.x_T, rows, strict=True):
            found = self._find(index, x_T)
            if found is not None and len(found) >= len(row):
                continue
            if row.nbytes <= self.left:
                self.kept[index] = row.clone()
                self.left -= row.nbytes
            elif self.folder is not None:
                self._write(row.clone(), x_T)

    def _find(self, index, x_T):
        if index in self.kept:
            return self.kept[index]
        if self.folder is not None and self._path(x_T).exists():
            return checkpoints.load(self._path(x_T))
        return None

    def _path(self, x_T):
        return self.folder / f"{digest(x_T)}.pt"

    def _write(self, row, x_T):
        if not self.folder.exists():
            log.info("plain trajectories are kept in %s, %.1f MB an image", self.folder, row.nbytes / 1e6)
        try:
            checkpoints.save(row, self._path(x_T))
        except (OSError, RuntimeError) as error:  # torch.save has its own word for a full disk
            raise UserError(
                f"{self.folder}: the plain trajectories cannot be written ({error}); make room, or give --cache_origin ram"
            ) from error
