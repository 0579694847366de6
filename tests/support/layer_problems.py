"""Problems of the ops of whole layers."""

from typing import Any

import torch
from torch import Tensor

LAYERS = ("transformer_layer", "separable_transformer_layer")


def parameters(layer: str, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """Random parameters in the order of the op; those of norms are near 1 and 0."""
    rows = 3 * channels if layer == "transformer_layer" else 1 + 2 * channels
    hidden = 2 * channels

    def norm() -> list[Tensor]:
        return [1 + 0.2 * torch.randn(channels), 0.2 * torch.randn(channels)]

    def linear(rows: int, columns: int) -> list[Tensor]:
        return [torch.randn(rows, columns) * columns**-0.5, torch.randn(rows)]

    found = [*norm(), *linear(rows, channels), *linear(channels, channels), *norm()]
    found += [*linear(hidden, channels), *linear(channels, hidden)]
    return [parameter.to(dtype) for parameter in found]


def others(layer: str, patch: tuple[int, int]) -> tuple[Any, ...]:
    """Arguments after the tensors."""
    return (4, patch, 1e-5) if layer == "transformer_layer" else (patch, 1e-5)
