"""Fetching weights, from a server on this machine."""

import hashlib
import json
import logging
import os

import gdown
import pytest
import requests
from filelock import FileLock
from huggingface_hub import constants
from local_server import PAGE, WEIGHTS, begun, published
from tqdm import tqdm

from utils import download
from utils.errors import UserError
from utils.weights import GOOGLE_DRIVE, HUB


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pretrained" / "w.pt"


def fetched(path, *sources, **more):
    """The file must arrive whole, with nothing left beside it but the record."""
    download.fetch(published(*sources, **more), path)
    assert path.read_bytes() == WEIGHTS
    assert sorted(p.name for p in path.parent.iterdir()) == ["sha256.json", "w.pt"]


def refused(path, *sources, **more):
    """-> the one line that says why, and how to get the file with a browser."""
    with pytest.raises(UserError) as caught:
        download.fetch(published(*sources, **more), path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"get original.pt from https://example.org/model and save it as {path}" in message
    assert not path.exists()
    return message


# ---- one source -------------------------------------------------------------------------------------------------------------


def test_a_file_its_record_and_its_bar(server, path, monkeypatch):
    bars = []
    monkeypatch.setattr(download, "tqdm", lambda **settings: bars.append(tqdm(**settings)) or bars[0])
    fetched(path, server.url("/first.pt"))
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [("w.pt", len(WEIGHTS), len(WEIGHTS))]
    assert json.loads((path.parent / "sha256.json").read_text())["w.pt"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert server.asked == [("/first.pt", None)]


def test_a_broken_transfer_is_taken_up_again_as_long_as_it_gets_further(server, path):
    server.breaks["/first.pt"] = 1_300_000
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", None), ("/first.pt", "bytes=1300000-"), ("/first.pt", "bytes=2600000-")]


def test_a_stopped_transfer_is_resumed_by_the_next_call(server, path, monkeypatch):
    server.breaks["/first.pt"] = 1_300_000
    sent, get = [], requests.get

    def once(*args, **more):
        if sent:
            raise requests.ConnectionError("the cable is out")
        sent.append(args)
        return get(*args, **more)

    monkeypatch.setattr(requests, "get", once)
    message = refused(path, server.url("/first.pt"))
    assert "the connection to 127.0.0.1" in message
    assert "run the same command to resume" in message
    [part] = download.parts(path)
    assert part.read_bytes() == WEIGHTS[:1_300_000]
    monkeypatch.setattr(requests, "get", get)
    server.breaks.clear()
    server.asked.clear()
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1300000-")]


def test_a_body_shorter_than_announced_is_not_taken_for_the_file(server, path, monkeypatch):
    bodies = [[WEIGHTS[:1000]], []]
    monkeypatch.setattr(download, "_pieces", lambda response: bodies.pop(0))
    assert "the connection to 127.0.0.1" in refused(path, server.url("/first.pt"))
    assert download.parts(path)[0].read_bytes() == WEIGHTS[:1000]


def test_a_short_body_of_unknown_length_is_taken_up_again(server, path):
    server.no_length.add("/first.pt")
    server.breaks["/first.pt"] = 1_300_000
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", None), ("/first.pt", "bytes=1300000-"), ("/first.pt", "bytes=2600000-")]


def test_a_whole_body_of_unknown_length(server, path):
    server.no_length.add("/first.pt")
    fetched(path, server.url("/first.pt"))


def test_an_answer_that_begins_elsewhere_is_not_put_behind_the_part(server, path):
    """A piece that does not fit is never joined; one that nobody asked for is refused."""
    begun(path, server.url("/first.pt"), WEIGHTS[:1000])
    server.shifts["/first.pt"] = 500
    assert "sent only a part of the file" in refused(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1000-"), ("/first.pt", None)]
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))


def test_a_source_that_drips_is_left_and_its_part_kept(server, path, monkeypatch):
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    message = refused(path, server.url("/first.pt"))
    assert "sends less than 5 KiB per second" in message and "run the same command to resume" in message
    [part] = download.parts(path)
    assert WEIGHTS.startswith(part.read_bytes()) and part.stat().st_size > 0
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))


