"""Files: the path of the repository, atomic writes, and locks."""

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
LONGEST = 200  # most bytes of a file name that are repeated in the name of its temporary file
ABANDONED = 3600  # seconds after which a temporary file of a killed process is deleted


@contextmanager
def naming(path):
    """Set the path in an OSError to `path`, because errors of a full disk have no path and others name a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def ordinary(path):
    """`path`, if it is safe to open. Raises OSError for a pipe or a device, because opening a pipe would block and reading a
    device may never end."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(None, "not a regular file: move it", str(path))
    return path


@contextmanager
def replacing(path):
    """Write a file atomically: to a temporary file next to `path`, which is renamed when it is complete.

    Yields the path to write to. An OSError names `path`. Temporary files of killed processes are removed after an hour.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beginning = f".{_shortened(path.name)}."
    for left in path.parent.glob(f"{glob.escape(beginning)}*"):
        # Its writer may rename it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=beginning)
    os.close(handle)
    try:
        with naming(path):
            yield Path(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _shortened(name):
    """A name short enough to add a prefix and a suffix; file systems allow 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def write_text(path, text):
    """Write a text file atomically in UTF-8. Bytes of file names that are not UTF-8 are escaped with backslashes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def set_aside(path):
    """Rename a damaged file -> its new path."""
    path = Path(path)
    return path.replace(path.with_name(f"{path.name}.damaged"))


@contextmanager
def held(path, what, flag="--exp"):
    """Hold an exclusive lock by the file `path`. Raises UserError, which says who holds it, if it is taken.

    what: the locked thing, in words. flag: the flag that would choose another one. The lock is released when the process ends.
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
        with suppress(OSError):  # a leftover file does no harm
            holder.unlink(missing_ok=True)
        lock.release()


def stamp(path):
    """(size in bytes, modification time in ns), to detect changes of a file."""
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
    """A path as a string, relative to the repository if it is inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
