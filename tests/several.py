"""Several processes of one job, made by forking this one, with what torchrun tells them: its own start takes seconds."""

import faulthandler
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

import torch.distributed as dist

FOREVER = 60  # seconds; a job of the tests takes a few
FORK = multiprocessing.get_context("fork")


class Job:
    """work(rank) in each of `world` processes. The exit status of one is what it returns (None is 0), and what it writes to its
    terminal is in a file of `folder`. joined: whether they can meet."""

    def __init__(self, world, work, folder, joined=True):
        Path(folder).mkdir(exist_ok=True)
        self.terminals = [Path(folder, f"{rank}.txt").absolute() for rank in range(world)]
        self.agent, meeting = None, {}
        if joined:
            # As with torchrun, the store is kept by a process that outlives the others.
            here, there = FORK.Pipe(duplex=False)
            self.agent = FORK.Process(target=keep_store, args=(there,), daemon=True)
            self.agent.start()
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(here.recv()), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.processes = [
            FORK.Process(target=run, args=(rank, world, work, meeting, terminal), daemon=True)
            for rank, terminal in enumerate(self.terminals)
        ]
        for process in self.processes:
            process.start()

    def finish(self):
        """-> exit statuses."""
        end = time.monotonic() + FOREVER
        for process in self.processes:
            process.join(end - time.monotonic())
        late = [process for process in self.processes if process.is_alive()]
        for process in [*late, *([self.agent] if self.agent else [])]:
            process.kill()
            process.join()
        assert not late, f"they do not end:\n{self.text()}"
        return [process.exitcode for process in self.processes]

    def text(self):
        return "\n".join(terminal.read_text() for terminal in self.terminals)

    def lines(self):
        """What each process wrote, without progress bars."""
        texts = [terminal.read_text().replace("\r", "\n") for terminal in self.terminals]
        return [[line for line in text.splitlines() if line.strip() and "%|" not in line] for text in texts]


def keep_store(pipe):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    time.sleep(3 * FOREVER)


def run(rank, world, work, meeting, terminal):
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), **meeting})
    sys.stdout = sys.stderr = terminal.open("w", buffering=1)
    faulthandler.dump_traceback_later(FOREVER / 2, file=sys.stderr)  # where it waits, if it does not end
    try:
        status = work(rank) or 0
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stderr.flush()
    os._exit(status)


def together(world, work, ends=None, **more):
    """work(rank) in so many processes, which end with these exit statuses (0) -> the lines that each of them wrote."""
    job = Job(world, work, **more)
    found = job.finish()
    assert found == (ends or [0] * world), f"{found}\n{job.text()}"
    return job.lines()
