"""Several processes at one job: which images each has, and what they put together. Without others, all of it passes through.

    torchrun --standalone --nproc_per_node 8 main.py ...    joined: torch.distributed, nccl on GPUs, gloo on CPUs
    RANK=3 WORLD_SIZE=8 python main.py ...                  apart: each does its share and ends; --collect puts them together

Nothing here imports torch before it is needed: --help needs none.
"""

import logging
import os
from contextlib import contextmanager
from datetime import timedelta
from functools import partialmethod
from itertools import zip_longest

from utils.errors import Ended, UserError

PATIENCE = timedelta(days=7)  # for slow processes; dead ones are the business of asyrp/watch.py


class Ranks:
    """This process among `world` of them: `rank`, from 0. joined: whether they can talk to each other."""

    def __init__(self, rank=0, world=1):
        self.rank, self.world = rank, world
        self.joined, self.watch = False, None

    @property
    def leads(self):
        """Whether this is the process that writes and tells what one has to write and tell."""
        return self.rank == 0

    @property
    def joint(self):
        """For work that a process has to do whole where the others cannot give their shares of it."""
        return self if self.joined else ALONE

    def must_meet(self, what):
        """Raise UserError where work that is no sum of separate shares was started in processes that cannot talk."""
        if self.world > 1 and not self.joined:
            raise UserError(f"{what} needs processes that can talk to each other: start it with torchrun (docs/scaling.md)")

    def share(self, items):
        """This process's part of a sequence, or of a tensor's rows."""
        return items[self.rank :: self.world]

    def batches(self, items, size):
        """This process's share of the batches of a list."""
        return self.share([items[i : i + size] for i in range(0, len(items), size)])

    def gather(self, entries):
        """One entry for each item of the own share -> those of all items, in their order, on every process."""
        if not self.joined:
            return entries
        import torch.distributed as dist

        found, nothing = [None] * self.world, object()
        dist.all_gather_object(found, entries)
        return [entry for some in zip_longest(*found, fillvalue=nothing) for entry in some if entry is not nothing]

    def from_first(self, function):
        """What a function without arguments returns in the first process, on every process."""
        return self.gather([function() if self.leads else None])[0]

    def average(self, tensors, weight):
        """Replace tensors by their weighted sums over the processes, whose weights add up to 1."""
        if not self.joined:
            return
        import torch.distributed as dist
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        vector = parameters_to_vector(tensors) * weight
        dist.all_reduce(vector)
        vector_to_parameters(vector, tensors)

    def wait(self):
        """Until all are here."""
        self.gather([])

    @contextmanager
    def first(self):
        """What the first process does before the others: in its caches they find what it has fetched and computed. Nothing that
        is shared out may stand inside."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    # ---- together -----------------------------------------------------------------------------------------------------------

    def join(self, device=None, slurm_array=False):
        """Meet the others, where they can be met. device: of the flag; without one, each process of a machine takes a GPU of
        its own. slurm_array: be the share of a task of a Slurm array instead."""
        if slurm_array:
            if self.world > 1:
                raise UserError("--slurm_array: RANK and WORLD_SIZE are set as well; leave the flag out, or unset them")
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
        """End the job when all have done their work."""
        if self.joined:
            import torch.distributed as dist

            self.wait()
            self.watch.over.set()  # nobody looks for signs of life any more
            self.wait()
            dist.destroy_process_group()
            self.joined = False


ALONE = Ranks()


@contextmanager
def together():
    """The processes of this job, as the environment says -> Ranks, to be joined by the caller. An error is told by one of them
    only. Raises UserError for an environment that cannot be."""
    rank, world = number_of("RANK", 0), number_of("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world}: ranks are numbered from 0; set both, or neither")
    ranks = Ranks(rank, world)
    try:
        yield ranks
        ranks.leave()
    except BaseException as error:
        if ranks.watch is not None and (last_word := ranks.watch.last_word(error)) is not error:
            raise last_word from error
        if ranks.watch is None and rank and can_meet() and isinstance(error, UserError):
            raise Ended(2) from error  # the first one sees the same, and tells it
        raise


def number_of(name, default):
    try:
        return int(os.environ.get(name) or default)
    except ValueError as error:
        raise UserError(f"{name}={os.environ[name]} in the environment is no number: unset it") from error


def can_meet():
    """Whether torchrun, or somebody in its place, says where the processes meet."""
    return "MASTER_ADDR" in os.environ


def task_of_slurm_array():
    """-> (rank, world) of a task in `sbatch --array 0-<last>`. Raises UserError."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    task, low, high, count = (number_of(name, -1) for name in names)
    if count < 1 or not low <= task <= high or high - low != count - 1:
        raise UserError("--slurm_array: this is no task of a Slurm array without gaps; start it with sbatch --array 0-7, say")
    return task - low, count


def take_own_gpu(device):
    """Make the GPU of this process the current one, of those that it sees."""
    import torch

    n, local = torch.cuda.device_count(), number_of("LOCAL_RANK", 0)
    if device not in (None, "cuda"):
        raise UserError(f"--device {device} would be the same for all processes: leave it out, and each takes its own GPU")
    if n > 1 and local >= n:
        raise UserError(f"process {local + 1} of this machine has no GPU of its own, there are {n}: give --nproc_per_node {n}")
    torch.cuda.set_device(local % n)


def be_quiet():
    """The first process tells what all see; the bars of one show how far all are."""
    from tqdm import tqdm

    logging.disable(logging.CRITICAL)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
