"""How the runner learns a direction: what is trained, an epoch of it, and where it goes on."""

import logging
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asyrp import checkpoints, hspace, images, training
from asyrp.acceleration.fast_unet import autocast
from utils.errors import UserError
from asyrp.report.losslog import loss_log
from asyrp.workbench import Workbench
from configs.paths_config import IR_SE50
from losses.id_loss import IdLoss
from utils.download import weights_at

log = logging.getLogger(__name__)


class Learning(Workbench):
    """A direction in training: its loss, its checkpoints, its pictures."""

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
