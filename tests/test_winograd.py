"""Winograd's convolutions on a CPU: the same numbers from fewer multiplications, where they serve."""

import copy
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from golden_unets import golden_unet, gradient_at_h, needs_channels_last, relative_l2
from torch import nn
from torch._inductor import compile_fx as inductor

from asyrp import process
from asyrp.acceleration import winograd
from asyrp.acceleration.fast_unet import COMPILE_ON_A_CPU, FastUNet, layout_for
from asyrp.config import ROOT
from models.adm import ADM
from models.ddpm import DDPM

needs_nnpack = pytest.mark.skipif(not winograd.available(), reason="no NNPACK in this PyTorch, or no processor for it")

PLAN = {"ch": 64, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "image_size": 32}
NETWORKS = pytest.mark.parametrize("network", [DDPM, ADM])


def wide(network, **changes):
    torch.manual_seed(0)
    return network(**(PLAN | changes)).eval().requires_grad_(False)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = randn(2, 3, 32, 32)
T = process.time_batch(X, 500)


def convolutions(unet):
    return [module for module in unet.modules() if isinstance(module, winograd.WinogradConv2d)]


@needs_nnpack
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_definition_of_a_convolution(batch, bias, form):
    x, weight = randn(batch, 8, 40, 35).to(memory_format=form).requires_grad_(), randn(12, 8, 3, 3, seed=1)
    b = randn(12, seed=2) if bias else None
    exact_x = x.detach().double().requires_grad_()
    exact = F.conv2d(exact_x, weight.double(), b.double() if bias else None, padding=1)
    y = winograd.convolve(x, weight, b)
    assert relative_l2(y.detach(), exact.detach()) < 1e-5
    y.square().sum().backward()
    exact.square().sum().backward()
    assert relative_l2(x.grad, exact_x.grad) < 1e-5


@needs_nnpack
def test_winograd_operator_passes_opcheck():
    """Shapes without content, gradients and compilation agree with what it does."""
    for batch, bias in ((1, randn(12)), (2, None)):
        torch.library.opcheck(winograd.convolve, (randn(batch, 8, 33, 40).requires_grad_(), randn(12, 8, 3, 3), bias))


@needs_nnpack
def test_image_does_not_depend_on_its_batch():
    x, weight, b = randn(3, 64, 32, 32), randn(64, 64, 3, 3), randn(64)
    assert torch.equal(winograd.convolve(x, weight, b)[1:2], winograd.convolve(x[1:2], weight, b))


@needs_nnpack
@NETWORKS
def test_wide_network_gives_the_same(network):
    plain = wide(network)
    unet = FastUNet(copy.deepcopy(plain))
    assert (unet.winograd, unet.layout) == (True, "contiguous")
    assert convolutions(unet)
    assert unet.unet.state_dict().keys() == plain.state_dict().keys()
    assert 0 < relative_l2(unet(X, T), plain(X, T)) < 1e-4


@needs_nnpack
@NETWORKS
@pytest.mark.parametrize("recompute", [False, True])
def test_its_gradient_is_the_same(network, recompute):
    plain = wide(network)
    unet = FastUNet(copy.deepcopy(plain), recompute=recompute)
    assert 0 < relative_l2(gradient_at_h(unet, X, T), gradient_at_h(plain, X, T)) < 1e-4


@needs_nnpack
def test_edited_pictures_are_the_same():
    plain, schedule, steps = wide(DDPM), process.Schedule.linear(), process.timesteps(4, 999)
    torch.manual_seed(1)
    block, x_0 = plain.new_delta_block(), randn(1, 3, 32, 32).tanh()
    pictures = []
    for unet in (plain, FastUNet(copy.deepcopy(plain))):
        x_T = process.invert(unet, x_0, schedule, steps)
        edit = {"edit": lambda h, emb, t: h + block(h, emb), "t_edit": 500}
        pictures.append(process.generate(unet, x_T, schedule, steps, **edit))
    assert relative_l2(*pictures) < 1e-4


@needs_nnpack
@NETWORKS
def test_winograd_convolutions(network, monkeypatch):
    """3x3 with padding 1, stride 1 and 64 channels at least; of these, in a pass, those on 32 pixels at least."""
    unet, seen = FastUNet(wide(network)), []
    suited = [m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.stride == (1, 1)]
    suited = [conv for conv in suited if min(conv.in_channels, conv.out_channels) >= 64]
    assert convolutions(unet) == suited
    sides = []
    for conv in suited:
        conv.register_forward_pre_hook(lambda conv, args: sides.append(args[0].shape[2]))
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda x, *args: seen.append(x.shape[2]) or convolve(x, *args))
    unet(X[:1], T[:1])
    assert set(sides) == {16, 32}
    assert seen == [32] * sides.count(32)


