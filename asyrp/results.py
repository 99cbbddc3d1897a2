"""The results of a test, in its experiment's folder: pictures, metrics, the report."""

import json
import logging
import shutil
from operator import itemgetter

from tqdm import tqdm

from asyrp.evaluation import gauges
from asyrp.evaluation.evaluation import Evaluation
from asyrp.evaluation.segmenter import segmenter_of
from asyrp.noise_maps import replayed
from asyrp.ranks import ALONE
from asyrp.report import page, pictures
from asyrp.report.album import Album, axes
from asyrp.report.export import Export
from utils import tensors
from utils.digests import digest
from utils.errors import UserError
from utils.files import shown

log = logging.getLogger(__name__)

ANY = ("slurm_array", "collect", "device", "compile", "verbose")  # settings that may differ between the shares of a test


def shown_pictures(s):
    """The pictures that a test makes of each image in addition to the edits -> arguments of `Editor.pictures_of`."""
    if s.save_x0 != s.use_x0_tensor:
        log.warning("--save_x0 and --use_x0_tensor only work together: the original is not shown")
    return {
        "original": s.save_x0 and s.use_x0_tensor,
        "plain": s.save_x_origin or s.save_process_origin or s.evaluate,
        "boost_plain": s.origin_process_addnoise,
        "watch_plain": "process_origin" if s.save_process_origin else None,
        "watch_edit": "process_delta_h" if s.save_process_delta_h else None,
    }


class TestResults:
    """The results of a test: `add` takes the pictures of each batch, `save` writes everything.

    experiment: an Experiment, with the settings of the run. prompts: (source, target) pairs given by the flags. uses: list of
    Use. decided: what `tell` returned, with the labels of the edits as "strengths". n_images: how many are tested. clip:
    function without arguments -> ClipLoss. later: a Background that draws pictures. ranks: the processes that share the
    images, of which the first one writes.
    """

    __test__ = False  # otherwise pytest collects it as a test

    def __init__(self, experiment, prompts, uses, decided, n_images, clip, device, later, ranks=ALONE):
        s, self.parts, told = experiment.settings, [], {}
        labels, names = decided["strengths"], (s.multiple_attr or "").split()
        if s.run_test or s.run_train:
            place = experiment.folder / "test_images" / str(s.n_test_step)
            album_axes = axes(labels, names if s.delta_interpolation else [])
            self.parts.append(Album(place, later, *album_axes, labels, s.save_animation))
            self.parts.append(page.Gallery(experiment.folder, names, len(labels), n_images))
            told["test"] = {"prompts": prompts} | decided
        if s.evaluate:
            measured = measured_prompts(prompts, [use.direction for use in uses])
            self.parts.append(open_evaluation(experiment, measured, decided, clip, device))
            told["evaluate"] = {"prompts": [measured]} | decided
        if s.export:  # last, because it shows the results of the evaluation
            self.parts.append(Export(experiment, uses[0], prompts[0] if prompts else None, decided["t_boost"]))
        for mode, found in told.items() if ranks.leads else ():
            experiment.write_settings(mode, **found)

    def add(self, batch, before, edited):
        """Take a Batch and its pictures, as `Editor.pictures_of` returns them."""
        for part in self.parts:
            part.add(batch, before, edited)

    def take(self, edited, indices, shares, ranks=ALONE, collect=False):
        """Run a whole test over `indices` -> whether this process has all results and should save them.

        edited: function without arguments that yields (Batch, before, edited) of this process's share. Several processes write
        their shares to `shares`; the first one, or a later call with `collect`, combines them.
        """
        if ranks.world == 1 and not collect:
            for some in edited():
                self.add(*some)
            return True
        if not collect:
            places, seen = {index: place for place, index in enumerate(indices)}, []
            for batch, *made in edited():
                place = places[batch.indices[0]]
                seen.append((place, [part.see(batch, *made, place=place) for part in self.parts]))
            path = shares.write(ranks, seen)
            ranks.wait()
            if not ranks.joined:
                log.info("share %d of %d: %s; once all are done, combine them with --collect", ranks.rank, ranks.world, path)
                return False
        if ranks.leads:
            for seen in shares.read(None if collect else ranks.world):
                for part, found in zip(self.parts, seen, strict=True):
                    part.keep(found)
            shares.remove()
        return ranks.leads

    def save(self):
        """Write all results and print their summaries."""
        for part in self.parts:
            if told := part.save():
                print(told)


