"""Learning delta_h: one optimiser step per timestep of the editing interval (paper section 3.4 and appendix, algorithm 1)."""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from asyrp import process
from asyrp.errors import UserError
from asyrp.hspace import Edit
from losses.clip_loss import clip_term, directional_loss

COLUMNS = ("l1", "clip_directional", "clip", "id", "total")


class LossNotFinite(UserError):
    """A loss is infinite or not a number; the message names the image and the timestep."""


class Weights(NamedTuple):
    """Factors of the three terms of the loss."""

    clip: float = 1.0
    l1: float = 0.0
    id: float = 0.0


class EditLoss:
    """The loss of paper eq. 5, as the 2023 release computes it:

        clip_w * -log((2 - L_dir) / 2) + l1_w * cosine * |P_edit - P_plain|_1 + id_w * L_id
        L_dir = 1 - cos(E_I(P_edit) - E_I(source), direction)

    encode: images (B, 3, H, W) in [-1, 1] -> normalised features (B, D). direction: (1, D), normalised. cosine: of the source
    and target prompts. source: "x0", the real image, or "origin", P_plain (as in the paper). id_loss: an IdLoss or None.
    """

    def __init__(self, encode, direction, cosine, weights, source="x0", id_loss=None):
        self.encode, self.direction, self.cosine = encode, direction, cosine
        self.weights, self.source, self.id_loss = weights, source, id_loss

    @property
    def needs_plain(self):
        """Whether the plain trajectory enters the loss at all; where it does not, it is not computed."""
        return self.weights.l1 != 0 or self.source == "origin"

    @torch.no_grad()
    def prepare(self, x_0):
        """What depends on the real images alone, computed once for all timesteps."""
        features = self.encode(x_0) if self.source == "x0" and self.weights.clip else None
        identity = self.id_loss.embed(x_0) if self.id_loss is not None and self.weights.id else None
        return features, identity

    def __call__(self, P_edit, P_plain, prepared):
        """-> (loss, a tensor of COLUMNS), means over the batch. P_plain may be None when not `needs_plain`."""
        features, identity = prepared
        zero = P_edit.new_zeros(())
        l1, directional, clip, id_term = zero, zero, zero, zero
        if self.weights.l1:
            l1 = F.l1_loss(P_edit, P_plain)
        if self.weights.clip:
            if features is None:
                with torch.no_grad():
                    features = self.encode(P_plain)
            L_dir = directional_loss(features, self.encode(P_edit), self.direction)
            directional, clip = L_dir.mean(), clip_term(L_dir).mean()
        if identity is not None:
            id_term = (1 - (self.id_loss.embed(P_edit) * identity).sum(-1)).mean()
        total = self.weights.clip * clip + self.weights.l1 * self.cosine * l1 + self.weights.id * id_term
        return total, torch.stack([l1, directional, clip, id_term, total]).detach()


class Result(NamedTuple):
    """What training saw of one batch: the losses (steps, len(COLUMNS)) and the last P_plain (or None) and P_edit."""

    losses: torch.Tensor
    P_plain: torch.Tensor | None
    P_edit: torch.Tensor


class PlainTrajectories:
    """P_plain of every image and timestep, kept from the first epoch on: the frozen U-Net gives the same each time.

    Kept in memory up to `budget` bytes; images beyond it are computed again.
    """

    def __init__(self, budget):
        self.left, self.kept = budget, {}

    def get(self, names):
        """-> list over steps of (B, 3, H, W), or None unless every image is kept."""
        if not all(name in self.kept for name in names):
            return None
        return list(torch.stack([self.kept[name] for name in names], dim=1))

    def put(self, names, steps):
        rows = torch.stack(steps, dim=1).cpu()  # (B, steps, 3, H, W)
        for name, row in zip(names, rows, strict=True):
            if name not in self.kept and row.nbytes <= self.left:
                self.kept[name] = row.clone()
                self.left -= row.nbytes


def edit_steps(timesteps, t_edit):
    """(t, t_next) pairs of the editing interval, downward. Raises UserError when it is empty."""
    down = [*reversed(timesteps), process.END]
    steps = [(t, t_next) for t, t_next in pairwise(down) if t >= t_edit]
    if not steps:
        raise UserError(
            f"t_edit {t_edit} lies above every timestep (the highest is {down[0]}): nothing would be trained; lower it"
        )
    return steps


def train_batch(unet, direction, batch, schedule, steps, loss, optimizer, plain, device):
    """One pass over the editing interval for one batch of (image, latent) pairs -> Result.

    direction: a Direction of asyrp.hspace with parameters; `steps` from `edit_steps`; `plain` a PlainTrajectories. The state is
    detached after each step. Raises LossNotFinite; the direction is spoilt then.
    """
    edit = Edit([direction], [1.0])
    x_edit = x_plain = batch.x_T.to(device)
    prepared = loss.prepare(batch.x_0.to(device))
    kept = plain.get(batch.indices) if loss.needs_plain else None
    walk_plain = loss.needs_plain and kept is None
    walked, losses, P_plain = [], [], None
    for i, (t, t_next) in enumerate(steps):
        with torch.no_grad():
            frozen = process.frozen_branch(unet, x_edit, t)
            if walk_plain:
                # Both trajectories start from the same x_T and share its frozen pass.
                eps = frozen.eps if i == 0 else process.frozen_branch(unet, x_plain, t).eps
                x_plain, P_plain = process.ddim_step(x_plain, eps, t, t_next, schedule)
                walked.append(P_plain)
            elif kept is not None:
                P_plain = kept[i].to(device)
        eps_edit = process.edited_branch(unet, frozen, edit, t)
        x_next, P_edit = process.ddim_step(x_edit, frozen.eps, t, t_next, schedule, eps_edit)
        total, row = loss(P_edit, P_plain, prepared)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(row)
        x_edit = x_next.detach()
    losses = torch.stack(losses).cpu()  # the one wait for the device
    if not losses.isfinite().all():
        t = steps[int((~losses.isfinite()).any(1).nonzero()[0])][0]
        raise LossNotFinite(f"the loss is not finite at image {', '.join(batch.names)}, timestep {t}")
    if walk_plain:
        plain.put(batch.indices, walked)
    return Result(losses, P_plain, P_edit.detach())
