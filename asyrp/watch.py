"""A heartbeat of every process of a job, once per second, so that a process that dies is reported and none waits for it.

Heartbeats are kept in the torch.distributed store where the processes rendezvous, which torchrun runs.
"""

import os
import platform
import sys
import threading
import time

from utils.errors import Ended, UserError
from utils.terminal import close_bars, leave_signals_to_the_parent, status_of

PAUSE = 1.0  # seconds between heartbeats
SILENT = 3.0  # seconds without a heartbeat after which a process is considered gone, once something has failed
DEAD = 20.0  # seconds without a heartbeat after which the others exit, whatever they are waiting for
LEFT = b"left"  # the last heartbeat of a process that knows why it exits
LOST = "torchrun, or a rank 0 started without it, has ended and the other processes stop: run the same command to resume"


class Watch(threading.Thread):
    """store: a torch.distributed store used only by this class. over: an event, set before the processes exit one by one."""

    def __init__(self, store, rank, world):
        super().__init__(daemon=True)
        self.store, self.rank, self.world = store, rank, world
        self.line = store.clone()  # a separate connection for this thread, since the main one may be blocked
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
            except RuntimeError:  # raised by torch.distributed
                if not self.over.is_set():
                    self._end(LOST if self.rank < 2 else None)

    def _look(self, number):
        self.line.set(f"sign {self.rank}", LEFT if self.leaving else str(number))
        signs, now = self.line.multi_get([f"sign {rank}" for rank in range(self.world)]), time.monotonic()
        self.seen = [before if sign == before[0] else (sign, now) for sign, before in zip(signs, self.seen, strict=True)]

    def _end(self, said=None):
        """Exit from this thread: what the main thread waits for may never come."""
        if said:
            close_bars()
            print(f"error: {said}", file=sys.stderr, flush=True)
        os._exit(2)

    def silent(self, seconds):
        """Ranks without a heartbeat for that long that did not announce their exit."""
        now = time.monotonic()
        return [rank for rank, (sign, since) in enumerate(self.seen) if sign != LEFT and now - since > seconds]

    def _should_have_left(self):
        """Whether another process has left after an error while this one is still busy. It may be blocked in a GPU collective,
        where neither the error nor a signal reaches it."""
        now = time.monotonic()
        return not self.leaving and any(sign == LEFT and now - since > DEAD for sign, since in self.seen)

    def _missing(self, gone, store):
        named = ", ".join(f"rank {rank} ({store.get(f'where {rank}').decode()})" for rank in gone)
        return UserError(
            f"these processes died: {named}; the others stop, finished work is kept: run the same command to resume"
        )

    def _is_first(self, store):
        """Claim the right to report why the job ends -> whether this process is the first to claim it."""
        return store.add("told", 1) == 1

    # ---- errors -------------------------------------------------------------------------------------------------------------

    def last_word(self, error):
        """The error that ends this process -> the error to raise instead, so that one process reports for all."""
        leave_signals_to_the_parent()  # torchrun signals the processes that are left
        stopped = isinstance(error, KeyboardInterrupt)
        quiet = Ended(status_of(error) if stopped else 2)
        try:
            told = self._settle(error, stopped or lost_connection(error))
        except RuntimeError:  # the store is gone too, so the processes cannot agree on who reports
            told = {0: error, 1: UserError(LOST)}.get(self.rank)
        return quiet if told is None else told

    def _settle(self, error, by_others):
        """The error that this process has to report, or None."""
        self.leaving = True
        self.store.set(f"sign {self.rank}", LEFT)
        if not by_others:
            # All processes may have the same error; rank 0 then reports it.
            self._wait_for_others(SILENT if self.rank else 0)
            if not self._is_first(self.store):
                return None
            if self.rank == 0:
                return error
            print(file=sys.stderr)  # the line above may be a progress bar of rank 0
            return UserError(f"rank {self.rank}: {error}") if isinstance(error, UserError) else error
        if gone := self._wait_for_others(2 * SILENT):
            return self._missing(gone, self.store) if self._is_first(self.store) else None
        return error if self.rank == 0 and self._is_first(self.store) else None

    def _wait_for_others(self, seconds):
        """Wait until a process has reported, one is silent, or all have left -> the silent ranks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.store.add("told", 0):
            if (gone := self.silent(SILENT)) or all(sign == LEFT for sign, _ in self.seen):
                return gone
            time.sleep(PAUSE / 5)
        return []


def lost_connection(error):
    """Whether an error only means that another process is gone, as gloo and nccl report it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (isinstance(error, RuntimeError) and "gloo" in str(error))
