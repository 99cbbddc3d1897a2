"""Models on the Hugging Face hub, by their names.

The library huggingface_hub fetches them: into its cache, from HF_ENDPOINT where that is set, with HF_TOKEN, and from the cache
alone with HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

import requests

from utils.errors import UserError
from utils.files import sha256_of
from utils.text import one_line

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/model
CACHED = re.compile(r"(?:.*/)?models--(.+)--(.+)/snapshots/[^/]+/.+")  # as the library's cache calls a file; no name has a "--"
SHA256 = re.compile("[0-9a-f]{64}")
LONGEST = 200  # characters of the library's own words that a message repeats
TIMEOUT = 10  # seconds to connect


def fetch(name, files, revision=None, anew=False):
    """The files of a model (owner/model) that have these names -> folder (Path) with those that it has.

    revision: a commit, which is what the folder of an earlier call is called; by default the newest. anew: fetch also what the
    cache has. Raises UserError when neither the hub nor its cache gives any.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, XetDownloadError

    try:
        alone = not _answers()
        found = snapshot_download(
            name, revision=revision, allow_patterns=files, local_files_only=alone, force_download=anew and not alone
        )
        return Path(found)
    except RepositoryNotFoundError as error:
        why = "it shows no model of this name: check the name, or set HF_TOKEN to a token that may read it"
        raise UserError(f"{name} cannot be had from the Hugging Face hub; {why}") from error
    except LocalEntryNotFoundError as error:
        why = "it cannot be reached, and its cache here lacks the model: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise UserError(f"{name} cannot be had from the Hugging Face hub; {why}") from error
    except (HTTPError, XetDownloadError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be had from the Hugging Face hub: {one_line(error)[:LONGEST]}") from error


def file(name, path):
    """One file of a model (owner/model) -> where it lies in the library's cache. Raises UserError as `fetch`, and where the
    model has no such file.

    The cache calls a large file by its SHA-256: one that is damaged there is fetched anew.
    """
    found = fetch(name, [path]) / path
    if not found.is_file():
        raise UserError(f"{name} on the Hugging Face hub has no file {path}: check the name")
    if _is_damaged(found):
        found = fetch(name, [path], anew=True) / path
        if _is_damaged(found):
            raise UserError(f"{found} is damaged: delete it, and start again where the Hugging Face hub can be reached")
    return found


def model_of(path):
    """The name (owner/model) of the model whose file lies at `path` in the library's cache; None for any other place."""
    found = CACHED.fullmatch(path.as_posix())
    return found and f"{found[1]}/{found[2]}"


def _is_damaged(path):
    known = path.readlink().name if path.is_symlink() else ""
    if not SHA256.fullmatch(known):
        return False
    return sha256_of(path) != known


def _answers():
    """Whether the hub may be asked. Where packets vanish the library waits for minutes; it tells any other fault itself."""
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
