"""What a user of PyTorch has without this package: the peers that every speed is a ratio to."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.shapes import PATCH_SIZE
from mobilevit_kernels.benchmark.timm_models import import_timm


def unfold_sdpa_fold(qkv: Tensor, num_heads: int) -> Tensor:
    """``unfold_attn_fold`` by copies around ``scaled_dot_product_attention``, each copy a single one.

    Args:
        qkv: ``[B, 3C, H, W]``, NCHW or NHWC memory.
        num_heads: heads; divides C.

    Returns:
        ``[B, C, H, W]`` in the memory format of ``qkv``.
    """
    batch, channels3, height, width = qkv.shape
    ph, pw = PATCH_SIZE
    grid = qkv.reshape(batch, channels3, height // ph, ph, width // pw, pw).permute(0, 3, 5, 2, 4, 1)
    tokens = grid.reshape(
        batch * ph * pw, -1, 3, num_heads, channels3 // (3 * num_heads)
    )  # [B P, N, 3, heads, d]
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)  # [B P, heads, N, d]
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [B P, N, heads, d]
    grid = attended.reshape(batch, ph, pw, height // ph, width // pw, channels3 // 3)
    if qkv.is_contiguous(memory_format=torch.channels_last):
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    return grid.permute(0, 5, 3, 1, 4, 2).reshape(batch, -1, height, width)


def separable_layer(
    tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor, out_bias: Tensor
) -> Tensor:
    """The layer of MobileViTv2 as its paper and timm write it: two 1x1 convolutions around a softmax.

    Args:
        tokens: ``[B, C, P, N]``, unfolded already: the models unfold once for all layers of a block.
        qkv_weight: ``[1 + 2C, C, 1, 1]``.
        qkv_bias: ``[1 + 2C]``.
        out_weight: ``[C, C, 1, 1]``.
        out_bias: ``[C]``.

    Returns:
        ``[B, C, P, N]``.
    """
    channels = tokens.shape[1]
    query, key, value = F.conv2d(tokens, qkv_weight, qkv_bias).split([1, channels, channels], dim=1)
    context = (key * query.softmax(dim=-1)).sum(dim=-1, keepdim=True)  # [B, C, P, 1]
    return F.conv2d(value.relu() * context, out_weight, out_bias)


def timm_separable_layer(
    qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor, out_bias: Tensor
) -> nn.Module | None:
    """timm's ``LinearSelfAttention`` with copies of these parameters, or None where timm is not installed."""
    timm = import_timm()
    if timm is None:
        return None
    layer = timm.models.mobilevit.LinearSelfAttention(out_bias.shape[0]).to(qkv_weight.dtype)
    state = {
        "qkv_proj.weight": qkv_weight,
        "qkv_proj.bias": qkv_bias,
        "out_proj.weight": out_weight,
        "out_proj.bias": out_bias,
    }
    layer.load_state_dict(state)
    return layer
