"""python victim.py WORLD WHERE N FLAG...: main.py on a tiny world, killed without notice at its N-th call of a function.

WHERE: "invert", "generate" or "train_batch", killed before the call; "save" (a checkpoint) or "save_file" (a file of the
store), killed when half of the file is written; "nowhere". Of several processes, the one that VICTIM_RANK names is killed.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from tiny_world import Distance, call, world_at

import asyrp.runner
from asyrp import process, training
from utils import tensors

HOME = {"invert": process, "generate": process, "train_batch": training, "save": torch, "save_file": tensors}


def deadly(function, n, halve):
    """`function`, but the n-th call kills the process; with `halve`, after half of the file in its second argument."""
    calls = []

    def wrapped(*args, **more):
        calls.append(args)
        if len(calls) < n:
            return function(*args, **more)
        if halve:
            function(*args, **more)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return wrapped


if __name__ == "__main__":
    world, where, n, *flags = sys.argv[1:]
    if where != "nowhere" and os.environ.get("RANK") == os.environ.get("VICTIM_RANK"):
        home = HOME[where]
        setattr(home, where, deadly(getattr(home, where), int(n), halve=where.startswith("save")))
    asyrp.runner.load_lpips = Distance
    sys.exit(call(world_at(Path(world)), *flags))
