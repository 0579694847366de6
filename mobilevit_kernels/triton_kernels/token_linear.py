"""Launchers of linear layers on the tokens of a channels_last map, with what stands before and after them."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from torch import Tensor

from mobilevit_kernels.triton_kernels.launch import (
    Config,
    Start,
    exact_products,
    launch,
    matmul_precision,
    prepare,
    register_group,
    target_of,
)
from mobilevit_kernels.triton_kernels.token_grid import empty_map, pieces
from mobilevit_kernels.triton_kernels.token_linear_kernels import (
    affine_linear_kernel,
    group_norm_affine_kernel,
    linear_residual_kernel,
    norm_linear_kernel,
)
from mobilevit_kernels.triton_kernels.tuning import Plans, choose

NORM_LINEAR = "token_norm_linear"
AFFINE_LINEAR = "token_affine_linear"
LINEAR_RESIDUAL = "token_linear_residual"
FAMILIES = (NORM_LINEAR, AFFINE_LINEAR, LINEAR_RESIDUAL)

_plans: Plans[Start] = Plans()


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
    parameters = (x, norm_weight, norm_bias, weight, bias)
    return _normed_linear(norm_linear_kernel, NORM_LINEAR, parameters, (eps, _rows(x)), silu)


def affine_linear(x: Tensor, affine: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """linear(gain * x + shift), then SiLU where asked, in one kernel: after a norm that :func:`group_norm_affine` took.

    Args:
        x: map ``[B, C, H, W]`` in channels_last memory.
        affine: ``[B, 2, C]``, gain and shift of every sample and channel.
        weight: ``[out, C]``, of any floating-point dtype, dense; so is the bias.
        bias: ``[out]``.
        silu: whether x * sigmoid(x) follows.

    Returns:
        ``[B, out, H, W]`` in channels_last memory, dtype of ``x``.
    """
    batch, _, height, width = x.shape
    parameters = (x, affine, weight, bias)
    return _normed_linear(affine_linear_kernel, AFFINE_LINEAR, parameters, (height * width,), silu, batch)


def _normed_linear(
    kernel: Any,
    family: str,
    tensors: tuple[Tensor, ...],
    numbers: tuple[float, ...],
    silu: bool,
    samples: int = 1,
) -> Tensor:
    """One of the two kernels; its tiles lie within a sample where there are several ``samples``."""
    x, weight = tensors[0], tensors[-2]
    rows, out_channels = _rows(x), weight.shape[0]
    out = empty_map(x, out_channels)

    def decide() -> Start:
        first, second = pieces(x.shape[1])
        constants = {**_constants(x, out_channels), "PIECE_0": first, "PIECE_1": second, "SILU": silu}

        def start(config: Config) -> Start:
            programs = samples * _programs(config, rows // samples, out_channels)
            return prepare(kernel, programs, numbers, config, constants)

        candidates = _norm_candidates(rows, first + second, exact_products(x.dtype))
        return _decide(family, weight, candidates, start, (*tensors, out))

    _plans.get(_key(family, x, weight, numbers, silu), decide)(*tensors, out)
    return out


def group_norm_affine(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    """GroupNorm of one group as a gain and a shift per sample and channel.

    Args:
        x: map ``[B, C, H, W]`` in channels_last memory.
        norm_weight: ``[C]``.
        norm_bias: ``[C]``.
        eps: added to the variance.

    Returns:
        ``[B, 2, C]`` in float32, such that ``group_norm(x) = gain * x + shift``.
    """
    batch, channels = x.shape[:2]
    affine = torch.empty((batch, 2, channels), dtype=torch.float32, device=x.device)
    values = channels * x.shape[2] * x.shape[3]
    config = Config.of(16, BLOCK=8192)
    arguments = (x, norm_weight, norm_bias, affine, eps, values)
    block_c = triton.next_power_of_2(channels)
    launch(group_norm_affine_kernel, batch, arguments, config, CHANNELS=channels, BLOCK_C=block_c)
    return affine


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
    rows, out_channels = _rows(x), weight.shape[0]
    out = empty_map(x, out_channels)
    tensors = (x, weight, bias, residual, out)

    def decide() -> Start:
        constants = _constants(x, out_channels)

        def start(config: Config) -> Start:
            programs = _programs(config, rows, out_channels)
            return prepare(linear_residual_kernel, programs, (rows,), config, constants)

        return _decide(
            LINEAR_RESIDUAL, weight, _residual_candidates(rows, exact_products(x.dtype)), start, tensors
        )

    _plans.get(_key(LINEAR_RESIDUAL, x, weight), decide)(*tensors)
    return out


def _rows(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _constants(x: Tensor, out_channels: int) -> dict[str, Any]:
    return {"IN": x.shape[1], "OUT": out_channels, "PRECISION": matmul_precision(x.dtype)}


def _programs(config: Config, rows: int, out_channels: int) -> int:
    return triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(out_channels, config["BLOCK_O"])


def _key(family: str, x: Tensor, weight: Tensor, *others: Any) -> Hashable:
    """Everything that a plan depends on."""
    precision = matmul_precision(x.dtype)
    return family, x.shape, x.dtype, x.device, weight.shape[0], weight.dtype, precision, *others


def _decide(
    family: str,
    weight: Tensor,
    candidates: tuple[Config, ...],
    start: Callable[[Config], Start],
    tensors: tuple[Tensor, ...],
) -> Start:
    """The kernel with the configuration that is chosen for these tensors, the first of which is the map."""
    x = tensors[0]
    channels, exact = x.shape[1], exact_products(x.dtype)
    group = register_group(x.element_size(), exact, pieces(channels))
    sizes = (_rows(x).bit_length(), channels, weight.shape[0])
    key = (*sizes, x.dtype, weight.dtype, exact, x.device.index or 0)

    def run(config: Config) -> None:
        start(config)(*tensors)

    return start(choose(family, group, target_of(x), key, candidates, run))


def _norm_candidates(rows: int, width: int, exact: bool) -> tuple[Config, ...]:
    """Tiles of whole rows: small ones where rows are few, so that more processors are busy."""
    smallest = Config.of(4, BLOCK_M=16, BLOCK_O=32)
    if exact or width >= 256:
        return smallest, Config.of(8, BLOCK_M=16, BLOCK_O=32), Config.of(8, BLOCK_M=32, BLOCK_O=64)
    middle, large = Config.of(4, BLOCK_M=32, BLOCK_O=64), Config.of(4, BLOCK_M=64, BLOCK_O=64)
    return (smallest, middle) if rows <= 1024 else (middle, large, smallest)


def _residual_candidates(rows: int, exact: bool) -> tuple[Config, ...]:
    """Tiles of part of the columns."""
    smallest = Config.of(4, 1 if exact else 3, BLOCK_M=16, BLOCK_K=32 if exact else 64, BLOCK_O=32)
    if exact:
        return smallest, Config.of(4, BLOCK_M=16, BLOCK_K=16, BLOCK_O=16)
    middle = Config.of(4, 3, BLOCK_M=32, BLOCK_K=64, BLOCK_O=64)
    large = Config.of(4, 3, BLOCK_M=64, BLOCK_K=64, BLOCK_O=64)
    return (smallest, middle) if rows <= 1024 else (middle, large, smallest)
