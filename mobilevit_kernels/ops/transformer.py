"""``mobilevit::transformer``: all layers of a MobileViT v1 transformer as one op, for inference on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.ops.registration import as_pair
from mobilevit_kernels.ops.transformers import register_transformer

_op = torch.ops.mobilevit.transformer.default


def transformer(
    x: Tensor,
    packed: Tensor,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    patch_size: int | Sequence[int] = (2, 2),
    eps: float = 1e-5,
) -> Tensor:
    """Transformer of a MobileViT v1 block and the LayerNorm after it (arXiv 2110.02178, section 3.1), on a map.

    The layers of :func:`mobilevit_kernels.ops.transformer_layer` one after another. Tokens of different pixel positions
    never meet, so each group of tokens runs through all layers in the cache of one core. Sums and
    statistics are float32 whatever the dtypes; products are in the dtype of ``packed``.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_transformer`; in float32, or in
            bfloat16, which takes a processor with AVX-512; fast with AMX, and on AMD's with AVX-512 BF16.
        num_layers: layers L.
        num_heads: heads; divides C.
        hidden_dim: channels between the two layers of the feed-forward networks.
        patch_size: (patch_h, patch_w), or one int for both.
        eps: added to the variances.

    Returns:
        ``[B, C, H, W]``, dtype of ``x``, channels_last.

    Raises:
        ValueError: wrong sizes, H or W not divisible by the patch, ``packed`` of another size.
        TypeError: ``x`` or ``packed`` of another dtype.
        RuntimeError: a gradient is wanted.
    """
    return _op(x, packed, num_layers, num_heads, hidden_dim, as_pair(patch_size), eps)


register_transformer("transformer", separable=False)