def test_a_server_that_ignores_ranges_starts_over(server, path):
    begun(path, server.url("/first.pt"), b"x" * 1000)
    server.ignores_range = True
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1000-")]


def test_a_part_that_was_complete(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS)
    fetched(path, server.url("/first.pt"))


def test_a_part_longer_than_the_file_is_begun_again(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS + b"more")
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=3000004-"), ("/first.pt", None)]


def test_a_part_is_not_completed_from_another_source(server, path):
    begun(path, server.url("/first.pt"), b"x" * 1000)
    server.answers["/first.pt"] = 403
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert server.asked[-1] == ("/second.pt", None)


# ---- sources in order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_next_source_when_one_refuses(server, path, status):
    server.answers["/first.pt"] = status
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert [asked for asked, _ in server.asked] == ["/first.pt", "/second.pt"]


def test_the_next_source_when_one_cannot_be_reached(server, path, closed):
    fetched(path, closed, server.url("/second.pt"))


def test_later_sources_are_left_alone(server, path):
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert [asked for asked, _ in server.asked] == ["/first.pt"]


def test_when_all_refuse_each_is_named(server, path):
    server.answers = {"/first.pt": 403, "/second.pt": 404}
    message = refused(path, server.url("/first.pt"), server.url("/second.pt"))
    host = f"127.0.0.1:{server.server_port}"
    assert f"{host} answers 403; {host} returned 404" in message


def test_no_network(path, closed):
    assert "the connection to 127.0.0.1" in refused(path, closed)
    assert list(path.parent.iterdir()) == []


def test_a_network_that_swallows_packets_is_waited_for_once(path, monkeypatch):
    asked = []

    def get(url, **more):
        assert more["timeout"][0] <= 10
        asked.append(url)
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests, "get", get)
    assert "one.example does not answer" in refused(path, "https://one.example/w", "https://two.example/w")
    assert asked == ["https://one.example/w"]


# ---- wrong files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_a_weight_file(server, path, kind):
    server.kinds["/page"] = kind
    assert "a web page" in refused(path, server.url("/page"))
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/page"), server.url("/second.pt"))


@pytest.mark.parametrize(
    ("body", "length_told", "said"),
    [
        (b"", True, "is empty"),
        (b"", False, "the connection to 127.0.0.1"),
        ([{"message": "moved"}], True, "is text, not weights"),
        ([{"message": "moved"}], False, "is text, not weights"),
    ],
)
def test_an_answer_without_a_file_is_refused_and_not_recorded(server, path, body, length_told, said):
    server.files["/wrong"] = body
    server.no_length |= set() if length_told else {"/wrong"}
    assert said in refused(path, server.url("/wrong"))
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/wrong"), server.url("/second.pt"))


def test_fewer_bytes_than_the_parameters_take_are_no_weights(server, path):
    server.files["/half"] = WEIGHTS[:1_500_000]
    assert "is 1,500,000 bytes long, too short for 750,000 parameters" in refused(path, server.url("/half"))
    assert list(path.parent.iterdir()) == []


def test_a_web_page_leaves_what_has_arrived(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS[:1000])
    server.kinds["/first.pt"] = "text/html"
    refused(path, server.url("/first.pt"))
    assert download._part(path, server.url("/first.pt")).read_bytes() == WEIGHTS[:1000]


