"""Learning delta_h: one optimiser step per timestep of the editing interval (paper section 3.4 and appendix, algorithm 1)."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from asyrp import hspace, process
from asyrp.acceleration.fast_unet import autocast
from asyrp.blending import MaskOf
from asyrp.curves import find_curve
from asyrp.data.pairs import Batch, inverted_in_memory
from asyrp.directions import Direction, Function
from asyrp.intervals import choose_t_edit
from asyrp.model import Model
from asyrp.origin import PlainTrajectories
from asyrp.ranks import ALONE, Ranks
from asyrp.regions import region_of
from asyrp.store import Store
from losses.clip_loss import ClipLoss, clip_term, directional_loss
from losses.id_loss import IdLoss
from utils.devices import to_device
from utils.errors import UserError

Encode = Callable[[torch.Tensor], torch.Tensor]  # images (B, 3, H, W) -> features (B, D)
Prepared = tuple[torch.Tensor | None, torch.Tensor | None]
COLUMNS = ("l1", "clip_directional", "clip", "id", "total")


class LossNotFinite(UserError):
    """A loss is inf or nan; the message names the image and the timestep."""


class Weights(NamedTuple):
    """Factors of the three terms of the loss."""

    clip: float = 1.0
    l1: float = 0.0
    id: float = 0.0


@torch.no_grad()
def remembered(
    known: dict[Hashable, torch.Tensor], keys: Sequence[Hashable], encode: Encode, images: torch.Tensor | None
) -> torch.Tensor:
    """encode(images), one row per key, cached in `known`; if all keys are known the images may be None."""
    if not all(key in known for key in keys):
        assert images is not None
        known.update(zip(keys, encode(images), strict=True))
    return torch.stack([known[key] for key in keys])


class EditLoss:
    """The loss of paper eq. 5, as in the 2023 release:

        clip_w * -log((2 - L_dir) / 2) + l1_w * cosine * |P_edit - P_plain|_1 + id_w * L_id
        L_dir = 1 - cos(E_I(P_edit) - E_I(source), direction)

    encode: images (B, 3, H, W) in [-1, 1] -> normalised features (B, D). direction: (1, D), normalised. cosine: between the
    source and target prompts. source: "x0", the real image, or "origin", P_plain (as in the paper). id_loss: an IdLoss or
    None.

    Features of real images and of P_plain do not change between epochs, so they are cached: 2 KB per image for "x0", 2 KB per
    image and timestep for "origin", and as much for the face identity.
    """

    def __init__(
        self,
        encode: Encode,
        direction: torch.Tensor,
        cosine: float,
        weights: Weights,
        source: str = "x0",
        id_loss: IdLoss | None = None,
    ) -> None:
        self.encode, self.direction, self.cosine = encode, direction, cosine
        self.weights, self.source, self.id_loss = weights, source, id_loss
        self.features: dict[Hashable, torch.Tensor] = {}
        self.identities: dict[Hashable, torch.Tensor] = {}

    def needs_plain(self, keys: Iterable[Hashable]) -> bool:
        """Whether the loss needs P_plain for these keys; otherwise it is not computed."""
        encoded = self.weights.clip and self.source == "origin" and not all(key in self.features for key in keys)
        return self.weights.l1 != 0 or bool(encoded)

    def prepare(self, indices: Sequence[int], x_0: torch.Tensor) -> Prepared:
        """Features and identity embeddings of the real images, computed once for all timesteps and epochs (or None)."""
        features, identity = None, None
        if self.weights.clip and self.source == "x0":
            features = remembered(self.features, indices, self.encode, x_0)
        if self.id_loss is not None and self.weights.id:
            identity = remembered(self.identities, indices, self.id_loss.embed, x_0)
        return features, identity

    def __call__(
        self, P_edit: torch.Tensor, P_plain: torch.Tensor | None, prepared: Prepared, keys: Sequence[Hashable]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys: a unique key per P_plain (image and timestep). P_plain may be None if not `needs_plain`.

        -> (loss, tensor of COLUMNS), means over the batch.
        """
        features, identity = prepared
        zero = P_edit.new_zeros(())
        l1, directional, clip, id_term = zero, zero, zero, zero
        if self.weights.l1:
            assert P_plain is not None  # see `needs_plain`
            l1 = F.l1_loss(P_edit, P_plain)
        if self.weights.clip:
            if features is None:
                features = remembered(self.features, keys, self.encode, P_plain)
            L_dir = directional_loss(features, self.encode(P_edit), self.direction)
            directional, clip = L_dir.mean(), clip_term(L_dir).mean()
        if identity is not None and self.id_loss is not None:
            id_term = (1 - (self.id_loss.embed(P_edit) * identity).sum(-1)).mean()
        total = self.weights.clip * clip + self.weights.l1 * self.cosine * l1 + self.weights.id * id_term
        return total, torch.stack([l1, directional, clip, id_term, total]).detach()


