"""``mobilevit::inverted_residual``: a convolutional block as one op, for inference on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.inference import check_packed_map, register_inference_op
from mobilevit_kernels.ops.packing import inverted_residual_size
from mobilevit_kernels.ops.registration import channels_last_empty

_op = torch.ops.mobilevit.inverted_residual.default


def inverted_residual(
    x: Tensor,
    packed: Tensor,
    hidden_dim: int,
    out_channels: int,
    stride: int = 1,
    dilation: int = 1,
    residual: bool = False,
) -> Tensor:
    """1x1 expand, SiLU, 3x3 depthwise, SiLU, 1x1 project (arXiv 1801.04381), the norms folded into the convolutions.

    What :func:`mobilevit_kernels.reference.inverted_residual` computes, some rows of the output at a time: the expanded
    map stays in the cache of one core. Sums are float32 whatever the dtypes; the two products are in the dtype
    of ``packed``.

    Args:
        x: ``[B, C, H, W]``, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_inverted_residual`; in float32, or in
            bfloat16, which takes a processor with AVX-512; fast with AMX, and on AMD's with AVX-512 BF16.
        hidden_dim: channels of the expanded map.
        out_channels: channels C_out of the output.
        stride: of the depthwise convolution.
        dilation: of its kernel; the padding is as wide.
        residual: adds ``x``; stride 1 and C_out = C only.

    Returns:
        ``[B, C_out, ceil(H / stride), ceil(W / stride)]``, dtype of ``x``, channels_last.

    Raises:
        ValueError: a size that is not positive, ``packed`` of another size, a residual of another shape.
        TypeError: ``x`` or ``packed`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, hidden_dim, out_channels, stride, dilation, residual)


def _fake(
    x: Tensor,
    packed: Tensor,
    hidden_dim: int,
    out_channels: int,
    stride: int,
    dilation: int,
    residual: bool,
) -> Tensor:
    """Raises where the arguments break the contract; csrc/cpu/inverted_residual.cpp says the same."""
    channels = x.shape[1] if x.dim() == 4 else 0
    check_packed_map(
        x,
        packed,
        inverted_residual_size(channels, hidden_dim, out_channels, packed.dtype),
        f"{channels} channels, {hidden_dim} hidden ones and {out_channels} of the output",
        hidden_dim=hidden_dim,
        out_channels=out_channels,
        stride=stride,
        dilation=dilation,
    )
    if residual and (stride != 1 or channels != out_channels):
        raise ValueError(
            f"residual: expected stride 1 and as many channels as x has, {channels}, got stride {stride} and "
            f"out_channels {out_channels}"
        )
    height, width = ((side + stride - 1) // stride for side in x.shape[2:])
    return channels_last_empty(x, out_channels, (height, width))


register_inference_op("inverted_residual", _fake)
