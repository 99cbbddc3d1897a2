"""The objects that the modes of a run share, each opened when it is first needed."""

import logging
from functools import cache, partial

import torch

from asyrp import curves, options, origin, regions, store, training
from asyrp.clip import Clip
from asyrp.editing import Editor, Reverse
from asyrp.evaluation.segmenter import segmenter_of
from asyrp.experiment import Experiment
from asyrp.images import RunImages
from asyrp.model import check_interval
from asyrp.ranks import ALONE
from asyrp.report import page, pictures
from configs.paths_config import IR_SE50
from losses.id_loss import IdLoss
from utils.download import weights_at
from utils.errors import UserError
from utils.text_dic import prompts_for

log = logging.getLogger(__name__)


class Parts:
    """The parts of a run with one Settings. `run` sets `model` and `later`, a Background that draws pictures.

    ranks: the processes that share the work; the first one writes everything that is not per image.
    """

    def __init__(self, given, ranks=ALONE):
        self.settings, self.ranks = given, ranks
        self.config = given.config
        self.store = store.Store()
        self.images = RunImages(given, self.store)
        self.model = self.later = None

    def editor(self, s, uses, t_boost):
        """The Editor for these settings, Uses and t_boost (a Value)."""
        timesteps = self.model.timesteps(s.n_test_step, s.t_0)
        check_interval(timesteps, [use.t_edit.value for use in uses], [use.direction.name for use in uses])
        reverse = Reverse(timesteps, t_boost.value, s.sample_type, s.dt_lambda, s.seed, s.inversion == "ddpm")
        draw = partial(self.later, pictures.save_grid)
        return Editor(self.model, reverse, Experiment(s).folder / "image_samples", draw, self.region())

    def conditions(self, s, t_boost):
        """What the effect of a direction depends on besides t_edit, as plain data. t_boost: a Value."""
        found = {"t_boost": t_boost.value, "inversion": s.inversion, "hs_coeff_origin_h": s.hs_coeff_origin_h}
        return found | {"region": self.region() and self.region().about}

    def plain_trajectories(self, epochs, n_steps, n_images):
        """The PlainTrajectories of a training, as --cache_origin says. epochs, n_steps, n_images: those still to train."""
        s = self.settings
        where = s.cache_origin if s.cache_origin != "auto" or epochs > 1 else "off"
        dtype = torch.float16 if s.cache_origin_half else torch.float32
        ram = int(s.cache_origin_gib * 2**30) if where in ("auto", "ram") else 0
        disk = int(s.cache_origin_disk_gib * 2**30) if where in ("auto", "disk") else 0
        timesteps = self.model.timesteps(s.n_train_step, s.t_0)
        key = partial(store.trajectory_key, self.model, timesteps, dtype)
        if where != "off":
            own, world = len(self.ranks.share(range(n_images))), self.ranks.world
            origin.announce(own, n_steps, self.model.image_size, ram, disk // world, dtype)
        return origin.PlainTrajectories(ram, self.store if disk else None, key, disk, dtype, self.ranks.world)

    @cache  # noqa: B019 - there is one instance per run
    def clip(self):
        """The CLIP of the flag, else of the config, else OpenAI's ViT-B/16."""
        return Clip(self.settings.clip_model_name or self.config.clip_name(), self.model.device, self.store)

    def cosine(self, src, trg):
        return self.clip().cosine(src, trg)

    @cache  # noqa: B019
    def found_curve(self):
        """(the LPIPS Curve of the model, where it comes from), read once."""
        return curves.find_curve(self.store, self.model, self.settings.custom_dataset_name)

    @cache  # noqa: B019
    def curve(self):
        """The LPIPS Curve from which intervals are chosen; logs where it comes from."""
        curve, where = self.found_curve()
        log.info("LPIPS curves: %s", where)
        return curve

    def write_report(self, experiment):
        """report.html, with the LPIPS curves of this model."""
        try:
            curve, _ = self.found_curve()
        except UserError:  # a run without curves has its intervals from the flags
            curve = None
        name = curves.name_of_curve(self.config, self.settings.custom_dataset_name)
        if written := page.write(experiment.folder, curve, name, options.DEFAULTS):
            log.info("report: %s", written)

    def prompts(self):
        """The (source, target) prompts given by the flags, or []."""
        s = self.settings
        if s.src_txts:
            return list(zip(s.src_txts, s.trg_txts, strict=True))
        # The 2023 scripts pass `--edit_attr attribute` together with --multiple_attr.
        if s.edit_attr and s.edit_attr != "attribute":
            return [prompts_for(s.edit_attr)]
        return []

    @cache  # noqa: B019
    def region(self):
        """The Region that edits are restricted to, or None."""
        s = self.settings
        given = (s.edit_mask, s.edit_region, s.edit_threshold, lambda: segmenter_of(s), s.region_dilation, s.region_smoothing)
        return regions.choose(self.model.image_size, self.model.device, *given)

    def loss_of(self, aim):
        """The loss of a training, with its networks. aim: see `training.new_loss`."""
        s = self.settings
        id_loss = IdLoss(weights_at(IR_SE50), self.model.device) if s.use_id_loss else None
        weights = training.Weights(s.clip_loss_w, s.l1_loss_w, s.id_loss_w)
        return training.new_loss(self.clip().loss, aim, weights, s.clip_source, id_loss, s.precision)
