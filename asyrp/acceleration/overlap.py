"""Background threads: prefetching of input and deferred writing of output."""

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from utils.terminal import line_of

log = logging.getLogger(__name__)


def prefetched(iterable, ahead=2):
    """Yield the items of `iterable`, computing up to `ahead` of them in a thread while the caller works on the current one.

    An error of the iterable is raised in place of its item.
    """
    iterator, end = iter(iterable), object()
    pool = ThreadPoolExecutor(1)
    try:
        coming = deque(pool.submit(next, iterator, end) for _ in range(ahead))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, iterator, end))
            yield item
    finally:
        # Do not wait for a read that may never return, for example from a network drive.
        pool.shutdown(wait=False, cancel_futures=True)


class Background:
    """Runs calls one after another in a thread: `later(function, *args)`.

    At most `most` calls are queued, to limit memory. They write optional files, so an OSError is logged once and does not stop
    the run. Any other error is raised by a later call, by `wait`, or at the end of the `with` block.
    """

    def __init__(self, most=16):
        self.most, self.calls = most, deque()
        self.pool = ThreadPoolExecutor(1)
        self.failed = 0

    def __call__(self, function, *args):
        while self.calls and (len(self.calls) >= self.most or self.calls[0].done()):
            self._finish()
        self.calls.append(self.pool.submit(function, *args))

    def _finish(self):
        try:
            self.calls.popleft().result()
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                log.warning("a picture cannot be written, continuing without it: %s", line_of(error))

    def wait(self):
        """Wait until all calls have finished."""
        while self.calls:
            self._finish()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # After an error, drop the pictures that are still queued.
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self.wait()
        if self.failed > 1:
            log.warning("%d pictures could not be written", self.failed)
