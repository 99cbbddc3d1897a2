"""Train a base model: a DDPM++ or ADM U-Net on a folder of images, with its sub-folders, or on an LMDB.

    python scripts/train_base_model.py --config avatar.yml --images data/avatar/train --out runs/base/ddpm.pt --flip

Another YAML and another folder make a base model for a domain of one's own. Beside the weights, a moving average, stand
`<out>.state`, from which the same command goes on; `<out>.png`, samples drawn on the way; and `<out>.yml`, how they were made.
Ctrl-C and SIGTERM save first. Where the state was lost, `--init <out> --images_seen N` goes on from the weights alone; write
them with `--keep float32` for that.

On a CPU `--compile` pays (on two AVX2 cores 3 times as many images a second), on a GPU `--precision bf16 --compile`.
`--loss_weighting snr` serves the large timesteps, where layout and colours are decided, without losing the small ones.
"""

import argparse
import logging
import signal
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asyrp.base_model.files import Files, model_sections, written
from asyrp.base_model.settings import MEMORY_FORMATS, PRECISIONS, SCHEDULES, WEIGHTINGS, Settings
from asyrp.base_model.trainer import Trainer, reconstruct_and_sample
from asyrp.config import load_config
from asyrp.data.datasets import first_images, open_folder
from asyrp.report.pictures import labelled_grid
from utils.devices import find_device
from utils.errors import UserError
from utils.files import shown

log = logging.getLogger(__name__)

SHOWN = 12  # images in the picture of samples


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError instead of ending the program."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


class Help(argparse.RawDescriptionHelpFormatter):
    """A default is told where there is one to tell."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return action.help if silent else f"{action.help} (default: %(default)s)"


def build_parser():
    parser = Parser(description=__doc__, formatter_class=Help, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    defaults = {field.name: field.default for field in fields(Settings)}

    def add(group, name, text, kind=str, **more):
        more = more if "action" in more or "choices" in more else {"type": kind, **more}
        group.add_argument(f"--{name}", default=defaults.get(name), help=text, **more)

    group = parser.add_argument_group("what")
    add(group, "config", "YAML under configs/ or a path: the network, its image size and noise schedule", required=True)
    add(group, "images", "folder of images or LMDB; images are resized and centre-cropped", required=True)
    add(group, "out", "weight file to write", required=True)
    add(group, "init", "begin from these weights instead of random ones")
    add(group, "images_seen", "images that the weights of --init have seen", int)

    group = parser.add_argument_group("how long")
    add(group, "total_images", "images to see in all; the learning rate ends there", int)
    add(group, "minutes", "end after so many minutes of training, where that comes first", float)

    group = parser.add_argument_group("how")
    add(group, "loss_weighting", "simple: DDPM's; p2: Choi et al. 2022; snr: between eps and x_0", choices=WEIGHTINGS)
    add(group, "p2_gamma", "exponent of p2", float)
    add(group, "snr_power", "exponent of snr: 0 is the loss in eps, 1 that in x_0", float)
    add(group, "snr_bounds", "smallest and largest weight of snr, before it is divided by the mean", float, nargs=2)
    add(group, "batch_size", "images a step", int)
    add(group, "lr", "peak learning rate of AdamW", float)
    add(group, "lr_schedule", "after the warm-up: down to zero, or the peak to the end", choices=SCHEDULES)
    add(group, "warmup", "share of the training in which the learning rate rises", float)
    add(group, "betas", "of AdamW", float, nargs=2)
    add(group, "clip_norm", "largest norm of the gradients", float)
    add(group, "ema", "decay of the moving average, per step", float)
    add(group, "flip", "mirror half of the images", action="store_true")
    add(group, "seed", "of the random numbers, together with the images seen", int)

    group = parser.add_argument_group("where, and how fast")
    add(group, "device", "cpu, cuda, cuda:1; by default cuda where there is one")
    add(group, "precision", "of the network's layers", choices=PRECISIONS)
    add(group, "compile", "torch.compile the U-Net: a minute or two once", action="store_true")
    add(
        group,
        "memory_format",
        "auto: contiguous on a CPU, channels_last on CUDA",
        choices=MEMORY_FORMATS,
    )
    add(group, "workers", "processes that read images", int)

    group = parser.add_argument_group("what is written")
    add(group, "save_minutes", "save weights, state and samples this often", float)
    group.add_argument("--keep", choices=("float16", "float32"), default="float16", help="type of the weights")
    return parser


def settings_of(args):
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def record_of(args, config, trainer, dataset):
    """How the weights were made, for `<out>.yml`."""
    return {
        "images_seen": trainer.images_seen,
        "hours": round(trainer.seconds / 3600, 3),
        "loss": None if trainer.loss is None else round(trainer.loss.item(), 6),
        "flags": vars(args),
        "images_in_folder": len(dataset),
        "config": {"path": shown(config.path), **trainer.model},
        "torch": torch.__version__,
        "device": str(trainer.device),
        "sessions": trainer.history(),
    }


def draw(images, trainer, path):
    """Three rows: images, their reconstructions, and samples from noise."""
    made = reconstruct_and_sample(trainer.ema, images.to(trainer.device), trainer.schedule)
    picture = labelled_grid([list(row) for row in (images, *made)], [""] * len(images), ["image", "reconstruction", "sample"])
    with written(path) as beside:
        picture.save(beside, "PNG")


@contextmanager
def signals():
    """Ctrl-C and SIGTERM as numbers in a list, instead of ending the program; a second one ends it at once."""
    received, former = [], {}

    def remember(number, _):
        received.append(number)
        signal.signal(number, former[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def train(args):
    """-> exit status: 0, or 128 and the number of the signal that stopped the training."""
    settings, config, files = settings_of(args), load_config(args.config), Files(args.out)
    if args.images_seen and not args.init:
        raise UserError("--images_seen says what the weights of --init have seen: give --init too")
    if not args.init:
        files.check_free()
    state = files.read_state(model_sections(config))
    dataset = open_folder(args.images, config.data.image_size, recursive=True)
    images = first_images(dataset, SHOWN)
    trainer = Trainer(config, settings, find_device(args.device), args.init, state)
    if state:
        instead = ", not from --init" if args.init else ""
        log.info("going on from %s%s: %s images seen", files.state, instead, f"{trainer.images_seen:,}")
    if trainer.progress >= 1:
        log.info("nothing is left to do: raise --total_images (%s) or --minutes to go on", f"{settings.total_images:,}")
        return 0

    def save():
        weights = trainer.averaged_weights(getattr(torch, args.keep))
        files.write(trainer.state(), weights, record_of(args, config, trainer, dataset))
        draw(images, trainer, files.samples)

    files.write_record(record_of(args, config, trainer, dataset))  # a folder that nobody may write to is told now
    with signals() as received:
        trainer.run(dataset, save, lambda: bool(received))
    seen = f"{trainer.images_seen:,} images seen"
    if received:
        name = signal.Signals(received[0]).name
        log.info("stopped by %s, %s; saved, and the same command goes on from %s", name, seen, files.state)
        return 128 + received[0]
    log.info("%s; weights in %s, samples in %s", seen, files.weights, files.samples)
    return 0


def main(argv=None):
    """-> exit status: 0; 2 after an error that the user can put right; 130 after Ctrl-C, 143 after SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with logging_redirect_tqdm():
            return train(build_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; what was saved before is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
