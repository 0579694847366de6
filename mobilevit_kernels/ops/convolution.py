"""``mobilevit::convolution``: a dense convolution with its activation as one op, for inference on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.inference import DTYPES, channels_with, check_packed_map, register_inference_op
from mobilevit_kernels.ops.packing import convolution_size
from mobilevit_kernels.ops.registration import channels_last_empty

_op = torch.ops.mobilevit.convolution.default


def convolution(
    x: Tensor,
    packed: Tensor,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    silu: bool = False,
    beside: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Dense 2-D convolution with a square kernel and, with ``silu``, x * sigmoid(x) of its result.

    What :func:`mobilevit_kernels.reference.convolution` computes, as a matrix product that reads the windows where they
    lie. Sums are float32 whatever the dtypes; products are in the dtype of ``packed``.

    Args:
        x: ``[B, C, H, W]``, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy, and so are
            any strides of up to 8 channels under a kernel of more than one pixel.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_convolution`; in float32, or in
            bfloat16, which takes a processor with AVX-512; fast with AMX, and on AMD's with AVX-512 BF16.
        out_channels: channels C_out of the output.
        kernel_size: side k of the kernel.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`, alike on both axes.
        silu: activates the result.
        beside: ``[B, C2, H, W]``, dtype of ``x``: the op computes what it would of ``torch.cat((x, beside), 1)``,
            without that copy.
        out_dtype: float32, bfloat16 or float16 of the output; by default that of ``x``.

    Returns:
        ``[B, C_out, H', W']``, channels_last; the size is that of :func:`torch.nn.functional.conv2d`.

    Raises:
        ValueError: a size that is not positive, ``packed`` or ``beside`` of another size, a padded map smaller than the
            kernel.
        TypeError: ``x``, ``packed``, ``beside`` or ``out_dtype`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, out_channels, kernel_size, stride, padding, dilation, silu, beside, out_dtype)


def _fake(
    x: Tensor,
    packed: Tensor,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    silu: bool,
    beside: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Raises where the arguments break the contract; csrc/cpu/convolution.cpp says the same."""
    channels = channels_with(x, beside)
    check_packed_map(
        x,
        packed,
        convolution_size(channels, out_channels, kernel_size, packed.dtype),
        f"{channels} channels, {out_channels} of the output and a kernel of {kernel_size} x {kernel_size}",
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
    )
    if out_dtype is not None and out_dtype not in DTYPES:
        raise TypeError(f"out_dtype: expected float32, bfloat16 or float16, got {out_dtype}")
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more, got {padding}")
    height, width = x.shape[2:]
    window = dilation * (kernel_size - 1) + 1
    if min(height, width) + 2 * padding < window:
        raise ValueError(
            f"x: expected a padded map of at least {window} x {window} pixels, which the kernel covers, got "
            f"{height} x {width} and padding {padding}"
        )
    size = ((height + 2 * padding - window) // stride + 1, (width + 2 * padding - window) // stride + 1)
    return channels_last_empty(x, out_channels, size, out_dtype)


register_inference_op("convolution", _fake, maps=(0, 8))
