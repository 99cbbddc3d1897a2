"""The results of bench.py as a section of Markdown."""

import os
import platform
import re
import shlex
import statistics
import sys
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import ROOT, write_text

MODES = ("invert", "edit", "invert and edit", "first epoch", "further epoch")
PASSES = {"encoder": ("encode",), "decoder": ("decode", "decode and back"), "CLIP": ("clip", "clip and back")}
REMEMBERED = ("invert", "edit", "first epoch")  # modes whose peak memory is reported
GIB = 2**30
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # environment variables that change what is measured


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine(device):
    """The name of the device or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text(encoding="utf-8")) if cpu.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def without_folders(word):
    """A word of the command line, with absolute paths relative to the repository, or only their last part if outside it."""
    flag, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    return flag + equals + (str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name)


def command_line():
    """The command line with the environment variables that matter, without folders of this machine."""
    variables = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    return shlex.join([*variables, "python", "scripts/bench.py", *map(without_folders, sys.argv[1:])])


def seconds(contestant, mode):
    """Seconds per image, a list over the turns; empty if the mode was not run."""
    if mode == "invert and edit":
        return [a + b for a, b in zip(contestant.seconds["invert"], contestant.seconds["edit"], strict=True)]
    return contestant.seconds[mode]


def ratio(plain, contestant, mode):
    """Speed relative to the plain schedule in the same round: the median over the rounds."""
    pairs = zip(seconds(plain, mode), seconds(contestant, mode), strict=True)
    return statistics.median(a / b for a, b in pairs)


def gigamacs(passes, costs):
    return sum(count * costs[kind] for kind, count in passes.items())


def work_table(plain, ours, costs):
    """Passes and multiply-adds per image in every mode."""
    head = ["per image", *PASSES, "10⁹ multiply-adds", *(f"plain: {name}" for name in PASSES), "10⁹ multiply-adds", "ratio"]
    rows = []
    for mode in ours.passes:
        row, macs = [mode], [gigamacs(c.passes[mode], costs) for c in (ours, plain)]
        for contestant, total in zip((ours, plain), macs, strict=True):
            row += [f"{sum(contestant.passes[mode][kind] for kind in kinds):g}" for kinds in PASSES.values()]
            row.append(f"{total:,.4g}" if total < 1000 else f"{total:,.0f}")
        rows.append([*row, f"{macs[1] / macs[0]:.2f}"])
    return table(head, rows)


def differences(plain, contestant):
    """Largest and mean difference between the edited images of both, in 8-bit steps."""
    both = sorted(plain.pictures.keys() & contestant.pictures.keys())
    a, b = ((torch.stack([c.pictures[i] for i in both]).clamp(-1, 1) + 1).mul(127.5).round() for c in (plain, contestant))
    return (a - b).abs().max().item(), (a - b).abs().mean().item()


def speed_table(plain, others, rates):
    """Speed relative to the plain schedule, with images per second if `rates` is true, memory on a GPU, and differences of the
    images."""
    head = ["precision", "compiled", "layout", "batch", *MODES]
    if plain.memory:
        head += [f"GiB, {mode}" for mode in REMEMBERED]
    rows = []
    for contestant in (plain, *others):
        case = contestant.case
        row = [*case] if contestant is not plain else ["**plain schedule**", "", "", 1]
        for mode in MODES:
            if not seconds(contestant, mode):
                row.append("")
                continue
            times = "1x" if contestant is plain else f"**{ratio(plain, contestant, mode):.2f}x**"
            row.append(f"{1 / statistics.median(seconds(contestant, mode)):.3g} ({times})" if rates else times)
        for mode in REMEMBERED if plain.memory else ():
            row.append(f"{contestant.memory[mode] / GIB:.2f}" if mode in contestant.memory else "")
        largest, mean = differences(plain, contestant)
        rows.append([*row, *(("", "") if contestant is plain else (f"{largest:.0f}", f"{mean:.3f}"))])
    return table([*head, "largest difference", "mean difference"], rows)


def best(others, mode, *precisions):
    """The fastest contestant of these precisions in a mode, or None."""
    able = [c for c in others if c.case.precision in precisions and seconds(c, mode)]
    return min(able, key=lambda c: statistics.median(seconds(c, mode)), default=None)


def wanted_table(plain, others, cuda):
    """Target figures next to measured ones."""
    rows = []
    if cuda:
        for mode, count, limit, unit in (("invert and edit", 1, 0.25, "s"), ("first epoch", 1000 / 60, 3.0, "minutes")):
            if found := best(others, mode, "bf16"):
                what = "an edited image, bf16" if mode == "invert and edit" else "training of 1,000 images, first epoch, bf16"
                took = count * statistics.median(seconds(found, mode))
                rows.append([what, f"at most {limit:g} {unit}", f"{took:.3g} {unit}, batch {found.case.batch}"])
        if low := [c for c in others if c.case.precision == "bf16"]:
            mean = max(differences(plain, c)[1] for c in low)
            rows.append(["bf16 against float32, mean difference of images", "at most 3 of 255", f"{mean:.2f}"])
    else:
        for mode in ("invert and edit", "further epoch"):
            if found := best(others, mode, "fp32"):
                rows.append([f"{mode}, fp32", "at least 1.5x", f"{ratio(plain, found, mode):.2f}x, batch {found.case.batch}"])
    return table(["", "wanted", "found"], rows) if rows else ""


def report(world, plain, others, hollow):
    """The section: machine, settings and tables."""
    args, cuda = world.args, world.device.type == "cuda"
    where = machine(world.device)
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    threads = torch.get_num_threads()
    measured = "Images per second, and in brackets" if cuda else f"In processor time, {threads} thread{'s' * (threads > 1)}:"
    step = [hollow.training_peak(recompute) / GIB for recompute in (False, True)]
    parts = [
        f"## {without_folders(args.config)} on {where}",
        f"`{command_line()}`",
        f"{where}; {versions}. {args.rounds} rounds. Weights: {'trained' if world.trained else 'random'}; images: "
        f"{'a folder' if args.images else 'random'}; {args.steps} steps, of which {len(world.edit_steps)} are edited.",
        work_table(plain, others[0], hollow.passes()),
        f"{measured} how many times as fast as the plain schedule. Differences of the edited images from those of the plain "
        "schedule are in 8-bit steps.",
        speed_table(plain, others, rates=cuda),
        wanted_table(plain, others, cuda),
        f"A training step with one image in float32 needs at most {step[0]:.3g} GiB, or {step[1]:.3g} GiB with "
        "--checkpoint_decoder: the weights of U-Net and CLIP and all tensors, counted without computing them; workspaces of "
        "kernels are not included.",
    ]
    return "\n\n".join(part for part in parts if part)


def write_section(path, text):
    """Write a section to a Markdown file, replacing the one with the same heading, else at the end."""
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    except UnicodeDecodeError as error:
        raise UserError(f"--out {path} is not UTF-8 text: give another file") from error
    heading = text.splitlines()[0]
    sections = re.split(r"^(?=## )", before, flags=re.MULTILINE)
    mine = [i for i, section in enumerate(sections) if section.splitlines()[:1] == [heading]]
    if mine:
        sections[mine[0]] = f"{text}\n\n"
    else:
        sections.append(f"{text}\n")
    write_text(path, "".join(section if section.endswith("\n\n") else f"{section}\n" for section in sections).rstrip() + "\n")
