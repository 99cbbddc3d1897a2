"""What the directions of the default stack do to held-out faces, by the judge.

    python scripts/avatar/evaluate.py [--directions smiling=PATH beard=PATH ...] [--out docs/avatar]

For every direction: test faces without the attribute are inverted and edited at the default strength; the judge says how
many have it afterwards, and how many keep each label that the edit should leave alone. Then its mean score over strengths
-1 .. 1.5. Before that: how many faces keep every label through inversion and plain generation. The same arguments give the
same table; it is printed, and written as JSON and Markdown beside a picture of every direction.
"""

import argparse
import json
import logging
import sys
from itertools import pairwise
from pathlib import Path

import torch
from render import LABELS, read_labels
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyrp import checkpoints, hspace, images
from asyrp.config import ROOT, load_config
from asyrp.options import parse_args
from asyrp.runner import Asyrp
from utils.errors import UserError

STACK = ROOT / "pretrained" / "avatar"
CREDIT = 'artwork: "Toon Head" by Johan Melin, CC BY 4.0'
JUDGE = load_config("avatar.yml").judge
# direction -> the label it changes and the class it should change it to
DIRECTIONS = {attribute.removeprefix("avatar_"): tuple(aim) for attribute, aim in vars(JUDGE.aims).items()}
KEPT = tuple(JUDGE.kept)  # except the one that an edit changes
DEFAULT = 1.0
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
MEASURABLE = 0.005  # a mean score that falls by less, say from 0.001 to 0.000, has not fallen
WANTED = {"smiling": 80, "sad": 80, "angry": 80, "surprised": 80, "beard": 70, "blond_hair": 70, "kept": 90, "plain": 97}


def shown(setting):
    """A path below the repository as it is called from there; anything else as it is."""
    inside = isinstance(setting, Path) and setting.is_relative_to(ROOT)
    return str(setting.relative_to(ROOT)) if inside else setting


def percent(flags):
    flags = list(flags)
    return 100 * sum(flags) / len(flags)


def runner(args, chosen):
    """An Asyrp of the default stack that works on the test faces with the numbers `chosen`."""
    flags = f"--config {args.config} --run_test --train_delta_block --get_h_num 1 --n_inv_step {args.steps} "
    flags += (
        f"--n_train_step {args.steps} --n_test_step {args.steps} --bs_precompute 32 --user_defined_t_addnoise {args.t_boost}"
    )
    flags = [*flags.split(), "--custom_test_dataset_dir", str(args.images), "--seed", str(args.seed)]
    if args.model_path:
        flags += ["--model_path", args.model_path]
    settings, _ = parse_args([*flags, "--target_image_id", " ".join(map(str, chosen))])
    return Asyrp(settings, load_config(args.config))


def latents_of(app, n):
    pairs, indices = app.pairs("test", n)
    return next(pairs.batches(indices, n))


def keep_rates(before, after, labels):
    """label -> percentage of faces whose label is what it was."""
    return {label: percent(a == b for a, b in zip(before[label], after[label], strict=True)) for label in labels}


def evaluate_plain(args, judge, rows):
    """Inversion and plain generation of the first test faces -> percentages of faces that keep a label, and all of them."""
    chosen = list(range(args.count))
    app = runner(args, chosen)
    batch = latents_of(app, args.count)
    after = judge.names(app.sample(batch.x_T.to(app.device), batch.indices))
    truth = {label: [rows[i][label] for i in chosen] for label in LABELS}
    kept = keep_rates(truth, after, LABELS)
    every = percent(all(after[label][i] == truth[label][i] for label in LABELS) for i in range(len(chosen)))
    return {"n": len(chosen), "kept": kept, "kept_all": every}


def evaluate_direction(args, judge, rows, name, path):
    """-> the figures of one direction, and strips of faces for its pictures."""
    label, wanted = DIRECTIONS[name]
    chosen = [i for i, row in enumerate(rows) if row[label] != wanted][: args.count]
    if len(chosen) < args.count:
        raise UserError(f"{args.images} has {len(chosen)} faces without {name}; {args.count} are asked for: render more")
    app = runner(args, chosen)
    direction, contents = checkpoints.load_direction(path, app.unet)
    app.t_edit = contents["settings"]["t_edit"]
    batch = latents_of(app, args.count)
    x_T = batch.x_T.to(app.device)
    truth = {key: [rows[i][key] for i in chosen] for key in LABELS}
    kept_labels = [key for key in KEPT if key != label]
    faces, scores = {}, {}
    for strength in tqdm(STRENGTHS, desc=name):
        n = args.count if strength == DEFAULT else args.strip_count
        edit = hspace.Edit([direction], [strength]) if strength else None
        faces[strength] = app.sample(x_T[:n], batch.indices[:n], edit)
        probabilities = judge.read(faces[strength][: args.strip_count])[label]
        scores[strength] = probabilities[:, LABELS[label].index(wanted)].mean().item()
    after = judge.names(faces[DEFAULT])
    order = [scores[s] for s in STRENGTHS]
    figures = {
        "n": len(chosen),
        "t_edit": app.t_edit,
        "success": percent(value == wanted for value in after[label]),
        "kept": keep_rates(truth, after, kept_labels),
        "scores": scores,
        "monotone": all(b >= a - MEASURABLE for a, b in pairwise(order)),
    }
    figures["kept_mean"] = sum(figures["kept"].values()) / len(kept_labels)
    return figures, [(batch.x_0[i], [faces[s][i].cpu() for s in STRENGTHS]) for i in range(min(6, args.strip_count))]


