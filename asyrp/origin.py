"""The unedited trajectory of each training image: P_plain at the editing steps. Training does not change it, so it is
computed once and reused."""

import logging

import torch

from asyrp.store import NoRoom

log = logging.getLogger(__name__)


class PlainTrajectories:
    """P_plain of every image and timestep, kept from the first epoch on.

    ram: bytes of memory to use. kept: the Store for images that do not fit in memory, or None; key: function of x_T -> its key
    there (see `store.trajectory_key`); disk: bytes that trajectories may use there, including those of earlier runs. What
    fits in neither is recomputed. dtype: float32, or float16 for half the space. processes: how many share the disk.
    """

    def __init__(self, ram=0, kept=None, key=None, disk=0, dtype=torch.float32, processes=1):
        self.ram, self.store, self.key, self.dtype = ram, kept, key, dtype
        self.disk = (disk - (kept.size("trajectory") if kept is not None else 0)) // processes
        self.rows = {}
        self.full = False

    def get(self, batch, n):
        """P_plain of the first `n` steps (B, n, 3, H, W) on the CPU, or None unless it is available for every image."""
        rows = [self._find(index, x_T) for index, x_T in zip(batch.indices, batch.x_T, strict=True)]
        if any(row is None or len(row) < n for row in rows):
            return None
        return torch.stack([row[:n] for row in rows])

    def put(self, batch, P_plain):
        """Keep P_plain (B, steps, 3, H, W) as far as there is space."""
        rows = P_plain.to(self.dtype).cpu()
        for index, x_T, row in zip(batch.indices, batch.x_T, rows, strict=True):
            found = self._find(index, x_T)
            if found is not None and len(found) >= len(row):
                continue
            if row.nbytes <= self.ram:
                self.rows[index] = row.clone()
                self.ram -= row.nbytes
            elif self.store is not None and not self.full:
                self._write(row.clone(), x_T)

    def _find(self, index, x_T):
        if index in self.rows:
            return self.rows[index]
        if self.store is None:
            return None
        found = self.store.read("trajectory", self.key(x_T), {"P_plain": (None, *x_T.shape)})
        return found and found["P_plain"]

    def _write(self, row, x_T):
        if row.nbytes > self.disk:
            self._stop(f"--cache_origin_disk_gib is used up; you can delete {self.store.folder('trajectory')}")
            return
        try:
            self.store.write("trajectory", self.key(x_T), {"P_plain": row})
            self.disk -= row.nbytes
        except NoRoom as error:
            # Not an error: the cache only saves time.
            self._stop(str(error))

    def _stop(self, reason):
        self.full = True
        log.warning("no more plain trajectories are cached, later epochs recompute the rest: %s", reason)


def announce(images, steps, image_size, ram, disk, dtype):
    """Log how much space the plain trajectories of a training take and where they are kept."""
    each = steps * 3 * image_size**2 * torch.finfo(dtype).bits // 8
    in_memory = min(images, ram // each)
    on_disk = min(images - in_memory, disk // each)
    rest = images - in_memory - on_disk
    parts = [(in_memory, "in memory"), (on_disk, "on disk"), (rest, "recomputed in each epoch")]
    said = ", ".join(f"{n} images {where} ({n * each / 1e9:.2g} GB)" for n, where in parts if n)
    log.info("plain trajectories, %.3g MB per image: %s", each / 1e6, said)
