"""--evaluate: metrics of every picture -> evaluation.json, evaluation.csv, and a printed table."""

import csv
import json
import shutil
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch

from asyrp.evaluation import metrics
from utils.errors import UserError
from utils.files import replacing, write_text
from utils.text import printable

NAME = "evaluation"
RECONSTRUCTION = "reconstruction"


class Evaluation:
    """Measures the pictures of a test batch by batch, keeping only running sums in memory.

    open_gauges: {name of the metrics: function without arguments -> a gauge (see gauges.py)}. A gauge that raises UserError,
    when it is opened or for these images, is left out and the reason reported. folder: where `save` writes.
    """

    def __init__(self, open_gauges, settings, device, folder="."):
        self.settings, self.device, self.folder = settings, device, Path(folder)
        self.gauges, self.left_out = [], {}
        self.moments = defaultdict(lambda: defaultdict(metrics.Moments))  # picture -> metric
        self.rows = self.writer = None
        for name, open_gauge in open_gauges.items():
            try:
                self.gauges.append(open_gauge())
            except UserError as error:
                self.left_out[name] = str(error)

    def add(self, batch, before, edited):
        """Measure a Batch. before, edited: lists of (label, images) from `Editor.pictures_of`, before with the
        reconstruction."""
        self.keep(self.see(batch, before, edited))

    @torch.no_grad()
    def see(self, batch, before, edited, place=0):
        """Measure the pictures of a batch -> plain data and tensors for `keep`, in this process or another."""
        reconstruction = dict(before)[RECONSTRUCTION].to(self.device)
        original = batch.x_0.to(self.device)
        columns = {label: {} for label in [RECONSTRUCTION, *(label for label, _ in edited)]}
        for gauge in list(self.gauges):
            try:
                columns[RECONSTRUCTION].update(gauge.before(original, reconstruction))
                for label, images in edited:
                    columns[label].update(gauge.after(label, images.to(self.device)))
            except UserError as error:
                self.gauges.remove(gauge)
                self.left_out[gauge.name] = str(error)
        values = {
            label: {name: each.tolist() if isinstance(each, torch.Tensor) else list(each) for name, each in found.items()}
            for label, found in columns.items()
        }
        features = {gauge.name: gauge.features.take() for gauge in self.gauges if hasattr(gauge, "features")}
        names = [printable(Path(name).name) for name in batch.names]
        return {"names": names, "values": values, "features": features, "left_out": dict(self.left_out)}

    def keep(self, seen):
        """Add the result of `see`. Call it in the order of the images."""
        for name, reason in seen["left_out"].items():
            if name not in self.left_out:  # it failed in another process
                self.left_out[name] = reason
                self.gauges = [gauge for gauge in self.gauges if gauge.name != name]
        columns = seen["values"]
        for label, each in columns.items():
            for name, values in each.items():
                self.moments[label][name].add([value for value in values if value is not None])
            self._write_rows(seen["names"], label, each, [name for found in columns.values() for name in found])
        for gauge in self.gauges:
            for label, features in seen["features"].get(gauge.name, {}).items():
                gauge.features.add(label, features)

    def _write_rows(self, images, label, each, names):
        """Write one row per image to a temporary file. The column of a metric that fails later stays empty."""
        if self.writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # An unnamed file, deleted with this object.
            self.rows = tempfile.TemporaryFile("w+", dir=self.folder, newline="", encoding="utf-8")  # noqa: SIM115
            self.writer = csv.DictWriter(self.rows, dict.fromkeys(["image", "picture", *names]))
            self.writer.writeheader()
        for i, image in enumerate(images):
            values = {name: values[i] for name, values in each.items() if values[i] is not None}
            self.writer.writerow({"image": image, "picture": label} | values)

    def result(self):
        """The results, as in evaluation.json."""
        found = {}
        for picture, columns in self.moments.items():
            measured = {metric: moments.summary() for metric, moments in columns.items() if moments.n}
            if measured:
                found[picture] = {metric: asdict(summary) for metric, summary in measured.items()}
        distances = defaultdict(dict)
        for gauge in self.gauges:
            if hasattr(gauge, "distances"):
                try:
                    for picture, measured in gauge.distances().items():
                        distances[picture].update(measured)
                except UserError as error:
                    self.left_out["FID" if gauge.name == "FID" else "KID, Fréchet distance"] = str(error)
        for aim, others in [gauge.changes for gauge in self.gauges if hasattr(gauge, "changes")]:
            for picture, columns in found.items():
                if picture != RECONSTRUCTION and aim in columns and others in columns:
                    ratio = metrics.edit_precision_ratio(columns[aim]["mean"], columns[others]["mean"])
                    if ratio is not None:
                        distances[picture]["EPR"] = {"value": ratio, "n": columns[aim]["n"]}
        result = {"settings": self.settings, "summary": found, "distances": dict(distances)}
        edits = [columns for picture, columns in found.items() if picture != RECONSTRUCTION]
        for score in [gauge.score for gauge in self.gauges if hasattr(gauge, "score")]:
            if len(edits) > 1 and all(score in columns for columns in edits):
                result["monotone"] = {score: metrics.monotone([columns[score]["mean"] for columns in edits])}
        return result | {"left_out": self.left_out}

    def save(self):
        """Write evaluation.json, and evaluation.csv with one row per image and picture -> a summary to print."""
        folder = self.folder
        result = self.result()
        write_text(folder / f"{NAME}.json", json.dumps(result, indent=1))
        self.rows.seek(0)
        with replacing(folder / f"{NAME}.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            shutil.copyfileobj(self.rows, stream)
        files = f"metrics: {folder / NAME}.json, and per image in {folder / NAME}.csv"
        return f"{as_text(result)}\n\n{files}"


def table_of(result):
    """The result of `Evaluation.result` -> (names of the pictures, rows: [metric, one cell per picture, n])."""
    summary, pictures = result["summary"], list(result["summary"])
    rows = []
    for metric in dict.fromkeys(metric for columns in summary.values() for metric in columns):
        found = [columns.get(metric) for columns in summary.values()]
        n = next(cell["n"] for cell in found if cell)
        rows.append([metric, *(str(metrics.Summary(**cell)) if cell else "" for cell in found), str(n)])
    distances = result["distances"]
    for metric in dict.fromkeys(metric for columns in distances.values() for metric in columns):
        found = [distances.get(picture, {}).get(metric) for picture in pictures]
        n = next(cell["n"] for cell in found if cell)
        rows.append([metric, *(f"{cell['value']:.3g}" if cell else "" for cell in found), str(n)])
    return pictures, rows


def as_text(result):
    """An aligned Markdown table, with the settings above it and omitted metrics with the reason below it."""
    pictures, rows = table_of(result)
    rows = [["metric", *pictures, "n"], *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    about = result["settings"]
    head = '"{}" -> "{}", CLIP {}: mean ± standard error over n images'.format(*about["prompts"], about["clip"])
    if about.get("inversion", "ddim") != "ddim":
        head += f"; inversion {about['inversion']}"
    lines = [head, ""]
    lines += ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines += [
        f"{name}: {'monotone' if held else 'not monotone'} in the strength" for name, held in result.get("monotone", {}).items()
    ]
    lines += [f"not measured: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)
