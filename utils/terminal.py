"""A program at a terminal: its streams, its signals, and the one line and status that it ends with."""

import errno
import os
import signal
import sys
from contextlib import suppress

from utils.errors import Ended, UserError
from utils.text import one_line

STOPPED = "stopped"  # what a program says when nothing better is known
NO_MEMORY = (
    "out of memory: give smaller batches (--bs_precompute, --bs_train, --bs_test), --precision bf16, or for training "
    "--checkpoint_decoder"
)
REMEDIES = {
    errno.ENOSPC: "make room there, then start again",
    errno.EDQUOT: "your quota is used up: make room there, then start again",
    errno.EFBIG: "files of this size are not allowed there: raise the limit (ulimit -f), or give another place",
    errno.EIO: "the device failed: give another place",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EROFS: "that file system cannot be written: give another place",
    errno.ENAMETOOLONG: "the name is too long: shorten it",
    errno.ENOTDIR: "a file stands where a folder is wanted: move it away, or give another place",
    errno.EEXIST: "a file stands where a folder is wanted: move it away, or give another place",
    errno.EISDIR: "a folder stands where a file is wanted: move it away, or give another place",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENOENT: "check the path",
}


# Besides Ctrl-C: what a cluster sends before it kills, a terminal that closes, processor time that is used up.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """One of ENDING, treated like Ctrl-C; its number is the first argument."""


class Stream:
    """A text stream that outlives its reader: what cannot be written any more (a closed pipe, a full disk) is dropped, and what
    its encoding cannot say is written with backslashes. Else it is the stream it stands for."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure") and not stream.closed:
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            self._drop()
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self):
        """From here on the stream leads nowhere, so that the interpreter's own last flush does not fail either."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def guarded(main, argv=None, stopped=STOPPED):
    """Run `main(argv)` -> exit status: its own (None is 0); 2 after an error that the user can put right, which is told in one
    line; 130 after Ctrl-C, 143 after SIGTERM and likewise for ENDING, with the line `stopped`."""
    guard_streams()
    before = {}
    # In another thread than the main one signals are somebody else's.
    with suppress(ValueError):
        before = _catch_ending()
    try:
        return main(argv) or 0
    except Ended as error:
        close_bars()
        return error.status
    except (UserError, MemoryError, RuntimeError, OSError) as error:
        if (line := plain_line(error)) is None:
            raise
        return _tell(line)
    except KeyboardInterrupt as error:
        close_bars()
        print(stopped, file=sys.stderr)
        return status_of(error)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plain_line(error):
    """What there is to say, in one line, about an error that the user can put right; None where the program is at fault."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return line_of(error)
    return NO_MEMORY if _is_out_of_memory(error) else None


def catch_signals_early():
    """For the first lines of a script: Ctrl-C and SIGTERM end it with a line, and the status that `guarded` gives, while the
    imports that take seconds are under way."""

    def hook(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            return sys.__excepthook__(kind, error, trace)
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(status_of(error))

    sys.excepthook = hook
    _catch_ending()


def leave_signals_to_the_parent(*_):
    """For a process that works for another: Ctrl-C reaches it too, and the step under way still needs its work."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)


def guard_streams():
    """Make sys.stdout and sys.stderr Streams; a stream that is missing altogether leads nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))


def line_of(error):
    """An OSError -> one line that names the place, what is wrong there, and what to do."""
    place = error.filename2 or error.filename
    # What is written beside a file and renamed has a name that nobody knows.
    place = "" if place is None else f"{os.fsdecode(place)}: "
    reason = error.strerror or one_line(error)
    remedy = REMEDIES.get(error.errno)
    return f"{place}{reason}" + (f"; {remedy}" if remedy else "")


def _is_out_of_memory(error):
    """By its name and text: this module does without torch, whose errors are RuntimeErrors."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def close_bars():
    """End the line of every progress bar that is still open, so that what follows has a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", [])):
            bar.close()


def _tell(text):
    close_bars()
    print(f"error: {one_line(text)}", file=sys.stderr)
    return 2


def _catch_ending():
    """-> {number: its former handler}; a signal that is ignored, as nohup has it, stays so."""
    former = {number: signal.getsignal(number) for number in ENDING}
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}
    for number in former:
        signal.signal(number, _terminate)
    return former


def _terminate(number, frame):
    raise Terminated(number)


def status_of(error):
    """The exit status of a program that a KeyboardInterrupt has ended."""
    return 128 + (error.args[0] if isinstance(error, Terminated) else signal.SIGINT)
