"""Fetching weights, from a server on this machine."""

import hashlib
import json
import logging
import os

import gdown
import pytest
import requests
from filelock import FileLock
from local_server import PAGE, WEIGHTS, begun, published
from tqdm import tqdm

from utils import download
from utils.errors import UserError
from utils.weights import GOOGLE_DRIVE


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
    assert f"get original.pt by way of https://example.org/model and save it as {path}" in message
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
    assert "the same command goes on from there" in message
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
    assert "gave a piece of the file in place of the whole" in refused(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1000-"), ("/first.pt", None)]
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))


def test_a_source_that_drips_is_left_and_its_part_kept(server, path, monkeypatch):
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    message = refused(path, server.url("/first.pt"))
    assert "sends less than 5 KiB a second" in message and "the same command goes on from there" in message
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
    assert f"{host} answers 403; {host} answers 404" in message


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


def test_only_a_browser(path):
    assert f"{path} is missing and only a browser can fetch it: get original.pt" in refused(path)


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
    assert "the same command goes on from there" in refused(path, server.url("/first.pt"))
    server.breaks.clear()
    server.asked.clear()
    fetched(path, server.url("/first.pt"))
    assert ("/first.pt", "bytes=1048576-") in server.asked  # gdown writes in pieces of half a MiB


def test_google_drive_drips(server, path, monkeypatch):
    """The package itself."""
    monkeypatch.setattr(download, "GOOGLE_DRIVE", server.url("/"))
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    assert "sends less than 5 KiB a second" in refused(path, server.url("/first.pt"))


# ---- what was fetched stays what it was --------------------------------------------------------------------------------------


@pytest.fixture
def kept(server, path):
    """A file that was fetched."""
    fetched(path, server.url("/first.pt"))
    return path


def test_a_changed_file_is_reported(kept):
    kept.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(UserError, match=r"w\.pt has changed since it was fetched.*delete it to fetch it again"):
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
    assert f"{record} is damaged: it is renamed to sha256.json.damaged" in line
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
    with FileLock(path.with_name(".w.pt.lock")), pytest.raises(UserError, match="being fetched by another process"):
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
