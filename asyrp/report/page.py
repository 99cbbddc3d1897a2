"""report.html: what lies in an experiment's folder, as one page to look at. Nothing outside the file is needed to read it."""

import base64
import io
import json
import logging
from collections import defaultdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import yaml

from asyrp.evaluation import evaluation
from asyrp.report import pictures as drawing
from asyrp.report.charts import HEIGHT, WIDTH, Line, Span, line_chart
from asyrp.report.losslog import read_losses
from asyrp.training import COLUMNS
from utils.files import ordinary, set_aside, write_text
from utils.text import printable

log = logging.getLogger(__name__)

NAME = "report.html"
PICTURES = "report_pictures.json"
# What reading a file raises that is cut off, or was changed by something else.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration, yaml.YAMLError)
MOST_IMAGES, MOST_PICTURES = 64, 512  # test images, and pictures of them in all: what keeps the file below some ten megabytes
LARGEST, SHARP = 256, 64  # pixels; larger pictures are scaled down, those up to SHARP are kept without loss
POINTS = 60  # of the loss curve over a whole training
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def data_uri(image):
    """Tensor (3, H, W) in [-1, 1] -> the picture as text: PNG when small, WebP otherwise."""
    picture, stream = drawing.to_pil(image), io.BytesIO()
    picture.thumbnail((LARGEST, LARGEST))
    kind, options = ("png", {"optimize": True}) if max(picture.size) <= SHARP else ("webp", {"quality": 90})
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


