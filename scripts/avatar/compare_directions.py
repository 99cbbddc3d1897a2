"""Every way of making a direction, on the default stack: what it does to held-out faces, by the judge, and what it costs.

    python scripts/avatar/compare_directions.py [--attributes smiling beard] [--out docs/avatar/directions]

A row for each attribute, way (delta block, delta_h, SVM, mean difference, component of CLIP, component of h) and place
(anywhere, or in the attribute's own region; fitted ones also projected off those of the other attributes). Each is used at
the strength that served best on training faces: of STRENGTHS the one with the largest sum of success and the label kept least.

Seconds are of the machine it runs on; passes of the two halves of the U-Net are counted. Rows that the report holds stay in it
if they were made with the same settings, so that a run that was stopped goes on.
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
import time
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from faces import open_faces
from tqdm import tqdm

import asyrp
from asyrp import components, fitting, hspace, regions
from asyrp.config import load_config
from asyrp.curves import find_curve
from asyrp.data.pairs import InvertedPairs
from asyrp.directions import Direction
from asyrp.evaluation import gauges, metrics
from asyrp.evaluation.segmenter import find_segmenter
from asyrp.intervals import choose_t_edit
from asyrp.store import Store
from losses.clip_loss import ClipLoss
from models.judge import load_judge
from utils.arguments import whole
from utils.errors import UserError
from utils.files import ROOT, shown, write_text
from utils.text_dic import PROMPTS

STEPS = 40
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
# label that an edit aims at -> segments that it needs
SEGMENTS = {"expression": "mouth eyes brows", "beard": "beard skin mouth", "hair": "hair"}
ELSEWHERE = "skin hair beard mouth eyes brows"  # of other labels
SEEN = 16  # training faces on which a component is told from the others


class Counting:
    """A U-Net that counts the images its two halves see."""

    def __init__(self, unet):
        self.unet, self.encoded, self.decoded = unet, 0, 0

    def encode(self, x, t):
        self.encoded += len(x)
        return self.unet.encode(x, t)

    def decode(self, h, skips, emb):
        self.decoded += len(h)
        return self.unet.decode(h, skips, emb)

    def __call__(self, x, t):
        return self.decode(*self.encode(x, t))

    def __getattr__(self, name):
        return getattr(self.unet, name)


class Stage:
    """The model with its CLIP, judge and segmenter, and labelled faces with their latents."""

    def __init__(self, args):
        config = load_config(args.config)
        if config.judge is None or config.segmenter is None:
            raise UserError(f"--config {args.config}: it names no judge or no segmenter; compare configs/avatar.yml")
        self.args, self.aims, self.kept = args, config.judge.by_direction(), config.judge.kept
        if unknown := set(args.attributes or ()) - self.aims.keys():
            raise UserError(f"--attributes {min(unknown)}: the judge knows {', '.join(self.aims)}")
        self.attributes = args.attributes or list(self.aims)
        self.model = asyrp.open_model(config, args.model_path, args.device)
        self.unet = self.model.unet = Counting(self.model.unet)
        self.clip = ClipLoss(config.clip_name(), self.model.device)
        self.judge = load_judge(ROOT / config.judge.weights, self.model.device, self.aims.values(), self.kept)
        self.segmenter = find_segmenter(ROOT / config.segmenter)
        self.lpips = gauges.Lpips(self.model.device)
        self.timesteps = self.model.timesteps(STEPS)
        self.train, self.train_labels = self._faces(args.train)
        self.test, self.test_labels = self._faces(args.test)
        curve, _ = find_curve(Store(), self.model)
        threshold = config.editing.given().get("lpips_edit_th", 0.33)
        self.t_edit = {a: choose_t_edit(curve, self.clip.cosine(*self.prompts(a)), threshold) for a in self.aims}

    def _faces(self, folder):
        dataset, labels = open_faces(folder, self.model.image_size)
        return InvertedPairs(dataset, self.model, self.timesteps, Store()), labels

    def prompts(self, attribute):
        return PROMPTS[f"avatar_{attribute}"]

    @contextmanager
    def cost(self):
        """Within it, things are counted -> a dict, filled at its end."""
        spent, began, counts = {}, time.perf_counter(), (self.unet.encoded, self.unet.decoded)
        yield spent
        spent["seconds"] = time.perf_counter() - began
        spent["passes"] = self.unet.encoded - counts[0], self.unet.decoded - counts[1]

    def faces_without(self, attribute, split, n):
        """The first n faces of a split that lack the attribute -> Batch."""
        label, wanted = self.aims[attribute]
        pairs, labels = (self.train, self.train_labels) if split == "train" else (self.test, self.test_labels)
        chosen = [i for i, row in enumerate(labels) if row[label] != wanted][:n]
        if len(chosen) < n:
            raise UserError(f"{len(chosen)} {split} faces lack {attribute}, and {n} are asked for: render more")
        return pairs.batch(chosen, self.args.batch_size)

    @cache  # noqa: B019 - there is one stage
    def learned_from(self):
        """The training faces that directions are made of -> Batch."""
        if len(self.train_labels) < self.args.n_train:
            raise UserError(f"--n_train {self.args.n_train}: there are {len(self.train_labels)} training faces; render more")
        return self.train.batch(list(range(self.args.n_train)), self.args.batch_size)

    # ---- what an edit does --------------------------------------------------------------------------------------------------

    def measure(self, attribute, direction, batch, strengths, segments=None):
        """-> for each strength {success, kept: {label: share}, EPR, LPIPS}, and the passes of an edit of one image."""
        judged = gauges.Judged(self.judge, self.aims[attribute], self.kept)
        sums = {strength: {} for strength in strengths}
        region = self.region(segments)
        for i in range(0, len(batch.indices), self.args.batch_size):
            part = batch.part(slice(i, i + self.args.batch_size))
            plain = self.model.generate(part.x_T, STEPS)
            mask = region and region.mask_of(part.x_0)
            judged.before(part.x_0.to(plain), plain)
            self.lpips.before(part.x_0.to(plain), plain)
            for strength in strengths:
                started = self.unet.encoded, self.unet.decoded
                images = self.model.edit(part.x_T, direction, [strength], STEPS, self.t_edit[attribute], mask=mask)
                passes = (self.unet.encoded - started[0]) / len(images), (self.unet.decoded - started[1]) / len(images)
                found = judged.after("", images) | self.lpips.after("", images)
                for name, values in found.items():
                    sums[strength].setdefault(name, metrics.Moments()).add([float(v) for v in values if v is not None])
        return {strength: self._figures(judged, moments) for strength, moments in sums.items()}, passes

    @cache  # noqa: B019
    def region(self, segments):
        return regions.choose(self.model.image_size, self.model.device, segments=segments, segmenter=lambda: self.segmenter)

    def _figures(self, judged, moments):
        means = {name: found.mean for name, found in moments.items() if found.n}
        aim, others = judged.changes
        return {
            "success": means[f"judge: {judged.label} {judged.wanted}"],
            "kept": {label: means[f"judge: {label} kept"] for label in judged.kept},
            "EPR": metrics.edit_precision_ratio(means[aim], means[others]),
            "LPIPS": means["LPIPS to the reconstruction"],
            "n": next(iter(moments.values())).n,
        }

    def best_strength(self, attribute, direction):
        """Of STRENGTHS, by training faces."""
        faces = self.faces_without(attribute, "train", self.args.n_tune)
        found, _ = self.measure(attribute, direction, faces, STRENGTHS)
        return max(STRENGTHS, key=lambda s: found[s]["success"] + min(found[s]["kept"].values()))

    # ---- ways ---------------------------------------------------------------------------------------------------------------

    def given(self, attribute, deltas, name):
        record = {"kind": "delta_h", "n_train_step": STEPS, "t_edit": self.t_edit[attribute]}
        return Direction(hspace.GivenDirection(deltas), record, name).requires_grad_(False).to(self.model.device)

    def trained(self, attribute, kind):
        images = self.learned_from().x_0
        where = {"n_steps": STEPS, "t_edit": self.t_edit[attribute]}
        return asyrp.train_direction(self.model, images, *self.prompts(attribute), clip=self.clip, kind=kind, **where)

    @cache  # noqa: B019
    def h(self):
        """{t: h} of the training faces over the longest of the intervals."""
        lowest = min(self.t_edit.values())
        timesteps = [t for t in self.timesteps if t >= lowest]
        return fitting.bottlenecks(self.model, self.learned_from().x_T.split(self.args.batch_size), timesteps)

    @cache  # noqa: B019
    def fitted(self, attribute, by):
        """{t: delta_h} from the labels of the training faces."""
        label, wanted = self.aims[attribute]
        positive = torch.tensor([self.train_labels[i][label] == wanted for i in self.learned_from().indices])
        h = {t: x for t, x in self.h().items() if t >= self.t_edit[attribute]}
        return fitting.mean_difference(h, positive) if by == "mean" else fitting.boundary_normals(h, positive)[0]

    def held(self, attribute, by):
        """The same without what it shares with those of the other attributes, at the timesteps that all have."""
        own, others = self.fitted(attribute, by), [self.fitted(a, by) for a in self.attributes if a != attribute]
        shared = [t for t in own if all(t in other for other in others)]
        rest = {t: delta for t, delta in own.items() if t not in shared}
        off = fitting.projected_off({t: own[t] for t in shared}, [{t: other[t] for t in shared} for other in others])
        return off | rest

    @cache  # noqa: B019
    def components_of_h(self):
        found, _ = fitting.principal_components(self.h(), self.args.n_components)
        attribute = min(self.t_edit, key=self.t_edit.get)
        return [self.given(attribute, deltas, f"component {k + 1} of h") for k, deltas in enumerate(found)]

    @cache  # noqa: B019
    def components_of_clip(self):
        batch = self.learned_from()
        aims, _ = components.clip_components(self.clip, [batch], self.args.n_components)
        where = {"n_steps": STEPS, "t_edit": min(self.t_edit.values()), "clip": self.clip}
        return [asyrp.train_direction(self.model, batch.x_0, aim, **where) for aim in tqdm(aims, desc="components of CLIP")]

    def nearest(self, attribute, found, reach):
        """Of components, the one that changes the pictures most as the prompts say -> (Direction, +1 or -1)."""
        direction = self.clip.direction(*self.prompts(attribute))
        cosines = torch.cat([F.cosine_similarity(self.change(one, reach), direction) for one in found])
        k = int(cosines.abs().argmax())
        return found[k], float(cosines[k].sign())

    @cache  # noqa: B019
    def change(self, direction, reach):
        """How CLIP sees pictures change from -reach to reach -> (1, D)."""
        x_T = self.learned_from().x_T[:SEEN]
        behind, ahead = (self.model.edit(x_T, direction, [s * reach], STEPS) for s in (-1, 1))
        with torch.no_grad():
            return (self.clip.encode_images(ahead) - self.clip.encode_images(behind)).mean(0, keepdim=True)


class Signed:
    """A Direction with its sign turned; everything else is the direction's."""

    def __init__(self, direction, sign):
        self.direction, self.sign = direction, sign

    def __call__(self, h, emb, t):
        return self.sign * self.direction(h, emb, t)

    def __getattr__(self, name):
        return getattr(self.direction, name)