class Shares:
    """The results that each of several processes hands to the one that combines them: one file per process, in the
    experiment's folder. content: what the results depend on besides the settings, as plain data."""

    def __init__(self, experiment, content):
        values = {name: value for name, value in experiment.settings.values().items() if name not in ANY}
        self.folder, self.content = experiment.folder / "shares", digest(json.dumps([content, values], default=str))

    def write(self, ranks, seen):
        """seen: list of (position in the test, what each part's `see` returned). -> the file."""
        path = self.folder / f"{ranks.rank}_of_{ranks.world}.pt"
        tensors.save({"content": self.content, "seen": seen}, path)
        return path

    def read(self, world=None):
        """The results of all processes, in the order of the images. world: the number of shares; None: from their file names.

        Raises UserError unless every share is there and was made with these settings."""
        if world is None:
            worlds = sorted({int(path.stem.split("_of_")[1]) for path in self.folder.glob("[0-9]*_of_[0-9]*.pt")})
            if not worlds:
                raise UserError(f"--collect: there are no shares in {self.folder}: run each task of the test first")
            if len(worlds) > 1:
                raise UserError(
                    f"{self.folder} has shares of runs with {worlds[0]} and {worlds[1]} processes: delete the old ones"
                )
            [world] = worlds
        paths = [self.folder / f"{rank}_of_{world}.pt" for rank in range(world)]
        if missing := [path.name for path in paths if not path.exists()]:
            raise UserError(f"{self.folder}: missing shares {', '.join(missing)}: run those tasks first")
        seen = []
        for path in paths:
            found = tensors.load(path)
            if not isinstance(found, dict) or found.get("content") != self.content:
                raise UserError(
                    f"{path} was made with other settings or another model: run that task again, or use the same flags"
                )
            seen += found["seen"]
        return [found for _, found in sorted(seen, key=itemgetter(0))]

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def measured_prompts(prompts, found):
    """The (source, target) prompts that --evaluate measures: those of the flags, else those the direction was trained for."""
    prompts = prompts or [tuple(d.record["prompts"]) for d in found if d.record.get("prompts")]
    if len(prompts) != 1:
        raise UserError("--evaluate needs the prompts of the edit: give --edit_attr, or one --src_txts and one --trg_txts")
    return tuple(prompts[0])


def open_evaluation(experiment, prompts, decided, clip, device):
    """An Evaluation with every metric that is available for this config."""
    s, config = experiment.settings, experiment.settings.config
    segmenter = segmenter_of(s)
    openers = gauges.openers(config, clip, prompts, segmenter, device)
    told = {"config": shown(config.path), "experiment": experiment.name, "prompts": prompts}
    told |= {"inversion": s.inversion}
    told |= {"t_edit": decided["t_edit"], "t_boost": decided["t_boost"], "n_test_step": s.n_test_step}
    told |= {"clip": shown(s.clip_model_name or config.clip_name()), "segmenter": segmenter and shown(segmenter)}
    return Evaluation(openers, told, device, experiment.folder)


def draw_reconstructions(model, experiment, pairs, indices, split, later):
    """Draw inverted images next to their reconstructions. indices: this process's share."""
    s = experiment.settings
    folder = experiment.folder / "image_samples" / f"precomputed_{split}"
    timesteps = model.timesteps(s.n_inv_step, s.t_0)
    for batch in tqdm(pairs.batches(indices, s.bs_precompute), desc="generating back", unit="batch"):
        x_0 = model.run(batch.x_T, timesteps, **replayed(batch.z, timesteps))
        for i, index in enumerate(batch.indices):
            columns = ["original", "reconstruction"]
            later(pictures.save_grid, folder / f"{index:06d}.png", [[batch.x_0[i], x_0[i]]], columns)
