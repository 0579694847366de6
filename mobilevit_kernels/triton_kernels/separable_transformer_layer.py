"""Launcher of a whole transformer layer of MobileViTv2, for inference: six kernels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.triton_kernels.separable_attn import normed_attention_residual, separable_attn
from mobilevit_kernels.triton_kernels.token_linear import affine_linear, group_norm_affine, linear_residual

# Beyond, the accumulators of two products in a chain do not fit on chip; nor do those of exact float32.
MAX_CHANNELS = 256


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
    patch_size: Sequence[int],
    eps: float,
) -> Tensor:
    """Norms and residuals run inside the products. See the op of this name."""
    x = x.contiguous(memory_format=torch.channels_last)
    if x.numel() == 0:
        return torch.empty_like(x)
    projections = (qkv_weight.contiguous(), qkv_bias, out_weight.contiguous(), out_bias)
    if x.shape[1] <= MAX_CHANNELS and x.element_size() == 2:
        affine = group_norm_affine(x, norm1_weight, norm1_bias, eps)
        x = normed_attention_residual(x, affine, *projections, patch_size=patch_size)
    else:
        normed = F.group_norm(x, 1, norm1_weight.to(x.dtype), norm1_bias.to(x.dtype), eps)
        weight, bias, *last = (parameter.to(x.dtype) for parameter in projections)
        x = x + separable_attn(normed, weight, bias, last[0], last[1], patch_size)
    affine = group_norm_affine(x, norm2_weight, norm2_bias, eps)
    hidden = affine_linear(x, affine, fc1_weight.contiguous(), fc1_bias, silu=True)
    return linear_residual(hidden, fc2_weight.contiguous(), fc2_bias, x)
