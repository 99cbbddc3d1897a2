"""Download published weights: from the first source that works, resumable, verified and atomic.

A download is written to `<file>.<source>.part` next to the file and renamed when it is complete. Files from the Hugging Face
hub are in its cache, and the file is a link. The SHA-256 of each downloaded file is kept in sha256.json in the same folder and
verified from then on.
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
HUB_FILE = re.compile("([^/]+/[^/]+)/resolve/main/(.+)")  # the part of a URL after HUB
PACE = (2**19, 120)  # smallest number of bytes per number of seconds; gdown writes half a MiB at a time


class Failed(Exception):
    """A source did not provide the file; the message says why."""


def weights_at(place):
    """A Place of configs/paths_config.py -> path of its weight file, which is downloaded if it is missing and published.

    A file set by an environment variable is never downloaded. Raises UserError, which says what to do, if no source provides
    the file or if it has changed since the download.
    """
    path = weight_file(place)
    if path.is_file():
        verify(path)
    elif place.name in PUBLISHED and not is_moved(place):
        fetch(PUBLISHED[place.name], path)
    return path


def fetch(published, path):
    """Download a Published file to `path`. Raises UserError, which says how to get it with a browser, if no source works."""
    failures = []
    try:
        with _only_process(path):
            if _fetched(published, path, failures):
                return
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): fix that, then start again") from error
    why = f"{path} could not be downloaded ({'; '.join(dict.fromkeys(failures))})"
    how = f"get {published.file} from {published.page} and save it as {path}"
    kept = "; the partial download is kept: run the same command to resume" if parts(path) else ""
    raise UserError(f"{why}: {how}{kept}")


def _fetched(published, path, failures):
    """Whether a source provided the file. Failures of the others are appended to `failures`."""
    for source in published.sources:
        part = _part(path, source)
        log.info("downloading %s from %s", path, source)
        try:
            _transfer(source, part, published.least_size)
            sha256 = sha256_of(part)
            if fault := _fault(part, published, sha256):
                part.unlink()
                raise Failed(f"the file from {_host(source)} is {fault}")
        except requests.ConnectTimeout:
            # The network drops packets, so the next server would time out too.
            failures.append(f"{_host(source)} does not answer")
            return False
        except Failed as failure:
            failures.append(str(failure))
            if _beginning(part) is not None:
                part.unlink()  # useless for resuming
        else:
            os.replace(part, path)
            _record(path, sha256)
            for leftover in parts(path):
                leftover.unlink()
            return True
    return False


def admit(published, path):
    """Verify an existing file, and record it if it was not downloaded here. Raises UserError if it is the wrong file."""
    verify(path)
    if path.name not in recorded(path.parent):
        sha256 = sha256_of(path)
        if fault := _fault(path, published, sha256):
            raise UserError(f"{path} is {fault}: delete it and download it again")
        _record(path, sha256)


def published_directions():
    """The direction checkpoints of the 2023 release -> {file name: Published}, from the current list in its repository.

    Raises UserError if the list is not available.
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
            f"the list of published directions is not available ({_reason(DIRECTIONS_LISTING, error)}): get the files in the "
            f"folder checkpoint from {DIRECTIONS_PAGE} and save them in checkpoint/"
        ) from error


def parts(path):
    """The partial downloads of a file."""
    return sorted(path.parent.glob(f"{path.name}.*.part"))


def _part(path, source):
    # One per source, so that a partial file is never completed with data from another server.
    return path.with_name(f"{path.name}.{hashlib.sha256(source.encode()).hexdigest()[:12]}.part")


@contextmanager
def _only_process(path):
    """Keep a second process from writing to the same partial file."""
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
        raise UserError(f"{path} is being downloaded by another process: start again when it is done") from error


# ---- one source -------------------------------------------------------------------------------------------------------------


def _transfer(source, part, least=0):
    """Download from one source to `part`, resuming an earlier call. Raises Failed or ConnectTimeout and keeps the partial file.

    least: smallest valid size in bytes, for a source that does not state the size.
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
            # Reconnect as long as the file keeps growing.
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
            raise Failed(f"{_host(url)} sent a web page instead of the file")
        if response.status_code != requests.codes.partial_content:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            if not start:
                raise Failed(f"{_host(url)} sent only a part of the file")
            part.unlink()  # the server sent another range than requested
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
        raise requests.ConnectionError(f"only {_size(part)} of {total or least} bytes were received")


def _pieces(response):
    """Yield the body as it arrives. requests itself would wait until a chunk is full."""
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
    except OSError:  # the file system has no links
        shutil.copyfile(cached, part)


@contextmanager
def _pace(part):
    """-> an event that is set when a file grows more slowly than PACE."""
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
    return f"{_host(source)} sends less than {least / seconds / 1024:.0f} KiB per second"


@contextmanager
def _bar(part):
    """-> a function (bytes so far, total bytes or None) that updates a progress bar."""
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
    """Why a source failed, in a few words."""
    host = _host(source)
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, requests.HTTPError):
        return f"{host} returned {error.response.status_code}"
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        return f"the connection to {host} failed"
    if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
        return f"{host} sent an unexpected response"
    return f"{host}: {' '.join(str(error).split())}"


# ---- verification -----------------------------------------------------------------------------------------------------------


def _fault(path, published, sha256):
    """Why a complete file is not the published one, or None."""
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
    """What a file is, from its first bytes, if it cannot be weights; None otherwise, or if it is missing."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        begins = file.read(256)
    if not begins:
        return "empty"
    if begins.lstrip().startswith(b"<"):
        return "a web page, not weights"
    # Zip archives, pickles and safetensors all start with some bytes that do not occur in text.
    if begins.isascii() and not re.search(rb"[\x00-\x08\x0e-\x1f]", begins):
        return "text, not weights"
    return None


def verify(path):
    """Raise UserError if a file does not have its recorded SHA-256; files without a record pass.

    A file with the recorded size and modification time is not read again.
    """
    known = recorded(path.parent).get(path.name)
    if known is None or known == _entry(path, known["sha256"]):
        return
    if sha256_of(path) != known["sha256"]:
        raise UserError(
            f"{path} has changed since it was downloaded (its SHA-256 is no longer {known['sha256'][:12]}...): delete it to "
            f"download it again, or delete its entry in {path.with_name(RECORD)} to keep it"
        )
    with suppress(OSError):  # in a read-only folder, it is read again the next time
        _record(path, known["sha256"])


def recorded(folder):
    """The files downloaded into a folder -> {file name: {"sha256", "size", "mtime_ns"}}. A damaged record is renamed."""
    path = folder / RECORD
    try:
        entries = json.loads(ordinary(path).read_text(encoding="utf-8"))
        if isinstance(entries, dict) and all(isinstance(entry, dict) and "sha256" in entry for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    log.warning("%s is damaged: it was renamed to %s.damaged, and its files are no longer verified", path, RECORD)
    with suppress(OSError):
        set_aside(path)
    return {}


def _record(path, sha256):
    entries = recorded(path.parent) | {path.name: _entry(path, sha256)}
    write_text(path.with_name(RECORD), json.dumps(entries, indent=2))


def _entry(path, sha256):
    size, changed = stamp(path)
    return {"sha256": sha256, "size": size, "mtime_ns": changed}