def test_a_known_sha256_decides(server, path):
    server.files["/first.pt"] = WEIGHTS[:-1] + b"x"
    known = {"sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert "is not the published file: its SHA-256 is" in refused(path, server.url("/first.pt"), **known)
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/first.pt"), server.url("/second.pt"), **known)


def test_a_known_size_decides(server, path):
    server.files["/first.pt"] = WEIGHTS[:-1]
    message = refused(path, server.url("/first.pt"), size=len(WEIGHTS))
    assert "is 2,999,999 bytes long, not 3,000,000" in message
    fetched(path, server.url("/second.pt"), size=len(WEIGHTS))


# ---- Google Drive -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(monkeypatch):
    """What Google Drive gives in place of a file: bytes, or an error to raise. -> (a function that sets it, calls)."""
    calls, given = [], []

    def fake(url, output, quiet, resume, timeout, progress, cancel):
        calls.append(url)
        if isinstance(given[0], Exception):
            raise given[0]
        with open(output, "wb") as file:
            file.write(given[0])
        progress(len(given[0]), None)

    monkeypatch.setattr(gdown, "download", fake)
    return given.append, calls


def test_google_drive(path, drive):
    give, calls = drive
    give(WEIGHTS)
    fetched(path, GOOGLE_DRIVE + "abc")
    assert calls == ["https://drive.google.com/uc?id=abc"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PAGE, "what drive.google.com gave is a web page"),
        (gdown.exceptions.FileURLRetrievalError("Too many\nusers"), "drive.google.com: Too many users"),
        (requests.ConnectionError("long text"), "the connection to drive.google.com failed"),
    ],
)
def test_google_drive_refuses(server, path, drive, given, said):
    drive[0](given)
    assert said in refused(path, GOOGLE_DRIVE + "abc")
    fetched(path, GOOGLE_DRIVE + "abc", server.url("/second.pt"))


def test_gdown_is_called_as_it_wants_to_be_and_resumes(server, path, monkeypatch):
    """The package itself, with this server in place of Google's."""
    monkeypatch.setattr(download, "GOOGLE_DRIVE", server.url("/"))
    server.breaks["/first.pt"] = 1_300_000
    assert "run the same command to resume" in refused(path, server.url("/first.pt"))
    server.breaks.clear()
    server.asked.clear()
    fetched(path, server.url("/first.pt"))
    assert ("/first.pt", "bytes=1048576-") in server.asked  # gdown writes in pieces of half a MiB


def test_google_drive_drips(server, path, monkeypatch):
    """The package itself."""
    monkeypatch.setattr(download, "GOOGLE_DRIVE", server.url("/"))
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    assert "sends less than 5 KiB per second" in refused(path, server.url("/first.pt"))


# ---- the Hugging Face hub ---------------------------------------------------------------------------------------------------

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


