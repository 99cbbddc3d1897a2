"""Models on the Hugging Face hub, by their names.

The library huggingface_hub fetches them: into its cache, from HF_ENDPOINT where that is set, with HF_TOKEN, and from the cache
alone with HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

from utils.errors import UserError
from utils.text import one_line

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/model
LONGEST = 200  # characters of the library's own words that a message repeats


def fetch(name, files, revision=None):
    """The files of a model (owner/model) that have these names -> folder (Path) with those that it has.

    revision: a commit, which is what the folder of an earlier call is called; by default the newest. Raises UserError when
    neither the hub nor its cache gives any.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except RepositoryNotFoundError as error:
        why = "it shows no model of this name: check the name, or set HF_TOKEN to a token that may read it"
        raise UserError(f"{name} cannot be had from the Hugging Face hub; {why}") from error
    except LocalEntryNotFoundError as error:
        why = "it cannot be reached, and its cache here lacks the model: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise UserError(f"{name} cannot be had from the Hugging Face hub; {why}") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be had from the Hugging Face hub: {one_line(error)[:LONGEST]}") from error