def component(stage, attribute, found, reach):
    return Signed(*stage.nearest(attribute, found(), reach))


# way -> function (stage, attribute) -> Direction
WAYS = {
    "delta block": lambda stage, a: stage.trained(a, "delta_block"),
    "delta_h": lambda stage, a: stage.trained(a, "delta_h"),
    "SVM": lambda stage, a: stage.given(a, stage.fitted(a, "svm"), "SVM"),
    "SVM, others held": lambda stage, a: stage.given(a, stage.held(a, "svm"), "SVM, held"),
    "mean difference": lambda stage, a: stage.given(a, stage.fitted(a, "mean"), "mean difference"),
    "mean difference, others held": lambda stage, a: stage.given(a, stage.held(a, "mean"), "mean difference, held"),
    "component of CLIP": lambda stage, a: component(stage, a, stage.components_of_clip, 1.0),
    "component of h": lambda stage, a: component(stage, a, stage.components_of_h, 3.0),
}


# ---- the report -------------------------------------------------------------------------------------------------------------


def measure_row(stage, attribute, way):
    """-> the rows of one way for one attribute: anywhere, and in its region."""
    with stage.cost() as made:
        direction = WAYS[way](stage, attribute)
    strength = stage.best_strength(attribute, direction)
    faces = stage.faces_without(attribute, "test", stage.args.count)
    places = {"anywhere": None, "region": SEGMENTS.get(stage.aims[attribute][0], ELSEWHERE)}
    rows = []
    for place, segments in places.items():
        found, passes = stage.measure(attribute, direction, faces, [strength], segments)
        about = {"attribute": attribute, "way": way, "place": place, "segments": segments, "strength": strength}
        rows.append(about | found[strength] | {"passes": passes, "made": made})
    return rows


