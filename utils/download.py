"""Fetching published weights: from the first source that gives them, resumable, checked, and whole or not at all.

A transfer goes into `<file>.<source>.part` beside the file and is renamed when it is complete. What the Hugging Face hub has
goes into the cache of its library, and the file is a link to it. The SHA-256 of what was fetched is kept in sha256.json in the
same folder, and checked from then on.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import gdown
import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from configs.paths_config import is_moved, weight_file
from utils import hub
from utils.errors import UserError
from utils.files import ordinary, set_aside, sha256_of, stamp, write_text
from utils.weights import DIRECTIONS_LISTING, DIRECTIONS_PAGE, GOOGLE_DRIVE, HUB, PUBLISHED, Published

log = logging.getLogger(__name__)

RECORD = "sha256.json"
CHUNK = 2**20  # bytes
TIMEOUTS = (5, 60)  # seconds to connect, and between two packets
HUB_FILE = re.compile("([^/]+/[^/]+)/resolve/main/(.+)")  # of a URL behind HUB
PACE = (2**19, 120)  # bytes that a source has to send in so many seconds; gdown writes half a MiB at a time


class Failed(Exception):
    """A source that did not give the file; the message says why."""


def weights_at(place):
    """A place of configs/paths_config.py -> path of its weight file, which is fetched when it is missing and published.

    A file that the environment names instead is left to the user. Raises UserError: what to do when no source gives the file,
    and when the file is not the one that was fetched.
    """
    path = weight_file(place)
    if path.is_file():
        verify(path)
    elif place.name in PUBLISHED and not is_moved(place):
        fetch(PUBLISHED[place.name], path)
    return path


def fetch(published, path):
    """A file that others publish -> `path`. Raises UserError that says how to get it with a browser when no source gives it."""
    failures = []
    try:
        with _only_process(path):
            if _fetched(published, path, failures):
                return
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): mend that, then start again") from error
    why = f"{path} could not be fetched ({'; '.join(dict.fromkeys(failures))})"
    how = f"get {published.file} by way of {published.page} and save it as {path}"
    kept = "; what has arrived is kept, and the same command goes on from there" if parts(path) else ""
    raise UserError(f"{why}: {how}{kept}")


def _fetched(published, path, failures):
    """Whether a source gave the file; what went wrong with those before it is added to `failures`."""
    for source in published.sources:
        part = _part(path, source)
        log.info("fetching %s from %s", path, source)
        try:
            _transfer(source, part, published.least_size)
            sha256 = sha256_of(part)
            if fault := _fault(part, published, sha256):
                part.unlink()
                raise Failed(f"what {_host(source)} gave is {fault}")
        except requests.ConnectTimeout:
            # Packets vanish: the next server would only be waited for as long.
            failures.append(f"{_host(source)} does not answer")
            return False
        except Failed as failure:
            failures.append(str(failure))
            if _beginning(part) is not None:
                part.unlink()  # nothing to go on from
        else:
            os.replace(part, path)
            _record(path, sha256)
            for leftover in parts(path):
                leftover.unlink()
            return True
    return False


def admit(published, path):
    """Check a file that is there already; one that came by another way is recorded. Raises UserError when it is a wrong one."""
    verify(path)
    if path.name not in recorded(path.parent):
        sha256 = sha256_of(path)
        if fault := _fault(path, published, sha256):
            raise UserError(f"{path} is {fault}: delete it and fetch it again")
        _record(path, sha256)


def published_directions():
    """The direction checkpoints of the 2023 release -> {file name: Published}, as the repository lists them now.

    Raises UserError when the list cannot be had.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "listing")
            _transfer(DIRECTIONS_LISTING, part)
            entries = json.loads(part.read_bytes())
        return {
            Path(entry["name"]).name: Published(DIRECTIONS_PAGE, entry["path"], (entry["download_url"],), size=entry["size"])
            for entry in entries
            if entry["name"].endswith(".pth")
        }
    except (Failed, requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the list of published directions cannot be had ({_reason(DIRECTIONS_LISTING, error)}): get the files of the "
            f"folder checkpoint by way of {DIRECTIONS_PAGE} and save them in checkpoint/"
        ) from error


def parts(path):
    """What stopped transfers have left of a file."""
    return sorted(path.parent.glob(f"{path.name}.*.part"))


def _part(path, source):
    # One for each source: half of one server's file must not be completed with half of another's.
    return path.with_name(f"{path.name}.{hashlib.sha256(source.encode()).hexdigest()[:12]}.part")


