"""report.html: the results in an experiment's folder as one self-contained page."""

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
# Errors from reading a file that is truncated or was modified.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration, yaml.YAMLError)
MOST_IMAGES, MOST_PICTURES = 64, 512  # test images, and pictures in total; keeps the file below about ten megabytes
LARGEST, SHARP = 256, 64  # pixels; larger pictures are downscaled, those up to SHARP are stored losslessly
POINTS = 60  # points of the loss curve over a whole training
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def data_uri(image):
    """Tensor (3, H, W) in [-1, 1] -> data URI: PNG if small, WebP otherwise."""
    picture, stream = drawing.to_pil(image), io.BytesIO()
    picture.thumbnail((LARGEST, LARGEST))
    kind, options = ("png", {"optimize": True}) if max(picture.size) <= SHARP else ("webp", {"quality": 90})
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


class Gallery:
    """Collects the first pictures of a test for the report.

    folder: of the experiment. directions: names of combined directions, else []. n_edits: number of edits per image. tested:
    number of images in the test.
    """

    def __init__(self, folder, directions, n_edits, tested):
        self.folder = Path(folder)
        self.about = {"directions": directions, "n_edits": n_edits, "tested": tested}
        self.labels, self.shown = [], []

    def add(self, batch, before, edited):
        """Take a Batch and its pictures, as `Editor.pictures_of` returns them."""
        self.keep(self.see(batch, before, edited, len(self.shown)))

    def see(self, batch, before, edited, place):
        """Encode the pictures of a batch, whose first image is number `place` of the test -> plain data for `keep`, in this
        process or another."""
        columns = [*before, *edited]
        # Sampled latents may have no image.
        if columns[0][0] != "original" and batch.x_0 is not None:
            columns = [("original", batch.x_0), *columns]
        room = max(0, min(MOST_IMAGES, max(1, MOST_PICTURES // len(columns))) - place)
        first = [
            {"name": printable(Path(name).stem), "pictures": [data_uri(pictures[i]) for _, pictures in columns]}
            for i, name in enumerate(batch.names[:room])
        ]
        return [label for label, _ in columns], first

    def keep(self, seen):
        """Add the result of `see`. Call it in the order of the images."""
        self.labels, first = seen
        self.shown += first

    def save(self):
        write_text(self.folder / PICTURES, json.dumps({**self.about, "labels": self.labels, "images": self.shown}))


def write(folder, curve=None, curve_name="", defaults=None):
    """Write the report of an experiment's folder -> its path, or None if there is nothing to report. curve: the LPIPS Curve of
    its intervals, or None. defaults: {flag: default}, to mark other values.

    Reads settings_<mode>.yml, the tables of losses, the pictures that a Gallery saved, and evaluation.json; sections without
    data are omitted.
    """
    folder = Path(folder)
    paths = {mode: folder / f"settings_{mode}.yml" for mode in ("train", "fit", "test", "evaluate")}
    settings = {mode: found for mode, path in paths.items() if (found := _read(path, settings_of))}
    if not settings:
        log.warning("no report was written: %s has no readable settings_<mode>.yml", folder)
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
    """make(the text of a file), or None if there is no such file. A damaged file is renamed."""
    try:
        return make(ordinary(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (*DAMAGED, OSError):
        log.warning("%s is damaged: it was renamed to %s and omitted from the report", path, set_aside(path).name)
    return None


def settings_of(text):
    """The text of settings_<mode>.yml -> its contents, with the types that the template expects."""
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
    """The value of --inversion in words; DDIM if it is missing, as in older files."""
    words = {"ddpm": "DDPM, noise maps", "fixed_point": "DDIM with fixed-point iterations"}
    return words.get(settings.get("inversion"), "DDIM")


def metrics_of(text):
    """The text of evaluation.json -> the data for the template."""
    result = json.loads(text)
    pictures, rows = evaluation.table_of(result)
    about, left_out = result["settings"], dict(result["left_out"])
    told = {"clip": about["clip"], "inversion": inversion_of(about), "left_out": left_out}
    return {"pictures": pictures, "rows": rows, **told}


def gallery_of(text):
    """The text that a Gallery saved -> the data for the template: per image the pictures next to the slider, and those at its
    stops.

    The stops are the strengths. For a single edit, the slider goes from the original to it.
    """
    pictures = json.loads(text)
    labels, n = [str(label) for label in pictures["labels"]], pictures["n_edits"]
    if not 0 < n <= len(labels) or not pictures["images"]:
        raise ValueError("no pictures")
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
            "unedited": list(zip(labels[:-n], image["pictures"][:-n], strict=True)),
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
    """The LPIPS curves with the editing and quality boosting intervals -> Chart."""
    end = int(curve.t[-1])
    # Each direction has its own interval.
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
    """Rows of `read_losses` -> the mean losses per epoch, and charts over training and over timesteps; None without rows.

    Losses that are always 0, of unused terms, are omitted. Only means are kept in memory.
    """
    found = [epoch_means(int(epoch), of_epoch) for epoch, of_epoch in groupby(rows, key=itemgetter("epoch"))]
    if not found:
        return None
    used = [i for i, name in enumerate(COLUMNS) if any(means.batches[:, i].any() for means in found)]

    # Each point of the curve is the mean over a stretch of training.
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
        "training": line_chart(f"Losses over {len(found)} epochs; see the table for the means", "epoch", "loss", training),
        "timesteps": line_chart("Total loss at each trained timestep", "timestep t", "loss", timesteps),
        "points": per_epoch,
    }


class EpochMeans(NamedTuple):
    """Mean losses of an epoch: per batch over its timesteps, (n, len(COLUMNS)); the total per timestep t."""

    epoch: int
    batches: np.ndarray
    t: np.ndarray
    total_at_t: np.ndarray


def epoch_means(epoch, rows):
    """Rows of one epoch, in the order of the batches -> EpochMeans."""
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
    """The flags of the modes -> list of (name, {mode: value}, default, whether any mode differs from the default)."""
    names = dict.fromkeys(name for found in settings.values() for name in found["flags"])
    rows = []
    for name in names:
        default = defaults.get(name)
        values = {mode: found["flags"].get(name, default) for mode, found in settings.items()}
        rows.append((name, values, default, any(value != default for value in values.values())))
    return rows
