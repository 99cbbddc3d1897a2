"""Train a base model: a DDPM++ or ADM U-Net on a folder of images (including sub-folders) or an LMDB.

    python scripts/train_base_model.py --config avatar.yml --images data/avatar/train --out runs/base/ddpm.pt --flip

Use your own YAML and images to train a base model for another domain. Next to the weights, which are a moving average, it
writes `<out>.state`, from which the same command resumes; `<out>.png`, samples during training; and `<out>.yml`, the settings.
Ctrl-C and SIGTERM save first. If the state is lost, `--init <out> --images_seen N` continues from the weights alone; write them
with `--keep float32` for that.

Use `--compile` on a CPU (three times as many images per second on two AVX2 cores), and `--precision bf16 --compile` on a GPU.

    torchrun --standalone --nproc_per_node 8 scripts/train_base_model.py ...

splits each batch over 8 processes; the result is the same up to rounding (docs/scaling.md). On a CPU, start one process per
core, each with one thread.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import logging
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from types import NoneType
from typing import get_args, get_type_hints

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from asyrp.base_model.files import Files, model_sections
from asyrp.base_model.settings import Settings
from asyrp.base_model.trainer import Trainer, reconstruct_and_sample
from asyrp.config import load_config, to_dict
from asyrp.data.datasets import first_images, open_folder
from asyrp.ranks import together
from asyrp.report.pictures import labelled_grid, save
from utils.devices import find_device
from utils.errors import UserError
from utils.files import held, shown
from utils.sections import checked

log = logging.getLogger(__name__)

SHOWN = 12  # images in <out>.png
NEEDS = {"p2_gamma": "p2", "snr_power": "snr", "snr_bounds": "snr"}  # flags that belong to one --loss_weighting
STOPPED = "stopped without saving; the previous save is kept"


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError instead of exiting."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


def build_parser():
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the result holds only the settings that were given
    )
    group = parser.add_argument_group("model and files")
    group.add_argument(
        "--config", required=True, help="YAML file (a path, or a name in configs/) with network, image size and noise schedule"
    )
    group.add_argument("--images", required=True, help="folder of images, or LMDB; images are resized and centre-cropped")
    group.add_argument("--out", required=True, help="weight file to write")
    group.add_argument("--init", default=None, help="start from these weights instead of random ones")
    group.add_argument("--keep", choices=("float16", "float32"), default="float16", help="dtype of the saved weights (float16)")
    group.add_argument("--device", default=None, help="cpu, cuda or cuda:N; cuda by default if available")
    group = parser.add_argument_group("training")
    hints = get_type_hints(Settings)
    for field in fields(Settings):
        kinds = [kind for kind in get_args(hints[field.name]) if kind is not NoneType] or [hints[field.name]]
        default = " ".join(map(str, field.default)) if len(kinds) > 1 else field.default
        told = field.metadata["text"] if default in (None, False) else f"{field.metadata['text']} ({default})"
        how = {"action": "store_true"} if kinds == [bool] else {"type": kinds[0], "choices": field.metadata.get("choices")}
        how |= {"nargs": len(kinds)} if len(kinds) > 1 else {}
        group.add_argument(f"--{field.name}", help=told, **how)
    return parser


def read_settings(args):
    """Parsed flags -> Settings. Raises UserError for a value out of range, or one that would have no effect."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings) if hasattr(args, field.name)}
    settings = checked(Settings, given, "flags")
    for name, weighting in NEEDS.items():
        if name in given and settings.loss_weighting != weighting:
            raise UserError(f"--{name} has no effect with --loss_weighting {settings.loss_weighting}: it is for {weighting}")
    if settings.images_seen and not args.init:
        raise UserError("--images_seen is the number of images that --init was trained on: give --init too")
    return settings


def record_of(args, config, trainer, dataset):
    """The contents of `<out>.yml`: how the weights were trained."""
    return {
        "images_seen": trainer.images_seen,
        "hours": round(trainer.seconds / 3600, 3),
        "loss": None if trainer.loss is None else round(trainer.loss.item(), 6),
        "flags": {name: getattr(args, name) for name in ("config", "images", "out", "init", "keep", "device")}
        | to_dict(trainer.settings),
        "images_in_folder": len(dataset),
        "config": {"path": shown(config.path), **trainer.model},
        "torch": str(torch.__version__),
        "device": str(trainer.device),
        "sessions": trainer.history(),
    }


def draw(images, trainer, path):
    """Draw three rows: images, their reconstructions, and samples from noise."""
    made = reconstruct_and_sample(trainer.ema, images.to(trainer.device), trainer.schedule)
    rows = [list(row) for row in (images, *made)]
    save(labelled_grid(rows, [""] * len(images), ["image", "reconstruction", "sample"]), path)


@contextmanager
def signals():
    """Collect Ctrl-C and SIGTERM in a list instead of ending the program. A second signal ends it at once.

    Ignored signals stay ignored, as for background jobs of a shell.
    """
    received, former = [], {}

    def remember(number, _):
        received.append(number)
        signal.signal(number, former[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            former[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run(argv):
    """-> exit status: 0, or 128 plus the number of the signal that stopped the training."""
    with together() as ranks:
        args = build_parser().parse_args(argv)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        settings, config, files = read_settings(args), load_config(args.config), Files(args.out)
        ranks.join(args.device)
        ranks.must_meet("the training of a base model")
        device = find_device(args.device)
        with ranks.first():
            files.prepare(from_scratch=not args.init)
        with held(files.lock, f"the training of {files.weights}", "--out") if ranks.leads else nullcontext():
            ranks.wait()  # read files only once the lock is held
            return train(args, settings, config, files, device, ranks)


def train(args, settings, config, files, device, ranks):
    """Train -> exit status, as `run`."""
    state = files.read_state(model_sections(config))
    dataset = open_folder(args.images, config.data.image_size, recursive=True)
    images = first_images(dataset, SHOWN)
    trainer = Trainer(config, settings, device, args.init, state, ranks)
    if state:
        instead = ", not from --init" if args.init else ""
        log.info("resuming from %s%s: %s images seen", files.state, instead, f"{trainer.images_seen:,}")

    def save_all():
        weights = trainer.averaged_weights(getattr(torch, args.keep))
        files.write(trainer.state(), weights, record_of(args, config, trainer, dataset))
        draw(images, trainer, files.samples)

    if trainer.progress >= 1:
        if ranks.leads:
            save_all()  # in case the last save failed, or another --keep is given
        log.info(
            "training is complete: raise --total_images (%s) or --minutes to continue; weights saved again to %s",
            f"{settings.total_images:,}",
            files.weights,
        )
        return 0
    with signals() as received, logging_redirect_tqdm():
        stop = trainer.run(dataset, save_all, lambda: next(iter(received), None)) or next(iter(received), None)
    seen = f"{trainer.images_seen:,} images seen"
    if stop:
        name = signal.Signals(stop).name
        log.info("stopped by %s, %s; saved to %s: run the same command to resume", name, seen, files.state)
        return 128 + stop
    log.info("%s; weights in %s, samples in %s", seen, files.weights, files.samples)
    return 0


def main(argv=None):
    """-> exit status: 0; 2 after an error that the user can fix; 130 after Ctrl-C, 143 after SIGTERM."""
    return guarded(run, argv, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
