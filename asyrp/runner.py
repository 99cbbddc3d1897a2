"""class Asyrp: one method per mode of the command line, over the parts of the library."""

import logging
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain

import torch
from tqdm import tqdm

from asyrp import curves, directions, intervals, options, origin, regions, settings, store, training
from asyrp.acceleration.fast_unet import keep_freed_memory
from asyrp.acceleration.overlap import Background
from asyrp.clip import Clip
from asyrp.data.datasets import load_batch
from asyrp.data.layouts import check_image_settings
from asyrp.editing import Editor, Reverse, Use, edits_of, points_of
from asyrp.evaluation.segmenter import segmenter_of
from asyrp.experiment import Experiment
from asyrp.fits import Fit
from asyrp.images import RunImages
from asyrp.learning import Learning
from asyrp.model import check_interval, open_model
from asyrp.parsing import strengths
from asyrp.ranks import ALONE
from asyrp.report import page, pictures
from asyrp.results import Shares, TestResults, draw_reconstructions, shown_pictures
from asyrp.uses import common_t_edit, find_directions, tell, uses_of
from configs.paths_config import IR_SE50
from losses.id_loss import IdLoss
from losses.lpips_alex import load_lpips
from utils.devices import find_device
from utils.digests import digest
from utils.download import weights_at
from utils.errors import UserError
from utils.files import held
from utils.text_dic import prompts_for

log = logging.getLogger(__name__)


