"""Plain PyTorch definition of ``separable_transformer_layer``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.reference.separable_attn import separable_attn


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
    patch_size: Sequence[int] = (2, 2),
    eps: float = 1e-5,
) -> Tensor:
    """Transformer layer of MobileViTv2 (arXiv 2206.02680): GroupNorm of one group, attention, feed-forward, residuals.

    Same contract as :func:`mobilevit_kernels.ops.separable_transformer_layer`.
    """
    patch = (patch_size[0], patch_size[1])
    normed = F.group_norm(x, 1, norm1_weight, norm1_bias, eps)
    x = x + separable_attn(normed, qkv_weight, qkv_bias, out_weight, out_bias, patch)
    normed = F.group_norm(x, 1, norm2_weight, norm2_bias, eps)
    hidden = F.silu(_linear(normed, fc1_weight, fc1_bias))
    out = x + _linear(hidden, fc2_weight, fc2_bias)
    return out.contiguous(memory_format=torch.channels_last)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution of ``[B, C, H, W]``, its weight with or without the two dimensions of size 1."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
