"""What the directions of the default stack do to held-out faces, by the judge.

    python scripts/avatar/evaluate.py [--directions smiling=PATH beard=PATH ...] [--out docs/avatar]

For every direction: test faces without the attribute are inverted and edited at the default strength; the judge says how
many have it afterwards, and how many keep each label that the edit should not change. The segmenter says where the background
is, whose mean colour should not move. Then the judge's mean score over strengths -1 .. 1.5. Before that: how many faces keep
every label through inversion and plain generation. A direction that aims at nothing the judge knows (a style) is only drawn.
The same arguments give the same table; it is printed, and written as JSON and Markdown next to a picture of every direction.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import json
import logging

import torch
from faces import open_faces
from tqdm import tqdm

import asyrp
from asyrp import directions, hspace
from asyrp.config import load_config
from asyrp.data.pairs import InvertedPairs
from asyrp.editing import Editor, Reverse
from asyrp.evaluation.metrics import monotone
from asyrp.evaluation.segmenter import open_segmenter
from asyrp.model import interval_of
from asyrp.report import pictures
from asyrp.store import Store
from models.judge import load_judge
from utils.arguments import whole
from utils.errors import UserError
from utils.files import ROOT, shown, write_text
from utils.text_dic import PROMPTS

DEFAULT = 1.0
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
PICTURED = 6  # faces in a direction's picture
WANTED = {"success": 85, "kept": 92, "background": 0.05, "plain": 97}  # percentages; a distance between images in [-1, 1]


def percent(flags):
    flags = list(flags)
    return 100 * sum(flags) / len(flags)


def keep_rates(before, after, labels):
    """label -> percentage of faces whose label is what it was."""
    return {label: percent(a == b for a, b in zip(before[label], after[label], strict=True)) for label in labels}


def colour_moved(before, after, masks):
    """How far the mean colour of a part of the image has moved, a mean over channels and images.

    before, after: (B, C, H, W); masks: (B, H, W) bool. An image whose mask is empty does not count.
    """
    masks = masks[:, None].to(before)
    sizes = masks.sum((2, 3))
    moved = (((after - before) * masks).sum((2, 3)) / sizes.clamp_min(1)).abs().mean(1)
    return moved[sizes[:, 0] > 0].mean().item()


class Evaluator:
    """A model, labelled test faces with their latents, and the judge that looks at what becomes of them."""

    def __init__(self, args):
        self.args, config = args, load_config(args.config)
        if config.judge is None:
            raise UserError(f"--config {args.config}: it names no judge; compare configs/avatar.yml")
        if config.segmenter is None:
            raise UserError(f"--config {args.config}: it names no segmenter; compare configs/avatar.yml")
        dataset, self.rows = open_faces(args.images, config.data.image_size)
        self.model = asyrp.open_model(config, args.model_path, args.device)
        self.judge = load_judge(args.judge or ROOT / config.judge.weights, self.model.device)
        self.segmenter = open_segmenter(config.segmenter_path(), self.model.device)
        self.aims, self.kept = config.judge.by_direction(), config.judge.kept
        self.steps = self.model.timesteps(args.steps)
        self.pairs = InvertedPairs(dataset, self.model, self.steps, Store())
        self.editor = Editor(self.model, Reverse(self.steps, args.t_boost, seed=args.seed))

    def batch(self, chosen):
        """The faces with the numbers `chosen` -> (Batch, {label: classes that they show})."""
        batch = self.pairs.batch(chosen, self.args.batch_size)
        return batch, {label: [self.rows[i][label] for i in batch.indices] for label in self.judge.labels}

    def edited(self, batch, n=None, edit=None):
        """What the process makes of the first `n` faces of a batch -> (n, 3, H, W) on the model's device."""
        n, size = n or len(batch.indices), self.args.batch_size
        parts = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        return torch.cat([self.editor.sample(batch.part(part), edit) for part in parts])

    def measure_plain(self):
        """Inversion and plain generation of the first faces -> percentages of faces that keep a label, and all of them."""
        batch, truth = self.batch(list(range(min(self.args.count, len(self.rows)))))
        after = self.judge.names(self.edited(batch))
        n = len(batch.indices)
        every = percent(all(after[label][i] == truth[label][i] for label in self.judge.labels) for i in range(n))
        return {"n": n, "kept": keep_rates(truth, after, self.judge.labels), "kept_all": every}

    def edits(self, name, direction, batch, everywhere=()):
        """{strength: the first faces of a batch after the edit, all of them at the strengths `everywhere`}."""
        scale, faces = direction.scale(len(self.steps)), {}
        for strength in tqdm(STRENGTHS, desc=name):
            edit = hspace.Edit([direction], [strength * scale], t_edits=[interval_of(direction)]) if strength else None
            faces[strength] = self.edited(batch, None if strength in everywhere else self.args.strip_count, edit)
        return faces

    def strips(self, batch, faces):
        """-> [(original, its edits over STRENGTHS)] for the pictures."""
        shown_faces = range(min(PICTURED, self.args.strip_count))
        return [(batch.x_0[i], [faces[s][i].cpu() for s in STRENGTHS]) for i in shown_faces]

    def draw(self, name, direction):
        """-> strips of the first faces."""
        batch, _ = self.batch(list(range(min(self.args.strip_count, len(self.rows)))))
        return self.strips(batch, self.edits(name, direction, batch))

    def measure(self, name, direction):
        """-> the figures of one direction, and strips of faces for its pictures."""
        args, (label, wanted) = self.args, self.aims[name]
        chosen = [i for i, row in enumerate(self.rows) if row[label] != wanted][: args.count]
        if len(chosen) < args.count:
            raise UserError(f"{args.images} has {len(chosen)} faces without {name}, and --count is {args.count}: render more")
        batch, truth = self.batch(chosen)
        faces, position = self.edits(name, direction, batch, (0.0, DEFAULT)), self.judge.labels[label].index(wanted)
        first = slice(args.strip_count)
        scores = {s: self.judge.read(images[first])[label][:, position].mean().item() for s, images in faces.items()}
        after = self.judge.names(faces[DEFAULT])
        background = self.segmenter(batch.x_0.to(self.model.device)) == self.segmenter.number("background")
        kept = keep_rates(truth, after, [key for key in self.kept if key != label])
        figures = {
            "n": len(batch.indices),
            "t_edit": interval_of(direction),
            "success": percent(value == wanted for value in after[label]),
            "kept": kept,
            "scores": scores,
            "monotone": monotone(list(scores.values())),
            "kept_mean": sum(kept.values()) / len(kept),
            "background_moved": colour_moved(faces[0.0], faces[DEFAULT], background),
        }
        return figures, self.strips(batch, faces)