@contextmanager
def _only_process(path):
    """Keep a second process from writing into the same part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
    except Timeout as error:
        raise UserError(f"{path} is being fetched by another process: start again when that is done") from error


# ---- one source -------------------------------------------------------------------------------------------------------------


def _transfer(source, part, least=0):
    """One source -> `part`, from where an earlier call stopped. Raises Failed or ConnectTimeout; what has arrived stays.

    least: bytes; a source that does not say how long the file is has not given all of it before.
    """
    receive = _receive_from_hub if source.startswith(HUB) else _receive
    receive = _receive_from_drive if source.startswith(GOOGLE_DRIVE) else receive
    while True:
        before = _size(part)
        try:
            return receive(source, part, least)
        except requests.ConnectTimeout:
            raise
        except (requests.RequestException, gdown.DownloadError) as error:
            # A connection that broke is taken up again as long as that brings the file further.
            if _size(part) <= before:
                raise Failed(_reason(source, error)) from error


def _receive(url, part, least):
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and start:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return  # it was complete
            part.unlink()
            return _receive(url, part, least)
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise Failed(f"{_host(url)} gave a web page in place of the file")
        if response.status_code != requests.codes.partial_content:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            if not start:
                raise Failed(f"{_host(url)} gave a piece of the file in place of the whole")
            part.unlink()  # the piece that was sent does not fit behind it
            return _receive(url, part, least)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        with part.open("ab" if start else "wb") as file, _bar(part) as show, _pace(part) as too_slow:
            for piece in _pieces(response):
                file.write(piece)
                file.flush()
                show(file.tell(), total)
                if too_slow.is_set():
                    raise Failed(_slow(url))
    if _size(part) < (least if total is None else total):
        raise requests.ConnectionError(f"{_size(part)} of {total or least} bytes have arrived")


def _pieces(response):
    """The body, in pieces as they arrive. requests itself would wait until a piece of the wanted size is full."""
    try:
        while piece := response.raw.read1(CHUNK):
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _receive_from_drive(url, part, least):
    try:
        with _bar(part) as show, _pace(part) as too_slow:
            gdown.download(url, output=str(part), quiet=True, resume=True, timeout=TIMEOUTS, progress=show, cancel=too_slow)
    except gdown.exceptions.DownloadCancelled as error:
        raise Failed(_slow(url)) from error


def _receive_from_hub(url, part, least):
    name, file = HUB_FILE.fullmatch(url.removeprefix(HUB)).groups()
    try:
        cached = hub.file(name, file)
    except UserError as error:
        raise Failed(str(error)) from error
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(cached)
    except OSError:  # no links there
        shutil.copyfile(cached, part)


@contextmanager
def _pace(part):
    """-> an event that is set when a file grows more slowly than PACE: a source that drips has no end."""
    too_slow, done = threading.Event(), threading.Event()
    least, seconds = PACE

    def watch():
        size = _size(part)
        while not done.wait(seconds):
            before, size = size, _size(part)
            if size - before < least:
                too_slow.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield too_slow
    finally:
        done.set()
        thread.join()


def _slow(source):
    least, seconds = PACE
    return f"{_host(source)} sends less than {least / seconds / 1024:.0f} KiB a second"


@contextmanager
def _bar(part):
    """-> a function (bytes so far, bytes in all or None) that moves a progress bar."""
    with tqdm(desc=part.name.rsplit(".", 2)[0], unit="B", unit_scale=True, delay=0.5) as bar:

        def show(done, total):
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _host(source):
    return urlsplit(source).netloc


def _reason(source, error):
    """One clause on what went wrong with a source."""
    host = _host(source)
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, requests.HTTPError):
        return f"{host} answers {error.response.status_code}"
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        return f"the connection to {host} failed"
    if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
        return f"{host} answers in another form than expected"
    return f"{host}: {' '.join(str(error).split())}"


# ---- is it the file? --------------------------------------------------------------------------------------------------------


def _fault(path, published, sha256):
    """What shows that a complete file is not the one that was wanted, or None."""
    if wrong := _beginning(path):
        return wrong
    if published.size not in (None, _size(path)):
        return f"{_size(path):,} bytes long, not {published.size:,}"
    if _size(path) < published.least_size:
        return f"{_size(path):,} bytes long, too short for {published.parameters:,} parameters"
    if published.sha256 not in (None, sha256):
        return f"not the published file: its SHA-256 is {sha256}"
    return None


def _beginning(path):
    """What a file is, by its first bytes, if it cannot be weights; None if it can, or is missing."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        begins = file.read(256)
    if not begins:
        return "empty"
    if begins.lstrip().startswith(b"<"):
        return "a web page, not weights"
    # Zip archives, pickles and safetensors all have bytes here that no text has.
    if begins.isascii() and not re.search(rb"[\x00-\x08\x0e-\x1f]", begins):
        return "text, not weights"
    return None


def verify(path):
    """Raise UserError when a file is not the one whose SHA-256 was recorded; one without a record passes.

    A file whose size and time of change are the recorded ones is not read again.
    """
    known = recorded(path.parent).get(path.name)
    if known is None or known == _entry(path, known["sha256"]):
        return
    if sha256_of(path) != known["sha256"]:
        raise UserError(
            f"{path} has changed since it was fetched (its SHA-256 is no longer {known['sha256'][:12]}...): delete it to fetch "
            f"it again, or delete its entry in {path.with_name(RECORD)} to keep it"
        )
    with suppress(OSError):  # in a folder that is read-only, it is read again the next time
        _record(path, known["sha256"])


def recorded(folder):
    """What was fetched into a folder -> {file name: {"sha256", "size", "mtime_ns"}}. A damaged record is set aside."""
    path = folder / RECORD
    try:
        entries = json.loads(ordinary(path).read_text(encoding="utf-8"))
        if isinstance(entries, dict) and all(isinstance(entry, dict) and "sha256" in entry for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    log.warning("%s is damaged: it is renamed to %s.damaged, and the files it names are not checked any more", path, RECORD)
    with suppress(OSError):
        set_aside(path)
    return {}


def _record(path, sha256):
    entries = recorded(path.parent) | {path.name: _entry(path, sha256)}
    write_text(path.with_name(RECORD), json.dumps(entries, indent=2))


def _entry(path, sha256):
    size, changed = stamp(path)
    return {"sha256": sha256, "size": size, "mtime_ns": changed}