class Result(NamedTuple):
    """The result of training on one batch: the losses (steps, len(COLUMNS)), the last P_plain (or None) and P_edit, and the
    names of the images. If several processes share the batch, losses and names are those of all of them."""

    losses: torch.Tensor
    P_plain: torch.Tensor | None
    P_edit: torch.Tensor
    names: list[str]


def edit_steps(timesteps: Sequence[int], t_edit: int) -> list[tuple[int, int]]:
    """(t, t_next) pairs of the editing interval, downward. Raises UserError if it is empty."""
    down = [*reversed(timesteps), process.END]
    steps = [(t, t_next) for t, t_next in pairwise(down) if t >= t_edit]
    if not steps:
        raise UserError(
            f"t_edit {t_edit} is above every timestep (the highest is {down[0]}), so nothing would be trained: lower it"
        )
    return steps


def train_batch(
    unet: process.Halves,
    direction: nn.Module,
    batch: Batch,
    schedule: process.Schedule,
    steps: Sequence[tuple[int, int]],
    loss: EditLoss,
    optimizer: torch.optim.Optimizer,
    plain: PlainTrajectories,
    device: torch.device | str,
    ranks: Ranks = ALONE,
    weight: float = 1.0,
) -> Result:
    """One pass over the editing interval for one batch of (image, latent) pairs -> Result.

    direction: a module of asyrp.hspace with parameters; `steps` from `edit_steps`; `plain` a PlainTrajectories. The state is
    detached after each step (paper algorithm 1). Raises LossNotFinite, after which the direction is unusable. ranks: the
    processes that share the batch, this one holding the fraction `weight`; gradients and losses are averaged over them.
    """
    edit = hspace.Edit([direction], [1.0])
    x_edit = x_plain = to_device(batch.x_T, device)
    assert batch.x_0 is not None, "training needs the images"
    prepared = loss.prepare(batch.indices, to_device(batch.x_0, device))
    keys = [[(index, t) for index in batch.indices] for t, _ in steps]
    needed = loss.needs_plain(chain(*keys))
    kept = plain.get(batch, len(steps)) if needed else None
    walk_plain = needed and kept is None
    plain_steps = [] if kept is None else list(to_device(kept, device).unbind(1))
    rows, finite = [], []
    for i, (t, t_next) in enumerate(steps):
        with torch.no_grad():
            frozen = process.frozen_branch(unet, x_edit, t)
            if walk_plain:
                # Both trajectories start from the same x_T and share its frozen pass.
                eps = frozen.eps if i == 0 else process.frozen_branch(unet, x_plain, t).eps
                x_plain, P_t = process.ddim_step(x_plain, eps, t, t_next, schedule)
                # Round to the precision of the cache, so that every epoch sees the same numbers.
                plain_steps.append(P_t.to(plain.dtype))
            P_plain = plain_steps[i].float() if needed else None
        eps_edit = process.edited_branch(unet, frozen, edit, t)
        x_next, P_edit = process.ddim_step(x_edit, frozen.eps, t, t_next, schedule, eps_edit)
        total, row = loss(P_edit, P_plain, prepared, keys[i])
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        finite.append(row.isfinite().all())
        # Not DistributedDataParallel: it would rename the parameters, and it needs a gradient for each of them in every step.
        gradients = [p.grad for p in direction.parameters() if p.grad is not None]
        ranks.average([*gradients, row], weight)
        optimizer.step()
        rows.append(row)
        x_edit = x_next.detach()
    losses = torch.stack(rows).cpu()  # the only synchronisation with the device
    if not losses.isfinite().all():
        i = int((~losses.isfinite()).any(1).nonzero()[0])
        faulty = ranks.gather([] if finite[i] else batch.names)
        raise LossNotFinite(f"the loss is not finite at image {', '.join(faulty)}, timestep {steps[i][0]}")
    if walk_plain:
        plain.put(batch, torch.stack(plain_steps, dim=1))
    return Result(losses, P_plain, P_edit.detach(), batch.names)


# ---- a whole training -------------------------------------------------------------------------------------------------------


