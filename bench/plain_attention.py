"""The attention units of the comparison in arXiv 2206.02680 in plain PyTorch, on unfolded tokens ``[B, N, C]``."""

import torch.nn.functional as F
from torch import Tensor, nn

from bench import peers
from mobilevit_kernels.models import LinformerAttention, MultiHeadAttention, SeparableAttention


class PlainMultiHeadAttention(nn.Module):
    """Multi-head attention: two linear layers around ``scaled_dot_product_attention``.

    Args:
        unit: whose weights it shares.
    """

    def __init__(self, unit: MultiHeadAttention) -> None:
        super().__init__()
        self.num_heads = unit.num_heads
        self.qkv, self.proj = unit.qkv, unit.proj

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``."""
        query, key, value = _heads(self.qkv(tokens), self.num_heads)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class PlainLinformerAttention(nn.Module):
    """The same among keys and values that were projected along the token axis first (arXiv 2006.04768).

    Args:
        unit: whose weights it shares; built for exactly as many tokens as come.
    """

    def __init__(self, unit: LinformerAttention) -> None:
        super().__init__()
        self.num_heads = unit.num_heads
        self.qkv, self.proj = unit.qkv, unit.proj
        self.key_proj, self.value_proj = unit.key_proj, unit.value_proj

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``."""
        query, key, value = _heads(self.qkv(tokens), self.num_heads)
        attended = F.scaled_dot_product_attention(query, self.key_proj @ key, self.value_proj @ value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class PlainSeparableAttention(nn.Module):
    """Separable self-attention as its paper writes it, on a view of the tokens as ``[B, C, 1, N]``.

    Args:
        unit: whose weights it shares.
    """

    def __init__(self, unit: SeparableAttention) -> None:
        super().__init__()
        self.qkv_proj, self.out_proj = unit.qkv_proj, unit.out_proj

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, C]`` -> ``[B, N, C]``."""
        by_channel = tokens.transpose(1, 2).unsqueeze(2)
        assert self.qkv_proj.bias is not None
        assert self.out_proj.bias is not None
        out = peers.separable_layer(
            by_channel, self.qkv_proj.weight, self.qkv_proj.bias, self.out_proj.weight, self.out_proj.bias
        )
        return out.squeeze(2).transpose(1, 2)


def plain_unit(unit: nn.Module) -> nn.Module:
    """The plain PyTorch form of a unit with the same weights.

    Raises:
        TypeError: it is none of the three.
    """
    if isinstance(unit, MultiHeadAttention):
        return PlainMultiHeadAttention(unit)
    if isinstance(unit, LinformerAttention):
        return PlainLinformerAttention(unit)
    if isinstance(unit, SeparableAttention):
        return PlainSeparableAttention(unit)
    raise TypeError(
        f"unit: expected an attention layer of mobilevit_kernels.models, got {type(unit).__name__}"
    )


def _heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, N, 3C]`` -> query, key and value, each ``[B, heads, N, C / heads]``."""
    query, key, value = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value
