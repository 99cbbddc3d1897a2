"""What a run leaves behind it under its experiment's folder: pictures, metrics, the report."""

import logging

from tqdm import tqdm

from asyrp.evaluation import gauges
from asyrp.evaluation.evaluation import Evaluation
from asyrp.evaluation.segmenter import segmenter_of
from asyrp.noise_maps import replayed
from asyrp.report import page, pictures
from asyrp.report.album import Album, axes
from asyrp.report.export import Export
from utils.errors import UserError
from utils.files import shown

log = logging.getLogger(__name__)


def shown_pictures(s):
    """Which pictures a test makes of each image besides its edits: arguments of `Editor.pictures_of`."""
    if s.save_x0 != s.use_x0_tensor:
        log.warning("--save_x0 and --use_x0_tensor work together only: the original is left out")
    return {
        "original": s.save_x0 and s.use_x0_tensor,
        "plain": s.save_x_origin or s.save_process_origin or s.evaluate,
        "boost_plain": s.origin_process_addnoise,
        "watch_plain": "process_origin" if s.save_process_origin else None,
        "watch_edit": "process_delta_h" if s.save_process_delta_h else None,
    }


class TestResults:
    """The results of a test: `add` takes the pictures of each batch, `save` writes what was made of them.

    experiment: an Experiment, with the settings that the run works with. prompts: (source, target) pairs that the flags give.
    uses: list of Use. decided: what `tell` returned, with the labels of the edits as "strengths". n_images: how many are
    tested. clip: function without arguments -> ClipLoss. later: a Background that draws pictures.
    """

    __test__ = False  # pytest takes it for a test otherwise

    def __init__(self, experiment, prompts, uses, decided, n_images, clip, device, later):
        s, self.parts = experiment.settings, []
        labels, names = decided["strengths"], (s.multiple_attr or "").split()
        if s.run_test or s.run_train:
            place = experiment.folder / "test_images" / str(s.n_test_step)
            album_axes = axes(labels, names if s.delta_interpolation else [])
            self.parts.append(Album(place, later, *album_axes, labels, s.save_animation))
            self.parts.append(page.Gallery(experiment.folder, names, len(labels), n_images))
            experiment.write_settings("test", prompts=prompts, **decided)
        if s.evaluate:
            measured = measured_prompts(prompts, [use.direction for use in uses])
            self.parts.append(open_evaluation(experiment, measured, decided, clip, device))
            experiment.write_settings("evaluate", prompts=[measured], **decided)
        if s.export:  # the last: it tells what the evaluation has found
            self.parts.append(Export(experiment, uses[0], prompts[0] if prompts else None, decided["t_boost"]))

    def add(self, batch, before, edited):
        """A Batch and its pictures, as `Editor.pictures_of` returns them."""
        for part in self.parts:
            part.add(batch, before, edited)

    def save(self):
        """Write everything; what there is to tell is printed."""
        for part in self.parts:
            if told := part.save():
                print(told)


def measured_prompts(prompts, found):
    """The (source, target) prompts whose edit --evaluate measures: the flags', else what the direction was trained for."""
    prompts = prompts or [tuple(d.record["prompts"]) for d in found if d.record.get("prompts")]
    if len(prompts) != 1:
        raise UserError("--evaluate needs the prompts of the edit: give --edit_attr, or one --src_txts and one --trg_txts")
    return tuple(prompts[0])


def open_evaluation(experiment, prompts, decided, clip, device):
    """An Evaluation with every gauge that this configuration can have."""
    s, config = experiment.settings, experiment.settings.config
    segmenter = segmenter_of(s)
    openers = gauges.openers(config, clip, prompts, segmenter, device)
    told = {"config": shown(config.path), "experiment": experiment.name, "prompts": prompts}
    told |= {"inversion": s.inversion}
    told |= {"t_edit": decided["t_edit"], "t_boost": decided["t_boost"], "n_test_step": s.n_test_step}
    told |= {"clip": shown(s.clip_model_name or config.clip_name()), "segmenter": segmenter and shown(segmenter)}
    return Evaluation(openers, told, device, experiment.folder)


def draw_reconstructions(model, experiment, pairs, indices, split, later):
    """Inverted images beside what the plain process makes of their latents."""
    s = experiment.settings
    folder = experiment.folder / "image_samples" / f"precomputed_{split}"
    timesteps = model.timesteps(s.n_inv_step, s.t_0)
    for batch in tqdm(pairs.batches(indices, s.bs_precompute), desc="generating back", unit="batch"):
        x_0 = model.run(batch.x_T, timesteps, **replayed(batch.z, timesteps))
        for i, index in enumerate(batch.indices):
            columns = ["original", "reconstruction"]
            later(pictures.save_grid, folder / f"{index:06d}.png", [[batch.x_0[i], x_0[i]]], columns)
