"""Which state of the repository a program is."""

import os
import subprocess
from functools import cache

from utils.files import ROOT


@cache
def commit(root=ROOT):
    """The commit that the repository at `root` is at, with "(modified)" where files differ from it -> str; None without git."""
    if not (root / ".git").exists():  # git would look for a repository further up
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= (modified)"]
    # No locks: a read takes nothing from whoever works in the repository meanwhile.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
