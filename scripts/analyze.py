"""The paper's claims about h-space, tested: what holds on a model, with figures.

    python scripts/analyze.py [--claims 1 3] [--out runs/analysis]
    python scripts/analyze.py --config celeba.yml --images my_photos --direction smiling=checkpoint/smiling.pth --n 8

Each claim is measured on --n images for every direction (7, composition, for every two neighbours of the list), drawn, and
entered in report.md and report.json with the criterion by which it holds. On the default stack the judge scores an edit,
elsewhere S_dir does. Claims that the report holds already stay in it if they were made with the same settings.
"""

import argparse
import logging
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "avatar")]

from analysis import report
from analysis.claims import CLAIMS
from analysis.subject import Attribute, ClipScore, Images, JudgeScore, Subject
from evaluate import CREDIT, DIRECTIONS, STACK, shown
from tqdm import tqdm

from asyrp import checkpoints, hspace, intervals
from asyrp.config import load_config
from asyrp.data.datasets import load_batch
from asyrp.options import parse_args
from asyrp.runner import Asyrp
from configs.paths_config import dataset_folder
from losses.lpips_alex import load_lpips
from utils.errors import UserError
from utils.text_dic import PROMPTS

BOOST_THRESHOLD = 1.2  # LPIPS(x_0, x_t), as published
CHOSEN_AT_ONCE = 64  # images that are looked at together when images without an attribute are sought


def open_app(args):
    """An Asyrp of the configuration, with the script's settings."""
    config = load_config(args.config)
    folder = Path(args.images or dataset_folder(config) / "test")
    if config.data.dataset == "AVATAR" and not folder.is_dir():
        raise UserError(f"{folder}: no faces; draw them with scripts/avatar/render.py --split test --size 32 --count 300")
    flags = ["--config", args.config, "--run_test", "--pass_editing", "--custom_test_dataset_dir", str(folder)]
    flags += ["--n_inv_step", str(args.steps), "--n_test_step", str(args.steps), "--bs_precompute", str(args.batch_size)]
    flags += ["--seed", str(args.seed)]
    for name in ("model_path", "clip_model_name", "device"):
        if getattr(args, name):
            flags += [f"--{name}", getattr(args, name)]
    return Asyrp(parse_args(flags)[0], config)


def default_directions(app):
    """Of the default stack, a small change and a large one."""
    if app.config.data.category != "AVATAR":
        raise UserError(f"{app.config.path.name} has no directions of its own: give --direction NAME=CHECKPOINT")
    return [f"{name}={STACK / 'directions' / name}.pth" for name in ("smiling", "beard")]


def open_attribute(app, spec, judge):
    """NAME or NAME=CHECKPOINT -> (Attribute, what the report says of it). judge: None where the model has none."""
    name, _, given = spec.partition("=")
    path = app.experiment.find_direction(given or name)
    direction, contents = checkpoints.load_direction(path, app.unet)
    settings = contents.get("settings", {})
    flags = settings.get("flags", {})
    if isinstance(direction, hspace.BlockDirection):
        direction.ignore_timesteps = flags.get("ignore_timesteps", False)
    prompts = settings.get("prompts") or PROMPTS.get(name)
    t_edit = settings.get("t_edit")
    if prompts is None:
        raise UserError(f"{path} does not say what it was trained for: name it after an attribute of utils/text_dic.py")
    if t_edit is None:
        t_edit = app.t_edit_of([prompts])
    [scale] = hspace.coefficients(1.0, 1, flags.get("n_train_step", app.args.n_test_step), app.args.n_test_step)
    score = JudgeScore(judge, *DIRECTIONS[name]) if judge and name in DIRECTIONS else ClipScore(app.clip, *prompts)
    told = {"checkpoint": str(shown(path.resolve())), "fingerprint": checkpoints.fingerprint(path), "prompts": list(prompts)}
    told |= {"t_edit": t_edit, "scale": scale, "score": score.name}
    return Attribute(name, direction.requires_grad_(False), t_edit, scale, score), told


def choose_t_boost(app, args):
    """--t_boost; else as published, off the curve; 0, no boosting, where the curve is missing or stays below."""
    if args.t_boost is not None:
        return args.t_boost
    try:
        return intervals.choose_t_boost(app.curve, BOOST_THRESHOLD)
    except UserError as error:
        logging.warning("t_boost 0: %s", error)
        return 0


