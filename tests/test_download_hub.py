"""Downloading weights from the Hugging Face hub, from a server on this machine."""

import hashlib
import json

import pytest
import requests
from huggingface_hub import constants
from local_server import PAGE, WEIGHTS, fetched, refused

from utils import download
from utils.errors import UserError
from utils.weights import HUB

ON_HUB = HUB + "owner/faces/resolve/main/a+w.pt"


@pytest.fixture
def faces(hub, tmp_path, monkeypatch):
    """A hub that has WEIGHTS, as this process uses it. -> the file that it gives."""
    hub.use_here(monkeypatch)
    hub.models["owner/faces"] = tmp_path / "faces"
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "README.md").write_text("of no use here")
    (tmp_path / "faces" / "a+w.pt").write_bytes(WEIGHTS)
    return tmp_path / "faces" / "a+w.pt"


def test_hub_file_is_a_link_to_the_cache(hub, faces, path):
    """What is kept with the other weights is a link; where it is gone, the cache is all that is needed."""
    fetched(path, ON_HUB)
    assert hub.files_asked() == {"a+w.pt"}
    assert path.is_symlink() and path.readlink().is_relative_to(hub.cache)
    assert json.loads((path.parent / "sha256.json").read_text())["w.pt"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    path.unlink()
    hub.asked.clear()
    fetched(path, ON_HUB)
    assert hub.files_asked() == set()


@pytest.mark.subprocess
def test_hub_environment_variables(hub, faces, path):
    """First HF_ENDPOINT, HF_HOME and HF_TOKEN; then HF_HUB_OFFLINE without a server."""
    code = f"""
from pathlib import Path
from utils import download
from utils.weights import Published
path = Path({str(path)!r})
print(told(lambda: download.fetch(Published("page", "file", ({ON_HUB!r},)), path) or path.read_bytes() == {WEIGHTS[:9]!r}))
"""
    code = code.replace("read_bytes()", "read_bytes()[:9]")
    assert hub.say(code, HF_TOKEN="hf_secret") == "True"
    assert {token for asked, token in hub.asked if "owner/faces" in asked} == {"Bearer hf_secret"}
    path.unlink()
    hub.asked.clear()
    assert hub.say(code, HF_HUB_OFFLINE="1") == "True"
    assert not hub.asked
    path.unlink()
    message = hub.say(code, HF_HUB_OFFLINE="1", HF_HOME=str(path.parent))
    assert f"{path} could not be downloaded (owner/faces is not available from the Hugging Face hub: no connection" in message
    assert message.endswith(f"get file from page and save it as {path}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (HUB + "owner/none/resolve/main/w.pt", "owner/none is not available from the Hugging Face hub: no such model"),
        (HUB + "owner/faces/resolve/main/none.pt", "owner/faces on the Hugging Face hub has no file none.pt"),
    ],
)
def test_next_source_after_hub_error(hub, faces, server, path, url, said):
    assert said in refused(path, url)
    fetched(path, url, server.url("/second.pt"))
    assert not path.is_symlink()


def test_hub_without_connection(hub, faces, path, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection, and the model is not cached" in refused(path, ON_HUB)
    fetched(path, ON_HUB, server.url("/second.pt"))


def test_hub_on_network_that_drops_packets_times_out(hub, faces, path, monkeypatch):
    """Then the cache alone is asked."""

    def head(url, timeout):
        assert timeout <= 10
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests, "head", head)
    assert "no connection, and the model is not cached" in refused(path, ON_HUB)
    assert not hub.asked


def test_damaged_file_in_cache_is_downloaded_again(hub, faces, path):
    fetched(path, ON_HUB)
    path.write_bytes(b"PK" + WEIGHTS[2:])  # through the link
    with pytest.raises(UserError, match="has changed since it was downloaded"):
        download.verify(path)
    path.unlink()
    fetched(path, ON_HUB)


def test_wrong_hub_file_is_refused_and_stays_in_cache(hub, faces, path, server):
    faces.write_bytes(PAGE)
    assert "the file from huggingface.co is a web page" in refused(path, ON_HUB)
    assert list(path.parent.iterdir()) == []
    fetched(path, ON_HUB, server.url("/second.pt"))


def test_without_links_a_file_of_the_hub_is_copied(hub, faces, path, monkeypatch):
    def none(*args):
        raise OSError("no links here")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.symlink_to", none)
        fetched(path, ON_HUB)
    assert not path.is_symlink()
