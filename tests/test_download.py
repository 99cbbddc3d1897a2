"""Downloading weights, from a server on this machine."""

import hashlib
import json

import gdown
import pytest
import requests
from local_server import PAGE, WEIGHTS, begun, fetched, refused
from tqdm import tqdm

from utils import download
from utils.weights import GOOGLE_DRIVE

# ---- one source -------------------------------------------------------------------------------------------------------------


def test_download_with_record_and_progress_bar(server, path, monkeypatch):
    bars = []
    monkeypatch.setattr(download, "tqdm", lambda **settings: bars.append(tqdm(**settings)) or bars[0])
    fetched(path, server.url("/first.pt"))
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [("w.pt", len(WEIGHTS), len(WEIGHTS))]
    assert json.loads((path.parent / "sha256.json").read_text())["w.pt"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert server.asked == [("/first.pt", None)]


def test_broken_download_is_retried_while_it_progresses(server, path):
    server.breaks["/first.pt"] = 1_300_000
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", None), ("/first.pt", "bytes=1300000-"), ("/first.pt", "bytes=2600000-")]


def test_resume_download_in_next_call(server, path, monkeypatch):
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


def test_body_shorter_than_content_length_is_incomplete(server, path, monkeypatch):
    bodies = [[WEIGHTS[:1000]], []]
    monkeypatch.setattr(download, "_pieces", lambda response: bodies.pop(0))
    assert "the connection to 127.0.0.1" in refused(path, server.url("/first.pt"))
    assert download.parts(path)[0].read_bytes() == WEIGHTS[:1000]


def test_short_body_of_unknown_length_is_retried(server, path):
    server.no_length.add("/first.pt")
    server.breaks["/first.pt"] = 1_300_000
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", None), ("/first.pt", "bytes=1300000-"), ("/first.pt", "bytes=2600000-")]


def test_whole_body_of_unknown_length(server, path):
    server.no_length.add("/first.pt")
    fetched(path, server.url("/first.pt"))


def test_response_with_wrong_range_is_not_appended(server, path):
    """A range that does not fit is never appended; one that was not requested is refused."""
    begun(path, server.url("/first.pt"), WEIGHTS[:1000])
    server.shifts["/first.pt"] = 500
    assert "sent only a part of the file" in refused(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1000-"), ("/first.pt", None)]
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))


def test_slow_source_is_abandoned_and_its_part_kept(server, path, monkeypatch):
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    message = refused(path, server.url("/first.pt"))
    assert "sends less than 5 KiB per second" in message and "run the same command to resume" in message
    [part] = download.parts(path)
    assert WEIGHTS.startswith(part.read_bytes()) and part.stat().st_size > 0
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))


def test_server_that_ignores_ranges_starts_over(server, path):
    begun(path, server.url("/first.pt"), b"x" * 1000)
    server.ignores_range = True
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=1000-")]


def test_part_that_was_complete(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS)
    fetched(path, server.url("/first.pt"))


def test_part_longer_than_the_file_is_restarted(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS + b"more")
    fetched(path, server.url("/first.pt"))
    assert server.asked == [("/first.pt", "bytes=3000004-"), ("/first.pt", None)]


def test_part_is_not_completed_from_another_source(server, path):
    begun(path, server.url("/first.pt"), b"x" * 1000)
    server.answers["/first.pt"] = 403
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert server.asked[-1] == ("/second.pt", None)


# ---- sources in order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 500])
def test_next_source_after_http_error(server, path, status):
    server.answers["/first.pt"] = status
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert [asked for asked, _ in server.asked] == ["/first.pt", "/second.pt"]


def test_next_source_after_connection_error(server, path, closed):
    fetched(path, closed, server.url("/second.pt"))


def test_later_sources_are_not_contacted(server, path):
    fetched(path, server.url("/first.pt"), server.url("/second.pt"))
    assert [asked for asked, _ in server.asked] == ["/first.pt"]


def test_all_failed_sources_are_named(server, path):
    server.answers = {"/first.pt": 403, "/second.pt": 404}
    message = refused(path, server.url("/first.pt"), server.url("/second.pt"))
    host = f"127.0.0.1:{server.server_port}"
    assert f"{host} returned 403; {host} returned 404" in message


def test_no_network(path, closed):
    assert "the connection to 127.0.0.1" in refused(path, closed)
    assert list(path.parent.iterdir()) == []


def test_network_that_drops_packets_times_out_once(path, monkeypatch):
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
def test_web_page_is_not_a_weight_file(server, path, kind):
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
def test_response_without_a_file_is_refused_and_not_recorded(server, path, body, length_told, said):
    server.files["/wrong"] = body
    server.no_length |= set() if length_told else {"/wrong"}
    assert said in refused(path, server.url("/wrong"))
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/wrong"), server.url("/second.pt"))


def test_file_too_small_for_its_parameters_is_refused(server, path):
    server.files["/half"] = WEIGHTS[:1_500_000]
    assert "is 1,500,000 bytes long, too short for 750,000 parameters" in refused(path, server.url("/half"))
    assert list(path.parent.iterdir()) == []


def test_web_page_keeps_the_partial_download(server, path):
    begun(path, server.url("/first.pt"), WEIGHTS[:1000])
    server.kinds["/first.pt"] = "text/html"
    refused(path, server.url("/first.pt"))
    assert download._part(path, server.url("/first.pt")).read_bytes() == WEIGHTS[:1000]


def test_known_sha256_is_checked(server, path):
    server.files["/first.pt"] = WEIGHTS[:-1] + b"x"
    known = {"sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert "is not the published file: its SHA-256 is" in refused(path, server.url("/first.pt"), **known)
    assert list(path.parent.iterdir()) == []
    fetched(path, server.url("/first.pt"), server.url("/second.pt"), **known)


def test_known_size_is_checked(server, path):
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
        (PAGE, "the file from drive.google.com is a web page"),
        (gdown.exceptions.FileURLRetrievalError("Too many\nusers"), "drive.google.com: Too many users"),
        (requests.ConnectionError("long text"), "the connection to drive.google.com failed"),
    ],
)
def test_google_drive_refuses(server, path, drive, given, said):
    drive[0](given)
    assert said in refused(path, GOOGLE_DRIVE + "abc")
    fetched(path, GOOGLE_DRIVE + "abc", server.url("/second.pt"))


def test_gdown_call_and_resume(server, path, monkeypatch):
    """The package itself, with this server in place of Google's."""
    monkeypatch.setattr(download, "GOOGLE_DRIVE", server.url("/"))
    server.breaks["/first.pt"] = 1_300_000
    assert "run the same command to resume" in refused(path, server.url("/first.pt"))
    server.breaks.clear()
    server.asked.clear()
    fetched(path, server.url("/first.pt"))
    assert ("/first.pt", "bytes=1048576-") in server.asked  # gdown writes in pieces of half a MiB


def test_slow_google_drive(server, path, monkeypatch):
    """The package itself."""
    monkeypatch.setattr(download, "GOOGLE_DRIVE", server.url("/"))
    monkeypatch.setattr(download, "PACE", (1000, 0.2))
    server.drips.add("/first.pt")
    assert "sends less than 5 KiB per second" in refused(path, server.url("/first.pt"))