def choose_images(app, attributes, n):
    """Numbers of the first `n` images that have none of the attributes."""
    dataset, chosen = app.dataset("test"), []
    for start in range(0, len(dataset), CHOSEN_AT_ONCE):
        good, images, _ = load_batch(dataset, range(start, min(start + CHOSEN_AT_ONCE, len(dataset))))
        if good:
            lacking = zip(*(attribute.score.lacking(images) for attribute in attributes), strict=True)
            chosen += [i for i, lacks in zip(good, lacking, strict=True) if all(lacks)]
        if len(chosen) >= n:
            return chosen[:n]
    names = " or ".join(attribute.name for attribute in attributes)
    raise UserError(f"{dataset.folder}: {len(chosen)} images without {names}, {n} are needed; add images, or lower --n")


def open_subject(app, attributes, distance, t_boost, args):
    """Half of the images are measured, the other half are donors."""
    chosen = choose_images(app, attributes, 2 * args.n)
    app.args.target_image_id = " ".join(map(str, chosen))
    pairs, indices = app.pairs("test", len(chosen))
    batch = next(pairs.batches(indices, len(indices)))
    measured, donors = (
        Images(batch.indices[half], batch.x_0[half], batch.x_T[half]) for half in (slice(args.n), slice(args.n, None))
    )
    steps = app.steps(args.steps)
    return Subject(app.unet, app.schedule, steps, attributes, measured, donors, distance, t_boost, args.seed, args.batch_size)


def run(args):
    app = open_app(args)
    judge = checkpoints.load_judge(ROOT / app.config.judge.weights, app.device) if hasattr(app.config, "judge") else None
    opened = [open_attribute(app, spec, judge) for spec in args.direction or default_directions(app)]
    attributes = [attribute for attribute, _ in opened]
    settings = {
        "config": args.config,
        "weights": checkpoints.fingerprint(app.weights),
        "directions": {attribute.name: told for attribute, told in opened},
        "images": str(shown(app.dataset("test").folder.resolve())),
        "t_boost": choose_t_boost(app, args),
        "torch": str(torch.__version__),
        "credit": CREDIT if app.config.data.dataset == "AVATAR" else "",
        **{name: getattr(args, name) for name in ("n", "steps", "seed", "batch_size")},
    }
    kept = report.read(args.out / "report.json", settings)
    if (args.out / "report.json").is_file() and not kept:
        logging.warning("%s was made with other settings: it is replaced", args.out / "report.json")
    found = {"settings": settings, "claims": kept}
    distance = load_lpips().to(app.device)
    subject = cache(lambda *some: open_subject(app, some, distance, settings["t_boost"], args))
    todo = []
    for number in sorted(set(args.claims)):
        groups = list(pairwise(attributes)) if CLAIMS[number].together else [(attribute,) for attribute in attributes]
        if groups:
            todo.append((number, groups))
        else:
            logging.warning("claim %d needs two directions: it is left out", number)
    with tqdm(total=sum(len(groups) for _, groups in todo), unit="measurement") as bar:
        for number, groups in todo:
            started, results = time.perf_counter(), {}
            for some in groups:
                bar.set_description(f"{CLAIMS[number].name}, {' + '.join(a.name for a in some)}")
                measured = subject(*some)
                results[measured.name] = CLAIMS[number].measure(measured)
                bar.update()
            report.add(found, number, results, time.perf_counter() - started, args.out)
    for number, claim in found["claims"].items():
        print(f"{number} {claim['name']}: {report.verdict(claim['results']).strip('*')}")
    print(f"report: {args.out / 'report.md'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--claims", type=int, nargs="+", choices=CLAIMS, default=list(CLAIMS), help="numbers of the claims to test (all)")
    add("--config", default="avatar.yml", help="a name under configs/ or a path (avatar.yml)")
    add("--model_path", help="weights of the U-Net (default: those of the config)")
    add(
        "--direction",
        nargs="+",
        metavar="NAME=CHECKPOINT",
        help="directions to test; a NAME alone is looked for as main.py does (default: smiling and beard of the default stack)",
    )
    add("--images", type=Path, help="folder of test images (default: the config's)")
    add("--clip_model_name", help="CLIP of S_dir, as for main.py")
    add("--n", type=int, default=16, help="images for each figure; as many again are donors of delta_h (16)")
    add("--steps", type=int, default=40, help="timesteps of inversion and generation (40)")
    add("--t_boost", type=int, help="the chosen t_boost (default: where LPIPS(x_0, x_t) reaches 1.2; 0 where it never does)")
    add("--batch_size", type=int, default=32, help="images in a batch (32)")
    add("--seed", type=int, default=1234)
    add("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    add("--out", type=Path, default=Path("runs/analysis"), help="folder for the report and its figures (runs/analysis)")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if args.n < 2:
        sys.exit("analyze.py: --n must be 2 or more: a standard error needs two images")
    try:
        run(args)
    except UserError as error:
        sys.exit(f"analyze.py: {error}")


if __name__ == "__main__":
    main()
