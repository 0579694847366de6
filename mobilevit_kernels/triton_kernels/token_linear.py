"""Launchers of linear layers on the tokens of a channels_last map, with what stands before and after them."""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from mobilevit_kernels.triton_kernels.launch import (
    Config,
    launch,
    matmul_precision,
    register_group,
    target_of,
)
from mobilevit_kernels.triton_kernels.token_grid import pieces
from mobilevit_kernels.triton_kernels.token_linear_kernels import linear_residual_kernel, norm_linear_kernel
from mobilevit_kernels.triton_kernels.tuning import choose

NORM_LINEAR = "token_norm_linear"
LINEAR_RESIDUAL = "token_linear_residual"
FAMILIES = (NORM_LINEAR, LINEAR_RESIDUAL)


def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor, silu: bool
) -> Tensor:
    """linear(layer_norm(x)), then SiLU where asked, in one kernel.

    Args:
        x: map ``[B, C, H, W]`` in channels_last memory; the norm and the layer act on each token's C values.
        norm_weight: ``[C]``.
        norm_bias: ``[C]``.
        eps: added to the variance.
        weight: ``[out, C]``, of any floating-point dtype, dense; so is the bias.
        bias: ``[out]``.
        silu: whether x * sigmoid(x) follows.

    Returns:
        ``[B, out, H, W]`` in channels_last memory, dtype of ``x``.
    """
    batch, channels, height, width = x.shape
    out_channels = weight.shape[0]
    out = _channels_last(x, out_channels)
    rows = batch * height * width
    first, second = pieces(channels)
    constants = _constants(x, channels, out_channels)
    constants.update(PIECE_0=first, PIECE_1=second, SILU=silu)
    arguments = (x, norm_weight, norm_bias, weight, bias, out, eps, rows)

    def run(config: Config) -> None:
        launch(norm_linear_kernel, _programs(config, rows, out_channels), arguments, config, **constants)

    candidates = _norm_candidates(rows, first + second, _exact(x))
    run(_choose(NORM_LINEAR, x, out_channels, weight.dtype, candidates, run))
    return out


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """residual + linear(x), in one kernel.

    Args:
        x: map ``[B, C, H, W]`` in channels_last memory; the layer acts on each token's C values.
        weight: ``[out, C]``, of any floating-point dtype, dense; so is the bias.
        bias: ``[out]``.
        residual: ``[B, out, H, W]`` in channels_last memory, dtype of ``x``.

    Returns:
        ``[B, out, H, W]`` in channels_last memory, dtype of ``x``.
    """
    batch, channels, height, width = x.shape
    out_channels = weight.shape[0]
    out = _channels_last(x, out_channels)
    rows = batch * height * width
    constants = _constants(x, channels, out_channels)
    arguments = (x, weight, bias, residual, out, rows)

    def run(config: Config) -> None:
        launch(linear_residual_kernel, _programs(config, rows, out_channels), arguments, config, **constants)

    candidates = _residual_candidates(rows, _exact(x))
    run(_choose(LINEAR_RESIDUAL, x, out_channels, weight.dtype, candidates, run))
    return out


def _channels_last(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, like.shape[2], like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _constants(x: Tensor, channels: int, out_channels: int) -> dict[str, Any]:
    return {"IN": channels, "OUT": out_channels, "PRECISION": matmul_precision(x.dtype)}


def _exact(x: Tensor) -> bool:
    return x.dtype == torch.float32 and matmul_precision(x.dtype) == "ieee"


def _programs(config: Config, rows: int, out_channels: int) -> int:
    return triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(out_channels, config["BLOCK_O"])


def _choose(
    family: str,
    x: Tensor,
    out_channels: int,
    weight_dtype: torch.dtype,
    candidates: tuple[Config, ...],
    run: Any,
) -> Config:
    channels = x.shape[1]
    group = register_group(x.element_size(), _exact(x), pieces(channels))
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    key = (rows.bit_length(), channels, out_channels, x.dtype, weight_dtype, _exact(x), x.device.index or 0)
    return choose(family, group, target_of(x), key, candidates, run)


@lru_cache(maxsize=1024)
def _norm_candidates(rows: int, width: int, exact: bool) -> tuple[Config, ...]:
    """Tiles of whole rows: small ones where rows are few, so that more processors are busy."""
    smallest = Config.of(4, BLOCK_M=16, BLOCK_O=32)
    if exact or width > 256:
        return smallest, Config.of(8, BLOCK_M=16, BLOCK_O=16), Config.of(4, BLOCK_M=16, BLOCK_O=16)
    middle, large = Config.of(4, BLOCK_M=32, BLOCK_O=64), Config.of(4, BLOCK_M=64, BLOCK_O=64)
    return (smallest, middle) if rows <= 1024 else (middle, large, smallest)


@lru_cache(maxsize=1024)
def _residual_candidates(rows: int, exact: bool) -> tuple[Config, ...]:
    """Tiles of part of the columns."""
    smallest = Config.of(4, 1 if exact else 3, BLOCK_M=16, BLOCK_K=32 if exact else 64, BLOCK_O=32)
    if exact:
        return smallest, Config.of(4, BLOCK_M=16, BLOCK_K=16, BLOCK_O=16)
    middle = Config.of(4, 3, BLOCK_M=32, BLOCK_K=64, BLOCK_O=64)
    large = Config.of(4, 3, BLOCK_M=64, BLOCK_K=64, BLOCK_O=64)
    return (smallest, middle) if rows <= 1024 else (middle, large, smallest)
