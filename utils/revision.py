"""The commit of the repository."""

import os
import subprocess
from functools import cache

from utils.files import ROOT


@cache
def commit(root=ROOT):
    """The commit of the repository at `root`, with " (modified)" if files differ from it -> str; None without git."""
    if not (root / ".git").exists():  # git would search the parent folders
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= (modified)"]
    # No locks, which could disturb other git commands in the repository.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