def new_function(
    model: Model, kind: str = "delta_block", ignore_timesteps: bool = False, timesteps: Iterable[int] = (), seed: int = 0
) -> Function:
    """The module to be trained: a delta block with random weights, or a zero delta_h per timestep (a single one if
    `ignore_timesteps`)."""
    if kind == "delta_block":
        torch.manual_seed(seed)  # initial weights must not depend on what was built before
        return hspace.BlockDirection(model.unet.new_delta_block(), ignore_timesteps).to(model.device)
    shape = (1, model.unet.h_ch, model.unet.h_size, model.unet.h_size)
    return hspace.GivenDirection.zeros(shape, [None] if ignore_timesteps else list(timesteps)).to(model.device)


def new_loss(
    clip: ClipLoss,
    aim: tuple[str, str] | torch.Tensor,
    weights: Weights,
    source: str = "x0",
    id_loss: IdLoss | None = None,
    precision: str = "fp32",
) -> EditLoss:
    """An EditLoss. clip: a ClipLoss. aim: (source, target) prompts, or a direction in CLIP space (1, D), normalised; the L1
    term is not scaled then."""
    encode = autocast(precision, clip.mean.device)(clip.encode_images)
    direction, cosine = (aim, 1.0) if isinstance(aim, torch.Tensor) else (clip.direction(*aim), clip.cosine(*aim))
    return EditLoss(encode, direction, cosine, weights, source, id_loss)


