"""Count the cost of a network without computing it, on meta tensors."""

import copy
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from asyrp import process
from asyrp.acceleration.fast_unet import recompute_decoder
from asyrp.hspace import BlockDirection, Edit
from models import build_unet


class LiveBytes(TorchDispatchMode):
    """A context in which `peak` is the largest total size of the tensors created in it, in bytes.

    Workspaces of kernels and the overhead of the allocator are not included.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, size):
        self.live -= size


def gigamacs(function):
    """Multiply-adds of a call in 10^9: convolutions, matrix products and attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2e9


def recomputes_without_data():
    """Whether this version of PyTorch can recompute activations of tensors without data: 2.4 cannot."""
    x = torch.zeros(1, device="meta", requires_grad=True)
    try:
        checkpoint(torch.neg, x, use_reentrant=False, preserve_rng_state=False)
    except AttributeError:
        return False
    return True


class Hollow:
    """A U-Net and a CLIP on the meta device, for the cost of their passes and the memory of a training step."""

    def __init__(self, config, clip):
        size = config.data.image_size
        self.clip = copy.deepcopy(clip).to("meta")
        with torch.device("meta"):
            self.unet = build_unet(config)
            self.x, self.t = torch.empty(1, 3, size, size), torch.full((1,), 0)
            self.block = self.unet.new_delta_block()

    def passes(self):
        """Multiply-adds per image in 10^9: {kind of pass: number}; "... and back" includes the backward pass."""
        image = self.x.clone().requires_grad_()
        h, skips, emb = self.unet.encode(self.x, self.t)
        bottleneck = h.clone().requires_grad_()
        return {
            "encode": gigamacs(lambda: self.unet.encode(self.x, self.t)),
            "decode": gigamacs(lambda: self.unet.decode(h, skips, emb)),
            "decode and back": gigamacs(lambda: self.unet.decode(bottleneck, skips, emb).sum().backward()),
            "clip": gigamacs(lambda: self.clip.encode_images(self.x)),
            "clip and back": gigamacs(lambda: self.clip.encode_images(image).sum().backward()),
        }

    def training_peak(self, recompute):
        """Peak bytes of a training step with one image: weights and tensors in float32."""
        unet = copy.deepcopy(self.unet)
        if recompute:
            recompute_decoder(unet)
        weights = sum(p.nbytes for module in (unet, self.clip, self.block) for p in module.parameters())
        with LiveBytes() as memory:
            with torch.no_grad():
                frozen = process.frozen_branch(unet, self.x, 0)
            edit = Edit([BlockDirection(self.block)], [1.0])
            P_edit = process.predict_x0(self.x, process.edited_branch(unet, frozen, edit, 0), 0, process.Schedule.linear())
            self.clip.encode_images(P_edit).sum().backward()
        return weights + memory.peak