@pytest.mark.parametrize(
    ("unet", "settings", "layout"),
    [
        (lambda: copy.deepcopy(golden_unet("ddpm")[0]), {}, layout_for("cpu")),  # 32 channels
        (lambda: wide(DDPM, image_size=16), {}, layout_for("cpu")),
        (lambda: wide(DDPM), {"precision": "bf16"}, layout_for("cpu")),
        pytest.param(lambda: wide(DDPM), {"layout": "channels_last"}, "channels_last", marks=needs_channels_last),
    ],
)
def test_winograd_is_not_used(unet, settings, layout):
    unet = FastUNet(unet(), **settings)
    assert (unet.winograd, unet.layout, convolutions(unet)) == (False, layout, [])


@needs_nnpack
def test_both_branches_of_one_image_are_one_batch_elsewhere():
    narrow, winograds = FastUNet(wide(DDPM, image_size=16)), FastUNet(wide(DDPM))
    assert [narrow.pays_to_pair(n) for n in (1, 2)] == [True, False]
    assert [winograds.pays_to_pair(n) for n in (1, 2)] == [False, False]


def test_no_winograd_without_nnpack(monkeypatch):
    monkeypatch.setattr(winograd, "available", lambda: False)
    unet = FastUNet(wide(DDPM))
    assert (unet.winograd, unet.layout, convolutions(unet)) == (False, layout_for("cpu"), [])


@pytest.mark.subprocess
@needs_nnpack
def test_winograd_in_a_fresh_process():
    """NNPACK has to be made ready first; this process has done so long ago."""
    work = """
        import torch
        from asyrp.acceleration import winograd
        x, weight = torch.ones(1, 1, 32, 32), torch.ones(1, 1, 3, 3)
        print(winograd.convolve(x, weight, None)[0, 0, 16, 16].item())
    """
    printed = subprocess.check_output([sys.executable, "-c", textwrap.dedent(work)], cwd=ROOT)
    assert float(printed) == pytest.approx(9)


@needs_nnpack
def test_weights_that_learn_are_refused():
    y = winograd.convolve(X, randn(8, 3, 3, 3).requires_grad_(), None)
    with pytest.raises(NotImplementedError, match="frozen weights"):
        y.sum().backward()


def test_other_types_and_devices_take_the_convolution_of_pytorch():
    for where in (torch.float64, "meta"):
        unet = wide(DDPM)
        winograd.use_winograd(unet)
        [conv, *_] = convolutions(unet.to(where))
        y = conv(randn(1, conv.in_channels, 32, 32).to(where))
        assert (y.dtype, y.device) == (conv.weight.dtype, conv.weight.device)


@needs_nnpack
def test_it_compiles_without_a_break(monkeypatch):
    """Backwards too; and the operator stands in the graph."""
    graphs, compile = [], torch.compile

    def noting(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    monkeypatch.setattr(torch, "compile", lambda part: compile(part, backend=noting, fullgraph=True))
    compiled, eager = (gradient_at_h(FastUNet(wide(DDPM), compiled=on), X, T) for on in (True, False))
    assert relative_l2(compiled, eager) < 1e-6
    assert len(graphs) == 2 and all("asyrp.winograd" in graph for graph in graphs)


@pytest.mark.slow
@needs_nnpack
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.skipif(torch.__version__ < COMPILE_ON_A_CPU, reason="this PyTorch is too old to compile on a CPU")
def test_really_compiled(monkeypatch):
    """Through PyTorch's compiler for a CPU: kernels called from C++; without gradients, weights frozen."""
    settings, compile_fx = [], inductor.compile_fx

    def noting(*args, **more):
        settings.append((inductor.config.freezing, inductor.config.cpp_wrapper))
        return compile_fx(*args, **more)

    monkeypatch.setattr(inductor, "compile_fx", noting)
    plain = wide(DDPM)
    compiled = FastUNet(copy.deepcopy(plain), compiled=True)
    with torch.no_grad():
        assert 0 < relative_l2(compiled(X, T), plain(X, T)) < 1e-4
    assert 0 < relative_l2(gradient_at_h(compiled, X, T), gradient_at_h(plain, X, T)) < 1e-4
    assert len(settings) >= 2 and set(settings) == {(True, True)}
