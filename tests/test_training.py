"""Training: golden losses and weights, what is computed how often, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from golden_unets import MANIFEST, golden_arrays, golden_unet, golden_weights, relative_l2
from tiny_world import smooth_images

from asyrp import process
from asyrp.data.pairs import Batch
from asyrp.hspace import BlockDirection, GivenDirection
from asyrp.origin import PlainTrajectories
from asyrp.training import COLUMNS, EditLoss, Weights, edit_steps, train_batch
from utils.errors import UserError

TOLERANCE = 1e-3
SCHEDULE = process.Schedule.linear()
STEPS = edit_steps(process.timesteps(8, 999), 500)
BUDGET = 2**30
CLIP_AND_L1 = Weights(clip=1, l1=3)


def encode(images):
    """A stand-in for CLIP: 16 numbers that depend on all of an image."""
    weights = torch.randn(16, 48, generator=torch.Generator().manual_seed(3))
    return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1) @ weights.T, dim=-1)


def new_loss(weights=CLIP_AND_L1, source="x0"):
    direction = F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(4)), dim=-1)
    return EditLoss(encode, direction, 0.9, weights, source)


def new_block(unet):
    torch.manual_seed(0)
    return BlockDirection(unet.new_delta_block())


def images(*indices):
    x_0, x_T = smooth_images(2), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    some = list(indices)
    return Batch(some, [f"image {i}" for i in some], x_0[some], x_T[some])


def train(unet, direction, batch, loss, plain=None, lr=0.02):
    optimizer = torch.optim.SGD(direction.parameters(), lr=lr)
    return train_batch(unet, direction, batch, SCHEDULE, STEPS, loss, optimizer, plain or PlainTrajectories(BUDGET), "cpu")


@pytest.mark.parametrize("name", ["ddpm", "iddpm"])
def test_golden_trace(name):
    """Two epochs over two images: every loss, and the delta block they end with."""
    golden, case = golden_arrays(f"training_{name}"), MANIFEST["cases"][f"{name}/training"]
    x_0 = golden_arrays(f"process_{name}")["x0"]
    unet, _ = golden_unet(name)
    block = unet.new_delta_block()
    block.load_state_dict(golden_weights(name)[1][0])
    direction = BlockDirection(block)

    def encode(images):
        return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1) @ golden["encoder_weight"].T, dim=-1)

    weights = Weights(clip=case["clip_loss_w"], l1=case["l1_loss_w"])
    loss = EditLoss(encode, golden["text_direction"], case["cosine"], weights)
    optimizer = torch.optim.SGD(direction.parameters(), lr=case["lr"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, case["step_size"], case["gamma"])
    steps = edit_steps(process.timesteps(case["n_train_step"], 999), case["t_edit"])
    plain = PlainTrajectories(BUDGET)
    trace = []
    for epoch in range(case["epochs"]):
        for i in range(case["images"]):
            batch = Batch([i], [str(i)], x_0[i : i + 1], golden["x_T"][i : i + 1])
            losses = train_batch(unet, direction, batch, SCHEDULE, steps, loss, optimizer, plain, "cpu").losses
            named = [losses[:, COLUMNS.index(column)] for column in ("l1", "clip_directional", "clip", "total")]
            trace += [[epoch, i, t, *row] for (t, _), row in zip(steps, torch.stack(named, 1).tolist(), strict=True)]
        scheduler.step()

    trace = torch.tensor(trace, dtype=torch.float64)
    assert torch.equal(trace[:, :3], golden["trace"][:, :3].double())
    errors = {name: relative_l2(trace[:, i], golden["trace"][:, i]) for i, name in enumerate(case["columns"]) if i > 2}
    for key, value in block.state_dict().items():
        errors[key] = relative_l2(value, golden[f"layer_0/{key}"])
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("source", ["x0", "origin"])
def test_kept_plain_trajectory_changes_nothing(unet, source):
    losses = []
    for budget in (BUDGET, 0):
        plain, direction = PlainTrajectories(budget), new_block(unet)
        for _ in range(2):
            result = train(unet, direction, images(0), new_loss(source=source), plain)
        assert (plain.get(images(0), len(STEPS)) is not None) == bool(budget)
        losses.append(result.losses)
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("weights", "source", "walked"),
    [(CLIP_AND_L1, "x0", True), (Weights(clip=1), "origin", True), (Weights(clip=1), "x0", False)],
)
def test_unet_calls(unet, monkeypatch, weights, source, walked):
    """The plain trajectory is walked once and only where a loss looks at it; both start from one frozen pass."""
    calls = {"encode": 0, "decode": 0}

    def counted(name, method):
        def call(*args):
            calls[name] += 1
            return method(*args)

        return call

    for name in calls:
        monkeypatch.setattr(unet, name, counted(name, getattr(unet, name)), raising=False)
    k, counts = len(STEPS), []
    plain, direction = PlainTrajectories(BUDGET), new_block(unet)
    for _ in range(2):
        calls.update(encode=0, decode=0)
        train(unet, direction, images(0), new_loss(weights, source), plain)
        counts.append((calls["encode"], calls["decode"]))
    assert counts == [(2 * k - 1, 3 * k - 1) if walked else (k, 2 * k), (k, 2 * k)]


def test_a_batch_gives_the_mean_loss(unet):
    singles = [train(unet, new_block(unet), images(i), new_loss(), lr=0.0).losses for i in (0, 1)]
    both = train(unet, new_block(unet), images(0, 1), new_loss(), lr=0.0).losses
    assert not torch.allclose(*singles, rtol=1e-2)
    assert torch.allclose(both, (singles[0] + singles[1]) / 2, rtol=1e-4, atol=1e-6)


def test_training_follows_the_loss(unet):
    """The total falls over epochs on one image, and only the direction learns."""
    direction, before = new_block(unet), {key: value.clone() for key, value in unet.state_dict().items()}
    totals = [train(unet, direction, images(0), new_loss(Weights(clip=1)), lr=0.05).losses[:, -1].mean() for _ in range(4)]
    assert totals[-1] < totals[0]
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_learned_delta_h_moves_where_it_acts(unet):
    """One tensor for every trained timestep; each takes part once."""
    direction = GivenDirection.zeros((1, 64, 8, 8), [t for t, _ in STEPS])
    train(unet, direction, images(0), new_loss())
    assert all(delta.abs().max() > 0 for _, delta in direction.items())


def test_the_total_is_the_weighted_sum(unet):
    losses = train(unet, new_block(unet), images(0), new_loss(Weights(clip=2, l1=3))).losses
    l1, directional, clip, identity, total = losses.T
    assert torch.allclose(clip, -torch.log((2 - directional) / 2), atol=1e-6)
    assert torch.allclose(total, 2 * clip + 3 * 0.9 * l1, rtol=1e-5)
    assert not identity.any()


def test_the_identity_loss_counts(unet):
    class Faces:
        def embed(self, x):
            return F.normalize(x.flatten(1), dim=-1)

    loss = new_loss(Weights(clip=0, id=2))
    loss.id_loss = Faces()
    batch = images(0)
    losses = train(unet, new_block(unet), batch, loss).losses
    assert (losses[:, COLUMNS.index("id")] > 0).all()
    assert torch.allclose(losses[:, -1], 2 * losses[:, COLUMNS.index("id")])


def test_clip_source_origin_differs(unet):
    losses = [train(unet, new_block(unet), images(0), new_loss(source=source), lr=0.0).losses for source in ("x0", "origin")]
    directional = [rows[:, COLUMNS.index("clip_directional")] for rows in losses]
    assert torch.equal(losses[0][:, 0], losses[1][:, 0])  # |P_edit - P_plain| is the same
    assert ((directional[0] - directional[1]).abs() > 1e-3).all()


def test_a_loss_that_is_not_finite_names_image_and_timestep(unet):
    loss = new_loss(Weights(clip=1))
    seen = []

    def explode(images):
        seen.append(1)
        return encode(images) * (float("nan") if len(seen) == 3 else 1)  # the source, the first step, the second

    loss.encode = explode
    with pytest.raises(UserError, match=rf"not finite at image image 1, timestep {STEPS[1][0]}$"):
        train(unet, new_block(unet), images(1), loss)


def test_edit_steps():
    assert edit_steps([0, 333, 666, 999], 500) == [(999, 666), (666, 333)]
    assert edit_steps([0, 333, 666, 999], 666)[-1] == (666, 333)
    assert edit_steps([0, 333], 0) == [(333, 0), (0, process.END)]
    with pytest.raises(UserError, match=r"t_edit 700 lies above every timestep \(the highest is 600\)"):
        edit_steps([0, 300, 600], 700)
