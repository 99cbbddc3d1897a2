"""Low precision, compilation and recomputed activations: what they change, and what they leave alone."""

import copy
import os
import platform
import subprocess
import sys
import textwrap

import pytest
import torch
from golden_unets import golden_unet, gradient_at_h, relative_l2
from tiny_world import DEVICE, SMILE, losses, stored

from asyrp import process, runner
from asyrp.acceleration import fast_unet as acceleration
from asyrp.acceleration.fast_unet import COMPILE_ON_A_CPU, FastUNet, layout_for, set_tf32
from asyrp.config import ROOT
from utils.errors import UserError

SCHEDULE, STEPS = process.Schedule.linear(), process.timesteps(4, 999)
NETWORKS = pytest.mark.parametrize("name", ["ddpm", "iddpm"])
x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
t = process.time_batch(x, 500)


def fast(name, *args):
    # Another layout in memory alone rounds differently.
    return FastUNet(copy.deepcopy(golden_unet(name)[0]), *args, layout="contiguous")


def gradient(unet):
    """-> (gradient of the prediction at h, bytes kept for it)."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = gradient_at_h(unet, x, t)
    return found, sum(kept.values())


@NETWORKS
def test_float32_changes_nothing(name):
    assert torch.equal(fast(name)(x, t), golden_unet(name)[0](x, t))


@pytest.mark.parametrize(("name", "precision"), [("ddpm", "bf16"), ("iddpm", "bf16"), ("ddpm", "fp16")])
def test_low_precision_stays_within_the_network(name, precision):
    plain, unet = golden_unet(name)[0], fast(name, precision)
    h, skips, emb = unet.encode(x, t)
    eps = unet.decode(h, skips, emb)
    assert h.dtype == emb.dtype == eps.dtype == torch.float32
    assert {skip.dtype for skip in skips} == {acceleration.LOW[precision]}
    assert 0 < relative_l2(eps, plain(x, t)) < 0.03


def test_process_stays_in_float32():
    generated = [process.generate(u, x, SCHEDULE, STEPS) for u in (fast("ddpm", "bf16"), golden_unet("ddpm")[0])]
    assert generated[0].dtype == torch.float32
    assert 0 < relative_l2(*generated) < 0.1


def test_weights_in_low_precision_give_what_autocast_gives():
    plain = golden_unet("ddpm")[0]
    with torch.autocast("cpu", torch.bfloat16):
        h, skips, emb = plain.encode(x, t)
        expected = plain.decode(h.float(), skips, emb.float()).float()
    assert torch.equal(fast("ddpm", "bf16")(x, t), expected)


@NETWORKS
def test_recomputed_activations_give_the_same_gradient_from_less_memory(name):
    (plain, much), (again, little) = gradient(fast(name)), gradient(fast(name, "fp32", False, True))
    assert torch.equal(plain, again)
    assert little < 0.6 * much


@pytest.mark.skipif(torch.__version__ < COMPILE_ON_A_CPU, reason="this PyTorch is too old to compile on a CPU")
@pytest.mark.parametrize(("name", "recompute"), [("ddpm", True), ("iddpm", False)])
def test_network_compiles_without_a_break(name, recompute, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part: compile(part, backend="eager", fullgraph=True))
    assert torch.equal(gradient(fast(name, "bf16", True, recompute))[0], gradient(fast(name, "bf16"))[0])


def test_cuda_graph_outputs_are_copied():
    """A CUDA graph writes into the same tensors each time; here, something that does so on a CPU."""

    def graph(part):
        kept = {}

        def replay(*args):
            result = part(*args)
            flat, form = torch.utils._pytree.tree_flatten(result)
            static = kept.setdefault(len(args[0]), [torch.empty_like(tensor) for tensor in flat])
            for old, new in zip(static, flat, strict=True):
                old.copy_(new)
            return torch.utils._pytree.tree_unflatten(static, form)

        return replay

    unet, plain = fast("ddpm"), golden_unet("ddpm")[0]
    unet.graphs = {"encode": graph(plain.encode), "decode": graph(plain.decode)}
    results = []
    for u in (plain, unet):
        with torch.no_grad():
            first = process.frozen_branch(u, x, 999)
        for strength in (0.1, 0.2):

            def edit(h, emb, t, strength=strength):
                return h + strength

            results.append(process.generate(u, x, SCHEDULE, STEPS, edit=edit, first=first, paired=True))
    assert torch.equal(torch.cat(results[:2]), torch.cat(results[2:]))


@pytest.mark.parametrize(
    ("version", "device", "layout"),
    [
        ("2.6.0+cpu", "cpu", "contiguous"),
        ("2.6.0+cu124", "cuda", "channels_last"),
        ("2.14.1", "cpu", "channels_last"),
    ],
)
def test_older_versions_use_contiguous_memory_on_cpu(monkeypatch, version, device, layout):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    assert layout_for(device) == layout
    assert layout_for(device, "contiguous") == "contiguous"


def test_older_versions_refuse_channels_last_on_cpu(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    said = "channels_last on a CPU needs torch 2.14 or newer, but this is 2.9.1: upgrade torch, or use contiguous"
    with pytest.raises(UserError, match=said):
        FastUNet(copy.deepcopy(golden_unet("ddpm")[0]), layout="channels_last")


def test_older_versions_do_not_compile_on_cpu(run, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    monkeypatch.setattr(acceleration, "COMPILE_ON_A_CPU", "2.14")
    said = "--compile on a CPU needs torch 2.14 or newer, but this is 2.9.1: upgrade torch, or leave out --compile"
    assert run.error("--just_precompute", "--compile", "--device", "cpu") == said


def test_tf32_is_refused_on_cpu_and_off_by_default(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(UserError, match="--precision tf32 is only for CUDA devices, but this one is cpu: use fp32 or bf16"):
        set_tf32("tf32", "cpu")
    set_tf32("fp32", "cpu")
    assert not torch.backends.cudnn.allow_tf32


# ---- whole runs ---------------------------------------------------------------------------------------------------------


def test_main_keeps_freed_memory_on_cpu(run, monkeypatch):
    called = []
    monkeypatch.setattr(runner, "keep_freed_memory", lambda device: called.append(device.type))
    assert run("--just_precompute", "--n_precomp_img", "1", "--device", "cpu") == 0
    assert called == ["cpu"]


def test_precision_is_part_of_the_latent_key(run, results):
    train = ("--run_train", *SMILE, "--l1_loss_w", "1", "--do_test", "0")
    totals = []
    for flags in ((), ("--checkpoint_decoder",), ("--precision", "bf16")):
        assert run(*train, *flags, "--retrain") == 0
        totals.append([float(row["total"]) for row in losses(results)])
    plain, again, low = totals
    # A GPU may add up in another order.
    assert again == (plain if DEVICE == "cpu" else pytest.approx(plain, rel=1e-3))
    assert plain != low == pytest.approx(plain, rel=0.05)
    assert len(stored("latent")) == 4  # of two images, in two precisions


def test_editing_in_low_precision(run_learned, tmp_path):
    assert run_learned("--run_test", *SMILE, "--precision", "fp16") == 0
    assert (tmp_path / "runs/smile_LC_CUSTOM_t999_ninv4_ngen4/test_images/4/all.png").exists()


def test_unsupported_precisions_exit_2(run):
    train = ("--run_train", *SMILE)
    assert run.error(*train, "--precision", "fp16") == "--precision fp16 cannot train because its gradients underflow: use bf16"
    assert run.error(*train, "--precision", "tf32", "--device", "cpu").startswith("--precision tf32 is only for CUDA devices")


@pytest.mark.subprocess
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_reused():
    """Without the call each of these blocks is mapped and cleared again, which shows as page faults."""
    work = """
        import resource, sys, torch
        from asyrp.acceleration.fast_unet import keep_freed_memory
        if sys.argv[1] == "keep":
            keep_freed_memory("cpu")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(60):
            torch.ones(2**24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(work)]
    untuned = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    faults = {how: int(subprocess.check_output([*command, how], cwd=ROOT, env=untuned)) for how in ("keep", "leave")}
    # The first ten or so may each find the room that is left a little too small.
    assert faults["keep"] < 0.3 * faults["leave"]
