"""Whole transformers, with the norm after them, as modules of one op; for inference on the CPU."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.token_map import MapTransformer
from mobilevit_kernels.ops.packing import LayerParameters, pack_separable_transformer, pack_transformer
from mobilevit_kernels.ops.separable_transformer import separable_transformer
from mobilevit_kernels.ops.transformer import transformer


class _Sizes(NamedTuple):
    num_layers: int
    num_heads: int
    hidden_dim: int
    patch_size: tuple[int, int]
    eps: float


class FusedTransformer(PackedOp, MapTransformer):
    """Transformer of MobileViT v1 and the LayerNorm after it (:func:`mobilevit_kernels.ops.transformer`).

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.transformer_layer`.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        num_heads: heads.
        patch_size: (patch_h, patch_w).
        eps: of all norms.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(
        self,
        layers: Sequence[LayerParameters],
        norm_weight: Tensor,
        norm_bias: Tensor,
        num_heads: int,
        patch_size: tuple[int, int],
        eps: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = _Sizes(len(layers), num_heads, layers[0][8].shape[0], patch_size, eps)
        super().__init__(pack_transformer(layers, norm_weight, norm_bias, dtype), sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        return transformer(x, self.packed, *self.sizes)


class _SeparableSizes(NamedTuple):
    num_layers: int
    hidden_dim: int
    patch_size: tuple[int, int]
    eps: float


class FusedSeparableTransformer(PackedOp):
    """Transformer of MobileViT v2 and the GroupNorm after it (:func:`mobilevit_kernels.ops.separable_transformer`).

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.separable_transformer_layer`.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        patch_size: (patch_h, patch_w).
        eps: of all norms.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(
        self,
        layers: Sequence[LayerParameters],
        norm_weight: Tensor,
        norm_bias: Tensor,
        patch_size: tuple[int, int],
        eps: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = _SeparableSizes(len(layers), layers[0][8].shape[0], patch_size, eps)
        super().__init__(pack_separable_transformer(layers, norm_weight, norm_bias, dtype), sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        return separable_transformer(x, self.packed, *self.sizes)