def learning_rate(lr: float, step_size: int, gamma: float, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: multiplied by `gamma` after every `step_size` epochs."""
    return lr * gamma ** (epoch // step_size)


def train_epoch(
    model: Model,
    function: nn.Module,
    batches: Iterable[Batch | None],
    steps: Sequence[tuple[int, int]],
    loss: EditLoss,
    optimizer: torch.optim.Optimizer,
    plain: PlainTrajectories,
    mask_of: MaskOf | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Batch, Result]]:
    """One epoch -> yields (Batch, Result) after each batch.

    mask_of: function of images -> where the edit acts (see `Model.edit`); None: everywhere. ranks: processes that share the
    batches; `batches` are the parts of this one, with None for a batch without a readable image. If LossNotFinite is raised,
    `function` is restored to its state before that batch.
    """
    for batch in batches:
        own = batch.names if batch and batch.counts else []
        names = ranks.gather(own)
        if not names:
            continue
        if batch is None:
            raise UserError(f"{names[0]} can be read by only some of the processes: check that all of them see the same files")
        before = deepcopy(function.state_dict())
        try:
            assert batch.x_0 is not None, "training needs the images"
            unet = model.unet if mask_of is None else model.within(mask_of(batch.x_0))
            how = (model.schedule, steps, loss, optimizer, plain, model.device)
            result = train_batch(unet, function, batch, *how, ranks, len(own) / len(names))
        except LossNotFinite:
            function.load_state_dict(before)
            raise
        yield batch, result._replace(names=names)


# Settings of `train_direction` -> (name in the config's section `editing`, default: that of the paper for CelebA-HQ).
SETTINGS: dict[str, tuple[str, Any]] = {
    "n_steps": ("n_train_step", 40),
    "epochs": ("n_iter", 1),
    "batch_size": ("bs_train", 1),
    "lr": ("lr_training", 0.5),
    "lr_step": ("scheduler_step_size", 3),
    "lr_gamma": ("sch_gamma", 0.1),
    "clip_w": ("clip_loss_w", 0.8),
    "l1_w": ("l1_loss_w", 3.0),
    "id_w": ("id_loss_w", 0.0),
    "clip_source": ("clip_source", "x0"),
    "t_edit": ("user_defined_t_edit", None),
    "lpips_edit_th": ("lpips_edit_th", 0.33),
    "t_0": ("t_0", None),
}


def train_direction(
    model: Model,
    images: torch.Tensor,
    src: str | torch.Tensor,
    trg: str | None = None,
    *,
    clip: ClipLoss | str | None = None,
    kind: str = "delta_block",
    ignore_timesteps: bool = False,
    id_loss: IdLoss | None = None,
    mask_of: MaskOf | None = None,
    seed: int = 0,
    callback: Callable[[int, Batch, Result], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Direction:
    """Learn a direction from images and two prompts -> Direction.

    images: (N, 3, H, W) in [-1, 1]; they are inverted first. src, trg: the prompts; or src alone, a direction in CLIP space
    (1, D), normalised. clip: a ClipLoss, or the name of one (see ClipLoss); by default the config's.
    kind: "delta_block" or "delta_h". id_loss: an IdLoss, for `id_w` above 0. mask_of: see `train_epoch`; a Region's is noted
    in the record. callback(epoch, Batch, Result) is called after each batch. progress(done, total) is called after each
    inverted and each trained batch; it may raise to stop the training.

    settings: n_steps, epochs, batch_size, lr, lr_step, lr_gamma (see `learning_rate`), clip_w, l1_w, id_w, clip_source (see
    `EditLoss`), t_edit, lpips_edit_th, t_0. Defaults are those of the config's section `editing`, else the paper's for
    CelebA-HQ. Without a t_edit it is chosen from the model's LPIPS curves at `lpips_edit_th` (see curves.py).

    Raises UserError for an unknown setting, no images, an interval without timesteps, prompts with the same CLIP features, id_w
    without an id_loss, and a loss that is not finite. Trains on model.device; the initial weights depend only on `seed`.
    """
    if unknown := settings.keys() - SETTINGS.keys():
        raise UserError(f"unknown setting {min(unknown)}: the settings are {', '.join(SETTINGS)}")
    own = model.config.editing.given()
    s = {name: settings.get(name, own.get(flag, default)) for name, (flag, default) in SETTINGS.items()}
    if not len(images) or s["epochs"] < 1:
        raise UserError(
            f"{len(images)} images and {s['epochs']} epochs, so nothing would be trained: give at least one of each"
        )
    if isinstance(src, torch.Tensor):
        aim: tuple[str, str] | torch.Tensor = src
    elif trg is None:
        raise UserError(f'"{src}" has no target: give both prompts')
    else:
        aim = (src, trg)
    prompts = () if isinstance(aim, torch.Tensor) else aim
    if s["id_w"] and id_loss is None:
        raise UserError(f"id_w {s['id_w']:g} needs an id_loss: give an IdLoss (see losses/id_loss.py), or id_w 0")
    if not isinstance(clip, ClipLoss):
        clip = ClipLoss(clip or model.config.clip_name(), model.device)
    timesteps = model.timesteps(s["n_steps"], s["t_0"])
    t_edit = s["t_edit"]
    if t_edit is None:
        curve, _ = find_curve(Store(), model)
        t_edit = choose_t_edit(curve, clip.cosine(*prompts) if prompts else 1.0, s["lpips_edit_th"])
    steps = edit_steps(timesteps, t_edit)
    report = progress or (lambda done, total: None)
    total = -(-len(images) // s["batch_size"]) * (1 + s["epochs"])
    batches = []
    for batch in inverted_in_memory(model, images, s["batch_size"], s["n_steps"], s["t_0"]):
        batches.append(batch)
        report(len(batches), total)
    function = new_function(model, kind, ignore_timesteps, [t for t, _ in steps], seed)
    weights = Weights(s["clip_w"], s["l1_w"], s["id_w"])
    loss = new_loss(clip, aim, weights, s["clip_source"], id_loss, model.precision)
    optimizer = torch.optim.SGD(function.parameters(), lr=s["lr"])
    plain = PlainTrajectories(ram=2**31 if s["epochs"] > 1 else 0)
    for epoch in range(s["epochs"]):
        set_learning_rate(optimizer, learning_rate(s["lr"], s["lr_step"], s["lr_gamma"], epoch))
        trained = train_epoch(model, function, batches, steps, loss, optimizer, plain, mask_of)
        for done, (batch, result) in enumerate(trained, len(batches) * (1 + epoch) + 1):
            if callback is not None:
                callback(epoch, batch, result)
            report(done, total)
    made = {flag: s[name] for name, (flag, _) in SETTINGS.items() if flag not in ("n_train_step", "user_defined_t_edit", "t_0")}
    made |= {"seed": seed, "n_images": len(images), "region": region_of(mask_of)} | inversion_entry(model.inversion)
    record = new_record(model, kind, ignore_timesteps, prompts, t_edit, timesteps, len(timesteps), made)
    return Direction(function, record, " to ".join(prompts) or "a direction of CLIP").requires_grad_(False)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def inversion_entry(inversion: str) -> dict[str, str]:
    """For a record. DDIM has no entry, as in records from before there were other inversions."""
    return {} if inversion == "ddim" else {"inversion": inversion}


def new_record(
    model: Model,
    kind: str,
    ignore_timesteps: bool,
    prompts: Sequence[str],
    t_edit: int,
    timesteps: Sequence[int],
    n_inv_step: int,
    training: dict[str, Any],
    t_boost: int | None = None,
) -> dict[str, Any]:
    """The record of a direction trained over `timesteps` (see directions.py)."""
    record = {"origin": "trained", "kind": kind, "ignore_timesteps": bool(ignore_timesteps), "prompts": list(prompts) or None}
    record |= {"t_edit": t_edit, "t_boost": t_boost, "t_0": timesteps[-1]}
    record |= {"n_inv_step": n_inv_step, "n_train_step": len(timesteps)}
    record |= {"model": {"identity": model.identity, "architecture": model.architecture, "precision": model.precision}}
    return record | {"training": dict(training)}
