"""Training: golden losses and weights, what is computed how often, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from golden_unets import MANIFEST, golden_arrays, golden_unet, golden_weights, relative_l2
from tiny_world import DEVICE, TRAIN, call, directions, keep_curve, open_tiny, smooth_images

import asyrp
from asyrp import process
from asyrp.data.datasets import ImageFolder
from asyrp.data.pairs import Batch
from asyrp.hspace import BlockDirection, GivenDirection
from asyrp.origin import PlainTrajectories
from asyrp.training import COLUMNS, EditLoss, LossNotFinite, Weights, edit_steps, train_batch, train_epoch
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


def test_batch_gives_the_mean_loss(unet):
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


def test_learned_delta_h_moves_where_it_acts(unet):
    """One tensor for every trained timestep; each takes part once."""
    direction = GivenDirection.zeros((1, 64, 8, 8), [t for t, _ in STEPS])
    train(unet, direction, images(0), new_loss())
    assert all(delta.abs().max() > 0 for _, delta in direction.items())


def test_total_is_the_weighted_sum(unet):
    losses = train(unet, new_block(unet), images(0), new_loss(Weights(clip=2, l1=3))).losses
    l1, directional, clip, identity, total = losses.T
    assert torch.allclose(clip, -torch.log((2 - directional) / 2), atol=1e-6)
    assert torch.allclose(total, 2 * clip + 3 * 0.9 * l1, rtol=1e-5)
    assert not identity.any()


def test_identity_loss_counts(unet):
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


def test_loss_that_is_not_finite_names_image_and_timestep(unet):
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
    with pytest.raises(UserError, match=r"t_edit 700 is above every timestep \(the highest is 600\)"):
        edit_steps([0, 300, 600], 700)


# ---- train_direction --------------------------------------------------------------------------------------------------------

QUICK = {"n_steps": 4, "t_edit": 500, "lr": 0.2, "clip_w": 1.0, "l1_w": 0.0}


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture
def learn(model, tiny):
    """learn(...) -> what `train_direction` makes of two images, in one epoch over four steps."""

    def new(model=model, n=2, **more):
        faces = ImageFolder(tiny.train, 16)
        some = torch.stack([faces[i] for i in range(n)]) if n else torch.empty(0, 3, 16, 16)
        return asyrp.train_direction(model, some, "face", "smiling face", **({"clip": tiny.clip} | QUICK | more))

    return new


def apart(one, other):
    return max((a - b).abs().max() for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_library_learns_what_the_command_line_learns(learn, tiny, tmp_path, monkeypatch):
    """Two epochs, a falling rate, both losses, the seed of the command line."""
    monkeypatch.chdir(tmp_path)
    flags = ("--n_iter", "2", "--l1_loss_w", "2", "--scheduler_step_size", "1", "--clip_source", "origin", "--bs_train", "2")
    assert call(tiny, *TRAIN, *flags) == 0
    more = {"epochs": 2, "l1_w": 2, "lr_step": 1, "clip_source": "origin", "batch_size": 2, "clip_w": 3, "seed": 1234}
    found = learn(**more)
    [expected] = [part["0"] for name, part in directions().items() if name.endswith("_1.pth")]
    for name, value in found.function.block.state_dict().items():
        assert torch.allclose(value.cpu(), expected[name], atol=1e-5), name
    record = asyrp.load_direction("smile", open_tiny(tiny)).record
    shared = found.record["training"].keys() & record["training"].keys()
    assert len(shared) > 8
    assert {key: found.record["training"][key] for key in shared} == {key: record["training"][key] for key in shared}
    assert {**found.record, "training": 0, "t_boost": 0} == {**record, "training": 0, "t_boost": 0}


def test_direction_that_was_learned_is_ready_to_edit_with(learn, model, tiny):
    direction = learn()
    assert (direction.kind, direction.record["t_edit"], direction.record["n_train_step"]) == ("delta_block", 500, 4)
    assert not any(parameter.requires_grad for parameter in direction.parameters())
    x_T = model.invert(smooth_images(1), 4)
    assert (model.edit(x_T, direction, n_steps=4) - model.generate(x_T, 4)).abs().max() > 1e-4


@pytest.mark.parametrize(("ignore", "keys"), [(False, [999, 666]), (True, [None])])
def test_delta_h_of_the_library(learn, ignore, keys):
    direction = learn(kind="delta_h", ignore_timesteps=ignore)
    assert direction.kind == "delta_h"
    assert direction.function.keys == keys
    assert all(delta.any() for _, delta in direction.function.items())


@pytest.mark.parametrize(
    "change",
    [
        {"n_steps": 5},
        {"epochs": 2},
        {"batch_size": 2},
        {"lr": 0.1},
        {"clip_w": 2.0},
        {"l1_w": 1.0},
        {"clip_source": "origin"},
        {"t_edit": 900},
        {"t_0": 900},
        {"seed": 1},
        {"ignore_timesteps": True},
    ],
    ids=str,
)
def test_every_setting_has_its_effect(learn, change):
    assert apart(learn(), learn(**change)) > 1e-7


@pytest.mark.parametrize("change", [{"lr_step": 2}, {"lr_gamma": 1.0}], ids=str)
def test_rate_falls_after_an_epoch(learn, change):
    falling = {"epochs": 2, "lr_step": 1}
    assert apart(learn(**falling), learn(**falling | change)) > 1e-7


def test_settings_come_from_the_config_unless_they_are_given(learn, tiny, tmp_path):
    config = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    editing = {"lr_training": 0.05, "n_iter": 2, "clip_source": "origin", "user_defined_t_edit": 900}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(config | {"editing": editing}))
    own = asyrp.open_model(tmp_path / "own.yml", tiny.folder / "ddpm.pt", DEVICE)
    found = asyrp.train_direction(own, smooth_images(1), "face", "sad face", clip=tiny.clip, n_steps=4, epochs=1)
    made = found.record["training"]
    assert (made["lr_training"], made["clip_source"], made["n_iter"], found.record["t_edit"]) == (0.05, "origin", 1, 900)
    assert (made["clip_loss_w"], made["l1_loss_w"]) == (0.8, 3.0)  # the paper's


def test_without_a_t_edit_the_curves_of_the_model_decide(learn, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no LPIPS curves for category CUSTOM"):
        learn(t_edit=None)
    keep_curve(model, top=1.0)
    low, high = (learn(t_edit=None, lpips_edit_th=threshold).record["t_edit"] for threshold in (0.4, 0.8))
    assert 0 < low < 400 < high < 800
    assert high == pytest.approx(2 * low, abs=2)


def test_callback_sees_every_batch(learn):
    seen = []
    learn(
        epochs=2,
        n=3,
        batch_size=2,
        callback=lambda epoch, batch, result: seen.append((epoch, batch.indices, result.losses.shape)),
    )
    one, two = torch.Size([2, len(COLUMNS)]), torch.Size([2, len(COLUMNS)])
    assert seen == [(epoch, indices, shape) for epoch in (0, 1) for indices, shape in (([0, 1], one), ([2], two))]


def test_progress_counts_inversions_and_trainings_and_may_end_them(learn):
    seen = []
    learn(epochs=2, n=3, batch_size=2, progress=lambda *counted: seen.append(counted))
    assert seen == [(done, 6) for done in range(1, 7)]  # two batches, each inverted once and trained twice

    def stop(done, total):
        raise UserError(f"stopped at {done}")

    with pytest.raises(UserError, match="stopped at 1"):
        learn(progress=stop)


def test_identity_loss_of_the_library(learn):
    faces = SimpleNamespace(embed=lambda x: F.normalize(F.avg_pool2d(x, 4).flatten(1)))
    assert apart(learn(), learn(id_loss=faces, id_w=1.0)) > 1e-7
    with pytest.raises(UserError, match="id_w 1 needs an id_loss"):
        learn(id_w=1.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"learning_rate": 0.1}, "unknown setting learning_rate: the settings are n_steps, epochs, "),
        ({"t_edit": 1000}, "t_edit 1000 is above every timestep"),
        ({"n_steps": 1}, "1 steps: must be 2 to 1000"),
        ({"n": 0}, "0 images and 1 epochs, so nothing would be trained"),
        ({"epochs": 0}, "2 images and 0 epochs, so nothing would be trained"),
    ],
)
def test_trainings_that_are_refused(learn, more, message):
    with pytest.raises(UserError, match=message):
        learn(**more)


def test_nan_loss_restores_the_direction(unet):
    """`train_epoch` takes back what the batch that broke off has done."""
    direction, loss, seen = new_block(unet), new_loss(Weights(clip=1)), []

    def explode(images):
        seen.append(1)
        return encode(images) * (float("nan") if len(seen) == 6 else 1)  # the last step of the second image

    loss.encode = explode
    model = SimpleNamespace(unet=unet, schedule=SCHEDULE, device="cpu")
    optimizer = torch.optim.SGD(direction.parameters(), lr=0.02)
    epoch = train_epoch(model, direction, [images(0), images(1)], STEPS[:2], loss, optimizer, PlainTrajectories())
    next(epoch)
    kept = {name: value.clone() for name, value in direction.state_dict().items()}
    with pytest.raises(LossNotFinite, match=f"image 1, timestep {STEPS[1][0]}"):
        next(epoch)
    assert all(torch.equal(value, kept[name]) for name, value in direction.state_dict().items())
