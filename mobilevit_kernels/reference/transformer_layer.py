"""Plain PyTorch definition of ``transformer_layer``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.reference.unfold_attn_fold import unfold_attn_fold


def transformer_layer(
    x: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    num_heads: int,
    patch_size: Sequence[int] = (2, 2),
    eps: float = 1e-5,
) -> Tensor:
    """Pre-norm transformer layer (arXiv 2110.02178, section 3.1): attention and feed-forward, each with its residual.

    Same contract as :func:`mobilevit_kernels.ops.transformer_layer`.
    """
    size = x.shape[1:2]
    patch = (patch_size[0], patch_size[1])
    tokens = x.permute(0, 2, 3, 1)  # [B, H, W, C]
    normed = F.layer_norm(tokens, size, norm1_weight, norm1_bias, eps)
    qkv = F.linear(normed, qkv_weight, qkv_bias).permute(0, 3, 1, 2)
    attended = unfold_attn_fold(qkv, num_heads, patch).permute(0, 2, 3, 1)
    tokens = tokens + F.linear(attended, proj_weight, proj_bias)
    hidden = F.silu(F.linear(F.layer_norm(tokens, size, norm2_weight, norm2_bias, eps), fc1_weight, fc1_bias))
    tokens = tokens + F.linear(hidden, fc2_weight, fc2_bias)
    return tokens.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
