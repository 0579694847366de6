"""``mobilevit::separable_transformer``: all layers of a MobileViT v2 transformer as one op, for CPU inference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.ops.registration import as_pair
from mobilevit_kernels.ops.transformers import register_transformer

_op = torch.ops.mobilevit.separable_transformer.default


def separable_transformer(
    x: Tensor,
    packed: Tensor,
    num_layers: int,
    hidden_dim: int,
    patch_size: int | Sequence[int] = (2, 2),
    eps: float = 1e-5,
) -> Tensor:
    """Transformer of a MobileViTv2 block and the GroupNorm after it (arXiv 2206.02680), on a map.

    The layers of :func:`mobilevit_kernels.ops.separable_transformer_layer` one after another. Between the statistics
    of two norms every token is independent: tokens run through in tiles that keep to the cache, and no normalised
    map, key or score of token size exists. Sums and statistics are float32 whatever the dtypes; products are in the
    dtype of ``packed``.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, bfloat16 or float16 on the CPU; channels_last is read without a copy.
        packed: the parameters, from :func:`mobilevit_kernels.ops.packing.pack_separable_transformer`; in float32, or in
            bfloat16, which takes a processor with AVX-512; fast with AMX, and on AMD's with AVX-512 BF16.
        num_layers: layers L.
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
    return _op(x, packed, num_layers, hidden_dim, as_pair(patch_size), eps)


register_transformer("separable_transformer", separable=True)
