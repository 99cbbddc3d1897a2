"""A sign of life of every process of a job, each second, so that one that dies is named and nobody waits for it.

The signs stand in the store through which torch.distributed brings the processes together; torchrun keeps it.
"""

import os
import platform
import sys
import threading
import time

from utils.errors import Ended, UserError
from utils.terminal import close_bars, leave_signals_to_the_parent, status_of

PAUSE = 1.0  # seconds between two signs
SILENT = 3.0  # seconds without one that tell who is gone, once something has failed
DEAD = 20.0  # seconds without one after which the others end, whatever they are waiting for
LEFT = b"left"  # the last sign of a process that knows why it ends
LOST = "torchrun, or the rank 0 that was started without it, has ended; the others stop, and the same command goes on"


class Watch(threading.Thread):
    """store: of torch.distributed, for this class alone. over: an event, set before the processes leave one after the other."""

    def __init__(self, store, rank, world):
        super().__init__(daemon=True)
        self.store, self.rank, self.world = store, rank, world
        self.line = store.clone()  # a connection of the thread's own: another one may be waiting
        self.over = threading.Event()
        self.seen, self.leaving = [(b"", time.monotonic())] * world, False
        store.set(f"where {rank}", f"process {os.getpid()} on {platform.node()}")
        store.set(f"sign {rank}", "0")

    def run(self):
        number = 0
        while not self.over.wait(PAUSE):
            number += 1
            try:
                self._look(number)
                gone = self.silent(DEAD)
                if gone or self._should_have_left():
                    first = gone and self._is_first(self.line)
                    self._end(str(self._missing(gone, self.line)) if first else None)
            except RuntimeError:  # of torch.distributed
                if not self.over.is_set():
                    self._end(LOST if self.rank < 2 else None)

    def _look(self, number):
        self.line.set(f"sign {self.rank}", LEFT if self.leaving else str(number))
        signs, now = self.line.multi_get([f"sign {rank}" for rank in range(self.world)]), time.monotonic()
        self.seen = [before if sign == before[0] else (sign, now) for sign, before in zip(signs, self.seen, strict=True)]

    def _end(self, said=None):
        """End the process from beside: what it waits for may never come."""
        if said:
            close_bars()
            print(f"error: {said}", file=sys.stderr, flush=True)
        os._exit(2)

    def silent(self, seconds):
        """Ranks that have given no sign for so long, and did not say that they leave."""
        now = time.monotonic()
        return [rank for rank, (sign, since) in enumerate(self.seen) if sign != LEFT and now - since > seconds]

    def _should_have_left(self):
        """Whether another process has left after an error, and this one is still at its work: it may wait for a GPU that waits
        for another one, where neither the error nor a signal reaches it."""
        now = time.monotonic()
        return not self.leaving and any(sign == LEFT and now - since > DEAD for sign, since in self.seen)

    def _missing(self, gone, store):
        named = ", ".join(f"rank {rank} ({store.get(f'where {rank}').decode()})" for rank in gone)
        return UserError(f"ended without a word: {named}; the others stop, what is finished is kept, the same command goes on")

    def _is_first(self, store):
        """Whether nobody has told yet why the job ends; from now on somebody has."""
        return store.add("told", 1) == 1

    # ---- errors -------------------------------------------------------------------------------------------------------------

    def last_word(self, error):
        """An error that ends this process -> the one to raise in its place, so that a single process tells it for all."""
        leave_signals_to_the_parent()  # torchrun sends one to those who are left
        stopped = isinstance(error, KeyboardInterrupt)
        quiet = Ended(status_of(error) if stopped else 2)
        try:
            told = self._settle(error, stopped or lost_connection(error))
        except RuntimeError:  # the store is gone too, and with it every way to agree on who tells
            told = {0: error, 1: UserError(LOST)}.get(self.rank)
        return quiet if told is None else told

    def _settle(self, error, by_others):
        """-> the error that this process has to tell, or None."""
        self.leaving = True
        self.store.set(f"sign {self.rank}", LEFT)
        if not by_others:
            # Everybody may have the same one: then the first process tells it.
            self._wait_for_others(SILENT if self.rank else 0)
            if not self._is_first(self.store):
                return None
            if self.rank == 0:
                return error
            print(file=sys.stderr)  # the line above may be a bar of the first process
            return UserError(f"rank {self.rank}: {error}") if isinstance(error, UserError) else error
        if gone := self._wait_for_others(2 * SILENT):
            return self._missing(gone, self.store) if self._is_first(self.store) else None
        return error if self.rank == 0 and self._is_first(self.store) else None

    def _wait_for_others(self, seconds):
        """Until one has told, is silent, or all leave -> the silent ones."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.store.add("told", 0):
            if (gone := self.silent(SILENT)) or all(sign == LEFT for sign, _ in self.seen):
                return gone
            time.sleep(PAUSE / 5)
        return []


def lost_connection(error):
    """Whether an error is only that another process is gone, as gloo and nccl say it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (isinstance(error, RuntimeError) and "gloo" in str(error))
