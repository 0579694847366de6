"""Launchers of the Triton kernels of ``unfold_attn_fold``."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels.launch import (
    Config,
    Start,
    exact_products,
    matmul_precision,
    prepare,
    target_of,
)
from mobilevit_kernels.triton_kernels.token_grid import TokenGrid, empty_map, pieces, rows_of_channels
from mobilevit_kernels.triton_kernels.tuning import Plans, choose
from mobilevit_kernels.triton_kernels.unfold_attn_fold_backward_kernels import resident_backward_kernel
from mobilevit_kernels.triton_kernels.unfold_attn_fold_configs import (
    BACKWARD,
    FORWARD,
    Shape,
    backward_candidates,
    forward_candidates,
)
from mobilevit_kernels.triton_kernels.unfold_attn_fold_forward_kernels import (
    online_forward_kernel,
    resident_forward_kernel,
)
from mobilevit_kernels.triton_kernels.unfold_attn_fold_tiled_backward_kernels import (
    delta_kernel,
    key_backward_kernel,
    query_backward_kernel,
)

LOG2_E = 1.4426950408889634


class _Problem(NamedTuple):
    """What sizes, dtype and device decide."""

    grid: TokenGrid
    num_heads: int
    scale: float
    shape: Shape
    constants: dict[str, Any]
    key: tuple[Any, ...]

    def programs(self, rows: int, heads: int = 1) -> int:
        """Programs that take ``rows`` tokens of ``heads`` heads of a group each."""
        return self.grid.groups * (self.num_heads // heads) * -(-self.grid.tokens // rows)


_forward_plans: Plans[Start] = Plans()
_backward_plans: Plans[tuple[Start, ...]] = Plans()


def unfold_attn_fold(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> Tensor:
    """The op for inference: nothing is kept for a backward pass. See :func:`mobilevit_kernels.unfold_attn_fold`."""
    qkv = rows_of_channels(qkv)
    out = empty_map(qkv, qkv.shape[1] // 3)
    if out.numel() > 0:
        _start_forward(qkv, num_heads, patch_size, scale, out, out, save=False)
    return out


def unfold_attn_fold_forward(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The op and the natural logarithm of each row's sum of exponentials, float32 ``[B, P, heads, N]``."""
    qkv = rows_of_channels(qkv)
    batch, channels3, height, width = qkv.shape
    ph, pw = patch_size
    statistics = (batch, ph * pw, num_heads, (height // ph) * (width // pw))
    out = empty_map(qkv, channels3 // 3)
    logsumexp = torch.empty(statistics, dtype=torch.float32, device=qkv.device)
    if out.numel() > 0:
        _start_forward(qkv, num_heads, patch_size, scale, out, logsumexp, save=True)
    return out, logsumexp


def unfold_attn_fold_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    scale: float | None = None,
) -> Tensor:
    """Gradient of qkv, ``[B, 3C, H, W]`` in channels_last memory, from what the forward pass returned."""
    qkv, grad_out = rows_of_channels(qkv), rows_of_channels(grad_out)
    out, logsumexp = out.contiguous(memory_format=torch.channels_last), logsumexp.contiguous()
    grad_qkv = empty_map(qkv, qkv.shape[1])
    if grad_qkv.numel() == 0:
        return grad_qkv
    tensors = (grad_out, qkv, out, logsumexp, grad_qkv)

    def decide() -> tuple[Start, ...]:
        return _plan_backward(*tensors, num_heads, patch_size, scale)

    key = (_key(qkv, num_heads, patch_size, scale), grad_out.stride())
    _run_backward(_backward_plans.get(key, decide), *tensors)
    return grad_qkv


def _start_forward(
    qkv: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    scale: float | None,
    out: Tensor,
    logsumexp: Tensor,
    save: bool,
) -> None:
    """Writes ``out``, and ``logsumexp`` where ``save``."""

    def decide() -> Start:
        problem = _describe(qkv, num_heads, patch_size, scale, qkv)
        constants = {**problem.constants, "SAVE_LOGSUMEXP": save}

        def start(config: Config) -> Start:
            return _prepare_forward(problem, qkv, config, constants)

        def run(config: Config) -> None:
            start(config)(qkv, out, logsumexp)

        shape = problem.shape
        candidates = forward_candidates(shape)
        return start(choose(FORWARD, shape.group, shape.target, problem.key, candidates, run))

    key = (_key(qkv, num_heads, patch_size, scale), save)
    _forward_plans.get(key, decide)(qkv, out, logsumexp)


def _prepare_forward(problem: _Problem, qkv: Tensor, config: Config, constants: dict[str, Any]) -> Start:
    grid = problem.grid
    sizes = (grid.tokens, grid.grid_width, problem.num_heads)
    numbers = (problem.scale * LOG2_E, *sizes, qkv.stride(0), qkv.stride(2), qkv.stride(3))
    if config.variant == "online":
        programs = problem.programs(config["BLOCK_M"])
        return prepare(online_forward_kernel, programs, numbers, config, constants)
    programs = problem.programs(config["BLOCK_M"] * config["QUERY_BLOCKS"], config["HEADS"])
    return prepare(resident_forward_kernel, programs, numbers, config, constants)


def _plan_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    grad_qkv: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    scale: float | None,
) -> tuple[Start, ...]:
    """One kernel, or the three of :func:`_run_backward`."""
    problem = _describe(qkv, num_heads, patch_size, scale, qkv, grad_out, grad_qkv)

    def run(config: Config) -> None:
        starts = _prepare_backward(problem, grad_out, qkv, config)
        _run_backward(starts, grad_out, qkv, out, logsumexp, grad_qkv)

    shape = problem.shape
    config = choose(BACKWARD, shape.group, shape.target, problem.key, backward_candidates(shape), run)
    return _prepare_backward(problem, grad_out, qkv, config)


def _prepare_backward(problem: _Problem, grad_out: Tensor, qkv: Tensor, config: Config) -> tuple[Start, ...]:
    grid, constants = problem.grid, problem.constants
    sizes = (grid.tokens, grid.grid_width, problem.num_heads)
    grad_strides = (grad_out.stride(0), grad_out.stride(2), grad_out.stride(3))
    numbers = (problem.scale, *sizes, *grad_strides, qkv.stride(0), qkv.stride(2), qkv.stride(3))
    if config.variant == "resident":
        programs = problem.grid.groups * (problem.num_heads // config["HEADS"])
        return (prepare(resident_backward_kernel, programs, numbers, config, constants),)
    programs = problem.programs(config["BLOCK"])
    without_products = {name: value for name, value in constants.items() if name != "PRECISION"}
    block = Config.of(BLOCK=config["BLOCK"])
    return (
        prepare(delta_kernel, programs, (*sizes, *grad_strides), block, without_products),
        prepare(key_backward_kernel, programs, numbers, config, constants),
        prepare(query_backward_kernel, programs, numbers, config, constants),
    )


def _run_backward(
    starts: tuple[Start, ...], grad_out: Tensor, qkv: Tensor, out: Tensor, logsumexp: Tensor, grad_qkv: Tensor
) -> None:
    if len(starts) == 1:
        starts[0](grad_out, qkv, out, logsumexp, grad_qkv)
        return
    delta = torch.empty_like(logsumexp)
    of_delta, of_keys, of_queries = starts
    of_delta(grad_out, out, delta)
    of_keys(grad_out, qkv, logsumexp, delta, grad_qkv)
    of_queries(grad_out, qkv, logsumexp, delta, grad_qkv)


def _key(qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None) -> Hashable:
    """Everything that a plan depends on."""
    precision = matmul_precision(qkv.dtype) if qkv.dtype == torch.float32 else ""
    return qkv.shape, qkv.stride(), qkv.dtype, qkv.device, num_heads, *patch_size, scale, precision


def _describe(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None, *maps: Tensor
) -> _Problem:
    """The problem of a call; offsets are int64 where any of ``maps`` needs them to be."""
    grid = TokenGrid.of(qkv, (patch_size[0], patch_size[1]))
    head_dim = qkv.shape[1] // (3 * num_heads)
    widths = pieces(head_dim)
    exact = exact_products(qkv.dtype)
    shape = Shape(grid.groups, grid.tokens, num_heads, widths, qkv.element_size(), exact, target_of(qkv))
    constants = {
        **grid.constants,
        "WIDE": grid.is_wide(*maps),
        "HEAD_DIM": head_dim,
        "PIECE_0": widths[0],
        "PIECE_1": widths[1],
        "PRECISION": matmul_precision(qkv.dtype),
    }
    # Measured configurations are remembered by the power of two of the groups.
    sizes = (grid.groups.bit_length(), grid.tokens, num_heads, head_dim)
    key = (*sizes, qkv.dtype, exact, qkv.device.index or 0)
    return _Problem(grid, num_heads, head_dim**-0.5 if scale is None else scale, shape, constants, key)
