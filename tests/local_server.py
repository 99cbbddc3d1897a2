"""A web server on this machine that misbehaves on request, files to download from it, and checks of downloads."""

import json
import random
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils import download
from utils.errors import UserError
from utils.weights import Published

WEIGHTS = random.Random(0).randbytes(3_000_000)
PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


class Server(ThreadingHTTPServer):
    """files: {path: bytes, or a list, which is sent as JSON}. Faults are set by path.

    breaks: {path: bytes that are sent before the connection is cut}. answers: {path: status in place of the file}. kinds:
    {path: Content-Type}. no_length: paths of files whose length is not told. shifts: {path: bytes by which what is sent begins
    late}. drips: paths of files of which a byte is sent every 20 ms. ignores_range: whether a Range is answered with the whole
    file. asked: (path, Range or None).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.answers, self.kinds, self.shifts, self.asked = {}, {}, {}, {}, {}, []
        self.no_length, self.drips = set(), set()
        self.ignores_range = False

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may have seen enough
            super().handle_error(request, client_address)

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        if self.path not in server.files or self.path in server.answers:
            self.send_error(server.answers.get(self.path, 404))
            return
        contents = server.files[self.path]
        body = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not server.ignores_range else 0
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += server.shifts.get(self.path, 0)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kinds.get(self.path, "application/octet-stream"))
        if self.path not in server.no_length:
            self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        for i in range(start, len(body) if self.path in server.drips else 0):
            self.wfile.write(body[i : i + 1])
            time.sleep(0.02)
        self.wfile.write(body[start:][: server.breaks.get(self.path)])
        if self.path in server.breaks or self.path in server.no_length:
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def answering(server):
    """-> the server, which answers until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serving():
    return answering(Server())


def published(*sources, **more):
    return Published("https://example.org/model", "original.pt", sources, parameters=750_000, **more)


def begun(path, source, contents):
    """A part that an earlier call has left."""
    path.parent.mkdir()
    download._part(path, source).write_bytes(contents)


def fetched(path, *sources, **more):
    """Download a file, which must be complete, with only the record next to it."""
    download.fetch(published(*sources, **more), path)
    assert path.read_bytes() == WEIGHTS
    assert sorted(p.name for p in path.parent.iterdir()) == ["sha256.json", "w.pt"]


def refused(path, *sources, **more):
    """A download that must fail -> the one-line error, which must say how to get the file with a browser."""
    with pytest.raises(UserError) as caught:
        download.fetch(published(*sources, **more), path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"get original.pt from https://example.org/model and save it as {path}" in message
    assert not path.exists()
    return message
