"""class Asyrp: one method per mode of the command line, built on the library."""

import logging
from contextlib import nullcontext
from itertools import chain

import torch
from tqdm import tqdm

from asyrp import components, curves, directions, intervals, process, settings, training
from asyrp.acceleration.fast_unet import keep_freed_memory
from asyrp.acceleration.overlap import Background
from asyrp.calibrating import Measuring, open_gauge
from asyrp.data.datasets import load_batch
from asyrp.data.layouts import check_image_settings
from asyrp.editing import Use, edits_of, points_of
from asyrp.experiment import Experiment
from asyrp.fits import Fit
from asyrp.images import RunImages
from asyrp.learning import Learning
from asyrp.model import open_model
from asyrp.parsing import strengths
from asyrp.parts import Parts
from asyrp.report import export, pictures, trackers
from asyrp.results import Shares, TestResults, draw_reconstructions, shown_pictures
from asyrp.uses import common_t_edit, find_directions, strip_axes, tell, uses_of
from losses.lpips_alex import load_lpips
from utils.devices import find_device
from utils.digests import digest
from utils.errors import UserError
from utils.files import held

log = logging.getLogger(__name__)


class Asyrp(Parts):
    """The modes of the command line, for one Settings. `run` executes the requested ones."""

    def run(self):
        """Run every requested mode, each after those it depends on."""
        s = self.settings
        settings.check_settings(s, self.config.diffusion.num_diffusion_timesteps)
        check_image_settings(
            self.config, s.custom_train_dataset_dir, s.custom_test_dataset_dir, s.target_class_num, s.align_face
        )
        if s.track:
            trackers.library(s.track)
        if s.export:
            export.prepare(s.export)
        device = find_device(s.device)
        trains = bool((s.run_train or s.edit_image) and not s.just_precompute)  # script_precompute.sh of 2023 passes both
        fits = bool(s.fit_direction and not s.just_precompute)
        tests = bool(s.run_test or s.evaluate or (trains and s.do_test))
        if trains or fits or s.lpips or s.calibrate:
            self.ranks.must_meet("every mode except --just_precompute, --run_test and --evaluate")
        if len(self.prompts()) != 1 and trains:
            raise UserError("--run_train learns one direction: give one attribute, or one source and one target prompt")
        looked_at = {
            "train": trains or s.lpips or (fits and not s.positive) or s.calibrate or (tests and s.num_mean_of_delta_hs),
            "test": tests,
        }
        self.images.check(*[split for split, wanted in looked_at.items() if wanted])
        # A test uses the direction trained in this run, else the one that the flags name.
        uses_one = (tests or s.calibrate) and not (trains or fits or s.pass_editing)
        stored = find_directions(s, Experiment(s)) if uses_one else []
        if tests or s.calibrate:
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
            made = [self.train()] if trains else self.fit()[:1] if fits else []
            made = made or [(directions.build(one, self.model, s.ignore_timesteps), one.path) for one in stored]
            if s.calibrate:
                direction, path = made[0]
                direction.record["calibration"] = self.ranks.from_first(lambda: self.calibrate(direction, path))
            if tests:
                self.test([] if s.pass_editing else [direction for direction, _ in made])
            elif trains and self.ranks.leads:
                self.write_report(Experiment(s))

    # ---- modes --------------------------------------------------------------------------------------------------------------

    def measure_lpips(self):
        """--lpips: measure LPIPS curves on training images; writes them to the store, a table and a plot with t_edit and
        t_boost."""
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
        how = (self.model.schedule, timesteps, distance, self.model.device, self.ranks, process.ITERATIONS[s.inversion])
        curve = intervals.measure(self.model.unet, loaded(), *how)
        pixels = list(chain(*self.ranks.gather(seen)))
        with self.ranks.first():
            if self.ranks.leads:
                self.keep_curve(curve, pixels, name)

    def keep_curve(self, curve, pixels, name):
        """Store a measured curve, and write its table and plot. pixels: digests of the images it was measured on."""
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
        log.info("LPIPS curves: %s, plotted in %s", table, plot)

    def precompute(self):
        """--just_precompute: invert images and keep the latents in the store."""
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
        """--run_train: learn a direction, one checkpoint per epoch, resuming from the last one -> (Direction, its file)."""
        s, [prompts] = self.settings, self.prompts()
        with self.ranks.first():
            name = s.edit_attr or "the edit"
            [t_edit] = settings.decide_t_edit(s, [(name, {}, prompts)], self.curve, self.cosine)
            t_boost = settings.decide_t_boost(s, [], self.curve) if s.do_test or s.run_test or s.evaluate else None
        return self.learn(Experiment(s), prompts, t_edit, t_boost)

    def learn(self, experiment, aim, t_edit, t_boost=None, inverted=False, **about):
        """Train a direction -> (Direction, its file). aim: see `training.new_loss`. inverted: whether this run has already
        computed the latents. about: further entries for the direction's record."""
        s, ranks, prompts = self.settings, self.ranks, () if isinstance(aim, torch.Tensor) else aim
        # Whatever may be missing is opened here, before hours of inversion and training.
        timesteps = self.model.timesteps(s.n_train_step, s.t_0)
        steps = training.edit_steps(timesteps, t_edit.value)
        with ranks.first():
            pairs, indices = self.images.pairs("train", s.n_train_img, self.model)
            clip, region = self.clip().identity, self.region()
        images = ranks.gather([pairs.names_of_content([i]) for i in ranks.share(indices)])
        record = self.record_of_training(prompts, t_edit, t_boost, timesteps, list(chain(*images)), len(indices), clip, region)
        record["training"] |= about
        learning = Learning(s, self.model, experiment, record, steps, self.later, region, ranks)
        with held(experiment.lock, f"the experiment {experiment.name}") if ranks.leads else nullcontext():
            with ranks.first():
                todo = learning.resume()
                log.info("t_edit %s · %d of %d steps trained · %d images", t_edit, len(steps), len(timesteps), len(indices))
                loss = self.loss_of(aim) if todo else None
            if todo:
                pairs.fill(indices, s.bs_precompute, s.re_precompute and not inverted, ranks)
                found = {"prompts": [prompts] if prompts else [], "t_edit": t_edit.value, "t_boost": t_boost and t_boost.value}
                if ranks.leads:
                    experiment.write_settings("train", **found, record=record, decided={"t_edit": t_edit.source})
                learning.train(todo, pairs, indices, loss, self.plain_trajectories(len(todo), len(steps), len(indices)))
        return learning.direction, learning.path

    def fit(self):
        """--fit_direction: directions from labels or unlabelled images -> list of (Direction, its file). Principal components
        also get a contact sheet."""
        s, experiment, prompts, ranks = self.settings, Experiment(self.settings), self.prompts(), self.ranks
        if s.words:
            components.read_words(s.words)  # fails here rather than after the fit
        with ranks.first():
            # Without prompts there is no cosine to scale the threshold with.
            asked, cosine = ("the fit", {}, prompts[0] if prompts else ("", "")), self.cosine if prompts else lambda *_: 1.0
            [t_edit] = settings.decide_t_edit(s, [asked], self.curve, cosine)
            t_boost = settings.decide_t_boost(s, [], self.curve).value if s.run_test or s.evaluate else None
        # Only the first process fits; training is shared by all of them.
        if s.fit_direction == "clip_pca":
            made = self.learn_components(t_edit)
        else:
            made = ranks.from_first(lambda: self.fit_alone(experiment, prompts, t_edit.value, t_boost))
            made = [(direction.to(self.model.device), path) for direction, path in made]
        found = {"prompts": prompts, "t_edit": t_edit.value, "t_boost": t_boost}
        if ranks.leads:
            if s.fit_direction != "labels":
                found["components"] = self.contact_sheet(experiment, [direction for direction, _ in made])
            records = [direction.record for direction, _ in made]
            experiment.write_settings("fit", **found, records=records, decided={"t_edit": t_edit.source})
        return made

    def fit_alone(self, experiment, prompts, t_edit, t_boost):
        """-> list of (Direction on the CPU, its checkpoint)."""
        s, made = self.settings, []
        parts = [f"_pc{k + 1}" for k in range(s.n_components)] if s.fit_direction == "h_pca" else [""]
        with held(experiment.lock, f"the experiment {experiment.name}"):
            for part in parts if not s.retrain else ():
                directions.check_replaceable(Experiment(s, part).name)
            found = Fit(s, self.model, self.images, self.clip, prompts).run(t_edit, t_boost)
            for part, (direction, said) in zip(parts, found, strict=True):
                path = Experiment(s, part).checkpoint(0)
                directions.save(direction, path)
                made.append((direction.cpu(), path))
                log.info("%s: %s", path, said)
        return made

    def learn_components(self, t_edit):
        """Train one direction per principal component of the training images' CLIP features -> as `fit`."""
        s = self.settings
        pairs, indices = self.images.pairs("train", s.n_train_img, self.model)
        pairs.fill(indices, s.bs_precompute, s.re_precompute, self.ranks)

        def found():
            batches = pairs.batches(indices, s.bs_precompute)
            aims, shares = components.clip_components(self.clip().loss, batches, s.n_components)
            return [(aim.cpu(), share) for aim, share in zip(aims, shares.tolist(), strict=True)]

        made = []
        for k, (aim, share) in enumerate(self.ranks.from_first(found)):
            log.info("component %d: %.1f %% of the variance of CLIP's features", k + 1, 100 * share)
            aim = aim.to(self.model.device)
            experiment = Experiment(s, f"_pc{k + 1}")
            made.append(self.learn(experiment, aim, t_edit, inverted=True, clip_component=k + 1))
        return made

    def contact_sheet(self, experiment, made):
        """Write components.png, the effect of each direction on a few training images -> the name given to each."""
        s, path = self.settings, experiment.folder / "components.png"
        pairs, indices = self.images.pairs("train", s.n_train_img, self.model)
        indices = indices[: components.IMAGES]
        pairs.fill(indices, s.bs_precompute)
        [batch] = pairs.batches(indices, len(indices))
        mask = self.region() and self.region().mask_of(batch.x_0)

        def draw(direction, strength):
            if direction is None:
                return self.model.generate(batch.x_T, s.n_test_step, s.t_0)
            return self.model.edit(batch.x_T, direction, [strength], s.n_test_step, t_0=s.t_0, mask=mask)

        clip, category = lambda: self.clip().loss, self.config.data.category
        called = components.draw_sheet(path, made, s.fit_direction, draw, clip, category, s.words)
        for k, name in enumerate(called):
            log.info("component %d: %s", k + 1, name)
        log.info("contact sheet: %s", path)
        return called

    def calibrate(self, direction, path):
        """--calibrate: measure how far a direction moves training images at each strength -> the entry for its record, which is
        also written to its file."""
        s = self.settings.with_record(direction.record, direction.name)
        prompts = self.prompts() or [direction.record.get("prompts")]
        if s.calibrate == "s_dir" and (len(prompts) != 1 or not prompts[0]):
            raise UserError(f"--calibrate s_dir needs the prompts of {direction.name}: give --edit_attr")
        device = self.model.device
        measuring = Measuring(s.calibrate, open_gauge(s.calibrate, lambda: self.clip().loss, prompts[0], device), device)
        uses, t_boost = uses_of(s, [direction], self.prompts(), self.curve, self.cosine)
        editor = self.editor(s, uses, t_boost)
        pairs, indices = RunImages(s, self.store).pairs("train", s.n_calibrate_img, self.model)
        pairs.fill(indices, s.bs_precompute, s.re_precompute)
        with tqdm(total=len(indices), desc="calibrating", unit="img") as bar:
            measuring.run(editor, uses[0], pairs.batches(indices, s.bs_test), s.hs_coeff_origin_h, bar.update)
        found = measuring.result(t_edit=uses[0].t_edit.value, **self.conditions(s, t_boost))
        log.info("%s: %s", direction.name, found)
        copy = directions.write_record(path, direction.record | {"calibration": found.record()})
        log.info("calibrated: %s", copy)
        return found.record()

    def test(self, found):
        """--run_test and --evaluate: edit test images with the Directions `found`, then draw them or measure the effect.

        Pictures: one per image, and one of all. Metrics: evaluation.json, evaluation.csv and a printed table.
        """
        # A direction is used with the settings it was trained with: its record overrides the YAML.
        s = self.settings if not found else self.settings.with_record(found[0].record, found[0].name)
        ranks = self.ranks
        with ranks.first():
            uses, t_boost = uses_of(s, found, self.prompts(), self.curve, self.cosine)
            region = self.region()
        editor, experiment = self.editor(s, uses, t_boost), Experiment(s)
        if s.num_mean_of_delta_hs:
            uses = [self.global_use(editor, use, len(uses), s) for use in uses]
        each = strengths(s.multiple_hs_coeff)
        strip = strip_axes(s, uses, each, self.conditions(s, t_boost)) if s.delta_interpolation else None
        points = points_of(len(uses), strip)
        edits = edits_of(uses, points, s.hs_coeff_delta_h, each, s.hs_coeff_origin_h) if uses else [("no edit", None)]
        decided = {"t_edit": common_t_edit(uses), "t_boost": t_boost.value, "strengths": [label for label, _ in edits]}
        decided["decided"] = tell(uses, t_boost, s, region)
        show = shown_pictures(s)
        looks = bool(s.evaluate or s.export or show["original"] or s.edit_region)
        pairs, indices = RunImages(s, self.store).pairs("test", s.n_test_img, self.model, looks)
        made = (experiment, self.prompts(), uses, decided, len(indices))
        with ranks.first():
            results = TestResults(*made, lambda: self.clip().loss, self.model.device, self.later, ranks)

        def edited():
            """Yield this process's batches with their pictures."""
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

    # ---- directions ---------------------------------------------------------------------------------------------------------

    def record_of_training(self, prompts, t_edit, t_boost, timesteps, images, n_images, clip, region):
        """The record of a direction about to be trained. images: digests of the readable ones; clip: identity of the CLIP."""
        s = self.settings
        names = ("clip_loss_w", "l1_loss_w", "id_loss_w", "clip_source", "lr_training", "scheduler_step_size", "sch_gamma")
        about = {name: getattr(s, name) for name in (*names, "seed", "load_random_noise")}
        about |= {"bs_train": s.bs_train * self.ranks.world}  # the batch of all processes together
        about |= {"epochs": s.n_iter, "shuffle": bool(s.shuffle_train_dataloader), "clip": clip}
        about |= {"region": region and region.about} | training.inversion_entry(s.inversion)
        about |= {"n_images": n_images, "images": digest(images), "started_from": None}
        kind = "delta_h" if s.train_delta_h else "delta_block"
        steps = self.model.timesteps(s.n_inv_step, s.t_0)
        boost = None if t_boost is None else t_boost.value
        ignore = s.ignore_timesteps
        return training.new_record(self.model, kind, ignore, prompts, t_edit.value, timesteps, len(steps), about, boost)

    def global_use(self, editor, use, n, s):
        """A Use of the mean delta_h over --num_mean_of_delta_hs training images, in place of `use`."""
        pairs, indices = RunImages(s, self.store).pairs("train", s.num_mean_of_delta_hs, self.model, images=False)
        pairs.fill(indices, s.bs_precompute, s.re_precompute, self.ranks.joint)
        alone = Use(use.direction, use.t_edit, use.scale * n**0.5)
        how = (s.hs_coeff_delta_h, s.hs_coeff_origin_h, pairs, indices, s.bs_test, s.ignore_timesteps, self.store)
        return Use(editor.mean_direction(alone, *how, self.ranks.joint), use.t_edit, use.scale)
