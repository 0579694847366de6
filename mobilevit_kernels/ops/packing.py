"""The parameters of a transformer or block as the CPU kernels read them: one vector (``csrc/cpu/packed_weights.h``).

A linear layer lies in panels of 32 outputs, each ``[inputs, 32]`` in float32 and ``[inputs / 2, 32, 2]`` in bfloat16,
there with inputs padded to whole tiles of 32. Every piece is padded with zeros, and biases stay float32 (two elements
each in a bfloat16 vector). The scale and shift of the norms in front of linear layers are folded into them. The layout
is the same for every processor, so packed parameters can be saved.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32
TILE_INPUTS = 32  # of bfloat16 weights
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
    return torch.cat([*pieces, _vector(norm_weight, dtype), _vector(norm_bias, dtype)])


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
    return torch.cat([*pieces, _vector(norm_weight, dtype), _vector(norm_bias, dtype)])


def pack_inverted_residual(
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Packs an inverted residual block whose BatchNorms are folded into its convolutions.

    Args:
        expand_weight, expand_bias: ``[hidden, C, 1, 1]``, ``[hidden]``.
        depthwise_weight, depthwise_bias: ``[hidden, 1, 3, 3]``, ``[hidden]``; float32 in any case.
        project_weight, project_bias: ``[C_out, hidden, 1, 1]``, ``[C_out]``.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        Vector of that dtype for :func:`mobilevit_kernels.ops.inverted_residual`.
    """
    expand, project = (weight.flatten(1) for weight in (expand_weight, project_weight))
    return torch.cat(
        [
            _panels(expand, dtype),
            _vector(expand_bias, dtype),
            _taps(depthwise_weight, depthwise_bias, dtype),
            _panels(project, dtype),
            _vector(project_bias, dtype),
        ]
    )


