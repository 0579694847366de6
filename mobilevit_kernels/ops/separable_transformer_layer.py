"""``mobilevit::separable_transformer_layer``: a transformer layer of MobileViTv2 as one op, for inference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels import reference
from mobilevit_kernels.ops.layers import check_layer, register_layer
from mobilevit_kernels.ops.registration import as_pair

_op = torch.ops.mobilevit.separable_transformer_layer.default


def separable_transformer_layer(
    x: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    patch_size: int | Sequence[int] = (2, 2),
    eps: float = 1e-5,
) -> Tensor:
    """Transformer layer of MobileViTv2 (arXiv 2206.02680) on a map, without gradients.

    ``x = x + separable_attn(norm1(x))``, then ``x + fc2(silu(fc1(norm2(x))))``; GroupNorm of one group over a whole
    sample, attention as in :func:`mobilevit_kernels.separable_attn`. On a GPU norms, biases, SiLU and residuals run
    inside the kernels of the products: six launches. Elsewhere it is plain PyTorch.

    Args:
        x: ``[B, C, H, W]``, any strides; channels_last is read without a copy. float32, bfloat16 or float16
            (float64 too where it is plain PyTorch).
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: ``[C]``.
        qkv_weight, qkv_bias: ``[1 + 2C, C]``, rows query (1) | key (C) | value (C), and ``[1 + 2C]``.
        out_weight, out_bias: ``[C, C]`` and ``[C]``.
        fc1_weight, fc1_bias: ``[hidden, C]`` and ``[hidden]``.
        fc2_weight, fc2_bias: ``[C, hidden]`` and ``[C]``.
        patch_size: (patch_h, patch_w), or one int for both.
        eps: added to the variances.

    Weights may have two more dimensions of size 1, as those of 1x1 convolutions, and parameters another floating-point
    dtype than ``x``: they are converted as they are read.

    Returns:
        ``[B, C, H, W]``, dtype of ``x`` (the autocast dtype under autocast), channels_last.

    Raises:
        ValueError: wrong shapes, H or W not divisible by the patch, mixed devices.
        TypeError: not floating-point.
        RuntimeError: a gradient is wanted.
    """
    return _op(
        x, norm1_weight, norm1_bias, qkv_weight, qkv_bias, out_weight, out_bias, norm2_weight, norm2_bias,
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, as_pair(patch_size), eps,
    )  # fmt: skip


def _check(
    x: Tensor, norm1_weight: Tensor, norm1_bias: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor,
    out_bias: Tensor, norm2_weight: Tensor, norm2_bias: Tensor, fc1_weight: Tensor, fc1_bias: Tensor,
    fc2_weight: Tensor, fc2_bias: Tensor, patch_size: Sequence[int], eps: float,
) -> None:  # fmt: skip
    norms = (
        ("norm1_weight", norm1_weight), ("norm1_bias", norm1_bias), ("norm2_weight", norm2_weight),
        ("norm2_bias", norm2_bias),
    )  # fmt: skip
    channels, hidden = x.shape[1] if x.dim() == 4 else 0, fc1_bias.shape[0] if fc1_bias.dim() == 1 else 0
    layers = (
        ("qkv", qkv_weight, qkv_bias, 1 + 2 * channels, channels),
        ("out", out_weight, out_bias, channels, channels),
        ("fc1", fc1_weight, fc1_bias, hidden, channels),
        ("fc2", fc2_weight, fc2_bias, channels, hidden),
    )
    check_layer(x, norms, layers, patch_size)


register_layer("separable_transformer_layer", _check, reference.separable_transformer_layer)
