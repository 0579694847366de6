"""``mobilevit::pooled_linear``: the head of a classifier as one op, for inference on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.inference import check_packed_map, register_inference_op
from mobilevit_kernels.ops.packing import linear_size

_op = torch.ops.mobilevit.pooled_linear.default


def pooled_linear(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """A linear layer on the mean of all pixels.

    What :func:`mobilevit_kernels.reference.pooled_linear` computes. Sums are float32 whatever the dtypes; products are
    in the dtype of ``packed``.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_linear`; in float32, or in
            bfloat16, which takes a processor with AVX-512; fast with AMX, and on AMD's with AVX-512 BF16.
        out_features: features of the output.

    Returns:
        ``[B, out_features]``, dtype of ``x``.

    Raises:
        ValueError: a size that is not positive, a map without pixels, ``packed`` of another size.
        TypeError: ``x`` or ``packed`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, out_features)


def _fake(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """Raises where the arguments break the contract; csrc/cpu/pooled_linear.cpp says the same."""
    channels = x.shape[1] if x.dim() == 4 else 0
    check_packed_map(
        x,
        packed,
        linear_size(out_features, channels, packed.dtype),
        f"{channels} channels and {out_features} features of the output",
        out_features=out_features,
    )
    height, width = x.shape[2:]
    if height == 0 or width == 0:
        raise ValueError(f"x: expected at least one pixel, got {height} x {width}")
    return x.new_empty(x.shape[0], out_features)


register_inference_op("pooled_linear", _fake)