def as_markdown(report):
    """A table of means over the attributes, and one for each attribute."""
    rows, settings = report["rows"], report["settings"]
    labels = list(dict.fromkeys(label for row in rows for label in row["kept"]))
    lines = [
        f"{settings['count']} test faces that lack the attribute, {STEPS} steps; each way at the strength that served best on "
        f"{settings['n_tune']} training faces; made from {settings['n_train']} training faces. EPR: mean change of the logit "
        "aimed at over that of the judge's other logits. Passes: of the U-Net's encoder and decoder, an edit of one image. "
        "Seconds: to make the direction, on the machine of this run; what several share (h of the training faces, the "
        "components) counts where it was computed first, and what is trained inverts the faces itself.",
        "",
    ]
    attributes = list(dict.fromkeys(row["attribute"] for row in rows))
    for title, some in [("mean of all", rows), *((a, [row for row in rows if row["attribute"] == a]) for a in attributes)]:
        head = [
            "way",
            "place",
            "strength",
            "success",
            *(f"{label} kept" for label in labels),
            "EPR",
            "LPIPS",
            "passes",
            "seconds",
        ]
        lines += [f"**{title}**", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        for way, place in dict.fromkeys((row["way"], row["place"]) for row in some):
            lines.append(_line([row for row in some if (row["way"], row["place"]) == (way, place)], way, place, labels))
        lines.append("")
    return "\n".join(lines)


def _line(rows, way, place, labels):
    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

    def percent(values):
        found = mean(values)
        return "" if found is None else f"{100 * found:.0f} %"

    def number(values, form):
        found = mean(values)
        return "" if found is None else format(found, form)

    encoded, decoded = (number([row["passes"][i] for row in rows], ".0f") for i in (0, 1))
    cells = [way, place, number([row["strength"] for row in rows], ".2g"), percent([row["success"] for row in rows])]
    cells += [percent([row["kept"].get(label) for row in rows]) for label in labels]
    cells += [number([row["EPR"] for row in rows], ".1f"), number([row["LPIPS"] for row in rows], ".4f")]
    cells += [f"{encoded} + {decoded}", number([row["made"]["seconds"] for row in rows], ".0f")]
    return f"| {' | '.join(cells)} |"


def kept_rows(path, settings):
    """Rows of an earlier run. Raises UserError where they were made with other settings."""
    if not path.exists():
        return []
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made_with, rows = report["settings"], report["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, or give another --out") from error
    if made_with != settings:
        raise UserError(f"{path} holds rows that were made with other settings: give another --out, or delete it")
    return rows


def run(args):
    stage = Stage(args)
    chosen = ("count", "n_tune", "n_train", "n_components")
    settings = {name: getattr(args, name) for name in chosen} | {"model": stage.model.identity, "clip": stage.clip.identity()}
    settings |= {"t_edit": stage.t_edit, "config": shown(stage.model.config.path)}
    files = {kind: args.out.with_suffix(f".{kind}") for kind in ("json", "md")}
    report = {"settings": settings, "rows": kept_rows(files["json"], json.loads(json.dumps(settings)))}
    done = {(row["attribute"], row["way"]) for row in report["rows"]}
    todo = [(a, way) for way in args.ways or WAYS for a in stage.attributes if (a, way) not in done]
    stage.learned_from()
    for attribute, way in tqdm(todo, desc="ways", unit="way"):
        report["rows"] += measure_row(stage, attribute, way)
        write_text(files["json"], json.dumps(report, indent=1))
        write_text(files["md"], as_markdown(report))
    print(as_markdown(report))
    print(f"table: {files['md']}; figures: {files['json']}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--attributes", nargs="+", metavar="NAME", help="attributes that the judge knows (all of the config's)")
    add("--ways", nargs="+", choices=list(WAYS), help="ways of making a direction (all)")
    add("--config", default="avatar.yml", help="a config that names a judge and a segmenter (avatar.yml)")
    add("--model_path", help="weights of the U-Net (default: those of the config)")
    add("--train", type=Path, default=ROOT / "data/avatar/train", help="folder of rendered training faces")
    add("--test", type=Path, default=ROOT / "data/avatar/test", help="folder of rendered test faces")
    add("--count", type=whole(1), default=64, help="test faces for each row (64)")
    add("--n_train", type=whole(8), default=100, help="training faces that directions are made of (100)")
    add("--n_tune", type=whole(1), default=24, help="training faces by which the strength is chosen (24)")
    add("--n_components", type=whole(1), default=6, help="principal components among which one is chosen (6)")
    add("--batch_size", type=whole(1), default=32, help="faces in a batch (32)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    add("--out", type=Path, default=Path("runs/directions"), help="the report, without its suffix (runs/directions)")
    args = parser.parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s")
    run(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
