"""``mobilevit::depthwise_conv2d``: a 3x3 depthwise convolution and its gradients, for training on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_depthwise_conv2d, check_depthwise_conv2d_backward
from mobilevit_kernels.ops.registration import channels_last_empty, forbid_double_backward, register_autocast

_op = torch.ops.mobilevit.depthwise_conv2d.default
_backward_op = torch.ops.mobilevit.depthwise_conv2d_backward.default


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """3x3 depthwise convolution (arXiv 1704.04861, equation 3), padded with zeros as wide as its dilation.

    What ``torch.nn.functional.conv2d`` computes with ``padding=dilation`` and ``groups=C``. Sums are in float32
    (float64 for float64); output and gradients do not depend on the number of threads.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, float64, bfloat16 or float16 on the CPU; channels_last is read
            without a copy.
        weight: ``[C, 1, 3, 3]``, dtype of ``x``.
        stride, dilation: alike on both axes.

    Returns:
        ``[B, C, ceil(H / stride), ceil(W / stride)]``, dtype of ``x`` (the autocast dtype under autocast),
        channels_last. Differentiable once.

    Raises:
        ValueError: not four dimensions, no channel or pixel, a weight of another size or device, a stride or
            dilation that is not positive.
        TypeError: not floating-point, or a weight of another dtype than ``x``.
    """
    return _op(x, weight, stride, dilation)


@torch.library.register_fake("mobilevit::depthwise_conv2d")
def _fake(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    check_depthwise_conv2d(x, weight, stride, dilation)
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    return channels_last_empty(x, x.shape[1], (height, width))


@torch.library.register_fake("mobilevit::depthwise_conv2d_backward")
def _backward_fake(
    grad_out: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, output_mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    check_depthwise_conv2d_backward(grad_out, x, weight, stride, dilation)
    grad_x = channels_last_empty(x, x.shape[1]) if output_mask[0] else x.new_empty(0)
    return grad_x, x.new_empty(weight.shape if output_mask[1] else 0)


forbid_double_backward(_backward_op)
register_autocast(_op)
