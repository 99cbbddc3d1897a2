"""Benchmark inversion, editing and training against a plain implementation that saves no work
(scripts/bench/plain_schedule.py).

    python scripts/bench.py --config avatar.yml --images data/avatar/test --direction smiling --batch 1 8
    python scripts/bench.py --config celeba.yml --precision fp32 tf32 bf16 --compile off on --batch 1 8 32 \\
      --out docs/benchmarks.md   # on a GPU

Each combination of precision, compilation, memory layout and batch size is a contestant. They and the plain schedule take turns
in one process, and each turn is compared with that of the plain schedule in the same round, so that ratios are valid on a
shared machine. On a CPU, processor time of all threads is measured, and only ratios are reported; on a GPU, wall time, and
images per second are reported as well. Missing weights are replaced by random ones. The report is printed; with --out it is
also written to a section of that Markdown file, replacing an earlier section with the same heading.

    python scripts/bench.py --ranks 2

compares two processes with one thread each to one of them (see scripts/bench/scaling.py).
"""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS / "bench")]

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import copy
import os
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import open_clip
import plain_schedule
import scaling
import torch
import torch.nn.functional as F
from bench_report import report, write_section
from counting import Hollow, recomputes_without_data
from tqdm import tqdm

import asyrp
from asyrp import training
from asyrp.acceleration.fast_unet import LAYOUTS, autocast, keep_freed_memory, set_tf32
from asyrp.config import load_config
from asyrp.data.datasets import open_folder
from asyrp.data.pairs import Batch
from asyrp.hspace import Edit
from asyrp.model import load_unet, model_of
from asyrp.origin import PlainTrajectories
from asyrp.ranks import ALONE, together
from configs.paths_config import weight_file, weight_place
from losses.clip_loss import ClipLoss
from models import build_unet
from utils.arguments import whole
from utils.devices import find_device, to_device
from utils.errors import UserError

ENDLESS = 2**62  # bytes of memory for the plain trajectory


class Case(NamedTuple):
    """A contestant: precision, compiled ("on" or "off"), memory layout and convolutions, and batch size."""

    precision: str
    compiled: str
    layout: str
    batch: int


PLAIN = Case("fp32", "off", "contiguous", 1)


class Counted:
    """Wraps a U-Net and CLIP's image encoder and counts their passes, separately for those with a backward pass."""

    def __init__(self, unet, encode_images):
        self.unet, self.encode_images = unet, encode_images
        self.passes = Counter()

    def __getattr__(self, name):
        return getattr(self.unet, name)

    def encode(self, x, t):
        self.passes["encode"] += len(x)
        return self.unet.encode(x, t)

    def decode(self, h, skips, emb):
        self.passes["decode and back" if h.requires_grad else "decode"] += len(h)
        return self.unet.decode(h, skips, emb)

    def __call__(self, x, t):
        return self.decode(*self.encode(x, t))

    def clip(self, images):
        self.passes["clip and back" if images.requires_grad else "clip"] += len(images)
        return self.encode_images(images)


class World:
    """Shared by all contestants: a U-Net, images, steps, and delta blocks for editing and for training."""

    def __init__(self, args):
        self.args, self.config = args, load_config(args.config)
        self.device = find_device(args.device)
        keep_freed_memory(self.device)
        torch.manual_seed(args.seed)
        pipeline = self.config.pipeline
        path = Path(args.model_path or (pipeline.weights() if pipeline else weight_file(weight_place(self.config))))
        self.trained = path.is_file() or args.model_path is not None
        self.unet = load_unet(self.config, path) if self.trained else build_unet(self.config)
        model = model_of(self.config, copy.deepcopy(self.unet), "cpu")
        self.alpha_bars = [*model.schedule.alpha_bars.tolist(), 1.0]
        self.timesteps = model.timesteps(args.steps)
        self.edit_steps = training.edit_steps(self.timesteps, args.t_edit)
        self.new_block = training.new_function(model, seed=args.seed)
        self.direction = self.find_direction(model)
        self.clip = self.find_clip()
        # A random direction in CLIP space, since the result of the training does not matter.
        self.towards = F.normalize(torch.randn(1, self.clip.model.visual.output_dim), dim=-1).to(self.device)
        self.images = self.find_images(max(args.batch))

    def find_direction(self, model):
        """The delta block of --direction, found as in main.py; by default the random one to be trained."""
        name = self.args.direction
        if name is None:
            return self.new_block
        direction = asyrp.load_direction(name, model)
        if direction.kind != "delta_block":
            raise UserError(f"--direction {name} is a delta_h: give a delta block")
        return direction.function

    def find_clip(self):
        """The CLIP of the flag or the config if its weights are available, else one of the same size with random weights."""
        name = self.args.clip_model_name or self.config.clip_name()
        if Path(name).is_file():
            return ClipLoss(name, self.device)
        settings = open_clip.get_model_config(name.replace("/", "-"))
        if settings is None:
            raise UserError(f"--clip_model_name {name}: neither a file nor the name of an open_clip model")
        random = open_clip.CLIP(**settings), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return ClipLoss(random, self.device)

    def find_images(self, n):
        """The first images of --images, or smooth random ones (n, 3, H, W)."""
        size = self.config.data.image_size
        if self.args.images:
            dataset = open_folder(self.args.images, size)
            return torch.stack([dataset[i % len(dataset)] for i in range(n)])
        return torch.tanh(F.interpolate(torch.randn(n, 3, 4, 4), size=size, mode="bicubic"))

    def model(self, precision, compiled, layout):
        """The Model as the command line opens it; layout None: its default memory layout."""
        return model_of(self.config, copy.deepcopy(self.unet), self.device, precision, compiled, layout=layout)


