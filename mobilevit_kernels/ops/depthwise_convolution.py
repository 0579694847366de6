"""``mobilevit::depthwise_convolution``: with its activation as one op, for inference on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.inference import check_packed_map, register_inference_op
from mobilevit_kernels.ops.packing import depthwise_convolution_size
from mobilevit_kernels.ops.registration import channels_last_empty

_op = torch.ops.mobilevit.depthwise_convolution.default


def depthwise_convolution(
    x: Tensor, packed: Tensor, stride: int = 1, dilation: int = 1, silu: bool = False
) -> Tensor:
    """3x3 depthwise convolution, padded as wide as its dilation, and with ``silu`` x * sigmoid(x) of its result.

    What :func:`mobilevit_kernels.reference.depthwise_convolution` computes, in float32 whatever the dtype of ``x``.

    Args:
        x: ``[B, C, H, W]``, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_depthwise_convolution`; float32.
        stride, dilation: as in :func:`torch.nn.functional.conv2d`, alike on both axes.
        silu: activates the result.

    Returns:
        ``[B, C, ceil(H / stride), ceil(W / stride)]``, dtype of ``x``, channels_last.

    Raises:
        ValueError: a size that is not positive, ``packed`` of another size.
        TypeError: ``x`` or ``packed`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, stride, dilation, silu)


def _fake(x: Tensor, packed: Tensor, stride: int, dilation: int, silu: bool) -> Tensor:
    """Raises where the arguments break the contract; csrc/cpu/depthwise_convolution.cpp says the same."""
    channels = x.shape[1] if x.dim() == 4 else 0
    size = depthwise_convolution_size(channels)
    check_packed_map(x, packed, size, f"{channels} channels", stride=stride, dilation=dilation)
    if packed.dtype != torch.float32:
        raise TypeError(f"packed: expected torch.float32, got {packed.dtype}")
    height, width = ((side + stride - 1) // stride for side in x.shape[2:])
    return channels_last_empty(x, channels, (height, width))


register_inference_op("depthwise_convolution", _fake)
