"""class Asyrp: one method per mode of the command line."""

import logging
from functools import cached_property, partial

import torch
from tqdm import tqdm

from asyrp import checkpoints, gauges, images, intervals, report, training
from asyrp.report.album import Album
from asyrp.config import ROOT
from asyrp.data.datasets import load_batch
from asyrp.editing import Editing
from utils.errors import UserError
from asyrp.evaluation.evaluation import Evaluation
from asyrp.learning import Learning
from asyrp.evaluation.segmenter import open_segmenter
from asyrp.workbench import MEASURED_CURVES
from losses.lpips_alex import load_lpips
from utils.text_dic import PROMPTS

log = logging.getLogger(__name__)


class Asyrp(Learning, Editing):
    """The modes of the command line."""

    def run(self):
        """Every mode that was asked for, in the order they build on each other."""
        torch.manual_seed(self.args.seed)
        with self.later:
            if self.args.lpips:
                self.measure_lpips()
            if self.args.just_precompute:
                self.precompute()
            if self.args.run_train:
                self.train()
            # Training ends with this test, unless --do_test 0.
            if (self.args.run_test or self.args.evaluate) and not (self.args.run_train and self.args.do_test):
                self.test()
            if self.args.run_train or self.args.run_test or self.args.evaluate:
                self.write_report()

    # ---- modes ----------------------------------------------------------------------------------------------------------

    def measure_lpips(self):
        """--lpips: LPIPS curves over training images -> a table, and a plot with t_edit and t_boost."""
        args = self.args
        if self.config.data.category not in intervals.CURVES and args.custom_dataset_name in intervals.CURVES.values():
            raise UserError(
                f"--lpips would hide the curves of {args.custom_dataset_name}: name those of category "
                f"{self.config.data.category} with --custom_dataset_name"
            )
        dataset = self.dataset("train")
        indices = self.indices(len(dataset), args.n_train_img)
        batches = [indices[i : i + args.bs_precompute] for i in range(0, len(indices), args.bs_precompute)]
        loaded = (load_batch(dataset, some) for some in tqdm(batches, desc="measuring LPIPS", unit="batch"))
        distance = load_lpips().to(self.device)
        curve = intervals.measure(self.unet, loaded, self.schedule, self.steps(args.n_inv_step), distance, self.device)
        table = MEASURED_CURVES / f"{self.curve_name}.csv"
        curve.write(table)
        self.curve = curve
        found = {"t_edit": None, "t_boost": None}
        for name in found:
            try:
                found[name] = getattr(self, name)
            except UserError as error:
                log.warning("%s is not marked: %s", name, error)
        plot = self.experiment.folder / f"lpips_{self.curve_name}.png"
        images.plot_curves(curve, plot, f"{self.curve_name}, {len(indices)} images", **found)
        self.experiment.write_settings("lpips", curve=str(table), **found)
        log.info("LPIPS curves: %s, drawn in %s", table, plot)

    def precompute(self):
        """--just_precompute: fill the cache of latents."""
        args = self.args
        for split, wanted in (("train", args.do_train != 0), ("test", args.do_test != 0)):
            if wanted:
                pairs, indices = self.pairs(split, args.n_precomp_img)
                log.info("%s: %d latents ready", split, len(indices))
                if args.save_precomputed_images:
                    self.save_reconstructions(pairs, indices, split)

    def train(self):
        """--run_train: learn a direction, one checkpoint an epoch; goes on after the last epoch whose checkpoint exists."""
        args = self.args
        if len(self.prompts) != 1:
            raise UserError("--run_train learns one direction: give one attribute, or one source and one target prompt")
        [(src, trg)] = self.prompts
        # Everything that can be missing is asked for here, before the hours of inversion and training.
        t_edit, t_boost = self.t_edit, self.t_boost if args.do_test else None
        if args.do_test and not args.load_random_noise:
            self.dataset("test")
        steps = training.edit_steps(self.steps(args.n_train_step), t_edit)
        direction = self.new_direction([t for t, _ in steps])
        loss = self.new_loss(src, trg)
        optimizer = torch.optim.SGD(direction.parameters(), lr=args.lr_training)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.scheduler_step_size, args.sch_gamma)
        save = partial(self.save_direction, direction, optimizer, scheduler)
        todo = self.resume(direction, optimizer, scheduler)
        plain = self.plain_trajectories(len(todo))
        pairs, indices = self.pairs("train", args.n_train_img)
        self.experiment.write_settings("train", prompts=[(src, trg)], t_edit=t_edit, t_boost=t_boost)
        log.info('"%s" -> "%s": t_edit %d, %d steps, %d images', src, trg, t_edit, len(steps), len(indices))

        for epoch in todo:
            self.train_epoch(epoch, pairs, indices, direction, steps, loss, optimizer, plain, save)
            scheduler.step()
            if epoch == todo[-1] or not args.save_checkpoint_only_last_iter:
                save(self.experiment.checkpoint(epoch))
        if args.do_test:
            self.test([direction])

    def test(self, directions=None):
        """--run_test and --evaluate: edit test images, and draw them or measure what the edit did.

        Pictures: one an image, and one of all. Metrics: evaluation.json, evaluation.csv and a table.
        """
        args = self.args
        if directions is None:
            directions = [] if args.pass_editing else [direction for direction, _ in self.loaded]
        if args.num_mean_of_delta_hs:
            directions = [self.global_direction(d, i) for i, d in enumerate(directions)]
        edits = self.edits(directions)
        each = [label for label, _ in edits]
        if args.save_x0 != args.use_x0_tensor:
            log.warning("--save_x0 and --use_x0_tensor work together only: the original is left out")
        found = {"t_edit": None if args.pass_editing else self.t_edit, "t_boost": self.t_boost}
        folder = self.experiment.folder
        album = gallery = evaluation = None
        if args.evaluate:
            evaluation = self.new_evaluation(found)
            self.experiment.write_settings("evaluate", prompts=[self.measured_prompts], **found, strengths=each)
        pairs, indices = self.pairs("test", args.n_test_img, images=args.evaluate or (args.save_x0 and args.use_x0_tensor))
        if args.run_test or args.run_train:
            columns = self.axes(each, len(directions))
            album = Album(folder / "test_images" / str(args.n_test_step), self.later, *columns, each, args.save_animation)
            gallery = report.Gallery(folder, (args.multiple_attr or "").split(), len(edits), len(indices))
            self.experiment.write_settings("test", prompts=self.prompts, **found, strengths=each)
        consumers = [consumer for consumer in (album, gallery, evaluation) if consumer]
        with tqdm(total=len(indices), desc="editing", unit="img") as bar:
            for batch in pairs.batches(indices, args.bs_test):
                before, edited = self.columns(batch, edits)
                for consumer in consumers:
                    consumer.add(batch, before, edited)
                bar.update(len(batch.indices))
        if album:
            gallery.save()
            log.info("edited pictures: %s", album.save())
        if evaluation:
            print(evaluation.save(folder))
            log.info("metrics: %s, and an image a row in %s", folder / "evaluation.json", folder / "evaluation.csv")

    def write_report(self):
        """report.html, of what lies in the experiment's folder and the LPIPS curves that its intervals belong to."""
        try:
            curve = self.curve
        except UserError:  # No loss: without curves the flags have set the intervals.
            curve = None
        log.info("report: %s", report.write(self.experiment.folder, curve, self.curve_name))

    def save_reconstructions(self, pairs, indices, split):
        """Inverted images beside what the plain process makes of their latents."""
        folder = self.experiment.folder / "image_samples" / f"precomputed_{split}"
        for batch in tqdm(pairs.batches(indices, self.args.bs_precompute), desc="generating back", unit="batch"):
            x_0 = self.plain_sample(batch.x_T)
            for i, index in enumerate(batch.indices):
                columns = ["original", "reconstruction"]
                self.later(images.save_grid, folder / f"{index:06d}.png", [[batch.x_0[i], x_0[i]]], columns)

    @cached_property
    def measured_prompts(self):
        """The (source, target) prompts whose edit --evaluate measures: the flags', else what the direction was trained for."""
        found = self.prompts or [settings["prompts"] for _, settings in self.loaded if "prompts" in settings]
        if len(found) != 1:
            raise UserError("--evaluate needs the prompts of the edit: give --edit_attr, or one --src_txts and one --trg_txts")
        return tuple(found[0])

    def new_evaluation(self, intervals_found):
        """An Evaluation with every gauge that this configuration can have."""
        args, prompts = self.args, self.measured_prompts
        open_gauges = {
            gauges.Clip.name: lambda: gauges.Clip(self.clip, *prompts),
            gauges.Lpips.name: lambda: gauges.Lpips(self.device),
            gauges.Fidelity.name: gauges.Fidelity,
            gauges.Segments.name: self.open_segments,
            gauges.Identity.name: lambda: gauges.Identity(self.device),
            gauges.Inception.name: lambda: gauges.Inception(self.device),
        }
        if hasattr(self.config, "judge"):
            open_gauges[gauges.Judged.name] = self.open_judged
        settings = {"config": str(args.config), "experiment": self.experiment.name, "prompts": prompts, **intervals_found}
        settings |= {"clip": self.clip_name, "segmenter": str(self.segmenter), "n_test_step": args.n_test_step}
        return Evaluation(open_gauges, settings, self.device)

    def open_segments(self):
        if self.segmenter is None:
            raise UserError("give --segmenter, a TorchScript file or a name of torchvision's")
        return gauges.Segments(open_segmenter(self.segmenter, self.device))

    def open_judged(self):
        """The judge, on what an attribute of these prompts aims at."""
        about = self.config.judge
        aims = {PROMPTS[attribute]: aim for attribute, aim in vars(about.aims).items()}
        if self.measured_prompts not in aims:
            raise UserError(f"it judges {', '.join(vars(about.aims))}, and none has these prompts")
        judge = checkpoints.load_judge(ROOT / about.weights, self.device)
        return gauges.Judged(judge, aims[self.measured_prompts], about.kept)
