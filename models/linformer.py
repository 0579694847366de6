"""Linformer attention, the second unit in the comparison of attention units in the MobileViTv2 paper."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models.attention import check_heads
from mobilevit_kernels.models.fused_layers import is_plain
from mobilevit_kernels.ops.registration import as_pair


class LinformerAttention(nn.Module):
    """Multi-head attention to at most 256 projected keys and values per pixel position (arXiv 2006.04768).

    The keys and values of the N tokens of a pixel position are projected along the token axis to
    ``min(max_projected, max_tokens)`` of each, shared by the heads, before plain attention.
    With fewer than ``max_tokens`` tokens the first columns of the projections are used.

    Args:
        dim: channels C.
        max_tokens: most tokens per pixel position that a map may have: columns of the projections.
        num_heads: heads; divides ``dim``.
        patch_size: (patch_h, patch_w), or one int for both.
        dropout: rate after the output projection.
        max_projected: most projected keys; 256 in arXiv 2206.02680, figure 1.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or a size below 1.
    """

    def __init__(
        self,
        dim: int,
        max_tokens: int,
        num_heads: int = 4,
        patch_size: int | Sequence[int] = (2, 2),
        dropout: float = 0.0,
        max_projected: int = 256,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if max_tokens < 1 or max_projected < 1:
            raise ValueError(
                f"max_tokens, max_projected: expected positive ints, got {max_tokens} and {max_projected}"
            )
        self.num_heads = num_heads
        self.max_tokens = max_tokens
        self.patch_size = as_pair(patch_size)
        num_projected = min(max_projected, max_tokens)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.key_proj = nn.Parameter(torch.empty(num_projected, max_tokens))
        self.value_proj = nn.Parameter(torch.empty(num_projected, max_tokens))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the token projections from N(0, 1 / projected tokens), as the Linformer paper's theorem 2 does."""
        std = self.key_proj.shape[0] ** -0.5
        nn.init.normal_(self.key_proj, std=std)
        nn.init.normal_(self.value_proj, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; H and W divisible by the patch.

        Raises:
            ValueError: the map has more than ``max_tokens`` tokens per pixel position.
        """
        height, width = x.shape[2:]
        tokens = self._group(x.permute(0, 2, 3, 1))  # [G, N, C]
        num_tokens = tokens.shape[1]
        if num_tokens > self.max_tokens:
            raise ValueError(
                f"x: a {height} x {width} map has {num_tokens} tokens per pixel position, but this Linformer layer "
                f"was built for at most {self.max_tokens}; create the model with a larger img_size"
            )
        query, key, value = (self._split_heads(part) for part in self._query_key_value(tokens))
        attended = F.scaled_dot_product_attention(query, key, value)  # [G, heads, N, head_dim]
        out = self.proj(attended.transpose(1, 2).flatten(2))
        return self.proj_drop(self._ungroup(out, x)).permute(0, 3, 1, 2)

    def _query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[G, N, C]`` -> query ``[G, N, C]``, key and value ``[G, projected, C]``.

        Projections of tokens and of channels commute, E (X W + b) = (E X) W + (E 1) b: many tokens are projected first.
        """
        num_tokens, num_projected = tokens.shape[1], self.key_proj.shape[0]
        over_keys, over_values = self.key_proj[:, :num_tokens], self.value_proj[:, :num_tokens]
        if num_tokens <= num_projected or not is_plain(self.qkv, nn.Linear):
            query, key, value = self.qkv(tokens).chunk(3, dim=-1)
            return query, _mix(over_keys, key), _mix(over_values, value)
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query = F.linear(tokens, weights[0], biases[0])
        key = F.linear(_mix(over_keys, tokens), weights[1]) + _constant(over_keys, biases[1], query)
        value = F.linear(_mix(over_values, tokens), weights[2]) + _constant(over_values, biases[2], query)
        return query, key, value

    def _group(self, tokens: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B * P, N, C]``, the tokens of each pixel position."""
        ph, pw = self.patch_size
        grid = tokens.unflatten(2, (-1, pw)).unflatten(1, (-1, ph))  # [B, H / ph, ph, W / pw, pw, C]
        return grid.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)

    def _ungroup(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Inverse of :meth:`_group`, for a map ``x``."""
        (batch, _, height, width), (ph, pw) = x.shape, self.patch_size
        grid = tokens.reshape(batch, ph, pw, height // ph, width // pw, -1)
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)

    def _split_heads(self, rows: Tensor) -> Tensor:
        """``[G, rows, C]`` -> ``[G, heads, rows, head_dim]``."""
        return rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _mix(projection: Tensor, tokens: Tensor) -> Tensor:
    """``[projected, N]`` times ``[G, N, C]`` -> ``[G, projected, C]``."""
    return projection.expand(tokens.shape[0], -1, -1) @ tokens


def _constant(projection: Tensor, bias: Tensor, like: Tensor) -> Tensor:
    """The projection of a bias that every token has, ``[projected, C]``."""
    return (projection.sum(1, keepdim=True) * bias).to(like.dtype)
