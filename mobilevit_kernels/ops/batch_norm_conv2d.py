"""``mobilevit::batch_norm_conv2d``: BatchNorm, SiLU and the convolution behind them, for training on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_batch_norm_conv2d, check_batch_norm_conv2d_backward
from mobilevit_kernels.ops.registration import (
    AUTOCAST_DEVICES,
    LIBRARY,
    accumulate_dtype,
    autocast_arguments,
    channels_last_empty,
    forbid_double_backward,
)

_op = torch.ops.mobilevit.batch_norm_conv2d.default
_backward_op = torch.ops.mobilevit.batch_norm_conv2d_backward.default


def batch_norm_conv2d(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    silu: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """A 1x1 or a 3x3 depthwise convolution of a map normalised by the statistics of the batch, and perhaps activated.

    What :func:`batch_norm` and then :func:`pointwise_conv2d` or :func:`depthwise_conv2d` compute. The normalised map
    exists nowhere: both passes compute its rows again from x, which is all that is kept beside the parameters and the
    statistics. Running statistics are the caller's.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, float64, bfloat16 or float16 on the CPU; channels_last is read
            without a copy.
        norm_weight, norm_bias: ``[C]``, floating-point.
        weight: ``[O, C, 1, 1]``, or ``[C, 1, 3, 3]`` for the depthwise convolution, padded with zeros as wide as its
            dilation; dtype of ``x``.
        eps: added to the variance.
        silu: the convolution's input is x * sigmoid(x) of the normalised map.
        stride, dilation: of the depthwise convolution, alike on both axes.

    Returns:
        ``[B, O, H, W]`` or ``[B, C, ceil(H / stride), ceil(W / stride)]``, dtype of ``x`` (the autocast dtype under
        autocast), channels_last, differentiable once; mean and variance (over B * H * W values) of each channel,
        ``[C]``, float32 (float64 for float64), without gradients.

    Raises:
        ValueError: not four dimensions, fewer than two values per channel, parameters of another size or device, a
            negative eps, a stride or dilation that is not positive, a stride of the 1x1 convolution.
        TypeError: not floating-point, or a weight of another dtype than ``x``.
    """
    return _op(x, norm_weight, norm_bias, weight, eps, silu, stride, dilation)


@torch.library.register_fake("mobilevit::batch_norm_conv2d")
def _fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float,
    silu: bool,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    check_batch_norm_conv2d(x, norm_weight, norm_bias, weight, eps, stride, dilation)
    mean, var = (x.new_empty(x.shape[1], dtype=accumulate_dtype(x.dtype)) for _ in range(2))
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    return channels_last_empty(x, weight.shape[0], (height, width)), mean, var


@torch.library.register_fake("mobilevit::batch_norm_conv2d_backward")
def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    silu: bool,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_batch_norm_conv2d(x, norm_weight, norm_bias, weight, eps, stride, dilation)
    check_batch_norm_conv2d_backward(grad_out, x, weight, mean, var, stride)
    return (
        channels_last_empty(x, x.shape[1]),
        torch.empty_like(norm_weight),
        torch.empty_like(norm_bias),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
    )


forbid_double_backward(_backward_op)


def _autocast(device: str) -> Callable[..., Any]:
    """Casts as the convolution alone would; the norm's parameters stay."""

    def kernel(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, *rest: Any) -> Any:
        with torch.autocast(device, enabled=False):
            x, weight = autocast_arguments(device, (x, weight))
            return _op(x, norm_weight, norm_bias, weight, *rest)

    return kernel


for _device, _key in AUTOCAST_DEVICES.items():
    LIBRARY.impl("batch_norm_conv2d", _autocast(_device), _key)
