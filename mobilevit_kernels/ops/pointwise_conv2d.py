"""``mobilevit::pointwise_conv2d``: a 1x1 convolution with its gradients, for training on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_pointwise_conv2d, check_pointwise_conv2d_backward
from mobilevit_kernels.ops.registration import (
    channels_last_empty,
    forbid_double_backward,
    register_autocast,
)

_op = torch.ops.mobilevit.pointwise_conv2d.default
_backward_op = torch.ops.mobilevit.pointwise_conv2d_backward.default


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, silu_input: bool = False
) -> Tensor:
    """1x1 convolution: ``out[b, o, h, w] = sum_c weight[o, c] * x[b, c, h, w] + bias[o]``, or one of SiLU(x).

    What :func:`torch.nn.functional.conv2d` computes with a kernel of one pixel, as matrix products on the rows of the
    channels_last map. Sums are float32 (float64 for float64). Backward it keeps x and the weight: with ``silu_input``
    the activated map exists nowhere.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, float64, bfloat16 or float16 on the CPU; channels_last is read
            without a copy.
        weight: ``[O, C]`` or ``[O, C, 1, 1]``, dtype of ``x``.
        bias: ``[O]``, dtype of ``x``.
        silu_input: x * sigmoid(x) stands for ``x``, as between the layers of a feed-forward network.

    Returns:
        ``[B, O, H, W]``, dtype of ``x``, channels_last, differentiable once. Under autocast, its dtype.

    Raises:
        ValueError: not four dimensions, no channel, parameters of another size or on another device.
        TypeError: not floating-point, or parameters of another dtype than ``x``.
    """
    return _op(x, weight, bias, silu_input)


@torch.library.register_fake("mobilevit::pointwise_conv2d")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None, silu_input: bool = False) -> Tensor:
    check_pointwise_conv2d(x, weight, bias)
    return channels_last_empty(x, weight.shape[0])


@torch.library.register_fake("mobilevit::pointwise_conv2d_backward")
def _backward_fake(
    grad_out: Tensor, x: Tensor, weight: Tensor, silu_input: bool, output_mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    check_pointwise_conv2d_backward(grad_out, x, weight)
    want_x, want_weight, want_bias = output_mask
    return (
        channels_last_empty(x, x.shape[1]) if want_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if want_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if want_bias else 0),
    )


forbid_double_backward(_backward_op)
register_autocast(_op)
