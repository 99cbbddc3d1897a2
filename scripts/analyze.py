"""Test the paper's claims about h-space on a model, with figures.

    python scripts/analyze.py [--claims 1 3] [--out runs/analysis]
    python scripts/analyze.py --config celeba.yml --images my_photos --direction smiling=checkpoint/smiling.pth --n 8

Each claim is measured on --n images for every direction (7, composition, for each pair of neighbours in the list), drawn, and
written to report.md and report.json with its criterion. Edits are scored by the judge on the default stack and by S_dir for
other models. Claims already in a report with the same settings are kept. With `torchrun --standalone --nproc_per_node 8`
instead of `python`, the images are shared by 8 processes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import logging
import time
from functools import cache
from itertools import pairwise

import torch
from analysis import report
from analysis.claims import CLAIMS
from analysis.subject import Attribute, ClipScore, Images, JudgeScore, Subject
from tqdm import tqdm

import asyrp
from asyrp import intervals
from asyrp.config import load_config
from asyrp.curves import find_curve
from asyrp.data.datasets import load_batch
from asyrp.data.layouts import open_split
from asyrp.data.pairs import InvertedPairs
from asyrp.ranks import together
from asyrp.settings import Settings, decide_t_edit
from asyrp.store import Store
from configs.paths_config import dataset_folder
from losses.clip_loss import ClipLoss
from losses.lpips_alex import load_lpips
from models.judge import load_judge
from utils.arguments import whole
from utils.errors import UserError
from utils.files import ROOT, shown
from utils.text_dic import PROMPTS

BOOST_THRESHOLD = 1.2  # of LPIPS(x_0, x_t), as in the paper
CHOSEN_AT_ONCE = 64  # batch size when searching for images without an attribute


def open_images(config, folder=None):
    """The test images of `folder`, else of the config -> dataset."""
    if config.data.dataset == "AVATAR" and not (place := folder or dataset_folder(config) / "test").is_dir():
        raise UserError(f"{place}: no faces: render them with scripts/avatar/render.py --split test --size 32 --count 300")
    return open_split(config, "test", folder)


class World:
    """A model, the networks that score its edits, and test images with their latents in the store."""

    def __init__(self, args, ranks):
        self.args, self.config, self.ranks = args, load_config(args.config), ranks
        self.dataset = open_images(self.config, args.images)
        self.model = asyrp.open_model(self.config, args.model_path, args.device)
        self.device = self.model.device
        self.steps = self.model.timesteps(args.steps)
        self.store = Store()
        self.pairs = InvertedPairs(self.dataset, self.model, self.steps, self.store)
        about = self.config.judge
        self.judge = load_judge(ROOT / about.weights, self.device, about.aims.values(), about.kept) if about else None
        self.distance = load_lpips().to(self.device)

    @cache  # noqa: B019 - there is one instance per run
    def clip(self):
        return ClipLoss(self.args.clip_model_name or self.config.clip_name(), self.device)

    @cache  # noqa: B019
    def curve(self):
        return find_curve(self.store, self.model)[0]

    def score_of(self, name, prompts):
        """The judge's score if it knows the attribute, else that of CLIP."""
        about = self.config.judge
        aims = about.by_direction() if about else {}
        if name in aims:
            return JudgeScore(self.judge, *aims[name], about.kept)
        return ClipScore(self.clip(), *prompts)

    def open_attribute(self, spec):
        """NAME or NAME=CHECKPOINT -> (Attribute, its entry in the report)."""
        name, _, given = spec.partition("=")
        direction = asyrp.load_direction(given or name, self.model)
        prompts = direction.record.get("prompts") or PROMPTS.get(name)
        if prompts is None:
            raise UserError(f"the record of {direction.name} has no prompts: use the name of an attribute in utils/text_dic.py")
        use = (direction.name, direction.record, tuple(prompts))
        [t_edit] = decide_t_edit(Settings({}, self.config), [use], self.curve, lambda *pair: self.clip().cosine(*pair))
        t_edit = t_edit.value
        scale = direction.scale(len(self.steps))
        score = self.score_of(name, prompts)
        told = {"checkpoint": direction.name, "digest": direction.digest(), "prompts": list(prompts)}
        told |= {"t_edit": t_edit, "scale": scale, "score": score.name}
        return Attribute(name, direction, t_edit, scale, score), told

    def choose_t_boost(self):
        """--t_boost, else from the LPIPS curve as in the paper; 0 if there is no curve or it stays below the threshold."""
        if self.args.t_boost is not None:
            return self.args.t_boost
        try:
            return intervals.choose_t_boost(self.curve(), BOOST_THRESHOLD)
        except UserError as error:
            logging.warning("t_boost 0: %s", error)
            return 0

    def choose_images(self, attributes, n):
        """Numbers of the first `n` images without any of the attributes."""
        chosen = []
        for start in range(0, len(self.dataset), CHOSEN_AT_ONCE):
            good, images, _ = load_batch(self.dataset, range(start, min(start + CHOSEN_AT_ONCE, len(self.dataset))))
            if good:
                lacking = zip(*(attribute.score.lacking(images) for attribute in attributes), strict=True)
                chosen += [i for i, lacks in zip(good, lacking, strict=True) if all(lacks)]
            if len(chosen) >= n:
                return chosen[:n]
        names = " or ".join(attribute.name for attribute in attributes)
        raise UserError(
            f"{self.dataset.folder}: {len(chosen)} images without {names}, but {n} are needed: add images, or lower --n"
        )

    def subject(self, attributes, t_boost):
        """A Subject: half of the images are measured, the other half are donors of delta_h."""
        args, chosen = self.args, self.choose_images(attributes, 2 * self.args.n)
        self.pairs.fill(chosen, args.batch_size, ranks=self.ranks)
        batch = self.pairs.load(chosen)
        measured, donors = (
            Images(batch.indices[half], batch.x_0[half], batch.x_T[half]) for half in (slice(args.n), slice(args.n, None))
        )
        settings = (self.distance, t_boost, args.seed, args.batch_size, self.ranks)
        return Subject(self.model.unet, self.model.schedule, self.steps, attributes, measured, donors, *settings)


