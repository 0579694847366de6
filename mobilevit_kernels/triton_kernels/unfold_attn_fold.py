"""Launchers of the Triton kernels of ``unfold_attn_fold``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels.launch import Config, launch, matmul_precision, target_of
from mobilevit_kernels.triton_kernels.token_grid import TokenGrid, pieces, rows_of_channels
from mobilevit_kernels.triton_kernels.tuning import choose
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


def unfold_attn_fold(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> Tensor:
    """The op for inference: nothing is kept for a backward pass. See :func:`mobilevit_kernels.unfold_attn_fold`."""
    return _forward(qkv, num_heads, patch_size, scale, None)


def unfold_attn_fold_forward(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The op and the natural logarithm of each row's sum of exponentials, float32 ``[B, P, heads, N]``."""
    grid = TokenGrid.of(qkv, (patch_size[0], patch_size[1]))
    shape = (grid.batch, grid.positions, num_heads, grid.tokens)
    logsumexp = torch.empty(shape, dtype=torch.float32, device=qkv.device)
    return _forward(qkv, num_heads, patch_size, scale, logsumexp), logsumexp


def _forward(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None, logsumexp: Tensor | None
) -> Tensor:
    qkv = rows_of_channels(qkv)
    grid = TokenGrid.of(qkv, (patch_size[0], patch_size[1]))
    channels = qkv.shape[1] // 3
    out = _empty_map(qkv, channels)
    if out.numel() == 0:
        return out
    head_dim, shape, constants = _describe(qkv, grid, num_heads)
    constants["WIDE"] = grid.is_wide(qkv)
    scale_log2 = (head_dim**-0.5 if scale is None else scale) * LOG2_E
    stride_b, _, stride_h, stride_w = qkv.stride()
    arguments = (
        qkv, out, out if logsumexp is None else logsumexp, scale_log2, grid.tokens, grid.grid_width, num_heads,
        stride_b, stride_h, stride_w,
    )  # fmt: skip
    constants["SAVE_LOGSUMEXP"] = logsumexp is not None

    def run(config: Config) -> None:
        blocks = -(-grid.tokens // config["BLOCK_M"])
        if config.variant == "online":
            programs = grid.groups * num_heads * blocks
            launch(online_forward_kernel, programs, arguments, config, **constants)
            return
        programs = grid.groups * (num_heads // config["HEADS"]) * -(-blocks // config["QUERY_BLOCKS"])
        launch(resident_forward_kernel, programs, arguments, config, **constants)

    key = _key(qkv, shape, head_dim)
    run(choose(FORWARD, shape.group, shape.target, key, forward_candidates(shape), run))
    return out


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
    out = out.contiguous(memory_format=torch.channels_last)
    logsumexp = logsumexp.contiguous()
    grid = TokenGrid.of(qkv, (patch_size[0], patch_size[1]))
    grad_qkv = _empty_map(qkv, qkv.shape[1])
    if grad_qkv.numel() == 0:
        return grad_qkv
    head_dim, shape, constants = _describe(qkv, grid, num_heads)
    constants["WIDE"] = grid.is_wide(qkv, grad_out, grad_qkv)
    scale = head_dim**-0.5 if scale is None else scale
    sizes = (grid.tokens, grid.grid_width, num_heads)
    grad_strides = (grad_out.stride(0), grad_out.stride(2), grad_out.stride(3))
    strides = (qkv.stride(0), qkv.stride(2), qkv.stride(3))

    delta_constants = {name: value for name, value in constants.items() if name != "PRECISION"}

    def run(config: Config) -> None:
        if config.variant == "resident":
            arguments = (grad_out, qkv, out, logsumexp, grad_qkv, scale, *sizes, *grad_strides, *strides)
            programs = grid.groups * (num_heads // config["HEADS"])
            launch(resident_backward_kernel, programs, arguments, config, **constants)
            return
        delta = torch.empty_like(logsumexp)
        rows = (grad_out, out, delta, *sizes, *grad_strides)
        programs = grid.groups * num_heads * -(-grid.tokens // config["BLOCK"])
        launch(delta_kernel, programs, rows, Config.of(BLOCK=config["BLOCK"]), **delta_constants)
        tiled = (grad_out, qkv, logsumexp, delta, grad_qkv, scale, *sizes, *grad_strides, *strides)
        for kernel in (key_backward_kernel, query_backward_kernel):
            launch(kernel, programs, tiled, config, **constants)

    key = _key(qkv, shape, head_dim)
    run(choose(BACKWARD, shape.group, shape.target, key, backward_candidates(shape), run))
    return grad_qkv


def _empty_map(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, like.shape[2], like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _describe(qkv: Tensor, grid: TokenGrid, num_heads: int) -> tuple[int, Shape, dict[str, Any]]:
    """head_dim, what configurations depend on, and the constants all kernels take."""
    head_dim = qkv.shape[1] // (3 * num_heads)
    piece_0, piece_1 = pieces(head_dim)
    precision = matmul_precision(qkv.dtype)
    exact = qkv.dtype == torch.float32 and precision == "ieee"
    shape = Shape(
        grid.groups, grid.tokens, num_heads, (piece_0, piece_1), qkv.element_size(), exact, target_of(qkv)
    )
    constants = {
        **grid.constants,
        "HEAD_DIM": head_dim,
        "PIECE_0": piece_0,
        "PIECE_1": piece_1,
        "PRECISION": precision,
    }
    return head_dim, shape, constants


def _key(qkv: Tensor, shape: Shape, head_dim: int) -> tuple[Any, ...]:
    """What a measured configuration is remembered for; groups count by their power of two."""
    groups = shape.groups.bit_length()
    return groups, shape.tokens, shape.heads, head_dim, qkv.dtype, shape.exact, qkv.device.index or 0
