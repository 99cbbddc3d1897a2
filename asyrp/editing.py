"""What directions do to latents: one picture, a strip of strengths, a square of two directions, and their mean."""

import logging
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asyrp import checkpoints, hspace, images, process
from asyrp.data.pairs import digest
from utils.devices import to_device
from asyrp.workbench import Workbench

log = logging.getLogger(__name__)

MEAN_DIRECTIONS = Path("checkpoint_latent")


class Editing(Workbench):
    """Directions -> edits -> pictures, with the run's settings."""

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

    def columns(self, batch, edits):
        """The pictures of a batch -> lists of (label, images (B, 3, H, W)): original and reconstruction, and the edits."""
        args = self.args
        x_T = to_device(batch.x_T, self.device)
        before, edited = [], []
        if args.save_x0 and args.use_x0_tensor:
            before.append(("original", batch.x_0))
        # All pictures start from the same x_T: the frozen pass of their first step is shared.
        with torch.no_grad():
            first = process.frozen_branch(self.unet, x_T, self.steps(args.n_test_step)[-1])
        if args.save_x_origin or args.save_process_origin or args.evaluate:
            boost = self.t_boost if args.origin_process_addnoise else 0
            folder = "process_origin" if args.save_process_origin else None
            before.append(("reconstruction", self.sample(x_T, batch.indices, None, boost, first, folder).cpu()))
        folder = "process_delta_h" if args.save_process_delta_h else None
        for label, edit in edits:
            if folder and len(edits) > 1:
                folder = f"process_delta_h/{label.replace(', ', '_')}"
            edited.append((label, self.sample(x_T, batch.indices, edit, self.t_boost, first, folder).cpu()))
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
            paired=self.unet.pays_to_pair(len(x_T)),
            callback=(lambda i, t, x_t, P_t: seen.append((t, x_t.cpu(), P_t.cpu()))) if folder else None,
        )
        for i, index in enumerate(indices if folder else []):
            rows = [[x_t[i] for _, x_t, _ in seen], [P_t[i] for _, _, P_t in seen]]
            path = self.experiment.folder / "image_samples" / folder / f"{index:06d}.png"
            self.later(images.save_grid, path, rows, [f"t = {t}" for t, _, _ in seen], ["x_t", "P_t"])
        return x_0

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