# ---- pictures and tables ----------------------------------------------------------------------------------------------------


def save_picture(strips, path):
    """strips: list of (original, faces over the strengths). Originals above, strengths across, edits below."""
    rows, names = [], []
    for original, edits in strips:
        rows += [[original] * len(STRENGTHS), edits]
        names += ["original", "edited"]
    pictures.save_grid(path, rows, [f"{s:+g}" for s in STRENGTHS], names)


def save_overview(strips, path):
    """strips: direction -> its strips. A row for each direction, a face of its own in each."""
    rows = [[original, *edits] for original, edits in (some[i % len(some)] for i, some in enumerate(strips.values()))]
    pictures.save_grid(path, rows, ["original", *(f"{s:+g}" for s in STRENGTHS)], list(strips))


def as_markdown(report):
    """The report as two tables, with what was wanted beside what was found."""
    plain, found = report["plain"], report["directions"]
    labels = list(dict.fromkeys(label for f in found.values() for label in f["kept"]))
    kept = ", ".join(f"{label} {value:.0f} %" for label, value in plain["kept"].items())
    lines = [
        f"Inversion and plain generation of {plain['n']} test faces: {kept}; every label at once {plain['kept_all']:.0f} % "
        f"(wanted: {WANTED['plain']} %).",
        "",
        f"Wanted: success {WANTED['success']} %, each other label kept {WANTED['kept']} %, a background whose mean colour "
        f"moves by less than {WANTED['background']:g} (images are in [-1, 1]), and scores that rise with the strength.",
        "",
        f"| direction | n | t_edit | success | {' | '.join(f'{k} kept' for k in labels)} | background moved |",
        "|" + " --- |" * (5 + len(labels)),
    ]
    for name, f in found.items():
        kept = " | ".join(f"{f['kept'][key]:.0f} %" if key in f["kept"] else "" for key in labels)
        lines.append(f"| {name} | {f['n']} | {f['t_edit']} | {f['success']:.0f} % | {kept} | {f['background_moved']:.3f} |")
    strengths = " | ".join(f"{s:+g}" for s in STRENGTHS)
    lines += ["", f"| mean score of {report['settings']['strip_count']} faces at strength | {strengths} | monotone |"]
    lines.append("|" + " --- |" * (2 + len(STRENGTHS)))
    for name, f in found.items():
        scores = " | ".join(f"{value:.2f}" for value in f["scores"].values())
        lines.append(f"| {name} | {scores} | {'yes' if f['monotone'] else 'no'} |")
    return "\n".join(lines) + "\n"


