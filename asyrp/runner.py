"""class Asyrp: one method per mode of the command line."""

import logging
from copy import deepcopy
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asyrp import checkpoints, hspace, images, intervals, process, report, training
from asyrp.acceleration import autocast
from asyrp.datasets import load_batch
from asyrp.errors import UserError
from asyrp.latents import digest
from asyrp.losslog import loss_log
from asyrp.overlap import Background, to_device
from asyrp.workbench import MEASURED_CURVES, Workbench
from configs.paths_config import IR_SE50
from losses.id_loss import IdLoss
from losses.lpips_alex import load_lpips
from utils.download import weights_at

log = logging.getLogger(__name__)

MEAN_DIRECTIONS = Path("checkpoint_latent")
OVERVIEW_ROWS = 64  # images in the picture of all


class Asyrp(Workbench):
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
            if self.args.run_test and not (self.args.run_train and self.args.do_test):
                self.test()
            if self.args.run_train or self.args.run_test:
                self.write_report()

    @cached_property
    def later(self):
        """Pictures are drawn and written here, beside the computation."""
        return Background()

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
        """--run_test: edit test images; one labelled picture an image, and one of all."""
        args = self.args
        if directions is None:
            directions = [] if args.pass_editing else [direction for direction, _ in self.loaded]
        if args.num_mean_of_delta_hs:
            directions = [self.global_direction(d, i) for i, d in enumerate(directions)]
        edits = self.edits(directions)
        columns, row_names = self.axes([label for label, _ in edits], len(directions))
        if args.save_x0 != args.use_x0_tensor:
            log.warning("--save_x0 and --use_x0_tensor work together only: the original is left out")
        found = {"t_edit": None if args.pass_editing else self.t_edit, "t_boost": self.t_boost}
        pairs, indices = self.pairs("test", args.n_test_img, images=args.save_x0 and args.use_x0_tensor)
        folder = self.experiment.folder / "test_images" / str(args.n_test_step)
        self.experiment.write_settings("test", prompts=self.prompts, **found, strengths=[label for label, _ in edits])
        each = [label for label, _ in edits]
        gallery = report.Gallery((args.multiple_attr or "").split(), len(edits), len(indices))
        rows, names, strips = [], [], []
        with tqdm(total=len(indices), desc="editing", unit="img") as bar:
            for batch in pairs.batches(indices, args.bs_test):
                before, edited = self.columns(batch, edits)
                labels = [label for label, _ in before] + columns
                gallery.add(batch, [*before, *zip(each, edited, strict=True)])
                for i, index in enumerate(batch.indices):
                    pictures = [column[i] for column in edited]
                    grid = images.in_rows([column[i] for _, column in before], pictures, len(columns))
                    self.later(images.save_grid, folder / f"{index:06d}.png", grid, labels, row_names)
                    if args.save_animation:
                        self.later(images.save_animation, [pictures], each, folder / f"{index:06d}.{args.save_animation}")
                    if len(rows) < OVERVIEW_ROWS:
                        strips.append(pictures)
                        rows += grid
                        names += [f"{Path(batch.names[i]).stem} {name}".strip() for name in row_names or [""]]
                bar.update(len(batch.indices))
        gallery.save(self.experiment.folder)
        if args.save_animation:
            self.later(images.save_animation, strips, each, folder / f"all.{args.save_animation}")
        overview = folder / "all.png"
        self.later(images.save_grid, overview, rows, labels, names)
        self.later.wait()
        log.info("edited pictures: %s", overview)

    def write_report(self):
        """report.html, of what lies in the experiment's folder and the LPIPS curves that its intervals belong to."""
        try:
            curve = self.curve
        except UserError:  # No loss: without curves the flags have set the intervals.
            curve = None
        log.info("report: %s", report.write(self.experiment.folder, curve, self.curve_name))

    # ---- what the modes are made of -------------------------------------------------------------------------------------

    def train_epoch(self, epoch, pairs, indices, direction, steps, loss, optimizer, plain, save):
        """One epoch; logs every loss, saves pictures and, by `save(path)`, checkpoints on the way."""
        args = self.args
        if args.shuffle_train_dataloader:
            indices = np.random.default_rng((args.seed, epoch)).permutation(indices).tolist()
        done = 0
        with loss_log(self.experiment.folder, epoch, len(indices)) as record, tqdm(total=len(indices), unit="img") as bar:
            bar.set_description(f"training, epoch {epoch}")
            for batch in pairs.batches(indices, args.bs_train):
                good = deepcopy(direction.state_dict())
                try:
                    result = training.train_batch(
                        self.unet, direction, batch, self.schedule, steps, loss, optimizer, plain, self.device
                    )
                except training.LossNotFinite as error:
                    direction.load_state_dict(good)
                    raise UserError(f"{error} {self.remedy(epoch, done, save)}") from error
                before, done = done, done + len(batch.indices)
                record(batch.names, [t for t, _ in steps], result.losses)
                bar.update(len(batch.indices))
                bar.set_postfix(loss=f"{result.losses[:, -1].mean():.4f}")
                pictured = any(n % args.save_train_image_step == 0 for n in range(before, done))
                if args.save_train_image and epoch % args.save_train_image_iter == 0 and pictured:
                    self.save_training_picture(epoch, batch, result)
                every = args.save_checkpoint_step
                if args.save_checkpoint_during_iter and done // every > before // every:
                    save(self.experiment.checkpoint(epoch, done))

    def remedy(self, epoch, done, save):
        """Save the direction that training broke off with -> what to say to the user."""
        args = self.args
        settings = ("lr_training", "clip_loss_w", "l1_loss_w", "id_loss_w")
        said = f"({', '.join(f'--{name} {getattr(args, name):g}' for name in settings)}): lower --lr_training"
        if done == 0 and epoch == args.start_iter_when_you_use_pretrained:
            return said
        rescued = self.experiment.checkpoint(epoch, done)
        save(rescued)
        return f"{said}; --manual_checkpoint_name {rescued} begins at the direction from before"

    def columns(self, batch, edits):
        """The pictures of a batch -> ([(label, images)] of original and reconstruction, [images] of the edits), where images
        are (B, 3, H, W)."""
        args = self.args
        x_T = to_device(batch.x_T, self.device)
        before, edited = [], []
        if args.save_x0 and args.use_x0_tensor:
            before.append(("original", batch.x_0))
        # All pictures start from the same x_T: the frozen pass of their first step is shared.
        with torch.no_grad():
            first = process.frozen_branch(self.unet, x_T, self.steps(args.n_test_step)[-1])
        if args.save_x_origin or args.save_process_origin:
            boost = self.t_boost if args.origin_process_addnoise else 0
            folder = "process_origin" if args.save_process_origin else None
            before.append(("reconstruction", self.sample(x_T, batch.indices, None, boost, first, folder).cpu()))
        folder = "process_delta_h" if args.save_process_delta_h else None
        for label, edit in edits:
            if folder and len(edits) > 1:
                folder = f"process_delta_h/{label.replace(', ', '_')}"
            edited.append(self.sample(x_T, batch.indices, edit, self.t_boost, first, folder).cpu())
        return before, edited

    def sample(self, x_T, indices, edit=None, t_boost=0, first=None, folder=None, down_to=0):
        """The reverse process with the run's settings -> x_0. `folder`: save x_t and P_t of every step there.

        down_to: leave out the timesteps below it, for those who watch the edit and want no picture.
        """
        args = self.args
        seen = []
        x_0 = process.generate(
            self.unet,
            x_T,
            self.schedule,
            [t for t in self.steps(args.n_test_step) if t >= down_to],
            edit=edit,
            t_edit=self.t_edit if edit is not None else 0,
            t_boost=t_boost,
            noise=process.image_noise(args.seed, indices),
            sample_type=args.sample_type,
            dt_lambda=args.dt_lambda,
            first=first,
            paired=len(x_T) == 1,
            callback=(lambda i, t, x_t, P_t: seen.append((t, x_t.cpu(), P_t.cpu()))) if folder else None,
        )
        for i, index in enumerate(indices if folder else []):
            rows = [[x_t[i] for _, x_t, _ in seen], [P_t[i] for _, _, P_t in seen]]
            path = self.experiment.folder / "image_samples" / folder / f"{index:06d}.png"
            self.later(images.save_grid, path, rows, [f"t = {t}" for t, _, _ in seen], ["x_t", "P_t"])
        return x_0

    def edits(self, directions):
        """The edits of a test run -> list of (label, Edit or None): one, a strip of strengths, or a grid for two directions."""
        args = self.args
        if args.pass_editing:
            return [("no edit", None)]
        n = len(directions)
        each = [float(word) for word in (args.multiple_hs_coeff or "").split()] or [1.0] * n
        points = [[1.0] * n]
        if args.delta_interpolation:
            points = list(product(np.linspace(args.min_delta, args.max_delta, args.num_delta).tolist(), repeat=n))
        edits = []
        for point in points:
            factors = [a * b for a, b in zip(each, point, strict=True)]
            c = hspace.coefficients(args.hs_coeff_delta_h, n, args.n_train_step, args.n_test_step, factors)
            label = ", ".join(f"{factor * args.hs_coeff_delta_h:+.2g}" for factor in factors)
            edits.append((label, hspace.Edit(directions, c, args.hs_coeff_origin_h)))
        return edits

    def axes(self, labels, n):
        """Labels of the edits of `n` directions -> (of the columns, of the rows or None): a square for two attributes."""
        if n != 2 or not self.args.delta_interpolation:
            return labels, None
        first, second = zip(*(label.split(", ") for label in labels), strict=True)
        a, b = self.args.multiple_attr.split()
        side = self.args.num_delta
        return [f"{b} {strength}" for strength in second[:side]], [f"{a} {strength}" for strength in first[::side]]

    def global_direction(self, direction, i):
        """The mean delta_h of --num_mean_of_delta_hs images, one per timestep (one in all with --ignore_timesteps)."""
        args = self.args
        n = args.num_mean_of_delta_hs
        learned = [tensor.cpu() for tensor in direction.state_dict().values()]
        process_settings = [args.n_test_step, args.n_inv_step, args.n_train_step, args.t_0, args.sample_type, args.dt_lambda]
        strengths = [args.hs_coeff_delta_h, args.hs_coeff_origin_h, self.t_edit, args.ignore_timesteps]
        weights = self.fingerprint
        chosen = [args.custom_train_dataset_dir, args.start_image_id, args.target_image_id, args.load_random_noise, args.seed]
        chosen += [args.target_class_num, args.align_face]
        key = digest(*learned, weights, process_settings, strengths, chosen)
        path = MEAN_DIRECTIONS / f"{self.experiment.name}_{i}_mean{n}_{key}.pth"
        if not path.exists():
            recorder = hspace.MeanRecorder(direction)
            pairs, indices = self.pairs("train", n, images=False)
            c = hspace.coefficients(args.hs_coeff_delta_h, 1, args.n_train_step, args.n_test_step)
            for batch in tqdm(pairs.batches(indices, args.bs_test), desc="mean delta_h", unit="batch"):
                x_T, edit = to_device(batch.x_T, self.device), hspace.Edit([recorder], c, args.hs_coeff_origin_h)
                self.sample(x_T, batch.indices, edit, down_to=self.t_edit)
            checkpoints.save(checkpoints.direction_state(recorder.mean(args.ignore_timesteps)), path)
        log.info("mean direction of %d images: %s", n, path)
        return checkpoints.load_direction(path, self.unet)[0].requires_grad_(False)

    def new_direction(self, timesteps):
        """What is trained: a delta block with random weights, or zeros for each timestep."""
        args = self.args
        if args.train_delta_block:
            torch.manual_seed(args.seed)  # here too: the start must not depend on what was built before
            return hspace.BlockDirection(self.unet.new_delta_block(), args.ignore_timesteps).to(self.device)
        shape = (1, self.unet.h_ch, self.unet.h_size, self.unet.h_size)
        return hspace.GivenDirection.zeros(shape, [None] if args.ignore_timesteps else timesteps).to(self.device)

    def new_loss(self, src, trg):
        args = self.args
        id_loss = IdLoss(weights_at(IR_SE50), self.device) if args.use_id_loss else None
        weights = training.Weights(args.clip_loss_w, args.l1_loss_w, args.id_loss_w)
        direction, cosine = self.clip.direction(src, trg), self.clip.cosine(src, trg)
        encode = autocast(args.precision, self.device)(self.clip.encode_images)
        return training.EditLoss(encode, direction, cosine, weights, args.clip_source, id_loss)

    def save_direction(self, direction, optimizer, scheduler, path):
        settings = {"prompts": list(self.prompts[0]), "t_edit": self.t_edit, "flags": vars(self.args)}
        state = checkpoints.direction_state(direction)
        state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "settings": settings}
        checkpoints.save(state, path)
        log.info("direction saved: %s", path)

    def resume(self, direction, optimizer, scheduler):
        """Load the last epoch's checkpoint, if there is one, into what is being trained -> the epochs still to run."""
        args = self.args
        first = args.start_iter_when_you_use_pretrained
        epochs = range(first, first + args.n_iter)
        done = [epoch for epoch in epochs if self.experiment.checkpoint(epoch).exists() and not args.retrain]
        if not done:
            if not args.do_train:
                raise UserError(f"--do_train 0, and there is no {self.experiment.checkpoint(epochs[-1])}: leave the flag out")
            if name := args.manual_checkpoint_name or args.load_from_checkpoint:
                path = self.experiment.find_direction(name)
                self.start_from(path, direction)
                log.info("beginning at the direction of %s", path)
            return epochs
        path = self.experiment.checkpoint(done[-1])
        contents = self.start_from(path, direction, same_prompts=True)
        log.info("going on after epoch %d: %s", done[-1], path)
        # The published checkpoints, too, carry both.
        if "optimizer" in contents and "scheduler" in contents:
            optimizer.load_state_dict(contents["optimizer"])
            scheduler.load_state_dict(contents["scheduler"])
        return range(done[-1] + 1, epochs.stop if args.do_train else 0)

    def start_from(self, path, direction, same_prompts=False):
        """Load a checkpoint into what is being trained -> everything in the file."""
        args = self.args
        loaded, contents = checkpoints.load_direction(path, self.unet, args.ignore_timesteps)
        alike = loaded.state_dict().keys() == direction.state_dict().keys()
        if settings := contents.get("settings"):
            alike &= settings["flags"]["ignore_timesteps"] == args.ignore_timesteps
            alike &= not same_prompts or settings["prompts"] == list(self.prompts[0])
        if not alike:
            raise UserError(
                f"{path} was trained for other prompts or in another way; --retrain ignores it, another --exp leaves it alone"
            )
        direction.load_state_dict(loaded.state_dict())
        return contents

    def save_training_picture(self, epoch, batch, result):
        """The real image, and P_t at the last step that was trained, without (where it was computed) and with the edit."""
        columns = {"original": batch.x_0, "P_t plain": result.P_plain, "P_t edited": result.P_edit}
        columns = {label: column for label, column in columns.items() if column is not None}
        rows = [[column[i] for column in columns.values()] for i in range(len(batch.indices))]
        folder = Path(self.args.save_to_folder or self.experiment.folder / "training_images")
        path = folder / f"{epoch}_{batch.indices[0]:06d}.png"
        self.later(images.save_grid, path, rows, list(columns), [Path(name).stem for name in batch.names])

    def save_reconstructions(self, pairs, indices, split):
        """Inverted images beside what the plain process makes of their latents."""
        folder = self.experiment.folder / "image_samples" / f"precomputed_{split}"
        for batch in tqdm(pairs.batches(indices, self.args.bs_precompute), desc="generating back", unit="batch"):
            x_0 = self.plain_sample(batch.x_T)
            for i, index in enumerate(batch.indices):
                columns = ["original", "reconstruction"]
                self.later(images.save_grid, folder / f"{index:06d}.png", [[batch.x_0[i], x_0[i]]], columns)