class Contestant:
    """One implementation; `turn` inverts, edits and trains on the next images and records the cost.

    seconds: {mode: list over turns, per image}. passes: {mode: Counter, per image}. memory: {mode: peak bytes including the
    weights}, only on a GPU. pictures: {image: edited image}.
    """

    def __init__(self, world, case, counted):
        self.world, self.case, self.batch, self.counted = world, case, case.batch, counted
        self.seconds, self.passes, self.memory, self.pictures = defaultdict(list), {}, {}, {}

    def turn(self, number):
        set_tf32(self.case.precision, self.world.device)
        world, n = self.world, len(self.world.images)
        indices = [(number * self.batch + i) % n for i in range(self.batch)]
        x_0 = to_device(world.images[indices], world.device)
        with self.measured("invert"):
            x_T = self.invert(x_0)
        with self.measured("edit"):
            edited = self.edit(x_T)
        self.pictures.update(zip(indices, edited.cpu(), strict=True))
        if self.case.precision == "fp16":  # it cannot train
            return
        block = copy.deepcopy(world.new_block).to(world.device).requires_grad_()
        epoch = self.training(block, torch.optim.SGD(block.parameters(), lr=1e-4), indices, x_0, x_T)
        for mode in ("first epoch", "further epoch"):
            with self.measured(mode):
                epoch()

    @contextmanager
    def measured(self, mode):
        cuda = self.world.device.type == "cuda"
        self.counted.passes.clear()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            own = sum(p.nbytes for module in (self.counted.unet, self.world.clip) for p in module.parameters())
            others = torch.cuda.memory_allocated() - own
        clock = time.perf_counter if cuda else time.process_time
        start = clock()
        yield
        if cuda:
            torch.cuda.synchronize()
            self.memory[mode] = max(self.memory.get(mode, 0), torch.cuda.max_memory_allocated() - others)
        self.seconds[mode].append((clock() - start) / self.batch)
        self.passes[mode] = Counter({kind: count / self.batch for kind, count in self.counted.passes.items()})


class Plain(Contestant):
    """The plain schedule: float32, eager, contiguous, one image at a time."""

    def __init__(self, world):
        unet = copy.deepcopy(world.unet).to(world.device)
        super().__init__(world, PLAIN, Counted(unet, world.clip.encode_images))

    def invert(self, x_0):
        return plain_schedule.invert(self.counted, x_0, self.world.alpha_bars, self.world.timesteps)

    def edit(self, x_T):
        world = self.world
        block = world.direction.block.to(world.device)
        return plain_schedule.edit(self.counted, x_T, world.alpha_bars, world.timesteps, block, world.args.t_edit)

    def training(self, block, optimizer, indices, x_0, x_T):
        world, counted = self.world, self.counted
        settings = (world.alpha_bars, world.timesteps, block.block, world.args.t_edit, optimizer, counted.clip, world.towards)
        return lambda: plain_schedule.train(counted, x_0, x_T, *settings)


