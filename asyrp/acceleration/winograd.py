"""3x3 convolutions of a frozen network on a CPU, by Winograd's algorithm (Lavin & Gray 2016, arXiv 1509.09308).

F(6x6, 3x3) multiplies 64 times for 36 pixels, where the definition does 324 times. NNPACK, which PyTorch's builds for a CPU
bring along, has it in float32; PyTorch by itself hardly ever turns to it where it has oneDNN too. Its rounding is that of a
larger transform: 3e-6 of a convolution's result in relative l2, where oneDNN's is 2e-7.
"""

import torch
from torch import nn

# With fewer channels or pixels its transforms cost what they save. One image, one convolution, measured with AVX-512: from here
# on 1.5 to 2.8 times as fast as oneDNN's; with 32 channels 1.1 to 1.5 times, at 16 pixels 0.6 to 1.0 times.
LEAST_CHANNELS, LEAST_SIDE = 64, 32


def available():
    """Whether this PyTorch has NNPACK and this processor can run it."""
    return hasattr(torch, "_nnpack_spatial_convolution") and torch.backends.nnpack.is_available()


def serves(unet):
    """Whether NNPACK is at hand, and the U-Net has channels and pixels enough for it where they cost most: at full size."""
    return unet.ch >= LEAST_CHANNELS and unet.image_size >= LEAST_SIDE and available()


@torch.library.custom_op("asyrp::winograd", mutates_args=(), device_types="cpu")
def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """3x3 convolution with padding 1: x (B, C, H, W), weight (O, C, 3, 3), bias (O,) or None -> (B, O, H, W), contiguous.

    Float32 on a CPU, where NNPACK is `available`. Differentiable with respect to x; weights and bias are frozen.
    """
    available()  # The first call makes NNPACK ready, and the convolution itself does not.
    # One by one: what NNPACK does with a batch is slower.
    images = [torch._nnpack_spatial_convolution(image, weight, bias, padding=1) for image in x.contiguous().split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


@convolve.register_fake
def _shape(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


def _keep_weight(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward(ctx, gradient):
    if any(ctx.needs_input_grad[1:]):
        raise NotImplementedError("asyrp::winograd is for frozen weights: its gradient is that of the images alone")
    # A convolution's gradient is the convolution with its kernels turned around.
    [weight] = ctx.saved_tensors
    return convolve(gradient, weight.transpose(0, 1).flip(2, 3).contiguous(), None), None, None


convolve.register_autograd(_backward, setup_context=_keep_weight)


class WinogradConv2d(nn.Conv2d):
    """A frozen Conv2d, 3x3 with padding 1, that takes Winograd's algorithm for large images in float32 on a CPU."""

    def forward(self, x):
        able = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not able or min(x.shape[2:]) < LEAST_SIDE:
            return super().forward(x)
        return convolve(x, self.weight, self.bias)


def use_winograd(unet):
    """Make the U-Net's 3x3 convolutions with channels enough WinogradConv2d, in place; its weights stay as they are."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d) and _suits(module):
            module.__class__ = WinogradConv2d


def _suits(conv):
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and min(conv.weight.shape[:2]) >= LEAST_CHANNELS