def find_directions(pairs, aims, category):
    """["smiling=PATH", ...] -> {name: path}; without any, the directions that ship, those of `aims` first."""
    if not pairs:
        ships = directions.shipped(category)
        if found := {name: ships[name] for name in dict.fromkeys((*aims, *ships)) if name in ships}:
            return found
        raise UserError(f"no direction ships with category {category}: give --directions NAME=PATH")
    named = dict(pair.partition("=")[::2] for pair in pairs)
    for name, path in named.items():
        if not path or (name not in aims and f"avatar_{name}" not in PROMPTS):
            known = [attribute.removeprefix("avatar_") for attribute in PROMPTS if attribute.startswith("avatar_")]
            raise UserError(f"--directions {name}: give NAME=PATH with a name of {', '.join(known)}")
    return named


def run(args):
    evaluator = Evaluator(args)
    config = evaluator.model.config
    found = find_directions(args.directions, evaluator.aims, config.data.category)
    opened = {name: asyrp.load_direction(path, evaluator.model) for name, path in found.items()}
    settings = {key: shown(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    report = {"settings": settings | {"model": evaluator.model.identity}, "plain": evaluator.measure_plain(), "directions": {}}
    strips = {}
    for name, direction in opened.items():
        if name in evaluator.aims:
            figures, strips[name] = evaluator.measure(name, direction)
            report["directions"][name] = figures | {"direction": direction.digest()}
        else:
            strips[name] = evaluator.draw(name, direction)
        save_picture(strips[name], args.out / f"{name}.png")
    save_overview(strips, args.out / "overview.png")
    table = as_markdown(report)
    for name, text in (("report.json", json.dumps(report, indent=1)), ("report.md", table)):
        write_text(args.out / name, text)
    print(table)
    print(f"report and pictures: {args.out}\n{config.data.credit}".rstrip())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--directions", nargs="+", metavar="NAME=PATH", help="checkpoints to judge (default: those that ship)")
    add("--images", type=Path, default=ROOT / "data/avatar/test", help="folder of rendered test faces with labels.csv")
    add("--count", type=whole(1), default=64, help="faces for each figure (64)")
    add("--strip_count", type=whole(1), default=16, help="of these, faces for the mean score over strengths (16)")
    add("--steps", type=whole(2), default=40, help="timesteps of inversion and generation (40)")
    add("--t_boost", type=whole(0), default=0, help="quality boosting below this timestep (0: none)")
    add("--batch_size", type=whole(1), default=32, help="faces in a batch (32)")
    add("--config", default="avatar.yml", help="a config that names a judge (avatar.yml)")
    add("--model_path", help="weights of the U-Net (default: those of the config)")
    add("--judge", help="weights of the judge (default: those of the config)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    add("--seed", type=whole(0), default=1234)
    add("--out", type=Path, default=Path("runs/avatar_evaluation"), help="folder for the report and the pictures")
    args = parser.parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s")
    run(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
