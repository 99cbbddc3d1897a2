"""What goes on beside the computation: reading ahead, writing behind."""

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from utils.terminal import line_of

log = logging.getLogger(__name__)


def prefetched(iterable, ahead=2):
    """The items of `iterable`, up to `ahead` of them made in a thread while the caller works on the last one.

    An error of the iterable is raised where its item would have been.
    """
    iterator, end = iter(iterable), object()
    pool = ThreadPoolExecutor(1)
    try:
        coming = deque(pool.submit(next, iterator, end) for _ in range(ahead))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, iterator, end))
            yield item
    finally:
        # Nobody waits here for a read that may never come back, say of a network drive.
        pool.shutdown(wait=False, cancel_futures=True)


class Background:
    """Calls made in a thread, one after another: `later(function, *args)`.

    At most `most` calls wait, so that what they hold cannot fill the memory. What they write stands beside the results that
    matter, so a file that cannot be written (OSError) is told once and stops nothing. Any other error of a call is raised by a
    later one, by `wait`, or at the end of the `with` block.
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
                log.warning("a picture cannot be written, and the work goes on without it: %s", line_of(error))

    def wait(self):
        """Return when every call has ended."""
        while self.calls:
            self._finish()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # After an error nobody waits for pictures that are not begun.
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self.wait()
        if self.failed > 1:
            log.warning("%d pictures could not be written", self.failed)
