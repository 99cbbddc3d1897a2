"""Files: where the repository lies, and writing a file whole or not at all."""

import errno
import glob
import hashlib
import os
import platform
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 200  # bytes of a file's name that the names of files beside it repeat
ABANDONED = 3600  # seconds after which what a killed writer left behind is nobody's work any more


@contextmanager
def naming(path):
    """Let an OSError name the file that a user knows: a full disk names none, and a file beside it is nobody's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def ordinary(path):
    """`path`, for who is about to open it. Raises OSError where something stands that is neither a file nor a folder: opening a
    pipe would wait for its other end, and a device may have no end."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(None, "it is no ordinary file; move it away", str(path))
    return path


@contextmanager
def replacing(path):
    """Write a file beside `path` and rename it when it is complete: a reader sees the old file or the new one, never half.

    Yields the path to write to. An OSError names `path`. What a killed writer left beside it is removed once it is an hour
    old.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beginning = f".{_shortened(path.name)}."
    for left in path.parent.glob(f"{glob.escape(beginning)}*"):
        # Its writer may finish it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=beginning)
    os.close(handle)
    try:
        with naming(path):
            yield Path(beside)
            os.chmod(beside, 0o644)
            os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _shortened(name):
    """A name that leaves room for what is put before and behind it: a file system takes 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def write_text(path, text):
    """Write a text file, whole, in UTF-8. Bytes of a file's name that are no UTF-8 stand in it with backslashes."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def set_aside(path):
    """Rename a damaged file that others can do without -> its new path."""
    path = Path(path)
    return path.replace(path.with_name(f"{path.name}.damaged"))


@contextmanager
def held(path, what, flag="--exp"):
    """A lock that one process at a time can have, by the file `path`. Raises UserError that says who holds it.

    what: what it is about, in words. flag: which would ask for something else. The lock ends with the process, however it ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.holder")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        with suppress(OSError, UnicodeDecodeError):
            raise UserError(
                f"{what} is in use by {ordinary(holder).read_text(encoding='utf-8')}: wait for it, or give another {flag}"
            ) from error
        raise UserError(f"{what} is in use by another process: wait for it, or give another {flag}") from error
    try:
        with suppress(OSError):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            ordinary(holder).write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # nobody needs it to be gone
            holder.unlink(missing_ok=True)
        lock.release()


def stamp(path):
    """-> (size in bytes, time of change in ns): a file whose stamp is the same has not been changed."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def sha256_of(path):
    """-> the SHA-256 of a file, in hexadecimal digits."""
    # hashlib.file_digest does the same from Python 3.11 on.
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def shown(path):
    """A path as text: relative to the repository where it lies inside it, else as it is."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
