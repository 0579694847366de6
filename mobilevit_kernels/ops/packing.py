"""The parameters of a transformer as the CPU kernels read them: one vector (``csrc/cpu/packed_weights.h``).

A linear layer lies in panels of 32 outputs, each ``[inputs, 32]`` in float32 and ``[inputs / 2, 32, 2]`` in bfloat16;
every piece is padded with zeros to whole panels, biases stay float32 (two elements each in a bfloat16 vector). The
scale and shift of the norms in front of linear layers are folded into them. The layout is the same for every
processor, so packed parameters can be saved.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32
# Of one layer: norm1, attention in, attention out, norm2, fc1, fc2; weight and bias of each.
LayerParameters: TypeAlias = Sequence[Tensor]


def pack_transformer(
    layers: Sequence[LayerParameters],
    norm_weight: Tensor,
    norm_bias: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Packs the layers of a MobileViT v1 transformer and the LayerNorm after them.

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.transformer_layer`, in its order.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        Vector of that dtype for :func:`mobilevit_kernels.ops.transformer`.
    """
    pieces = []
    for parameters in layers:
        norm1, qkv, proj, norm2, fc1, fc2 = _pairs(parameters)
        for weight, bias in (_after_norm(norm1, qkv), proj, _after_norm(norm2, fc1), fc2):
            pieces += [_panels(weight, dtype), _vector(bias, dtype)]
    return torch.cat([*pieces, _vector(_wide(norm_weight), dtype), _vector(_wide(norm_bias), dtype)])


def pack_separable_transformer(
    layers: Sequence[LayerParameters],
    norm_weight: Tensor,
    norm_bias: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Packs the layers of a MobileViT v2 transformer and the GroupNorm after them.

    The bias of the query is left out: a softmax does not see what all its arguments have in common.

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.separable_transformer_layer`, in
            its order.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        Vector of that dtype for :func:`mobilevit_kernels.ops.separable_transformer`.
    """
    pieces = []
    for parameters in layers:
        norm1, qkv, out, norm2, fc1, fc2 = _pairs(parameters)
        channels = out[1].shape[0]
        weight, bias = _after_norm(norm1, qkv)
        query, key, value = weight.split([1, channels, channels])
        _, key_bias, value_bias = bias.split([1, channels, channels])
        pieces.append(_vector(query.flatten(), dtype))
        linears = ((key, key_bias), (value, value_bias), out, _after_norm(norm2, fc1), fc2)
        for weight, bias in linears:
            pieces += [_panels(weight, dtype), _vector(bias, dtype)]
    return torch.cat([*pieces, _vector(_wide(norm_weight), dtype), _vector(_wide(norm_bias), dtype)])


def packed_size(
    channels: int, hidden_dim: int, num_layers: int, separable: bool, dtype: torch.dtype = torch.float32
) -> int:
    """Elements that the packed parameters of a transformer have."""
    pairs = dtype == torch.bfloat16

    def vector(size: int) -> int:
        return -(-size // PANEL) * PANEL * (2 if pairs else 1)

    def linear(outputs: int, inputs: int) -> int:
        inputs += inputs % 2 if pairs else 0
        return -(-outputs // PANEL) * PANEL * inputs + vector(outputs)

    attention = (
        2 * linear(channels, channels) + vector(channels) if separable else linear(3 * channels, channels)
    )
    layer = (
        attention + linear(channels, channels) + linear(hidden_dim, channels) + linear(channels, hidden_dim)
    )
    return num_layers * layer + 2 * vector(channels)


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().double()


def _pairs(parameters: LayerParameters) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each part in float64; 1x1 convolutions as matrices."""
    wide = [_wide(parameter) for parameter in parameters]
    return [
        (weight.flatten(1) if weight.dim() > 1 else weight, bias)
        for weight, bias in zip(wide[::2], wide[1::2], strict=True)
    ]


def _after_norm(norm: tuple[Tensor, Tensor], linear: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """W (x * scale + shift) + b as one linear layer of x."""
    (scale, shift), (weight, bias) = norm, linear
    return weight * scale, bias + weight @ shift


def _vector(values: Tensor, dtype: torch.dtype) -> Tensor:
    return F.pad(values, (0, -values.shape[0] % PANEL)).to(torch.float32).view(dtype)


def _panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``[outputs, inputs]`` -> panels, flattened."""
    inputs = 2 if dtype == torch.bfloat16 else 1
    padded = F.pad(weight, (0, -weight.shape[1] % inputs, 0, -weight.shape[0] % PANEL))
    panels = padded.unflatten(1, (-1, inputs)).unflatten(0, (-1, PANEL))  # [panels, 32, inputs / 2, 2]
    return panels.transpose(1, 2).flatten().to(dtype)
