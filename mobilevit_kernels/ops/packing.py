"""The parameters of a transformer as the CPU kernels read them: one float32 vector (``csrc/cpu/packed_weights.h``).

A linear layer lies in panels of 32 outputs, each ``[inputs, 32]``; every piece is padded with zeros to whole panels.
The scale and shift of the norms in front of linear layers are folded into them. The layout is the same for every
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


def pack_transformer(layers: Sequence[LayerParameters], norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """Packs the layers of a MobileViT v1 transformer and the LayerNorm after them.

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.transformer_layer`, in its order.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.

    Returns:
        float32 vector for :func:`mobilevit_kernels.ops.transformer`.
    """
    pieces = []
    for parameters in layers:
        norm1, qkv, proj, norm2, fc1, fc2 = _pairs(parameters)
        for weight, bias in (_after_norm(norm1, qkv), proj, _after_norm(norm2, fc1), fc2):
            pieces += [_panels(weight), _padded(bias)]
    return _joined([*pieces, _padded(_wide(norm_weight)), _padded(_wide(norm_bias))])


def pack_separable_transformer(
    layers: Sequence[LayerParameters], norm_weight: Tensor, norm_bias: Tensor
) -> Tensor:
    """Packs the layers of a MobileViT v2 transformer and the GroupNorm after them.

    The bias of the query is left out: a softmax does not see what all its arguments have in common.

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.separable_transformer_layer`, in
            its order.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.

    Returns:
        float32 vector for :func:`mobilevit_kernels.ops.separable_transformer`.
    """
    pieces = []
    for parameters in layers:
        norm1, qkv, out, norm2, fc1, fc2 = _pairs(parameters)
        channels = out[1].shape[0]
        weight, bias = _after_norm(norm1, qkv)
        query, key, value = weight.split([1, channels, channels])
        _, key_bias, value_bias = bias.split([1, channels, channels])
        pieces.append(_padded(query.flatten()))
        linears = ((key, key_bias), (value, value_bias), out, _after_norm(norm2, fc1), fc2)
        for weight, bias in linears:
            pieces += [_panels(weight), _padded(bias)]
    return _joined([*pieces, _padded(_wide(norm_weight)), _padded(_wide(norm_bias))])


def packed_size(channels: int, hidden_dim: int, num_layers: int, separable: bool) -> int:
    """Elements that the packed parameters of a transformer have."""

    def panels(columns: int) -> int:
        return -(-columns // PANEL) * PANEL

    def linear(outputs: int, inputs: int) -> int:
        return panels(outputs) * inputs + panels(outputs)

    attention = (
        2 * linear(channels, channels) + panels(channels) if separable else linear(3 * channels, channels)
    )
    layer = (
        attention + linear(channels, channels) + linear(hidden_dim, channels) + linear(channels, hidden_dim)
    )
    return num_layers * layer + 2 * panels(channels)


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


def _padded(vector: Tensor) -> Tensor:
    return F.pad(vector, (0, -vector.shape[0] % PANEL))


def _panels(weight: Tensor) -> Tensor:
    """``[outputs, inputs]`` -> panels ``[ceil(outputs / 32), inputs, 32]``, flattened."""
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).flatten()


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.to(torch.float32) for piece in pieces])