def save_picture(strips, path):
    """strips: list of (original, faces over the strengths). Originals above, strengths across, edits below."""
    rows, names = [], []
    for original, edits in strips:
        rows += [[original] * len(STRENGTHS), edits]
        names += ["original", "edited"]
    images.save(images.labelled_grid(rows, [f"{s:+g}" for s in STRENGTHS], names), path)


def save_overview(strips, path):
    """strips: direction -> its strips. A row for each direction, a face of its own in each."""
    rows = [[original, *edits] for original, edits in (some[i % len(some)] for i, some in enumerate(strips.values()))]
    images.save(images.labelled_grid(rows, ["original", *(f"{s:+g}" for s in STRENGTHS)], list(strips)), path)


def as_markdown(report):
    """The report as two tables, with what was wanted beside what was found."""
    plain = report["plain"]
    kept = ", ".join(f"{label} {value:.0f} %" for label, value in plain["kept"].items())
    lines = [
        f"Inversion and plain generation of {plain['n']} test faces: {kept}; every label at once {plain['kept_all']:.0f} % "
        f"(wanted: {WANTED['plain']} %).",
        "",
        "| direction | n | t_edit | judged so after the edit | wanted | "
        + " | ".join(f"{k} kept" for k in KEPT)
        + " | wanted |",
        "|" + " --- |" * (6 + len(KEPT)),
    ]
    for name, f in report["directions"].items():
        kept = " | ".join(f"{f['kept'][key]:.0f} %" if key in f["kept"] else "" for key in KEPT)
        lines.append(
            f"| {name} | {f['n']} | {f['t_edit']} | {f['success']:.0f} % | {WANTED[name]} % | {kept} | {WANTED['kept']} % |"
        )
    lines += [
        "",
        f"| mean score of {report['settings']['strip_count']} faces at strength | "
        + " | ".join(f"{s:+g}" for s in STRENGTHS)
        + " | monotone |",
    ]
    lines.append("|" + " --- |" * (2 + len(STRENGTHS)))
    for name, f in report["directions"].items():
        scores = " | ".join(f"{value:.2f}" for value in f["scores"].values())
        lines.append(f"| {name} | {scores} | {'yes' if f['monotone'] else 'no'} |")
    return "\n".join(lines) + "\n"


def parse_directions(pairs):
    """["smiling=PATH", ...] -> {name: path}; without any, the directions that ship."""
    if not pairs:
        return {name: STACK / "directions" / f"{name}.pth" for name in DIRECTIONS}
    named = dict(pair.partition("=")[::2] for pair in pairs)
    for name, path in named.items():
        if name not in DIRECTIONS or not path:
            raise UserError(f"--directions {name}: give NAME=PATH with a name of {', '.join(DIRECTIONS)}")
    return named


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--directions", nargs="+", metavar="NAME=PATH", help="checkpoints to judge (default: the six that ship)")
    add("--images", type=Path, default=ROOT / "data/avatar/test", help="folder of rendered test faces with labels.csv")
    add("--count", type=int, default=64, help="faces for each figure (64)")
    add("--strip_count", type=int, default=16, help="of these, faces for the mean score over strengths (16)")
    add("--steps", type=int, default=40, help="timesteps of inversion and generation (40)")
    add("--t_boost", type=int, default=0, help="quality boosting below this timestep (0: none)")
    add("--config", default="avatar.yml")
    add("--model_path", help="weights of the U-Net (default: those of the config)")
    add("--judge", default=ROOT / JUDGE.weights)
    add("--seed", type=int, default=1234)
    add("--out", type=Path, default=Path("runs/avatar_evaluation"), help="folder for the report and the pictures")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    try:
        judge = checkpoints.load_judge(args.judge)
        if not (args.images / "labels.csv").is_file():
            raise UserError(f"{args.images}: no labelled faces; draw them with scripts/avatar/render.py --split test")
        rows = read_labels(args.images)
        settings = {key: shown(value) for key, value in vars(args).items()}
        report = {"settings": settings, "plain": evaluate_plain(args, judge, rows), "directions": {}}
        strips = {}
        for name, path in parse_directions(args.directions).items():
            report["directions"][name], strips[name] = evaluate_direction(args, judge, rows, name, path)
            save_picture(strips[name], args.out / f"{name}.png")
        save_overview(strips, args.out / "overview.png")
    except UserError as error:
        sys.exit(f"evaluate.py: {error}")
    table = as_markdown(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.json").write_text(json.dumps(report, indent=1, default=str))
    (args.out / "report.md").write_text(table)
    print(table)
    print(f"report and pictures: {args.out} ({CREDIT})")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
