"""Triton kernels of the backward pass of ``separable_attn``.

With grad_n the gradient of a token's output, u_n = W_o^T grad_n, and value v_n = W_v x_n + b_v computed again:

    grad_context = sum_n u_n relu(v_n)           grad_value_n = u_n context [v_n > 0]
    grad_pooled = W_k^T grad_context             grad_query_n = score_n grad_pooled . (x_n - pooled)
    grad_x_n = W_v^T grad_value_n + score_n grad_pooled + grad_query_n w_q

Values of tokens, [tokens, CHANNELS], are dense rows in the order of the map's pixels.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.separable_attn_tiles import (
    group_sums,
    load_columns,
    load_group_rows,
    load_tokens,
    load_vector,
    load_weight,
    rectified,
    store_columns,
    tile_slots,
    tile_start,
)
from mobilevit_kernels.triton_kernels.token_grid import map_offsets, map_rows


@triton.jit
def gate_backward_kernel(
    grad_out, x, qkv_weight, qkv_bias, out_weight, context, grad_value, hidden, grad_context, grad_value_bias,
    num_groups, num_tokens, grid_width, grad_stride_b, grad_stride_h, grad_stride_w, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, HAS_QKV_BIAS: tl.constexpr,
    PARAMETERS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_C value channels of a tile: grad_value and the sums over the tile of grad_context.

    Writes grad_context as [blocks of a group, groups, CHANNELS]. PARAMETERS: also hidden = relu(v) * context, and the
    sums over the tile of grad_value as [tiles, CHANNELS].
    """
    column_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) // column_blocks
    channels = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    first_group, first_token = tile_start(tile, num_tokens, BLOCK_M, BLOCK_N)
    groups, tokens, mask = tile_slots(first_group, first_token, num_groups, num_tokens, BLOCK_M, BLOCK_N)
    offsets = map_offsets(groups, tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W)
    grad_offsets = map_offsets(
        groups, tokens, grid_width, grad_stride_b, grad_stride_h, grad_stride_w, PATCH_H, PATCH_W
    )
    EVEN: tl.constexpr = CHANNELS % BLOCK_C == 0 and CHANNELS % BLOCK_K == 0
    value_weight = qkv_weight + (1 + CHANNELS) * CHANNELS
    value = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    grad_hidden = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, CHANNELS, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        rows = load_columns(x, offsets, mask, inner, CHANNELS, EVEN)
        weight = load_weight(value_weight, channels, inner, CHANNELS, EVEN)
        value = tl.dot(rows, tl.trans(weight), value, input_precision=PRECISION)
        rows = load_columns(grad_out, grad_offsets, mask, inner, CHANNELS, EVEN)
        weight = load_weight(out_weight, inner, channels, CHANNELS, EVEN)
        grad_hidden = tl.dot(rows, weight, grad_hidden, input_precision=PRECISION)
    value += load_vector(qkv_bias + 1 + CHANNELS, channels, CHANNELS, HAS_QKV_BIAS)[None, :]

    factors = load_group_rows(context, first_group, groups, mask, channels, CHANNELS, BLOCK_M == BLOCK_N)
    dense = map_rows(groups, tokens, num_tokens, grid_width, PATCH_H, PATCH_W) * CHANNELS
    # Slots without a token hold the bias, and NaN where a parameter is not finite.
    grad = tl.where(mask[:, None] & ~(value <= 0), grad_hidden * factors, 0.0)
    store_columns(grad_value, dense, mask, channels, grad, CHANNELS, EVEN)
    if PARAMETERS:
        store_columns(hidden, dense, mask, channels, rectified(value) * factors, CHANNELS, EVEN)
        sums = grad_value_bias + tile.to(tl.int64) * CHANNELS + channels
        tl.store(sums, tl.sum(grad, 0), mask=channels < CHANNELS)
    GROUPS: tl.constexpr = BLOCK_M // BLOCK_N
    sums = group_sums(tl.where(mask[:, None], grad_hidden * rectified(value), 0.0), GROUPS, BLOCK_N, BLOCK_C)
    tile_groups = first_group + tl.arange(0, GROUPS)
    offsets = ((first_token // BLOCK_N).to(tl.int64) * num_groups + tile_groups) * CHANNELS
    store_columns(grad_context, offsets, tile_groups < num_groups, channels, sums, CHANNELS, EVEN)


@triton.jit
def query_backward_kernel(
    x, scores, pooled, grad_pooled, grad_query, grad_query_weight, num_groups, num_tokens, grid_width, stride_b,
    stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, PARAMETERS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """grad_query [groups, N] of BLOCK_M / BLOCK_N groups; where PARAMETERS, also the sum of grad_query_n x_n.

    The sum is written as [programs, CHANNELS]. As the grad_query_n of a group sum to zero, x_n - pooled stands for x_n.
    """
    GROUPS: tl.constexpr = BLOCK_M // BLOCK_N
    ONE_GROUP: tl.constexpr = GROUPS == 1
    first_group = tl.program_id(0) * GROUPS
    columns_0 = tl.arange(0, PIECE_0)
    columns_1 = columns_0
    sums_0 = tl.zeros([PIECE_0], tl.float32)
    sums_1 = sums_0
    if PIECE_1 > 0:
        columns_1 = PIECE_0 + tl.arange(0, PIECE_1)
        sums_1 = tl.zeros([PIECE_1], tl.float32)
    mean = tl.zeros([GROUPS], tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        groups, tokens, mask = tile_slots(first_group, start, num_groups, num_tokens, BLOCK_M, BLOCK_N)
        x_0, x_1 = load_tokens(
            x, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0,
            PIECE_1,
        )  # fmt: skip
        centre = load_group_rows(pooled, first_group, groups, mask, columns_0, CHANNELS, ONE_GROUP)
        factors = load_group_rows(grad_pooled, first_group, groups, mask, columns_0, CHANNELS, ONE_GROUP)
        x_0 = x_0.to(tl.float32) - centre  # [BLOCK_M, PIECE_0]
        grad = tl.sum(x_0 * factors, 1)
        if PIECE_1 > 0:
            centre = load_group_rows(pooled, first_group, groups, mask, columns_1, CHANNELS, ONE_GROUP)
            factors = load_group_rows(grad_pooled, first_group, groups, mask, columns_1, CHANNELS, ONE_GROUP)
            x_1 = x_1.to(tl.float32) - centre  # [BLOCK_M, PIECE_1]
            grad += tl.sum(x_1 * factors, 1)
        offsets = groups.to(tl.int64) * num_tokens + tokens
        tl.store(grad_query + offsets, grad, mask=mask)
        grad *= tl.load(scores + offsets, mask=mask, other=0.0)
        mean += tl.sum(tl.reshape(grad, (GROUPS, BLOCK_N)), 1)
        if PARAMETERS:
            sums_0 += tl.sum(grad[:, None] * x_0, 0)
            if PIECE_1 > 0:
                sums_1 += tl.sum(grad[:, None] * x_1, 0)

    # Other threads than those that stored a gradient may load it.
    tl.debug_barrier()
    groups = first_group + tl.arange(0, GROUPS)
    rows = groups.to(tl.int64) * num_tokens
    for start in range(0, num_tokens, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        mask = (groups < num_groups)[:, None] & (tokens < num_tokens)[None, :]
        offsets = rows[:, None] + tokens[None, :]
        grad = tl.load(grad_query + offsets, mask=mask, other=0.0)
        score = tl.load(scores + offsets, mask=mask, other=0.0)
        # The mean is zero but for the rounding of pooled, an error that all these gradients share.
        tl.store(grad_query + offsets, score * (grad - mean[:, None]), mask=mask)
    if PARAMETERS:
        row = grad_query_weight + tl.program_id(0).to(tl.int64) * CHANNELS
        tl.store(row + columns_0, sums_0, mask=columns_0 < CHANNELS)
        if PIECE_1 > 0:
            tl.store(row + columns_1, sums_1, mask=columns_1 < CHANNELS)


@triton.jit
def input_backward_kernel(
    grad_value, qkv_weight, scores, grad_pooled, grad_query, grad_x, num_groups, num_tokens, grid_width,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_C channels of grad_x of a tile."""
    column_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) // column_blocks
    channels = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    first_group, first_token = tile_start(tile, num_tokens, BLOCK_M, BLOCK_N)
    groups, tokens, mask = tile_slots(first_group, first_token, num_groups, num_tokens, BLOCK_M, BLOCK_N)
    dense = map_rows(groups, tokens, num_tokens, grid_width, PATCH_H, PATCH_W) * CHANNELS
    EVEN: tl.constexpr = CHANNELS % BLOCK_C == 0 and CHANNELS % BLOCK_K == 0
    value_weight = qkv_weight + (1 + CHANNELS) * CHANNELS
    grad = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, CHANNELS, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        rows = load_columns(grad_value, dense, mask, inner, CHANNELS, EVEN)
        weight = load_weight(value_weight, inner, channels, CHANNELS, EVEN)
        grad = tl.dot(rows, weight, grad, input_precision=PRECISION)
    statistics = groups.to(tl.int64) * num_tokens + tokens
    score = tl.load(scores + statistics, mask=mask, other=0.0)
    query = tl.load(grad_query + statistics, mask=mask, other=0.0)
    factors = load_group_rows(grad_pooled, first_group, groups, mask, channels, CHANNELS, BLOCK_M == BLOCK_N)
    query_weight = load_vector(qkv_weight, channels, CHANNELS, True)
    grad += score[:, None] * factors + query[:, None] * query_weight[None, :]
    store_columns(grad_x, dense, mask, channels, grad, CHANNELS, EVEN)
