"""Download models from the Hugging Face hub.

huggingface_hub does the work, so its cache and HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE apply as usual.
"""

import re
from pathlib import Path

import requests

from utils.errors import UserError
from utils.files import sha256_of
from utils.text import one_line

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/model
CACHED = re.compile(r"(?:.*/)?models--(.+)--(.+)/snapshots/[^/]+/.+")  # path of a file in the cache; names never contain "--"
SHA256 = re.compile("[0-9a-f]{64}")
LONGEST = 200  # most characters of a library error in a message
TIMEOUT = 10  # seconds to connect


def fetch(name, files, revision=None, force=False):
    """Download files of a model (owner/model) -> folder (Path) with those that exist.

    revision: a commit, the name of the folder that an earlier call returned; the newest by default. force: download cached
    files again. Raises UserError if neither the hub nor the cache has the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, XetDownloadError

    try:
        alone = not _answers()
        found = snapshot_download(
            name, revision=revision, allow_patterns=files, local_files_only=alone, force_download=force and not alone
        )
        return Path(found)
    except RepositoryNotFoundError as error:
        why = "no such model: check the name, or set HF_TOKEN to a token with access"
        raise UserError(f"{name} is not available from the Hugging Face hub: {why}") from error
    except LocalEntryNotFoundError as error:
        why = "no connection, and the model is not cached: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise UserError(f"{name} is not available from the Hugging Face hub: {why}") from error
    except (HTTPError, XetDownloadError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is not available from the Hugging Face hub: {one_line(error)[:LONGEST]}") from error


def file(name, path):
    """Download one file of a model (owner/model) -> its path in the cache. Raises UserError as `fetch`, and if the model has no
    such file.

    Large files in the cache are named by their SHA-256; a damaged one is downloaded again.
    """
    found = fetch(name, [path]) / path
    if not found.is_file():
        raise UserError(f"{name} on the Hugging Face hub has no file {path}: check the name")
    if _is_damaged(found):
        found = fetch(name, [path], force=True) / path
        if _is_damaged(found):
            raise UserError(f"{found} is damaged: delete it and start again with access to the Hugging Face hub")
    return found


def model_of(path):
    """The model (owner/model) that a path in the cache belongs to; None for any other path."""
    found = CACHED.fullmatch(path.as_posix())
    return found and f"{found[1]}/{found[2]}"


def _is_damaged(path):
    known = path.readlink().name if path.is_symlink() else ""
    if not SHA256.fullmatch(known):
        return False
    return sha256_of(path) != known


def _answers():
    """Whether to contact the hub. Without this check the library would wait for minutes on a network that drops packets; it
    reports other errors itself."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=TIMEOUT)
    except requests.Timeout:
        return False
    except requests.RequestException:
        pass
    return True
