"""Speed and memory of the frozen U-Net: low precision, compilation, Winograd convolutions, activation checkpointing, and
memory reuse on a CPU."""

import ctypes
import platform
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from asyrp.acceleration import winograd
from utils.errors import UserError

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# The oldest versions of PyTorch with which these are tested on a CPU.
CHANNELS_LAST_ON_A_CPU = COMPILE_ON_A_CPU = "2.14"
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision, device):
    """A context manager and decorator that runs networks in `precision`; does nothing for float32 and TF32."""
    return torch.autocast(torch.device(device).type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


def set_tf32(precision, device):
    """Enable TF32 for float32 convolutions and matrix products, or disable it.

    Raises UserError for TF32 on a device without it.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise UserError(f"--precision tf32 is only for CUDA devices, but this one is {device}: use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def layout_for(device, wanted=None):
    """The memory format of a network with gradients -> a key of LAYOUTS.

    wanted: one of them; by default channels_last, which is faster on tensor cores and on a CPU. Versions of PyTorch below
    CHANNELS_LAST_ON_A_CPU crash with it on a CPU, in the backward pass of GroupNorm (seen in 2.6 and 2.9): with them the
    default is contiguous.
    Raises UserError if channels_last is wanted there.
    """
    crashes = torch.device(device).type == "cpu" and torch.__version__ < CHANNELS_LAST_ON_A_CPU
    if crashes and wanted == "channels_last":
        raise UserError(
            f"channels_last on a CPU needs torch {CHANNELS_LAST_ON_A_CPU} or newer, but this is {torch.__version__}: "
            "upgrade torch, or use contiguous"
        )
    return wanted or ("contiguous" if crashes else "channels_last")


def check_compiler(device):
    """Raise UserError if this version of PyTorch is too old to compile networks for the device."""
    if torch.device(device).type == "cpu" and torch.__version__ < COMPILE_ON_A_CPU:
        raise UserError(
            f"--compile on a CPU needs torch {COMPILE_ON_A_CPU} or newer, but this is {torch.__version__}: upgrade torch, or "
            "leave out --compile"
        )


def keep_freed_memory(device):
    """On a CPU, make the C library keep the memory of freed tensors for the next ones.

    By default glibc returns large blocks to the kernel, which then has to clear new pages for every large activation. With this
    setting the process keeps its peak memory until it ends; only free memory above 2 GiB at the top of the heap is returned.
    Without glibc this does nothing.
    """
    if torch.device(device).type == "cpu" and platform.libc_ver()[0] == "glibc":
        c = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # from malloc.h
        c.mallopt(mmap_max, 0)
        c.mallopt(trim_threshold, 2**31 - 1)


def recompute_decoder(unet):
    """Recompute the activations within the decoder's blocks in the backward pass instead of keeping them."""
    for block in unet.decoder_blocks():
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward, *args):
    if not torch.is_grad_enabled():
        return forward(*args)
    # The network draws no random numbers, and preserving the generator's state would wait for the device.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)


class FastUNet(nn.Module):
    """Wraps a frozen U-Net with the same interface, for a process in float32.

    x, h, emb and the prediction are float32 at any precision; the skips, which only the U-Net reads, stay in low precision. The
    weights of convolutions and linear layers are stored in low precision too, which halves their memory and avoids conversions.

    precision: "fp32", "tf32" (the same here: see `set_tf32`), "bf16" or "fp16". compiled: use torch.compile; on a CUDA device
    batches of one or two images are replayed as CUDA graphs, because launching their kernels takes longer than running them;
    on a CPU the kernels are called from C++, and passes without gradients use weights rearranged once ("freezing"), which must
    not change afterwards. recompute: see `recompute_decoder`. layout: memory format, a key of LAYOUTS; by default contiguous
    with Winograd convolutions, which need it (wide networks in float32 on a CPU, see winograd.py), and otherwise that of
    `layout_for`.

    The U-Net is modified in place and belongs to this object from then on.
    """

    def __init__(self, unet, precision="fp32", compiled=False, recompute=False, layout=None):
        super().__init__()
        self.unet = unet
        self.h_ch, self.h_size, self.new_delta_block = unet.h_ch, unet.h_size, unet.new_delta_block
        device = next(unet.parameters()).device
        serves = precision == "fp32" and device.type == "cpu" and winograd.serves(unet)
        self.layout = layout_for(device, layout or ("contiguous" if serves else None))
        unet.to(memory_format=LAYOUTS[self.layout])
        self.winograd = serves and self.layout == "contiguous"
        if self.winograd:
            winograd.use_winograd(unet)
        self.cast = autocast(precision, device)
        if precision in LOW:
            for module in unet.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                    module.to(LOW[precision])
        if recompute:
            recompute_decoder(unet)
        self.parts = {"encode": unet.encode, "decode": unet.decode}
        self.graphs = {}
        self.compiled_for_cpu = compiled and device.type == "cpu"
        if compiled:
            check_compiler(device)
            if device.type == "cuda":
                self.graphs = {name: torch.compile(part, mode="reduce-overhead") for name, part in self.parts.items()}
            self.parts = {name: torch.compile(part) for name, part in self.parts.items()}

    def pays_to_pair(self, n):
        """Whether both decoder passes of an edited step of `n` images are faster as one batch (`process.both_branches`).

        One image does not fill a device; but Winograd convolutions process images one at a time anyway.
        """
        return n == 1 and not self.winograd

    def _run(self, name, x, *args):
        with self.cast, inductor.patch(freezing=True, cpp_wrapper=True) if self.compiled_for_cpu else nullcontext():
            if self.graphs and len(x) <= 2:
                # The next replay overwrites the output of this one.
                return tree_map(torch.clone, self.graphs[name](x, *args))
            return self.parts[name](x, *args)

    def encode(self, x, t):
        h, skips, emb = self._run("encode", x, t)
        return h.float(), skips, emb.float()

    def decode(self, h, skips, emb):
        return self._run("decode", h, skips, emb).float()

    def forward(self, x, t):
        return self.decode(*self.encode(x, t))
