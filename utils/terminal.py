"""Running a program in a terminal: streams, signals, one-line errors and exit statuses."""

import errno
import os
import signal
import sys
from contextlib import suppress

from utils.errors import Ended, UserError
from utils.text import one_line

STOPPED = "stopped"  # default message after Ctrl-C
NO_MEMORY = (
    "out of memory: use smaller batches (--bs_precompute, --bs_train, --bs_test), --precision bf16, or for training "
    "--checkpoint_decoder"
)
REMEDIES = {
    errno.ENOSPC: "free some disk space, then start again",
    errno.EDQUOT: "your quota is used up: free some disk space, then start again",
    errno.EFBIG: "files of this size are not allowed there: raise the limit (ulimit -f), or use another folder",
    errno.EIO: "the device failed: use another folder",
    errno.EACCES: "change its permissions, or use another folder",
    errno.EPERM: "change its permissions, or use another folder",
    errno.EROFS: "that file system is read-only: use another folder",
    errno.ENAMETOOLONG: "the name is too long: shorten it",
    errno.ENOTDIR: "there is a file where a folder is needed: move it, or use another folder",
    errno.EEXIST: "there is a file where a folder is needed: move it, or use another folder",
    errno.EISDIR: "there is a folder where a file is needed: move it, or use another name",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENOENT: "check the path",
}


# Signals treated like Ctrl-C: sent by a cluster before it kills a job, when a terminal closes, and when CPU time is used up.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal of ENDING was received, its number is the first argument. Treated like Ctrl-C."""


class Stream:
    """Wraps a text stream so that writing never fails: output to a closed pipe or a full disk is dropped, and characters that
    the encoding lacks are written as backslash escapes."""

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
        """Redirect the stream to the null device, so that the interpreter's final flush does not fail either."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def guarded(main, argv=None, stopped=STOPPED):
    """Run `main(argv)` -> exit status: its own (None is 0); 2 after an error that the user can fix, which is printed in one
    line; 130 after Ctrl-C, 143 after SIGTERM and so on for ENDING, printing the line `stopped`."""
    guard_streams()
    before = {}
    # Signal handlers can only be set in the main thread.
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
    """The one-line message for an error that the user can fix, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return line_of(error)
    return NO_MEMORY if _is_out_of_memory(error) else None


def catch_signals_early():
    """Call this first in a script: Ctrl-C and SIGTERM during slow imports then end it with one line and the exit status that
    `guarded` would give."""

    def hook(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            return sys.__excepthook__(kind, error, trace)
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(status_of(error))

    sys.excepthook = hook
    _catch_ending()


def leave_signals_to_the_parent(*_):
    """Ignore signals in a worker process, which Ctrl-C reaches too, while its parent may still need its results."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)


def guard_streams():
    """Wrap sys.stdout and sys.stderr in Streams; a missing stream is replaced by the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream))


def line_of(error):
    """An OSError -> one line with the path, the reason, and what to do."""
    place = error.filename2 or error.filename
    # filename2 is the target of a rename; filename is then a temporary file unknown to the user.
    place = "" if place is None else f"{os.fsdecode(place)}: "
    reason = error.strerror or one_line(error)
    remedy = REMEDIES.get(error.errno)
    return f"{place}{reason}" + (f"; {remedy}" if remedy else "")


def _is_out_of_memory(error):
    """Decided by name and message, because torch raises RuntimeError and this module must not import torch."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def close_bars():
    """Close all open progress bars, so that the next output starts on a new line."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", [])):
            bar.close()


def _tell(text):
    close_bars()
    print(f"error: {one_line(text)}", file=sys.stderr)
    return 2


def _catch_ending():
    """Set handlers for ENDING -> {number: former handler}. Signals that are ignored, as under nohup, stay ignored."""
    former = {number: signal.getsignal(number) for number in ENDING}
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}
    for number in former:
        signal.signal(number, _terminate)
    return former


def _terminate(number, frame):
    raise Terminated(number)


def status_of(error):
    """The exit status of a program ended by a KeyboardInterrupt."""
    return 128 + (error.args[0] if isinstance(error, Terminated) else signal.SIGINT)
