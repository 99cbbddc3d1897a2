"""Several processes of one job, made by forking this one, with what torchrun tells them: its own start takes seconds."""

import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

FOREVER = 100  # seconds; a job of the tests takes a few


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(world, work, folder, joined=True):
    """work(rank) in each of `world` processes -> the processes. Its exit status is what it returns (None is 0); what it writes
    to the terminal is in <folder>/terminal_<rank>.txt. joined: whether they can meet."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if joined else {}
    folder.mkdir(exist_ok=True)

    def child(rank):
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), **meeting})
        sys.stdout = sys.stderr = (folder / f"terminal_{rank}.txt").open("w", buffering=1)
        try:
            status = work(rank) or 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 99
        sys.stderr.flush()
        os._exit(status)

    processes = [multiprocessing.get_context("fork").Process(target=child, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def finish(processes):
    """-> exit statuses."""
    for process in processes:
        process.join(FOREVER)
        assert not process.is_alive(), "it does not end"
    return [process.exitcode for process in processes]


def run(world, work, folder=Path("terminals"), joined=True):
    """-> exit statuses of work(rank) in so many processes, what they wrote: list of lists of lines."""
    statuses = finish(start(world, work, folder, joined))
    return statuses, [said(folder, rank) for rank in range(world)]


def said(folder, rank):
    return (folder / f"terminal_{rank}.txt").read_text().replace("\r", "\n").splitlines()
