"""Several processes in one job: how they share images and combine results. A single process passes everything through.

    torchrun --standalone --nproc_per_node 8 main.py ...    joined: torch.distributed, nccl on GPUs, gloo on CPUs
    RANK=3 WORLD_SIZE=8 python main.py ...                  apart: each does its share and exits; --collect combines them

torch is imported only when it is needed, because --help uses this module.
"""

import logging
import os
from contextlib import contextmanager
from datetime import timedelta
from functools import partialmethod
from itertools import zip_longest

from utils.errors import Ended, UserError

PATIENCE = timedelta(days=7)  # timeout for slow processes; asyrp/watch.py detects dead ones


class Ranks:
    """This process among `world` processes: `rank`, from 0. joined: whether they can communicate."""

    def __init__(self, rank=0, world=1):
        self.rank, self.world = rank, world
        self.joined, self.watch = False, None

    @property
    def leads(self):
        """Whether this is the process that writes shared files and logs."""
        return self.rank == 0

    @property
    def joint(self):
        """Ranks for work that can be shared only if the processes communicate; otherwise each process does all of it."""
        return self if self.joined else ALONE

    def must_meet(self, what):
        """Raise UserError if work that needs communication was started in separate processes."""
        if self.world > 1 and not self.joined:
            raise UserError(f"{what} needs processes that communicate: start it with torchrun (docs/scaling.md)")

    def share(self, items):
        """This process's share of a sequence, or of the rows of a tensor."""
        return items[self.rank :: self.world]

    def batches(self, items, size):
        """This process's share of the batches of a list."""
        return self.share([items[i : i + size] for i in range(0, len(items), size)])

    def gather(self, entries):
        """One entry per item of this process's share -> the entries of all items, in order, on every process."""
        if not self.joined:
            return entries
        import torch.distributed as dist

        found, nothing = [None] * self.world, object()
        dist.all_gather_object(found, entries)
        return [entry for some in zip_longest(*found, fillvalue=nothing) for entry in some if entry is not nothing]

    def from_first(self, function):
        """Call a function without arguments in the first process -> its result, on every process."""
        return self.gather([function() if self.leads else None])[0]

    def average(self, tensors, weight):
        """Replace tensors in place by their weighted sums over the processes. The weights of all processes must sum to 1."""
        if not self.joined:
            return
        import torch.distributed as dist
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        vector = parameters_to_vector(tensors) * weight
        dist.all_reduce(vector)
        vector_to_parameters(vector, tensors)

    def wait(self):
        """Block until all processes have reached this point."""
        self.gather([])

    @contextmanager
    def first(self):
        """Run a block in the first process before the others, which then reuse what it downloaded and computed. The block must
        not contain work that is shared between processes."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    # ---- joining ------------------------------------------------------------------------------------------------------------

    def join(self, device=None, slurm_array=False):
        """Connect to the other processes, if there is an address. device: from the flag; without one, each process of a machine
        takes its own GPU. slurm_array: take rank and world size from a task of a Slurm array instead."""
        if slurm_array:
            if self.world > 1:
                raise UserError("--slurm_array conflicts with RANK and WORLD_SIZE: leave the flag out, or unset them")
            self.rank, self.world = task_of_slurm_array()
        elif self.world > 1 and can_meet():
            import torch
            import torch.distributed as dist

            from asyrp.watch import Watch

            cuda = torch.cuda.is_available() and device != "cpu"
            store, *_ = next(dist.rendezvous("env://"))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            group = {"store": dist.PrefixStore("group", store), "rank": self.rank, "world_size": self.world}
            self.watch = Watch(dist.PrefixStore("watch", store), self.rank, self.world)
            dist.init_process_group(backend, timeout=PATIENCE, **group)
            self.watch.start()
            self.joined = True
            if not self.leads:
                be_quiet()
            if cuda:
                take_own_gpu(device)

    def leave(self):
        """Wait for the other processes and end the job."""
        if self.joined:
            import torch.distributed as dist

            self.wait()
            self.watch.over.set()  # stop checking heartbeats
            self.wait()
            dist.destroy_process_group()
            self.joined = False


ALONE = Ranks()


@contextmanager
def together():
    """The processes of this job, from the environment -> Ranks, to be joined by the caller. Only one of them reports an error.
    Raises UserError for an invalid environment."""
    rank, world = number_of("RANK", 0), number_of("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world}: ranks are numbered from 0: set both, or neither")
    ranks = Ranks(rank, world)
    try:
        yield ranks
        ranks.leave()
    except BaseException as error:
        if ranks.watch is not None and (last_word := ranks.watch.last_word(error)) is not error:
            raise last_word from error
        if ranks.watch is None and rank and can_meet() and isinstance(error, UserError):
            raise Ended(2) from error  # the first process has the same error and reports it
        raise


def number_of(name, default):
    try:
        return int(os.environ.get(name) or default)
    except ValueError as error:
        raise UserError(f"{name}={os.environ[name]} in the environment is not a number: unset it") from error


def can_meet():
    """Whether torchrun, or the user, has set the address where the processes meet."""
    return "MASTER_ADDR" in os.environ


def task_of_slurm_array():
    """(rank, world) of a task of `sbatch --array 0-<last>`. Raises UserError outside such a task."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    task, low, high, count = (number_of(name, -1) for name in names)
    if count < 1 or not low <= task <= high or high - low != count - 1:
        raise UserError(
            "--slurm_array: not a task of a Slurm array without gaps: start it with, for example, sbatch --array 0-7"
        )
    return task - low, count


def take_own_gpu(device):
    """Make this process's GPU, of those visible to it, the current one."""
    import torch

    n, local = torch.cuda.device_count(), number_of("LOCAL_RANK", 0)
    if device not in (None, "cuda"):
        raise UserError(f"--device {device} would be used by all processes: leave it out, so that each takes its own GPU")
    if n > 1 and local >= n:
        raise UserError(f"process {local + 1} of this machine has no GPU, there are only {n}: use --nproc_per_node {n}")
    torch.cuda.set_device(local % n)


def be_quiet():
    """Silence logs and progress bars of this process: the first process shows them for all."""
    from tqdm import tqdm

    logging.disable(logging.CRITICAL)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
