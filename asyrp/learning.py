"""A training on disk: its checkpoints, where it resumes, and what it writes."""

import logging
import tempfile
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asyrp import directions, training
from asyrp.directions import Direction
from asyrp.ranks import ALONE
from asyrp.report import pictures, trackers
from asyrp.report.losslog import loss_log
from utils.errors import UserError
from utils.terminal import line_of

log = logging.getLogger(__name__)

DIGESTS = ("images", "clip", "identity", "started_from")  # entries of a record whose values are meaningless to a reader
RATE = ("lr_training", "scheduler_step_size", "sch_gamma")  # settings that may change when a training is resumed


class Learning:
    """A direction in training, with one checkpoint per epoch.

    settings: Settings; experiment: names the checkpoints; record: the record of the direction, see `training.new_record`;
    steps: from `training.edit_steps`; later: a Background that draws pictures; region: a Region, or None; ranks: the
    processes that share the images, of which the first one writes.
    """

    def __init__(self, settings, model, experiment, record, steps, later, region=None, ranks=ALONE):
        self.settings, self.model, self.experiment, self.record = settings, model, experiment, record
        self.steps, self.later, self.mask_of, self.ranks = steps, later, region and region.mask_of, ranks
        timesteps = [t for t, _ in steps]
        self.function = training.new_function(model, record["kind"], record["ignore_timesteps"], timesteps, settings.seed)
        self.optimizer = torch.optim.SGD(self.function.parameters(), lr=settings.lr_training)
        self.schedule_of_file = None  # the StepLR of a checkpoint of the 2023 release
        self.path = None  # the last checkpoint

    @property
    def direction(self):
        """The direction learned so far, frozen for use."""
        return Direction(self.function, self.record, f"{self.experiment.name}.pth").requires_grad_(False)

    # ---- resuming -----------------------------------------------------------------------------------------------------------

    def resume(self):
        """Load the last epoch's checkpoint, if there is one, or the direction to start from -> the epochs still to run.

        Raises UserError for a checkpoint of a training with other settings, naming the first difference.
        """
        s = self.settings
        first = s.start_iter_when_you_use_pretrained
        epochs = range(first, first + s.n_iter)
        self._check_name(epochs[-1])
        done = [] if s.retrain else [epoch for epoch in epochs if self.experiment.checkpoint(epoch).exists()]
        if name := s.manual_checkpoint_name or s.load_from_checkpoint:
            path = directions.find(name, self.model.config.data.category, self.experiment.suffix, s.choose_checkpoint_num)
            begin = directions.read(path)
            self.record["training"]["started_from"] = directions.build(begin, self.model, s.ignore_timesteps).digest()
        if not done:
            if not s.do_train:
                raise UserError(f"--do_train 0, but there is no {self.experiment.checkpoint(epochs[-1])}: leave out --do_train")
            if name:
                self._load(begin)
                log.info("starting from the direction in %s", path)
            return epochs
        self.path = self.experiment.checkpoint(done[-1])
        stored = directions.read(self.path)
        todo = range(done[-1] + 1, epochs.stop if s.do_train else 0)
        # A checkpoint of the 2023 release, or one resumed from it, brings its own schedule; given flags take precedence.
        follows = {"optimizer", "scheduler"} <= stored.more.keys()
        if follows and set(RATE) & s.given.keys():
            follows = False
            log.info("%s has its own learning rate; using that of the flags", stored.path)
        if not name:  # the starting point does not matter for the remaining epochs
            self.record["training"]["started_from"] = stored.record.get("training", {}).get("started_from")
        self._check_alike(stored, free=RATE if todo else (), own=RATE if follows else ())
        self._load(stored)
        log.info("resuming after epoch %d: %s", done[-1], stored.path)
        if todo and follows:
            self._follow_2023(stored)
        if not todo and "calibration" in stored.record:
            self.record["calibration"] = stored.record["calibration"]
        return todo

    def _check_name(self, last):
        """Raise OSError before training if the name of the longest checkpoint is too long for the file system."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self.experiment.checkpoint(last, self.settings.n_train_img).lstat()

    def _load(self, stored):
        if stored.kind != self.record["kind"]:
            raise UserError(f"{stored.path} was trained with {directions.FLAG[stored.kind]}: use that flag instead")
        loaded = directions.build(stored, self.model, self.record["ignore_timesteps"]).function
        if getattr(loaded, "keys", None) != getattr(self.function, "keys", None):
            raise UserError(f"{stored.path} was trained on other timesteps: use the number of steps it was trained with")
        self.function.load_state_dict(loaded.state_dict())

    def _check_alike(self, stored, free, own):
        """Raise UserError unless the checkpoint was made with the same settings. free: settings that may change from here on,
        with a warning; own: settings that the file itself decides. Checkpoints of the 2023 release record only the steps in
        their file name, which equals the name of this experiment."""
        if "training" not in stored.record:
            return
        for name, there, here in differing(stored.record, self.record):
            if name in ("epochs", *own):
                continue
            if name not in free:
                said = f"other {name}" if name in DIGESTS else f"{name} {there}, but this run has {here}"
                remedies = "train from scratch with --retrain 1, or keep it and use another --exp"
                raise UserError(f"{stored.path} was trained with {said}: {remedies}")
            log.warning("earlier epochs were trained with %s %s; from here on it is %s", name, there, here)

    def _follow_2023(self, stored):
        """Continue with the learning rate that the 2023 release would use next: it saved its scheduler before the epoch's
        step."""
        try:
            self.optimizer.load_state_dict(stored.more["optimizer"])
            saved = stored.more["scheduler"]
            scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, saved["step_size"], saved["gamma"])
            scheduler.load_state_dict(saved)
            self.optimizer.step()  # does nothing without gradients, but the scheduler warns without it
            scheduler.step()
            rate = (scheduler.base_lrs[0], scheduler.step_size, scheduler.gamma)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise UserError(f"{stored.path}: its optimizer state is invalid: train from scratch with --retrain 1") from error
        self.schedule_of_file = scheduler
        self.record["training"].update(zip(RATE, rate, strict=True))
        log.info("learning rate of the checkpoint: %g", scheduler.get_last_lr()[0])

    # ---- an epoch -----------------------------------------------------------------------------------------------------------

    def train(self, epochs, pairs, indices, loss, plain):
        """Run these epochs. Each writes a checkpoint and its losses, and images if the settings say so."""
        s, first = self.settings, epochs[0] * len(indices) + 1
        about = s.values() | {"model": self.model.identity}
        opened = trackers.opened(s.track, self.experiment, about, first) if self.ranks.leads else nullcontext([])
        with opened as self.writers:
            self._train_epochs(epochs, pairs, indices, loss, plain)

    def _train_epochs(self, epochs, pairs, indices, loss, plain):
        s = self.settings
        for epoch in epochs:
            if self.schedule_of_file is None:
                number = epoch - s.start_iter_when_you_use_pretrained
                lr = training.learning_rate(s.lr_training, s.scheduler_step_size, s.sch_gamma, number)
                training.set_learning_rate(self.optimizer, lr)
            self._train_epoch(epoch, pairs, indices, loss, plain)
            if epoch == epochs[-1] or not s.save_checkpoint_only_last_iter:
                self.save(self.experiment.checkpoint(epoch))
            if self.schedule_of_file is not None:
                self.schedule_of_file.step()

    def _train_epoch(self, epoch, pairs, indices, loss, plain):
        s, done = self.settings, 0
        if s.shuffle_train_dataloader:
            indices = np.random.default_rng((s.seed, epoch)).permutation(indices).tolist()
        batches = pairs.parts(indices, s.bs_train, self.ranks)
        how = (self.steps, loss, self.optimizer, plain, self.mask_of, self.ranks)
        results = training.train_epoch(self.model, self.function, batches, *how)
        with self._loss_log(epoch, len(indices)) as record, tqdm(total=len(indices), unit="img") as bar:
            bar.set_description(f"training, epoch {epoch}")
            try:
                for batch, result in results:
                    before, done = done, done + len(result.names)
                    record(result.names, [t for t, _ in self.steps], result.losses)
                    bar.update(len(result.names))
                    bar.set_postfix(loss=f"{result.losses[:, -1].mean():.4f}")
                    self._save_within_epoch(epoch, before, done, batch, result)
            except training.LossNotFinite as error:
                with self.ranks.first():  # save the direction before the error of another process ends the job
                    remedy = self._remedy(epoch, done)
                raise UserError(f"{error} {remedy}") from error

    def _loss_log(self, epoch, n_images):
        if not self.ranks.leads:
            return nullcontext(lambda *batch: None)
        return loss_log(self.experiment.folder, epoch, n_images, self.writers)

    def _save_within_epoch(self, epoch, before, done, batch, result):
        """Write the images and checkpoints due within an epoch, when its images `before` to `done` were trained."""
        s = self.settings
        pictured = any(n % s.save_train_image_step == 0 for n in range(before, done))
        if s.save_train_image and epoch % s.save_train_image_iter == 0 and pictured and self.ranks.leads:
            self._save_picture(epoch, batch, result)
        every = s.save_checkpoint_step
        if s.save_checkpoint_during_iter and done // every > before // every:
            self.save(self.experiment.checkpoint(epoch, done))

    def save(self, path):
        """Write a checkpoint: the direction with its record, and the optimizer, in the layout of the published files.

        If it cannot be written, it is saved in the experiment's folder or in the system's temporary folder instead, and a
        UserError says where and how to resume. Of several processes, only the first one writes.
        """
        if not self.ranks.leads:
            return
        direction, more = Direction(self.function, self.record, path.name), {"optimizer": self.optimizer.state_dict()}
        if self.schedule_of_file is not None:
            more["scheduler"] = self.schedule_of_file.state_dict()
        reason = None
        for place in (path, self.experiment.folder / path.name, Path(tempfile.gettempdir()) / path.name):
            try:
                directions.save(direction, place, more)
            except OSError as error:
                reason = reason or line_of(error)
                continue
            if place == path:
                self.path = path
                log.info("direction saved: %s", path)
                return
            raise UserError(
                f"{reason}. The direction was saved as {place}: move it to {path} and run the same command to resume"
            )
        raise UserError(f"{reason}. No other folder was writable either: the training since the last checkpoint is lost")

    def _remedy(self, epoch, done):
        """Save the direction as it was before the loss diverged -> advice for the error message."""
        s = self.settings
        names = ("lr_training", "clip_loss_w", "l1_loss_w", "id_loss_w")
        said = f"({', '.join(f'--{name} {getattr(s, name):g}' for name in names)}): lower --lr_training"
        if done == 0 and epoch == s.start_iter_when_you_use_pretrained:
            return said
        rescued = self.experiment.checkpoint(epoch, done)
        self.save(rescued)
        return f"{said}; --manual_checkpoint_name {rescued} starts from the direction before that batch"

    def _save_picture(self, epoch, batch, result):
        """Draw the real image, and P_t at the last trained step, without (if it was computed) and with the edit."""
        columns = {"original": batch.x_0, "P_t plain": result.P_plain, "P_t edited": result.P_edit}
        columns = {label: column for label, column in columns.items() if column is not None}
        rows = [[column[i] for column in columns.values()] for i in range(len(batch.indices))]
        folder = Path(self.settings.save_to_folder or self.experiment.folder / "training_images")
        path = folder / f"{epoch}_{batch.indices[0]:06d}.png"
        draw = partial(pictures.save_grid, path, rows, list(columns), [Path(name).stem for name in batch.names])
        self.later(draw)


def differing(there, here):
    """The differences between two records -> yields (name, value there, value here); entries of `training` are compared one
    by one."""
    flat = [{**record, **record["training"], **record.get("model", {})} for record in (there, here)]
    skipped = ("training", "model", "origin", "t_boost", "architecture", "calibration")
    for name in dict.fromkeys([*flat[1], *flat[0]]):
        if name not in skipped and flat[0].get(name) != flat[1].get(name):
            yield name, flat[0].get(name), flat[1].get(name)