class Asyrp:
    """The modes of the command line, for one Settings. `run` does those that were asked for. ranks: the processes that share
    the work; the first one writes what is not an image's own."""

    def __init__(self, given, ranks=ALONE):
        self.settings, self.ranks = given, ranks
        self.config = given.config
        self.store = store.Store()
        self.images = RunImages(given, self.store)

    def run(self):
        """Every mode that was asked for, in the order they build on each other."""
        s = self.settings
        settings.check_settings(s, self.config.diffusion.num_diffusion_timesteps)
        check_image_settings(
            self.config, s.custom_train_dataset_dir, s.custom_test_dataset_dir, s.target_class_num, s.align_face
        )
        device = find_device(s.device)
        trains = bool((s.run_train or s.edit_image) and not s.just_precompute)  # script_precompute.sh of 2023 gives both
        fits = bool(s.fit_direction and not s.just_precompute)
        tests = bool(s.run_test or s.evaluate or (trains and s.do_test))
        if trains or fits or s.lpips:
            self.ranks.must_meet("everything but --just_precompute, --run_test and --evaluate")
        if len(self.prompts()) != 1 and trains:
            raise UserError("--run_train learns one direction: give one attribute, or one source and one target prompt")
        looked_at = {
            "train": trains or s.lpips or (fits and not s.positive) or (tests and s.num_mean_of_delta_hs),
            "test": tests,
        }
        self.images.check(*[split for split, wanted in looked_at.items() if wanted])
        # What is trained is tested; else what the flags name.
        stored = find_directions(s, Experiment(s)) if tests and not (trains or fits or s.pass_editing) else []
        if tests:
            settings.check_noise_maps(s.with_record(stored[0].record, stored[0].name) if stored else s)
        torch.manual_seed(s.seed)
        keep_freed_memory(device)
        with self.ranks.first():
            self.model = open_model(self.config, s.model_path, device, s.precision, s.compile, s.checkpoint_decoder)
        with Background() as self.later:
            if s.lpips:
                self.measure_lpips()
            if s.just_precompute:
                self.precompute()
            learned = [self.train()] if trains else self.fit()[:1] if fits else []
            if tests:
                found = learned or [directions.build(one, self.model, s.ignore_timesteps) for one in stored]
                self.test([] if s.pass_editing else found)
            elif trains and self.ranks.leads:
                self.write_report(Experiment(s))

    # ---- modes --------------------------------------------------------------------------------------------------------------

    def measure_lpips(self):
        """--lpips: LPIPS curves over training images -> the store, a table, and a plot with t_edit and t_boost."""
        s, name = self.settings, curves.name_of_curve(self.config, self.settings.custom_dataset_name)
        dataset = self.images.dataset("train")
        indices = self.images.numbers(len(dataset), s.n_train_img)
        seen = []

        def loaded():
            for some in tqdm(self.ranks.batches(indices, s.bs_precompute), desc="measuring LPIPS", unit="batch"):
                good, x_0, messages = load_batch(dataset, some)
                seen.append([digest(image) for image in (x_0 if good else [])])
                yield good, x_0, messages

        timesteps = self.model.timesteps(s.n_inv_step, s.t_0)
        distance = load_lpips().to(self.model.device)
        how = (self.model.schedule, timesteps, distance, self.model.device, self.ranks)
        curve = intervals.measure(self.model.unet, loaded(), *how)
        pixels = list(chain(*self.ranks.gather(seen)))
        with self.ranks.first():
            if self.ranks.leads:
                self.keep_curve(curve, pixels, name)

    def keep_curve(self, curve, pixels, name):
        """What --lpips leaves of a curve. pixels: digests of the images that it was measured on."""
        s = self.settings
        curves.keep_curve(self.store, curve, self.model, pixels, name)
        experiment, found = Experiment(s), {"t_edit": None, "t_boost": None}
        try:
            if prompts := self.prompts():
                uses = [(s.edit_attr or "the edit", {}, pair) for pair in prompts]
                found["t_edit"] = max(value.value for value in settings.decide_t_edit(s, uses, lambda: curve, self.cosine))
        except UserError as error:
            log.warning("t_edit is not marked: %s", error)
        try:
            found["t_boost"] = settings.decide_t_boost(s, [], lambda: curve).value
        except UserError as error:
            log.warning("t_boost is not marked: %s", error)
        table, plot = (experiment.folder / f"lpips_{name}.{kind}" for kind in ("csv", "png"))
        curve.write(table)
        pictures.plot_curves(curve, plot, f"{name}, {len(pixels)} images", **found)
        experiment.write_settings("lpips", curve=str(table), **found)
        log.info("LPIPS curves: %s, drawn in %s", table, plot)

    def precompute(self):
        """--just_precompute: fill the store with latents."""
        s = self.settings
        for split, wanted in (("train", s.do_train), ("test", s.do_test)):
            if wanted:
                pairs, indices = self.images.pairs(split, s.n_precomp_img, self.model)
                n = pairs.fill(indices, s.bs_precompute, s.re_precompute, self.ranks)
                log.info("%s: %d latents ready", split, n)
                if s.save_precomputed_images:
                    own = list(chain(*self.ranks.batches(indices, s.bs_precompute)))
                    draw_reconstructions(self.model, Experiment(s), pairs, own, split, self.later)

    def train(self):
        """--run_train: learn a direction, one checkpoint an epoch; goes on after the last epoch whose checkpoint exists.

        -> the Direction.
        """
        s, [prompts] = self.settings, self.prompts()
        # Everything that can be missing is asked for here, before the hours of inversion and training.
        timesteps, experiment = self.model.timesteps(s.n_train_step, s.t_0), Experiment(s)
        with self.ranks.first():
            name = s.edit_attr or "the edit"
            [t_edit] = settings.decide_t_edit(s, [(name, {}, prompts)], self.curve, self.cosine)
            t_boost = settings.decide_t_boost(s, [], self.curve) if s.do_test or s.run_test or s.evaluate else None
            steps = training.edit_steps(timesteps, t_edit.value)
            pairs, indices = self.images.pairs("train", s.n_train_img, self.model)
            clip, region = self.clip().identity, self.region()
        images = self.ranks.gather([pairs.names_of_content([i]) for i in self.ranks.share(indices)])
        record = self.record_of_training(prompts, t_edit, t_boost, timesteps, list(chain(*images)), len(indices), clip, region)
        learning = Learning(s, self.model, experiment, record, steps, self.later, region, self.ranks)
        with held(experiment.lock, f"the experiment {experiment.name}") if self.ranks.leads else nullcontext():
            with self.ranks.first():
                todo = learning.resume()
                log.info("t_edit %s · %d of %d steps trained · %d images", t_edit, len(steps), len(timesteps), len(indices))
                loss = self.loss_of(prompts) if todo else None
            if todo:
                pairs.fill(indices, s.bs_precompute, s.re_precompute, self.ranks)
                found = {"prompts": [prompts], "t_edit": t_edit.value, "t_boost": t_boost and t_boost.value}
                if self.ranks.leads:
                    experiment.write_settings("train", **found, record=record, decided={"t_edit": t_edit.source})
                learning.train(todo, pairs, indices, loss, self.plain_trajectories(len(todo), len(steps), len(indices)))
        return learning.direction

    def fit(self):
        """--fit_direction: directions from h itself -> list of Directions. Of several processes, the first one fits them."""
        made = self.ranks.gather([[direction.cpu() for direction in self.fit_alone()] if self.ranks.leads else None])[0]
        return [direction.to(self.model.device) for direction in made]

    def fit_alone(self):
        """-> list of Directions, each in a checkpoint of its own."""
        s, experiment = self.settings, Experiment(self.settings)
        prompts = self.prompts()
        [t_edit] = settings.decide_t_edit(s, [("the fit", {}, (prompts or [None])[0])], self.curve, self.cosine)
        t_boost = settings.decide_t_boost(s, [], self.curve).value if s.run_test or s.evaluate else None
        made = Fit(s, self.model, self.images, self.clip, prompts).run(t_edit.value, t_boost)
        with held(experiment.lock, f"the experiment {experiment.name}"):
            for k, (direction, said) in enumerate(made):
                name = f"{experiment.base}_pc{k + 1}{experiment.suffix}" if s.fit_direction == "h_pca" else experiment.name
                path = directions.CHECKPOINTS / f"{name}_0.pth"
                directions.save(direction, path)
                log.info("%s: %s", path, said)
        records = [direction.record for direction, _ in made]
        found = {"prompts": prompts, "t_edit": t_edit.value, "t_boost": t_boost}
        experiment.write_settings("fit", **found, records=records, decided={"t_edit": t_edit.source})
        return [direction for direction, _ in made]

    def test(self, found):
        """--run_test and --evaluate: edit test images with the Directions `found`, and draw them or measure what the edit did.

        Pictures: one an image, and one of all. Metrics: evaluation.json, evaluation.csv and a table.
        """
        # A direction is used as it was made: what its record says stands above the YAML.
        s = self.settings if not found else self.settings.with_record(found[0].record, found[0].name)
        ranks = self.ranks
        with ranks.first():
            uses, t_boost = uses_of(s, found, self.prompts(), self.curve, self.cosine)
            region = self.region()
        timesteps = self.model.timesteps(s.n_test_step, s.t_0)
        check_interval(timesteps, [use.t_edit.value for use in uses], [use.direction.name for use in uses])
        experiment = Experiment(s)
        reverse = Reverse(timesteps, t_boost.value, s.sample_type, s.dt_lambda, s.seed, s.inversion == "ddpm")
        draw = partial(self.later, pictures.save_grid)
        editor = Editor(self.model, reverse, experiment.folder / "image_samples", draw, region)
        if s.num_mean_of_delta_hs:
            uses = [self.global_use(editor, use, len(uses), s) for use in uses]
        points = points_of(len(uses), (s.min_delta, s.max_delta, s.num_delta) if s.delta_interpolation else None)
        each = strengths(s.multiple_hs_coeff)
        edits = edits_of(uses, points, s.hs_coeff_delta_h, each, s.hs_coeff_origin_h) if uses else [("no edit", None)]
        decided = {"t_edit": common_t_edit(uses), "t_boost": t_boost.value, "strengths": [label for label, _ in edits]}
        decided["decided"] = tell(uses, t_boost, s, region)
        show = shown_pictures(s)
        looks = bool(s.evaluate or show["original"] or s.edit_region)
        pairs, indices = RunImages(s, self.store).pairs("test", s.n_test_img, self.model, looks)
        made = (experiment, self.prompts(), found, decided, len(indices))
        with ranks.first():
            results = TestResults(*made, lambda: self.clip().loss, self.model.device, self.later, ranks)

        def edited():
            """Yield the batches of this process's share, with their pictures."""
            own = list(chain(*ranks.batches(indices, s.bs_test)))
            pairs.fill(indices if ranks.joined else own, s.bs_precompute, s.re_precompute, ranks.joint)
            with tqdm(total=len(own), desc="editing", unit="img") as bar:
                for batch in pairs.batches(own, s.bs_test):
                    yield batch, *editor.pictures_of(batch, edits, **show)
                    bar.update(len(batch.indices))

        shares = Shares(experiment, [self.model.identity, decided, len(indices)])
        if results.take(edited, indices, shares, ranks, s.collect):
            results.save()
            self.write_report(experiment)

    # ---- what the modes work with -------------------------------------------------------------------------------------------

    def plain_trajectories(self, epochs, n_steps, n_images):
        """What --cache_origin keeps of the plain trajectories in a training of so many epochs."""
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

    @cache  # noqa: B019 - a run has one runner
    def clip(self):
        """The CLIP of the flag, else of the configuration, else OpenAI's ViT-B/16."""
        return Clip(self.settings.clip_model_name or self.config.clip_name(), self.model.device, self.store)

    def cosine(self, src, trg):
        return self.clip().cosine(src, trg)

    @cache  # noqa: B019
    def found_curve(self):
        """The LPIPS curves of the model, and where they are from; read once."""
        return curves.find_curve(self.store, self.model, self.settings.custom_dataset_name)

    @cache  # noqa: B019
    def curve(self):
        """The LPIPS curves, for those who read intervals off them; where they are from is said."""
        curve, where = self.found_curve()
        log.info("LPIPS curves: %s", where)
        return curve

    def write_report(self, experiment):
        """report.html, with the LPIPS curves of this model."""
        try:
            curve, _ = self.found_curve()
        except UserError:  # No loss: without curves the flags have set the intervals.
            curve = None
        name = curves.name_of_curve(self.config, self.settings.custom_dataset_name)
        if written := page.write(experiment.folder, curve, name, options.DEFAULTS):
            log.info("report: %s", written)

    def prompts(self):
        """(source, target) pairs that the flags give; [] when they give none."""
        s = self.settings
        if s.src_txts:
            return list(zip(s.src_txts, s.trg_txts, strict=True))
        # "attribute" is how the 2023 scripts say: see --multiple_attr.
        if s.edit_attr and s.edit_attr != "attribute":
            return [prompts_for(s.edit_attr)]
        return []

    @cache  # noqa: B019
    def region(self):
        """The Region that edits stay in, or None."""
        s, size = self.settings, self.model.image_size
        dilation, smoothing = (
            max(1, size // 32) if pixels is None else pixels for pixels in (s.region_dilation, s.region_smoothing)
        )
        if s.edit_mask:
            return regions.from_picture(s.edit_mask, size)
        if s.edit_region:
            segmenter = segmenter_of(s)
            return regions.from_segments(s.edit_region, segmenter, self.model.device, size, dilation, smoothing)
        return None if s.edit_threshold is None else regions.from_changes(s.edit_threshold, smoothing)

    def loss_of(self, prompts):
        """The loss of a training, with the networks that it takes."""
        s = self.settings
        id_loss = IdLoss(weights_at(IR_SE50), self.model.device) if s.use_id_loss else None
        weights = training.Weights(s.clip_loss_w, s.l1_loss_w, s.id_loss_w)
        return training.new_loss(self.clip().loss, prompts, weights, s.clip_source, id_loss, s.precision)

    # ---- directions ---------------------------------------------------------------------------------------------------------

    def record_of_training(self, prompts, t_edit, t_boost, timesteps, images, n_images, clip, region):
        """images: what stands for those that can be read; clip: the identity of the CLIP."""
        s = self.settings
        names = ("clip_loss_w", "l1_loss_w", "id_loss_w", "clip_source", "lr_training", "scheduler_step_size", "sch_gamma")
        about = {name: getattr(s, name) for name in (*names, "seed", "load_random_noise")}
        about |= {"bs_train": s.bs_train * self.ranks.world}  # what counts is the whole batch
        about |= {"epochs": s.n_iter, "shuffle": bool(s.shuffle_train_dataloader), "clip": clip}
        about |= {"region": region and region.about}
        about |= {"n_images": n_images, "images": digest(images), "started_from": None}
        kind = "delta_block" if s.train_delta_block else "delta_h"
        steps = self.model.timesteps(s.n_inv_step, s.t_0)
        boost = None if t_boost is None else t_boost.value
        ignore = s.ignore_timesteps
        return training.new_record(self.model, kind, ignore, prompts, t_edit.value, timesteps, len(steps), about, boost)

    def global_use(self, editor, use, n, s):
        """The mean of --num_mean_of_delta_hs training images in place of a direction."""
        pairs, indices = RunImages(s, self.store).pairs("train", s.num_mean_of_delta_hs, self.model, images=False)
        pairs.fill(indices, s.bs_precompute, s.re_precompute, self.ranks.joint)
        alone = Use(use.direction, use.t_edit, use.scale * n**0.5)
        how = (s.hs_coeff_delta_h, s.hs_coeff_origin_h, pairs, indices, s.bs_test, s.ignore_timesteps, self.store)
        return Use(editor.mean_direction(alone, *how, self.ranks.joint), use.t_edit, use.scale)