def pack_convolution(weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packs a dense convolution; its inputs lie as ``[kernel row, kernel column, channel]``.

    Args:
        weight: ``[C_out, C, k, k]``.
        bias: ``[C_out]``.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        Vector of that dtype for :func:`mobilevit_kernels.ops.convolution`.
    """
    return torch.cat([_panels(weight.permute(0, 2, 3, 1), dtype), _vector(bias, dtype)])


def pack_winograd_convolution(weight: Tensor, bias: Tensor) -> Tensor:
    """Packs a 3x3 convolution for minimal filtering, in float32: G g G^T of each kernel g (arXiv 1509.09308, eq. 8).

    Args:
        weight: ``[C_out, C, 3, 3]``.
        bias: ``[C_out]``.

    Returns:
        Vector for :func:`mobilevit_kernels.ops.winograd_convolution`: a matrix C_out by C for each of its 16 products.
    """
    rows = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
    kernels, size = weight.detach(), winograd_convolution_size(weight.shape[1], weight.shape[0])
    packed = kernels.new_empty(size, dtype=torch.float32)
    vector = _vector(bias, torch.float32)
    planes = packed[: -vector.shape[0]].view(16, -1)
    # In float64, a matrix at a time: all together would be the largest tensors of the start of a process.
    transform = kernels.new_tensor(rows, dtype=torch.float64)
    for i in range(4):
        half = torch.zeros_like(kernels[:, :, 0], dtype=torch.float64)
        for j in range(3):
            half += transform[i, j] * kernels[:, :, j]
        for j in range(4):
            planes[4 * i + j] = _panels(half @ transform[j], torch.float32)
    packed[-vector.shape[0] :] = vector
    return packed


def pack_depthwise_convolution(weight: Tensor, bias: Tensor) -> Tensor:
    """Packs a 3x3 depthwise convolution, in float32.

    Args:
        weight: ``[C, 1, 3, 3]``.
        bias: ``[C]``.

    Returns:
        Vector for :func:`mobilevit_kernels.ops.depthwise_convolution`.
    """
    return _taps(weight, bias, torch.float32)


def pack_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packs a linear layer.

    Args:
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        Vector of that dtype for :func:`mobilevit_kernels.ops.pooled_linear`.
    """
    return torch.cat([_panels(weight, dtype), _vector(bias, dtype)])


def depthwise_convolution_size(channels: int, dtype: torch.dtype = torch.float32) -> int:
    """Elements that the packed parameters of a 3x3 depthwise convolution have, in a vector of ``dtype``."""
    return 10 * _vector_size(channels, dtype)


def linear_size(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> int:
    """Elements that the packed parameters of a linear layer have."""
    padded = _round_up(inputs, TILE_INPUTS) if dtype == torch.bfloat16 else inputs
    return _round_up(outputs, PANEL) * padded + _vector_size(outputs, dtype)


def convolution_size(
    channels: int, out_channels: int, kernel_size: int, dtype: torch.dtype = torch.float32
) -> int:
    """Elements that the packed parameters of a convolution have."""
    return linear_size(out_channels, kernel_size**2 * _paired_inputs(channels, dtype), dtype)


def winograd_convolution_size(channels: int, out_channels: int) -> int:
    """Elements that the packed parameters of a 3x3 convolution for minimal filtering have."""
    return 16 * _round_up(out_channels, PANEL) * channels + _vector_size(out_channels, torch.float32)


def inverted_residual_size(
    channels: int, hidden_dim: int, out_channels: int, dtype: torch.dtype = torch.float32
) -> int:
    """Elements that the packed parameters of an inverted residual block have."""
    taps = depthwise_convolution_size(hidden_dim, dtype)
    return linear_size(hidden_dim, channels, dtype) + taps + linear_size(out_channels, hidden_dim, dtype)


def packed_size(
    channels: int, hidden_dim: int, num_layers: int, separable: bool, dtype: torch.dtype = torch.float32
) -> int:
    """Elements that the packed parameters of a transformer have."""
    vector = _vector_size(channels, dtype)
    square = linear_size(channels, channels, dtype)
    attention = vector + 2 * square if separable else linear_size(3 * channels, channels, dtype)
    mlp = linear_size(hidden_dim, channels, dtype) + linear_size(channels, hidden_dim, dtype)
    return num_layers * (attention + square + mlp) + 2 * vector


def _vector_size(size: int, dtype: torch.dtype) -> int:
    return _round_up(size, PANEL) * (2 if dtype == torch.bfloat16 else 1)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _paired_inputs(inputs: int, dtype: torch.dtype) -> int:
    return inputs + inputs % 2 if dtype == torch.bfloat16 else inputs


def _pairs(parameters: LayerParameters) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each part; 1x1 convolutions as matrices."""
    plain = [parameter.detach() for parameter in parameters]
    return [
        (weight.flatten(1) if weight.dim() > 1 else weight, bias)
        for weight, bias in zip(plain[::2], plain[1::2], strict=True)
    ]


def _after_norm(norm: tuple[Tensor, Tensor], linear: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """W (x * scale + shift) + b as one linear layer of x, its bias in float64."""
    (scale, shift), (weight, bias) = norm, linear
    return weight * scale, bias + weight.double() @ shift.double()


def _vector(values: Tensor, dtype: torch.dtype) -> Tensor:
    return F.pad(values.detach(), (0, -values.shape[0] % PANEL)).to(torch.float32).view(dtype)


def _taps(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``[C, 1, 3, 3]`` -> nine vectors of C, flattened, and the bias."""
    rows = torch.cat([weight.detach().flatten(1).T, bias.detach().unsqueeze(0)])
    return F.pad(rows, (0, -rows.shape[1] % PANEL)).to(torch.float32).flatten().view(dtype)


def _panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``[outputs, ..., inputs]`` -> panels, flattened."""
    values = weight.detach().to(dtype)
    together = 1
    if dtype == torch.bfloat16:
        together = 2
        values = _padded(values, (0, -weight.shape[-1] % together)).flatten(1)
        values = _padded(values, (0, -values.shape[1] % TILE_INPUTS))
    rows = _padded(values.flatten(1), (0, 0, 0, -weight.shape[0] % PANEL))
    panels = rows.unflatten(1, (-1, together)).unflatten(0, (-1, PANEL))  # [panels, 32, inputs / 2, 2]
    return panels.movedim(1, -2).flatten()


def _padded(values: Tensor, padding: tuple[int, ...]) -> Tensor:
    return F.pad(values, padding) if any(padding) else values