class Gallery:
    """The pictures of a test, the first ones of many, on their way into the report.

    folder: the experiment's. directions: the names of several that are combined, else []. n_edits: how many edits of each image
    there are. tested: how many images the test has.
    """

    def __init__(self, folder, directions, n_edits, tested):
        self.folder = Path(folder)
        self.about = {"directions": directions, "n_edits": n_edits, "tested": tested}
        self.labels, self.shown = [], []

    def add(self, batch, before, edited):
        """A Batch, and its pictures: lists of (label, images (B, 3, H, W)), what stands before the edits and the edits."""
        self.keep(self.see(batch, before, edited, len(self.shown)))

    def see(self, batch, before, edited, place):
        """The pictures of a batch, the first of whose images is number `place` of the test -> what `keep` takes, of this
        process or of another: plain data."""
        columns = [*before, *edited]
        # Sampled latents have no image when nobody asked for one.
        if columns[0][0] != "original" and batch.x_0 is not None:
            columns = [("original", batch.x_0), *columns]
        room = max(0, min(MOST_IMAGES, max(1, MOST_PICTURES // len(columns))) - place)
        first = [
            {"name": printable(Path(name).stem), "pictures": [data_uri(pictures[i]) for _, pictures in columns]}
            for i, name in enumerate(batch.names[:room])
        ]
        return [label for label, _ in columns], first

    def keep(self, seen):
        """What `see` returned, in the order of the images."""
        self.labels, first = seen
        self.shown += first

    def save(self):
        write_text(self.folder / PICTURES, json.dumps({**self.about, "labels": self.labels, "images": self.shown}))


def write(folder, curve=None, curve_name="", defaults=None):
    """Write the report of an experiment's folder -> its path. curve: the LPIPS curves its intervals belong to, or None.
    defaults: {flag: default}, so that the page can mark what is another value.

    Read are settings_<mode>.yml, the tables of losses, the pictures that a Gallery saved, and evaluation.json; what is not
    there is left out.
    """
    folder = Path(folder)
    paths = {mode: folder / f"settings_{mode}.yml" for mode in ("train", "fit", "test", "evaluate")}
    settings = {mode: found for mode, path in paths.items() if (found := _read(path, settings_of))}
    if not settings:
        log.warning("no report is written: %s has no settings_<mode>.yml that can be read", folder)
        return None
    dates = {mode: found["date"].replace("T", " ") for mode, found in settings.items()}
    latest = settings[max(reversed(settings), key=dates.get)]
    page = TEMPLATES.get_template("report.html.j2").render(
        experiment=folder.name,
        latest=latest,
        dates=dates,
        gallery=_read(folder / PICTURES, gallery_of),
        evaluation=_read(folder / f"{evaluation.NAME}.json", metrics_of),
        curve=curve and intervals_chart(curve, latest["t_edit"], latest["t_boost"]),
        curve_name=curve_name,
        losses=loss_charts(read_losses(folder)),
        flags=flag_rows(settings, defaults or {}),
        yaml=yaml.safe_dump(latest["config"], sort_keys=False),
        width=WIDTH,
        height=HEIGHT,
    )
    write_text(folder / NAME, page)
    return folder / NAME


def _read(path, make):
    """make(the text of a file that stands beside the results); None where there is none. A damaged one is set aside."""
    try:
        return make(ordinary(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (*DAMAGED, OSError):
        log.warning("%s is damaged: set aside as %s, and left out of the report", path, set_aside(path).name)
    return None


def settings_of(text):
    """settings_<mode>.yml -> what is in it, of the types that the page counts on."""
    found = yaml.safe_load(text)
    data = {**found["config"]["data"], "image_size": int(found["config"]["data"]["image_size"])}
    flags = dict(found["flags"])
    steps = {name: int(flags[name]) for name in ("n_inv_step", "n_train_step", "n_test_step")}
    t_edit, t_boost = found["t_edit"], found["t_boost"]
    return {
        "date": str(found.get("date", "")),
        "flags": {str(name): value for name, value in flags.items()} | steps,
        "config": {**found["config"], "path": str(found["config"]["path"]), "data": data},
        "versions": dict(found["versions"]),
        "prompts": [(str(source), str(target)) for source, target in found["prompts"]],
        "t_edit": [int(t) for t in t_edit] if isinstance(t_edit, list) else t_edit and int(t_edit),
        "t_boost": None if t_boost is None else int(t_boost),
        "inversion": inversion_of(flags),
    }


def inversion_of(settings):
    """What --inversion was, in words; DDIM where nothing is said, as before there was another."""
    return "DDPM, noise maps" if settings.get("inversion") == "ddpm" else "DDIM"


def metrics_of(text):
    """evaluation.json -> what the page shows."""
    result = json.loads(text)
    pictures, rows = evaluation.table_of(result)
    about, left_out = result["settings"], dict(result["left_out"])
    told = {"clip": about["clip"], "inversion": inversion_of(about), "left_out": left_out}
    return {"pictures": pictures, "rows": rows, **told}


def gallery_of(text):
    """What a Gallery saved -> what the page shows: of each image what stands beside the slider, and what its stops show.

    Several strengths are the stops. A single edit has none, and the slider goes from the original to it.
    """
    pictures = json.loads(text)
    labels, n = [str(label) for label in pictures["labels"]], pictures["n_edits"]
    if not 0 < n <= len(labels) or not pictures["images"]:
        raise ValueError("it has no pictures")
    first = len(labels) - n
    if n == 1:
        sliders, first = [{"name": "Shown", "stops": labels}], 0
    else:
        sliders = strength_sliders(labels[first:], pictures["directions"])
    for slider in sliders:
        slider["start"] = slider["stops"].index("+1") if "+1" in slider["stops"] else len(slider["stops"]) - 1
    start = 0
    for slider in sliders:
        start = start * len(slider["stops"]) + slider["start"]
    shown = [
        {
            "name": image["name"],
            "beside": list(zip(labels[:-n], image["pictures"][:-n], strict=True)),
            "stops": list(zip(labels[first:], image["pictures"][first:], strict=True)),
        }
        for image in pictures["images"]
    ]
    return {"images": shown, "sliders": sliders, "start": start, "tested": int(pictures["tested"])}


def strength_sliders(labels, names):
    """The labels of a strip or a grid of strengths ("+1" or "+1, -0.5", the last one varying fastest) -> one slider each."""
    parts = [label.split(", ") for label in labels]
    directions = len(parts[0])
    n = round(len(parts) ** (1 / directions))
    sliders = []
    for k in range(directions):
        apart = n ** (directions - 1 - k)
        name = "Strength" if directions == 1 else f"Strength of {names[k]}"
        sliders.append({"name": name, "stops": [parts[i * apart][k] for i in range(n)]})
    return sliders


def intervals_chart(curve, t_edit, t_boost):
    """The LPIPS curves with the editing interval and that of quality boosting."""
    end = int(curve.t[-1])
    # Several directions have an interval each.
    t_edits = [t for t in (t_edit if isinstance(t_edit, list) else [t_edit]) if t is not None and t < end]
    spans = [Span(f"t_edit = {t}", t, end) for t in dict.fromkeys(t_edits)]
    spans += [Span(f"t_boost = {t_boost}", 0, t_boost)] if t_boost else []
    said = "; ".join(f"{span.label}, t = {span.start} to {span.end}" for span in spans)
    lines = [
        Line("LPIPS(x₀, x_t)", curve.t, curve.lpips_x_t, curve.lpips_x_t_std),
        Line("LPIPS(x₀, P_t)", curve.t, curve.lpips_x0_t, curve.lpips_x0_t_std),
    ]
    return line_chart(f"LPIPS rises with the timestep. {said}", "timestep t", "LPIPS, mean ± std", lines, spans)


def loss_charts(rows):
    """Rows of `read_losses` -> means of every epoch, and the losses over training and over timesteps; None without rows.

    Losses that are 0 throughout, of terms that were not used, are left out. Of each epoch, only means are held.
    """
    found = [epoch_means(int(epoch), of_epoch) for epoch, of_epoch in groupby(rows, key=itemgetter("epoch"))]
    if not found:
        return None
    used = [i for i, name in enumerate(COLUMNS) if any(means.batches[:, i].any() for means in found)]

    # One stretch of training for every point of the curve.
    per_epoch = max(1, min(POINTS // len(found), max(len(means.batches) for means in found)))
    x, y = [], []
    for means in found:
        for k, stretch in enumerate(np.array_split(means.batches, per_epoch)):
            if len(stretch):
                x.append(means.epoch + (k + 0.5) / per_epoch)
                y.append(stretch.mean(0))
    training = [Line(COLUMNS[i], np.array(x), np.array(y)[:, i]) for i in used]
    ends = [found[0], found[-1]] if len(found) > 1 else found
    timesteps = [Line(f"total, epoch {means.epoch}", means.t, means.total_at_t) for means in ends]
    return {
        "names": [COLUMNS[i] for i in used],
        "epochs": [(means.epoch, means.batches.mean(0)[used].tolist()) for means in found],
        "training": line_chart(f"Losses over {len(found)} epochs; the table has the means", "epoch", "loss", training),
        "timesteps": line_chart("Total loss at each timestep that was trained", "timestep t", "loss", timesteps),
        "points": per_epoch,
    }


class EpochMeans(NamedTuple):
    """Mean losses of an epoch: of each batch over its timesteps, (n, len(COLUMNS)); the total at each timestep t."""

    epoch: int
    batches: np.ndarray
    t: np.ndarray
    total_at_t: np.ndarray


def epoch_means(epoch, rows):
    """Rows of one epoch, those of a batch one after the other -> EpochMeans."""
    batches, totals = [], defaultdict(list)
    for _, of_batch in groupby(rows, key=itemgetter("image")):
        steps = []
        for row in of_batch:
            steps.append([float(row[name]) for name in COLUMNS])
            totals[int(row["t"])].append(steps[-1][COLUMNS.index("total")])
        batches.append(np.mean(steps, 0))
    t = sorted(totals)
    return EpochMeans(epoch, np.array(batches), np.array(t), np.array([np.mean(totals[k]) for k in t]))


def flag_rows(settings, defaults):
    """The flags of the modes -> list of (name, {mode: value}, default, whether a mode has another value than the default)."""
    names = dict.fromkeys(name for found in settings.values() for name in found["flags"])
    rows = []
    for name in names:
        default = defaults.get(name)
        values = {mode: found["flags"].get(name, default) for mode, found in settings.items()}
        rows.append((name, values, default, any(value != default for value in values.values())))
    return rows
