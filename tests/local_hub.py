"""The part of the Hugging Face hub that downloads need, on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from huggingface_hub import constants
from local_server import answering

from utils.files import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Before what a program is to do; `told` gives a user's error as text.
PROGRAM = """
from utils.errors import UserError
def told(function):
    try:
        return function()
    except UserError as error:
        return f"error: {error}"
"""


class Hub(ThreadingHTTPServer):
    """models: {name: folder}. asked: (path, token). cache: the library's, of the programs that use this hub."""

    daemon_threads = True

    def __init__(self, cache):
        super().__init__(("127.0.0.1", 0), Answers)
        self.models, self.asked, self.cache = {}, [], cache
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def files_asked(self):
        """Names of the files that were asked for."""
        return {path.split(f"/resolve/{COMMIT}/")[1] for path, _ in self.asked if "/resolve/" in path}

    def say(self, code, **environment):
        """What a Python program that uses this hub prints last."""
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.cache),
            **environment,
        }
        told = subprocess.run([sys.executable, "-c", PROGRAM + code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert "Traceback" not in told.stderr, told.stderr
        return told.stdout.splitlines()[-1]

    def use_here(self, patch):
        """Let this very process use the hub; the library has read its environment already."""
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(self.cache / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, hub = unquote(self.path.split("?")[0]), self.server
        hub.asked.append((path, self.headers.get("Authorization")))
        for name, folder in hub.models.items():
            files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            if path.startswith((f"/api/models/{name}/revision/", f"/api/models/{name}/tree/")):
                tree = [{"type": "file", "path": p, "size": len(b), "oid": f"{hash(b):x}"} for p, b in files.items()]
                about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]}
                return self._send(json.dumps(tree if "/tree/" in path else about).encode())
            if (file := path.removeprefix(f"/{name}/resolve/{COMMIT}/")) in files:
                tag = hashlib.sha256(files[file]).hexdigest()  # as the hub has it of large files
                return self._send(files[file], **{"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        self._send(b"", 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def serving_hub(cache):
    """A Hub that answers within a `with` block."""
    return answering(Hub(cache))
