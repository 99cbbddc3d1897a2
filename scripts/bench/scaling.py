"""bench.py --ranks: the throughput of several processes with one thread each, relative to one of them.

First one process works while the others wait, then all work, each on the same number of images. Each turn is compared with that
of the same round. Wall time is measured until the last process is done.
"""

import copy
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from functools import cache

import torch
from bench_report import command_line, machine, table, without_folders
from tqdm import tqdm

from asyrp.ranks import ALONE
from utils.devices import to_device

WANTED = {"invert": 0.9, "edit": 0.9, "first epoch": 0.85, "further epoch": 0.85}  # as a fraction of the number of processes


def launch(ranks, script, flags):
    """Run the script with these flags under torchrun -> its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), script, *flags]
    return subprocess.run(command, check=False).returncode


def work_of(contestant, number):
    """Yield (mode, function) for one turn. Later modes use the results of earlier ones."""
    world, made = contestant.world, {}
    indices = [(number * contestant.batch + i) % len(world.images) for i in range(contestant.batch)]
    x_0 = to_device(world.images[indices], world.device)
    yield "invert", lambda: made.update(x_T=contestant.invert(x_0))
    yield "edit", lambda: contestant.edit(made["x_T"])
    block = copy.deepcopy(world.new_block).to(world.device).requires_grad_()
    optimizer = torch.optim.SGD(block.parameters(), lr=1e-4)
    epoch = cache(lambda: contestant.training(block, optimizer, indices, x_0, made["x_T"]))
    for mode in ("first epoch", "further epoch"):
        yield mode, lambda: epoch()()


def turn(contestant, number, ranks, together):
    """{mode: seconds} for a turn of all processes, or of the first one while the others wait."""
    contestant.ranks, seconds = ranks if together else ALONE, {}
    for mode, work in work_of(contestant, number):
        ranks.wait()
        start = time.perf_counter()
        if together or ranks.leads:
            work()
            if contestant.world.device.type == "cuda":
                torch.cuda.synchronize()
        ranks.wait()
        seconds[mode] = time.perf_counter() - start
    return seconds


def run(contestant, ranks):
    """Run all turns -> the section of the report."""
    args, alone, together = contestant.world.args, defaultdict(list), defaultdict(list)
    for number in tqdm(range(args.warmup + args.rounds), desc="taking turns", unit="round"):
        for found, all_of_them in ((alone, False), (together, True)):
            for mode, seconds in turn(contestant, number, ranks, all_of_them).items():
                if number >= args.warmup:
                    found[mode].append(seconds)
    return report(contestant, ranks.world, alone, together)


def report(contestant, n, alone, together):
    world = contestant.world
    args, where, rates, rows = world.args, machine(world.device), world.device.type == "cuda", []
    for mode, times in alone.items():
        ratio = statistics.median(n * one / several for one, several in zip(times, together[mode], strict=True))
        images = [contestant.batch / statistics.median(times), n * contestant.batch / statistics.median(together[mode])]
        row = [mode, *(f"{rate:.3g}" for rate in images if rates)]
        rows.append([*row, f"**{ratio:.2f}x**", f"{WANTED[mode] * n:.3g}x"])
    head = ["mode", *(["images per second, one process", f"{n} processes"] if rates else []), "ratio", "wanted"]
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    parts = [
        f"## {without_folders(args.config)} on {where}, {n} processes",
        f"`{command_line()}`",
        f"{where}; {versions}. {args.rounds} rounds; {args.steps} steps, {len(world.edit_steps)} of them edited. "
        f"Each process has one thread and a batch of {contestant.batch}; training averages gradients at every step. "
        "The ratio is images per second of all processes to those of one.",
        table(head, rows),
    ]
    return "\n\n".join(parts)