def test_a_file_of_the_hub_lies_in_its_cache_once(hub, faces, path):
    """What is kept with the other weights is a link; where it is gone, the cache is all that is needed."""
    fetched(path, ON_HUB)
    assert hub.files_asked() == {"a+w.pt"}
    assert path.is_symlink() and path.readlink().is_relative_to(hub.cache)
    assert json.loads((path.parent / "sha256.json").read_text())["w.pt"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    path.unlink()
    hub.asked.clear()
    fetched(path, ON_HUB)
    assert hub.files_asked() == set()


def test_the_variables_of_the_library(hub, faces, path):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN at first; then HF_HUB_OFFLINE, with nobody to ask."""
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
def test_what_the_hub_lacks_comes_from_the_next_source(hub, faces, server, path, url, said):
    assert said in refused(path, url)
    fetched(path, url, server.url("/second.pt"))
    assert not path.is_symlink()


def test_nobody_answers_for_the_hub(hub, faces, path, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection, and the model is not cached" in refused(path, ON_HUB)
    fetched(path, ON_HUB, server.url("/second.pt"))


def test_a_hub_behind_a_network_that_swallows_packets_is_not_waited_for(hub, faces, path, monkeypatch):
    """Then the cache alone is asked."""

    def head(url, timeout):
        assert timeout <= 10
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests, "head", head)
    assert "no connection, and the model is not cached" in refused(path, ON_HUB)
    assert not hub.asked


def test_a_file_that_is_damaged_in_the_cache_is_fetched_anew(hub, faces, path):
    fetched(path, ON_HUB)
    path.write_bytes(b"PK" + WEIGHTS[2:])  # through the link
    with pytest.raises(UserError, match="has changed since it was downloaded"):
        download.verify(path)
    path.unlink()
    fetched(path, ON_HUB)


def test_a_wrong_file_of_the_hub_is_refused_and_stays_in_the_cache(hub, faces, path, server):
    faces.write_bytes(PAGE)
    assert "what huggingface.co gave is a web page" in refused(path, ON_HUB)
    assert list(path.parent.iterdir()) == []
    fetched(path, ON_HUB, server.url("/second.pt"))


def test_without_links_a_file_of_the_hub_is_copied(hub, faces, path, monkeypatch):
    def none(*args):
        raise OSError("no links here")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.symlink_to", none)
        fetched(path, ON_HUB)
    assert not path.is_symlink()


# ---- what was fetched stays what it was --------------------------------------------------------------------------------------


@pytest.fixture
def kept(server, path):
    """A file that was fetched."""
    fetched(path, server.url("/first.pt"))
    return path


def test_a_changed_file_is_reported(kept):
    kept.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(UserError, match=r"w\.pt has changed since it was downloaded.*delete it to download it again"):
        download.verify(kept)


def test_an_untouched_file_is_not_read_again(kept, monkeypatch):
    monkeypatch.setattr(download, "_sha256", None)
    download.verify(kept)
    download.verify(kept.with_name("of_ones_own.pt"))


def test_a_file_with_another_time_is_read_once(kept, monkeypatch):
    os.utime(kept, (1, 1))
    download.verify(kept)
    monkeypatch.setattr(download, "_sha256", None)
    download.verify(kept)


@pytest.mark.parametrize("contents", ["{", "[]", '{"w.pt": 3}', "", "[" * 100_000, b"\xff\xfe"])
def test_a_damaged_record_is_set_aside_with_a_line(kept, server, contents, caplog):
    record = kept.with_name("sha256.json")
    record.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    download.verify(kept)
    [line] = [r.getMessage() for r in caplog.records]
    assert f"{record} is damaged: it was renamed to sha256.json.damaged" in line
    download.admit(published(), kept)
    assert json.loads(record.read_text()).keys() == {"w.pt"}


def test_a_file_that_came_by_another_way_is_checked_and_recorded(path):
    path.parent.mkdir()
    path.write_bytes(PAGE)
    with pytest.raises(UserError, match=r"w\.pt is a web page, not weights: delete it"):
        download.admit(published(), path)
    path.write_bytes(WEIGHTS)
    download.admit(published(), path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="has changed"):
        download.admit(published(), path)


def test_a_second_process_does_not_write_into_the_same_file(server, path):
    path.parent.mkdir()
    with FileLock(path.with_name(".w.pt.lock")), pytest.raises(UserError, match="being downloaded by another process"):
        download.fetch(published(server.url("/first.pt")), path)
    assert server.asked == []
    fetched(path, server.url("/first.pt"))


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "pretrained").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"w\.pt cannot be written"):
        download.fetch(published(server.url("/first.pt")), tmp_path / "pretrained" / "w.pt")


# ---- places -----------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_fetched_and_said_to_be(place, tmp_path, server, caplog):
    caplog.set_level(logging.INFO)
    path = download.weights_at(place)
    assert path == tmp_path / "pretrained" / "celeba_hq.ckpt"
    assert path.read_bytes() == WEIGHTS
    assert [r.getMessage() for r in caplog.records] == [f"fetching {path} from {server.url('/first.pt')}"]
    assert download.weights_at(place) == path
    assert len(server.asked) == 1
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="has changed"):
        download.weights_at(place)


def test_a_file_that_the_environment_names_is_not_fetched(place, server, tmp_path, monkeypatch):
    monkeypatch.setenv("ASYRP_MODEL_CELEBA_HQ", "elsewhere.ckpt")
    assert download.weights_at(place) == tmp_path / "elsewhere.ckpt"
    assert server.asked == []
