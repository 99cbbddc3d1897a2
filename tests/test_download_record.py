"""The record of downloaded files, and the paths of weights."""

import json
import logging
import os

import pytest
from filelock import FileLock
from local_server import PAGE, WEIGHTS, fetched, published

from utils import download
from utils.errors import UserError


@pytest.fixture
def kept(server, path):
    """A file that was fetched."""
    fetched(path, server.url("/first.pt"))
    return path


def test_changed_file_is_reported(kept):
    kept.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(UserError, match=r"w\.pt has changed since it was downloaded.*delete it to download it again"):
        download.verify(kept)


def test_untouched_file_is_not_read_again(kept, monkeypatch):
    monkeypatch.setattr(download, "sha256_of", None)
    download.verify(kept)
    download.verify(kept.with_name("of_ones_own.pt"))


def test_file_with_another_time_is_read_once(kept, monkeypatch):
    os.utime(kept, (1, 1))
    download.verify(kept)
    monkeypatch.setattr(download, "sha256_of", None)
    download.verify(kept)


@pytest.mark.parametrize("contents", ["{", "[]", '{"w.pt": 3}', "", "[" * 100_000, b"\xff\xfe"])
def test_damaged_record_is_renamed_with_a_warning(kept, server, contents, caplog):
    record = kept.with_name("sha256.json")
    record.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    download.verify(kept)
    [line] = [r.getMessage() for r in caplog.records]
    assert f"{record} is damaged: it was renamed to sha256.json.damaged" in line
    download.admit(published(), kept)
    assert json.loads(record.read_text()).keys() == {"w.pt"}


def test_manually_saved_file_is_verified_and_recorded(path):
    path.parent.mkdir()
    path.write_bytes(PAGE)
    with pytest.raises(UserError, match=r"w\.pt is a web page, not weights: delete it"):
        download.admit(published(), path)
    path.write_bytes(WEIGHTS)
    download.admit(published(), path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="has changed"):
        download.admit(published(), path)


def test_second_process_does_not_write_the_same_file(server, path):
    path.parent.mkdir()
    with FileLock(path.with_name(".w.pt.lock")), pytest.raises(UserError, match="being downloaded by another process"):
        download.fetch(published(server.url("/first.pt")), path)
    assert server.asked == []
    fetched(path, server.url("/first.pt"))


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "pretrained").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"w\.pt cannot be written"):
        download.fetch(published(server.url("/first.pt")), tmp_path / "pretrained" / "w.pt")


# ---- places -----------------------------------------------------------------------------------------------------------------


def test_missing_file_is_downloaded_and_logged(place, tmp_path, server, caplog):
    caplog.set_level(logging.INFO)
    path = download.weights_at(place)
    assert path == tmp_path / "pretrained" / "celeba_hq.ckpt"
    assert path.read_bytes() == WEIGHTS
    assert [r.getMessage() for r in caplog.records] == [f"downloading {path} from {server.url('/first.pt')}"]
    assert download.weights_at(place) == path
    assert len(server.asked) == 1
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="has changed"):
        download.weights_at(place)


def test_file_set_by_environment_is_not_downloaded(place, server, tmp_path, monkeypatch):
    monkeypatch.setenv("ASYRP_MODEL_CELEBA_HQ", "elsewhere.ckpt")
    assert download.weights_at(place) == tmp_path / "elsewhere.ckpt"
    assert server.asked == []
