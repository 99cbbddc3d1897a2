"""The frozen U-Net made fast: low precision, compilation, Winograd's convolutions, and activations computed again instead of
kept; and a CPU's memory kept.
"""

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
# The oldest versions of PyTorch in which these are tested on a CPU.
CHANNELS_LAST_ON_A_CPU = COMPILE_ON_A_CPU = "2.14"
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision, device):
    """The context, or decorator, in which networks run in `precision`; does nothing for float32 and TF32."""
    return torch.autocast(torch.device(device).type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


def set_tf32(precision, device):
    """Let float32 convolutions and products run on tensor cores in TF32, or keep PyTorch from doing so by itself.

    Raises UserError for TF32 where there is none.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise UserError(f"--precision tf32 is for CUDA devices, and this one is {device}: give fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def layout_for(device, wanted=None):
    """The order in memory of a network that gradients go through -> a key of LAYOUTS.

    wanted: one of them; by default channels_last, which tensor cores want and which is the faster one on a CPU too. But older
    versions of PyTorch crash there, channels_last, in GroupNorm's backward pass (seen in 2.6 and 2.9): below
    CHANNELS_LAST_ON_A_CPU it is contiguous, and UserError where the other one is wanted.
    """
    crashes = torch.device(device).type == "cpu" and torch.__version__ < CHANNELS_LAST_ON_A_CPU
    if crashes and wanted == "channels_last":
        raise UserError(
            f"channels_last on a CPU needs torch {CHANNELS_LAST_ON_A_CPU} or newer, and this is {torch.__version__}: "
            "upgrade torch, or take contiguous"
        )
    return wanted or ("contiguous" if crashes else "channels_last")


def check_compiler(device):
    """Raise UserError where this version of PyTorch is not known to compile networks for the device."""
    if torch.device(device).type == "cpu" and torch.__version__ < COMPILE_ON_A_CPU:
        raise UserError(
            f"--compile on a CPU needs torch {COMPILE_ON_A_CPU} or newer, and this is {torch.__version__}: upgrade torch, or "
            "leave --compile out"
        )


def keep_freed_memory(device):
    """On a CPU, have the C library keep the memory of freed tensors for the next ones.

    By itself glibc returns large blocks to the kernel, which then clears new pages for every large activation. The process now
    keeps what it once needed until it ends; only more than 2 GiB at the top of its memory go back. Without glibc this does
    nothing.
    """
    if torch.device(device).type == "cpu" and platform.libc_ver()[0] == "glibc":
        c = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        c.mallopt(mmap_max, 0)
        c.mallopt(trim_threshold, 2**31 - 1)


def recompute_decoder(unet):
    """Keep no activations within the decoder's blocks for the backward pass; compute them again there."""
    for block in unet.decoder_blocks():
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward, *args):
    if not torch.is_grad_enabled():
        return forward(*args)
    # The network draws no random numbers; keeping the generator's state would wait for the device.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)


class FastUNet(nn.Module):
    """A frozen U-Net behind its own interface, for a process in float32.

    x, h, emb and the prediction are float32 whatever the precision; the skips, which only the U-Net itself reads, stay in the
    low one. The U-Net's convolutions and linear layers are stored in it as well: half the memory, and nothing to convert in
    each pass.

    precision: "fp32", "tf32" (the same here: see `set_tf32`), "bf16" or "fp16". compiled: by torch.compile; on a CUDA device
    one or two images are replayed as CUDA graphs, where launching kernels takes longer than running them; on a CPU the kernels
    are called from C++, and passes without gradients have the weights laid out once for the kernels that read them
    ("freezing"), not anew in each pass: they must not change afterwards. recompute: see `recompute_decoder`. layout: the order
    in memory, a key of LAYOUTS; by default contiguous where Winograd's convolutions are used, which want that (wide
    networks in float32 on a CPU, see winograd.py), and what `layout_for` says elsewhere.

    The U-Net is changed in place: from then on it belongs to this object.
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
        """Whether both decoder passes of an edited step, of `n` images, are faster as one batch (`process.both_branches`).

        One image leaves a device idle; but Winograd's convolutions go from image to image anyway.
        """
        return n == 1 and not self.winograd

    def _run(self, name, x, *args):
        with self.cast, inductor.patch(freezing=True, cpp_wrapper=True) if self.compiled_for_cpu else nullcontext():
            if self.graphs and len(x) <= 2:
                # The next replay writes over what this one returns.
                return tree_map(torch.clone, self.graphs[name](x, *args))
            return self.parts[name](x, *args)

    def encode(self, x, t):
        h, skips, emb = self._run("encode", x, t)
        return h.float(), skips, emb.float()

    def decode(self, h, skips, emb):
        return self._run("decode", h, skips, emb).float()

    def forward(self, x, t):
        return self.decode(*self.encode(x, t))