class Ours(Contestant):
    """The code of the project, as the command line runs it."""

    def __init__(self, world, case, model):
        encode = autocast(case.precision, world.device)(world.clip.encode_images)
        super().__init__(world, case, Counted(model.unet, encode))
        self.ranks = ALONE  # processes that train on one batch
        self.model = copy.copy(model)
        self.model.unet = self.counted

    def invert(self, x_0):
        # The plain schedule's, whatever the config prefers.
        return self.model.invert(x_0, self.world.args.steps, inversion="ddim")

    def edit(self, x_T):
        world = self.world
        edit = Edit([world.direction.to(world.device)], [1.0], t_edits=[world.args.t_edit])
        return self.model.run(x_T, world.timesteps, edit, t_edit=edit.t_edit)

    def training(self, block, optimizer, indices, x_0, x_T):
        world = self.world
        batch = Batch(indices, [str(i) for i in indices], x_0.cpu(), x_T.cpu())
        loss = training.EditLoss(self.counted.clip, world.towards, 1.0, training.Weights(clip=1, l1=1))
        settings = (self.model.schedule, world.edit_steps, loss, optimizer, PlainTrajectories(ENDLESS), world.device)
        return lambda: training.train_batch(self.counted, block, batch, *settings, self.ranks, 1 / self.ranks.world)


def contestants(world):
    """The plain schedule and one contestant per combination of the flags. Contestants that differ only in batch size share a
    U-Net."""
    args, found = world.args, [Plain(world)]
    for precision, compiled, layout in product(args.precision, args.compile, args.layout):
        model = world.model(precision, compiled == "on", layout)
        convolutions = f"{model.unet.layout}, Winograd" if model.unet.winograd else model.unet.layout
        found += [Ours(world, Case(precision, compiled, convolutions, batch), model) for batch in args.batch]
    return found


def run(world):
    """Run all turns -> (the plain schedule, the others)."""
    args, everyone = world.args, contestants(world)
    with tqdm(total=(args.warmup + args.rounds) * len(everyone), desc="taking turns", unit="turn") as bar:
        for number in range(args.warmup + args.rounds):
            for contestant in everyone:
                contestant.turn(number)
                bar.update()
            if number < args.warmup:
                for contestant in everyone:
                    contestant.seconds.clear()
    plain, *others = everyone
    return plain, others


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default="avatar.yml", help="YAML file, a path or a name in configs/ (avatar.yml)")
    add("--model_path", help="weights of the U-Net, instead of the config's; random if missing")
    add("--clip_model_name", help="CLIP: an open_clip config file, or a name, which gives random weights of that size")
    add("--direction", help="direction for editing: a file, or one that ships; by default a random delta block")
    add("--images", help="folder of images; by default smooth random ones")
    add("--precision", nargs="+", choices=("fp32", "tf32", "bf16", "fp16"), default=["fp32"])
    add("--compile", nargs="+", choices=("off", "on"), default=["off"])
    add("--layout", nargs="+", choices=tuple(LAYOUTS), default=[None], help="memory layout; by default that of main.py")
    add("--batch", nargs="+", type=whole(1), default=[1], help="batch sizes (1)")
    add("--steps", type=whole(2), default=40, help="timesteps of inversion, editing and training (40)")
    add("--t_edit", type=whole(0), default=513, help="edit while t is at least this (513)")
    add("--rounds", type=whole(1), default=3, help="measured turns per contestant (3)")
    add("--warmup", type=whole(0), default=1, help="warm-up turns before those (1)")
    add("--ranks", type=whole(2), help="compare N processes, started by torchrun, with one of them")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")
    add("--seed", type=whole(0), default=0)
    add("--out", type=Path, help="Markdown file to add the report to, such as docs/benchmarks.md (default: none)")
    return parser.parse_args(argv)


def publish(text, out):
    """Print a section, and write it to the Markdown file `out` unless that is None."""
    print(text)
    if out is not None:
        write_section(out, text)


def measure_ranks(args):
    """--ranks, in one of the processes."""
    with together() as ranks:
        ranks.join(args.device)
        ranks.must_meet("--ranks")
        torch.set_num_threads(1)
        world = World(args)
        contestant = contestants(world)[1]
        text = scaling.run(contestant, ranks)
        if ranks.leads:
            publish(text, args.out)


def main(argv=None):
    args = parse_args(argv)
    if args.ranks and "RANK" not in os.environ:
        return scaling.launch(args.ranks, __file__, sys.argv[1:] if argv is None else argv)
    if args.ranks:
        return measure_ranks(args)
    if not recomputes_without_data():  # else the report would fail when all is measured
        raise UserError(f"torch {torch.__version__} is too old to count the memory of a training step: upgrade torch")
    world = World(args)
    plain, others = run(world)
    text = report(world, plain, others, Hollow(world.config, world.clip))
    publish(text, args.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
