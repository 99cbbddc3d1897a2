"""What goes on beside the computation: reading ahead, writing behind."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor


def prefetched(iterable, ahead=2):
    """The items of `iterable`, up to `ahead` of them made in a thread while the caller works on the last one.

    An error of the iterable is raised where its item would have been.
    """
    iterator, end = iter(iterable), object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, iterator, end) for _ in range(ahead))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, iterator, end))
            yield item


class Background:
    """Calls made in a thread, one after another: `later(function, *args)`.

    At most `most` calls wait, so that what they hold cannot fill the memory. The first error of a call is raised by a later
    one, by `wait`, or at the end of the `with` block.
    """

    def __init__(self, most=16):
        self.most, self.calls = most, deque()
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, function, *args):
        while self.calls and (len(self.calls) >= self.most or self.calls[0].done()):
            self.calls.popleft().result()
        self.calls.append(self.pool.submit(function, *args))

    def wait(self):
        """Return when every call has ended."""
        while self.calls:
            self.calls.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.pool.shutdown()
        if error is None:
            self.wait()