def default_directions(world):
    """The directions of the default stack that are tested: one small change and one large change."""
    if world.config.data.category != "AVATAR":
        raise UserError(f"{world.config.path.name} has no default directions: give --direction NAME=CHECKPOINT")
    return ["smiling", "beard"]


def run(args, ranks):
    with ranks.first():
        world = World(args, ranks)
        opened = [world.open_attribute(spec) for spec in args.direction or default_directions(world)]
    attributes = [attribute for attribute, _ in opened]
    settings = {
        "config": args.config,
        "model": world.model.identity,
        "directions": {attribute.name: told for attribute, told in opened},
        "images": shown(world.dataset.folder.resolve()),
        "t_boost": world.choose_t_boost(),
        "torch": str(torch.__version__),
        "credit": world.config.data.credit,
        **{name: getattr(args, name) for name in ("n", "steps", "seed", "batch_size")},
    }
    kept = report.read(args.out / "report.json", settings)
    if (args.out / "report.json").is_file() and not kept:
        logging.warning("%s has other settings and will be replaced", args.out / "report.json")
    found = {"settings": settings, "claims": kept}
    subject = cache(lambda *some: world.subject(some, settings["t_boost"]))
    todo = []
    for number in sorted(set(args.claims)):
        groups = list(pairwise(attributes)) if CLAIMS[number].together else [(attribute,) for attribute in attributes]
        if groups:
            todo.append((number, groups))
        else:
            logging.warning("claim %d needs two directions: skipped", number)
    with tqdm(total=sum(len(groups) for _, groups in todo), unit="measurement") as bar:
        for number, groups in todo:
            started, results = time.perf_counter(), {}
            for some in groups:
                bar.set_description(f"{CLAIMS[number].name}, {' + '.join(a.name for a in some)}")
                measured = subject(*some)
                results[measured.name] = CLAIMS[number].measure(measured)
                bar.update()
            if ranks.leads:
                report.add(found, number, results, time.perf_counter() - started, args.out)
    if not ranks.leads:
        return
    for number, claim in found["claims"].items():
        print(f"{number} {claim['name']}: {report.verdict(claim['results']).strip('*')}")
    print(f"report: {args.out / 'report.md'}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--claims", type=int, nargs="+", choices=CLAIMS, default=list(CLAIMS), help="numbers of the claims to test (all)")
    add("--config", default="avatar.yml", help="a name under configs/ or a path (avatar.yml)")
    add("--model_path", help="weights of the U-Net (default: those of the config)")
    add(
        "--direction",
        nargs="+",
        metavar="NAME=CHECKPOINT",
        help="directions to test; NAME alone is found as in main.py (default: smiling and beard of the default stack)",
    )
    add("--images", type=Path, help="folder of test images (default: the config's)")
    add("--clip_model_name", help="CLIP for S_dir, as in main.py")
    add("--n", type=whole(1), default=16, help="number of measured images, and of donors of delta_h (16)")
    add("--steps", type=whole(2), default=40, help="timesteps of inversion and generation (40)")
    add(
        "--t_boost",
        type=whole(0),
        help="the chosen t_boost (default: where LPIPS(x_0, x_t) reaches 1.2, or 0 if it never does)",
    )
    add("--batch_size", type=whole(1), default=32, help="batch size (32)")
    add("--seed", type=whole(0), default=1234)
    add("--device", help="cpu, cuda or cuda:N (default: cuda if available)")
    add("--out", type=Path, default=Path("runs/analysis"), help="folder for the report and its figures (runs/analysis)")
    args = parser.parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s")
    with together() as ranks:
        if args.n < 2:
            raise UserError("--n must be 2 or more: a standard error needs two images")
        ranks.join(args.device)
        ranks.must_meet("the analysis")
        run(args, ranks)


if __name__ == "__main__":
    sys.exit(guarded(main))
