"""3x3 convolutions of a frozen network on a CPU with Winograd's algorithm (Lavin & Gray 2016, arXiv 1509.09308).

F(6x6, 3x3) needs 64 multiplications for 36 pixels instead of 324. NNPACK, which is part of PyTorch's CPU builds, implements it
in float32, but PyTorch hardly ever uses it if oneDNN is available. Its rounding error is larger: 3e-6 of a convolution's result
in relative l2, compared with 2e-7 for oneDNN.
"""

import torch
from torch import nn

# With fewer channels or pixels the transforms cost more than they save. Measured with AVX-512 for one image and one
# convolution: 1.5 to 2.8 times as fast as oneDNN from here on; with 32 channels 1.1 to 1.5 times, at 16 pixels 0.6 to 1.0
# times.
LEAST_CHANNELS, LEAST_SIDE = 64, 32


def available():
    """Whether this build of PyTorch has NNPACK and this processor supports it."""
    return hasattr(torch, "_nnpack_spatial_convolution") and torch.backends.nnpack.is_available()


def serves(unet):
    """Whether NNPACK is available and the U-Net has enough channels and pixels at full resolution for it to pay off."""
    return unet.ch >= LEAST_CHANNELS and unet.image_size >= LEAST_SIDE and available()


@torch.library.custom_op("asyrp::winograd", mutates_args=(), device_types="cpu")
def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """3x3 convolution with padding 1: x (B, C, H, W), weight (O, C, 3, 3), bias (O,) or None -> (B, O, H, W), contiguous.

    Float32 on a CPU, where NNPACK is `available`. Differentiable with respect to x; weights and bias are frozen.
    """
    available()  # initialises NNPACK on the first call, which the convolution does not do
    # One image at a time, because NNPACK is slower on batches.
    images = [torch._nnpack_spatial_convolution(image, weight, bias, padding=1) for image in x.contiguous().split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


@convolve.register_fake
def _shape(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


def _keep_weight(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward(ctx, gradient):
    if any(ctx.needs_input_grad[1:]):
        raise NotImplementedError("asyrp::winograd is for frozen weights: it has gradients only for the images")
    # The gradient of a convolution is the convolution with flipped kernels.
    [weight] = ctx.saved_tensors
    return convolve(gradient, weight.transpose(0, 1).flip(2, 3).contiguous(), None), None, None


convolve.register_autograd(_backward, setup_context=_keep_weight)


class WinogradConv2d(nn.Conv2d):
    """A frozen 3x3 Conv2d with padding 1 that uses Winograd's algorithm for large images in float32 on a CPU."""

    def forward(self, x):
        able = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not able or min(x.shape[2:]) < LEAST_SIDE:
            return super().forward(x)
        return convolve(x, self.weight, self.bias)


def use_winograd(unet):
    """Turn the U-Net's wide 3x3 convolutions into WinogradConv2d, in place and without changing weights."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d) and _suits(module):
            module.__class__ = WinogradConv2d


def _suits(conv):
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and min(conv.weight.shape[:2]) >= LEAST_CHANNELS
