"""Learning delta_h: one optimiser step per timestep of the editing interval (paper section 3.4 and appendix, algorithm 1)."""

from itertools import chain, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from asyrp import process
from utils.errors import UserError
from asyrp.hspace import Edit
from utils.devices import to_device
from losses.clip_loss import clip_term, directional_loss

COLUMNS = ("l1", "clip_directional", "clip", "id", "total")


class LossNotFinite(UserError):
    """A loss is infinite or not a number; the message names the image and the timestep."""


class Weights(NamedTuple):
    """Factors of the three terms of the loss."""

    clip: float = 1.0
    l1: float = 0.0
    id: float = 0.0


@torch.no_grad()
def remembered(known, keys, encode, images):
    """encode(images), a row for each key; no row is computed twice, and where all are `known` the images may be None."""
    if not all(key in known for key in keys):
        known.update(zip(keys, encode(images), strict=True))
    return torch.stack([known[key] for key in keys])


class EditLoss:
    """The loss of paper eq. 5, as the 2023 release computes it:

        clip_w * -log((2 - L_dir) / 2) + l1_w * cosine * |P_edit - P_plain|_1 + id_w * L_id
        L_dir = 1 - cos(E_I(P_edit) - E_I(source), direction)

    encode: images (B, 3, H, W) in [-1, 1] -> normalised features (B, D). direction: (1, D), normalised. cosine: of the source
    and target prompts. source: "x0", the real image, or "origin", P_plain (as in the paper). id_loss: an IdLoss or None.

    Features of real images and of P_plain are the same in each epoch, so they are kept: 2 KB an image of "x0", 2 KB an image
    and timestep of "origin", and as much for the face's identity.
    """

    def __init__(self, encode, direction, cosine, weights, source="x0", id_loss=None):
        self.encode, self.direction, self.cosine = encode, direction, cosine
        self.weights, self.source, self.id_loss = weights, source, id_loss
        self.features, self.identities = {}, {}

    def needs_plain(self, keys):
        """Whether P_plain enters the loss at all under these keys; where it does not, it is not computed."""
        encoded = self.weights.clip and self.source == "origin" and not all(key in self.features for key in keys)
        return self.weights.l1 != 0 or bool(encoded)

    def prepare(self, indices, x_0):
        """What depends on the real images alone, computed once for all timesteps and epochs."""
        features, identity = None, None
        if self.weights.clip and self.source == "x0":
            features = remembered(self.features, indices, self.encode, x_0)
        if self.id_loss is not None and self.weights.id:
            identity = remembered(self.identities, indices, self.id_loss.embed, x_0)
        return features, identity

    def __call__(self, P_edit, P_plain, prepared, keys):
        """keys: a name for each P_plain, unlike any other image's and timestep's. P_plain may be None when not `needs_plain`.

        -> (loss, a tensor of COLUMNS), means over the batch.
        """
        features, identity = prepared
        zero = P_edit.new_zeros(())
        l1, directional, clip, id_term = zero, zero, zero, zero
        if self.weights.l1:
            l1 = F.l1_loss(P_edit, P_plain)
        if self.weights.clip:
            if features is None:
                features = remembered(self.features, keys, self.encode, P_plain)
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
    x_edit = x_plain = to_device(batch.x_T, device)
    prepared = loss.prepare(batch.indices, to_device(batch.x_0, device))
    keys = [[(index, t) for index in batch.indices] for t, _ in steps]
    needed = loss.needs_plain(chain(*keys))
    kept = plain.get(batch, len(steps)) if needed else None
    walk_plain = needed and kept is None
    plain_steps = [] if kept is None else to_device(kept, device).unbind(1)
    losses = []
    for i, (t, t_next) in enumerate(steps):
        with torch.no_grad():
            frozen = process.frozen_branch(unet, x_edit, t)
            if walk_plain:
                # Both trajectories start from the same x_T and share its frozen pass.
                eps = frozen.eps if i == 0 else process.frozen_branch(unet, x_plain, t).eps
                x_plain, P_plain = process.ddim_step(x_plain, eps, t, t_next, schedule)
                # In the precision it is kept in, so that every epoch sees the same numbers.
                plain_steps.append(P_plain.to(plain.dtype))
            P_plain = plain_steps[i].float() if needed else None
        eps_edit = process.edited_branch(unet, frozen, edit, t)
        x_next, P_edit = process.ddim_step(x_edit, frozen.eps, t, t_next, schedule, eps_edit)
        total, row = loss(P_edit, P_plain, prepared, keys[i])
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
        plain.put(batch, torch.stack(plain_steps, dim=1))
    return Result(losses, P_plain, P_edit.detach())
