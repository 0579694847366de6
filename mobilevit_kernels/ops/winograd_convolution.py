"""``mobilevit::winograd_convolution``: a 3x3 convolution by minimal filtering, for inference on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.inference import channels_with, check_packed_map, register_inference_op
from mobilevit_kernels.ops.packing import winograd_convolution_size
from mobilevit_kernels.ops.registration import channels_last_empty

_op = torch.ops.mobilevit.winograd_convolution.default


def winograd_convolution(
    x: Tensor, packed: Tensor, out_channels: int, silu: bool = False, beside: Tensor | None = None
) -> Tensor:
    """3x3 convolution of stride 1 and padding 1 and, with ``silu``, x * sigmoid(x) of its result.

    What :func:`mobilevit_kernels.reference.convolution` computes, with 16 multiplications for each four outputs and
    channel in place of 36: Winograd's F(2x2, 3x3) (arXiv 1509.09308). In float32. An output sees rounding errors in
    proportion to the largest number among the 4 x 4 pixels around its tile of 2 x 2, and a number that is not finite
    reaches every output of the tiles that read it.

    Args:
        x: ``[B, C, H, W]``, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: float32, from :func:`mobilevit_kernels.ops.packing.pack_winograd_convolution`.
        out_channels: channels C_out of the output.
        silu: activates the result.
        beside: ``[B, C2, H, W]``, dtype of ``x``: the op computes what it would of ``torch.cat((x, beside), 1)``,
            without that copy.

    Returns:
        ``[B, C_out, H, W]``, dtype of ``x``, channels_last.

    Raises:
        ValueError: a size that is not positive, ``packed`` or ``beside`` of another size.
        TypeError: ``x``, ``packed`` or ``beside`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, out_channels, silu, beside)


def _fake(x: Tensor, packed: Tensor, out_channels: int, silu: bool, beside: Tensor | None = None) -> Tensor:
    """Raises where the arguments break the contract; csrc/cpu/winograd_convolution.cpp says the same."""
    channels = channels_with(x, beside)
    size = winograd_convolution_size(channels, out_channels)
    meaning = f"{channels} channels and {out_channels} of the output"
    if packed.dtype == torch.bfloat16:
        raise TypeError(f"packed: expected torch.float32, got {packed.dtype}")
    check_packed_map(x, packed, size, meaning, out_channels=out_channels)
    return channels_last_empty(x, out_channels)


register_inference_op("winograd_convolution", _fake, maps=(0, 4))
