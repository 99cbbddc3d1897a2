"""What only a GPU can show; skipped, and said so, where there is none."""

import copy
import warnings

import pytest
import torch
from golden_unets import golden_unet, relative_l2, settings
from tiny_world import SMILE, smooth_images

from asyrp import process, training
from asyrp.acceleration.fast_unet import FastUNet, set_tf32
from asyrp.data.pairs import Batch
from asyrp.hspace import BlockDirection
from asyrp.origin import PlainTrajectories
from models import build_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SCHEDULE, STEPS = process.Schedule.linear(), process.timesteps(4, 999)
CUDA = torch.device("cuda")
NETWORKS = pytest.mark.parametrize("name", ["ddpm", "iddpm"])


def fast(name, *args):
    set_tf32("fp32", CUDA)
    return FastUNet(copy.deepcopy(golden_unet(name)[0]).to(CUDA), *args)


def edit(h, emb, t):
    return h + 0.1


def edited(unet, n=1, **more):
    x_T = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(CUDA)
    return process.generate(unet, x_T, SCHEDULE, STEPS, edit=edit, t_edit=500, **more)


def train(unet, steps, plain=None, n=1):
    """A delta block after a batch of training."""
    torch.manual_seed(0)
    direction = BlockDirection(golden_unet("ddpm")[0].new_delta_block()).to(CUDA)
    weights = torch.randn(16, 48, generator=torch.Generator().manual_seed(3)).to(CUDA)

    def encode(images):
        features = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ weights.T
        return torch.nn.functional.normalize(features, dim=-1)

    loss = training.EditLoss(encode, encode(torch.ones(1, 3, 32, 32, device=CUDA)), 1.0, training.Weights(clip=1, l1=1))
    optimizer = torch.optim.SGD(direction.parameters(), lr=0.01)
    x_0, x_T = smooth_images(n, size=32), torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(list(range(n)), ["image"] * n, x_0, x_T)
    training.train_batch(unet, direction, batch, SCHEDULE, steps, loss, optimizer, plain or PlainTrajectories(), CUDA)
    return torch.cat([p.detach().flatten() for p in direction.parameters()])


# ---- no waiting ---------------------------------------------------------------------------------------------------------


def test_loops_do_not_synchronise():
    unet, x_0 = build_unet(settings("ddpm")).cuda(), torch.zeros(1, 3, 32, 32, device="cuda")
    noise = process.image_noise(0, [0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_T = process.invert(unet, x_0, SCHEDULE, STEPS)
        for paired in (False, True):
            process.generate(unet, x_T, SCHEDULE, STEPS, edit=edit, t_edit=500, t_boost=400, noise=noise, paired=paired)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("budget", [0, 2**30])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_synchronises_once_per_batch(budget, recompute):
    unet, waits = fast("ddpm", "bf16", False, recompute), []
    for n in (3, 9):
        steps = training.edit_steps(process.timesteps(n, 999), 0)
        plain = PlainTrajectories(budget)
        train(unet, steps, plain)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(unet, steps, plain)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(w.message) for w in caught))
    assert waits[0] == waits[1]


# ---- the same numbers ---------------------------------------------------------------------------------------------------


@NETWORKS
def test_gpu_computes_what_the_cpu_does(name):
    x_T = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = process.generate(golden_unet(name)[0], x_T, SCHEDULE, STEPS, edit=edit, t_edit=500)
    assert relative_l2(edited(fast(name)).cpu(), expected) < 1e-4


@NETWORKS
@pytest.mark.parametrize(("precision", "most"), [("tf32", 0.03), ("bf16", 0.1), ("fp16", 0.03)])
def test_low_precision(name, precision, most):
    expected, unet = edited(fast(name)), fast(name, precision)
    set_tf32(precision, CUDA)
    try:
        assert 0 < relative_l2(edited(unet), expected) < most
    finally:
        set_tf32("fp32", CUDA)


@NETWORKS
@pytest.mark.parametrize("n", [1, 3])
def test_compiled_with_and_without_cuda_graphs(name, n):
    """Also where the frozen pass of the first step is kept while later ones are replayed."""
    plain, compiled = fast(name), fast(name, "fp32", True)
    x_T = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(CUDA)
    for unet in (plain, compiled):
        with torch.no_grad():
            unet.first = process.frozen_branch(unet, x_T, 999)
    for _ in range(3):  # a graph is recorded after a warm-up and replayed from then on
        for paired in (False, True):
            found = edited(compiled, n, first=compiled.first, paired=paired)
            assert relative_l2(found, edited(plain, n, first=plain.first)) < 1e-4


def test_training_compiled():
    steps = training.edit_steps(STEPS, 500)
    expected = train(fast("ddpm"), steps)
    compiled = fast("ddpm", "fp32", True)
    for _ in range(3):
        assert relative_l2(train(compiled, steps), expected) < 1e-3


def test_recomputed_activations_take_less_memory():
    steps, peaks, found = training.edit_steps(STEPS, 500), [], []
    for recompute in (False, True):
        unet = fast("ddpm", "fp32", False, recompute)
        train(unet, steps, n=8)
        torch.cuda.reset_peak_memory_stats()
        found.append(train(unet, steps, n=8))
        peaks.append(torch.cuda.max_memory_allocated())
    assert relative_l2(*found) < 1e-4
    assert peaks[1] < 0.8 * peaks[0]


# ---- whole runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--precision", "tf32"), ("--precision", "bf16", "--checkpoint_decoder")])
def test_command_line(run, flags):
    cuda = ("--device", "cuda", "--l1_loss_w", "1", "--n_iter", "2", "--bs_train", "2", *flags)
    assert run("--run_train", *SMILE, *cuda) == 0
    more = ("--delta_interpolation", "--user_defined_t_addnoise", "400", "--save_x_origin")
    assert run("--run_test", *SMILE, *cuda, *more) == 0
