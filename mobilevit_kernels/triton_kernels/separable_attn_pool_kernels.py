"""Triton kernels of the pooling half of ``separable_attn``.

For a group of N tokens x_n: scores s = softmax_n(w_q . x_n), pooled = sum_n s_n x_n and context = W_k pooled + b_k. The
scores sum to one, so that projecting the pooled token equals pooling the projected ones, and the query's bias cancels.

A token's CHANNELS values are read as PIECE_0 (and PIECE_1) columns, powers of two that cover them.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.separable_attn_tiles import (
    group_sums,
    load_normed_tokens,
    load_vector,
    load_weight,
    tile_slots,
)
from mobilevit_kernels.triton_kernels.token_grid import load_piece, store_piece


@triton.jit
def _query(x_0, x_1, query_0, query_1, mask, PIECE_1: tl.constexpr):
    """w_q . x_n of tokens, -inf where there is none."""
    query = tl.sum(x_0 * query_0[None, :], 1)
    if PIECE_1 > 0:
        query += tl.sum(x_1 * query_1[None, :], 1)
    return tl.where(mask, query, -float("inf"))


@triton.jit
def _shift(largest):
    """What to subtract from scores: while all are -inf there is no maximum, and -inf - (-inf) would be NaN."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def _pool_one_group(
    x, affine, query_0, query_1, scores, pooled, group, num_groups, num_tokens, grid_width, stride_b, stride_h,
    stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N tokens at a time, with a running maximum and sum (arXiv 1805.02867, algorithm 3)."""
    largest = tl.full([], -float("inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    pooled_0 = tl.zeros([PIECE_0], tl.float32)
    pooled_1 = pooled_0
    if PIECE_1 > 0:
        pooled_1 = tl.zeros([PIECE_1], tl.float32)
    row = scores + group.to(tl.int64) * num_tokens
    for start in range(0, num_tokens, BLOCK_N):
        groups, tokens, mask = tile_slots(group, start, num_groups, num_tokens, BLOCK_N, BLOCK_N)
        x_0, x_1 = load_normed_tokens(
            x, affine, group, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W,
            CHANNELS, PIECE_0, PIECE_1, NORM, True,
        )  # fmt: skip
        x_0 = x_0.to(tl.float32)
        x_1 = x_1.to(tl.float32)
        query = _query(x_0, x_1, query_0, query_1, mask, PIECE_1)  # [BLOCK_N]
        if SAVE:
            tl.store(row + tokens, query, mask=mask)
        next_largest = tl.maximum(largest, tl.max(query, 0))
        shift = _shift(next_largest)
        weights = tl.exp(query - shift)
        decay = tl.exp(largest - shift)
        largest = next_largest
        total = total * decay + tl.sum(weights, 0)
        pooled_0 = pooled_0 * decay + tl.sum(weights[:, None] * x_0, 0)
        if PIECE_1 > 0:
            pooled_1 = pooled_1 * decay + tl.sum(weights[:, None] * x_1, 0)

    columns = tl.arange(0, PIECE_0)
    pooled_row = pooled + group.to(tl.int64) * CHANNELS
    tl.store(pooled_row + columns, pooled_0 / total, mask=columns < CHANNELS)
    if PIECE_1 > 0:
        columns = PIECE_0 + tl.arange(0, PIECE_1)
        tl.store(pooled_row + columns, pooled_1 / total, mask=columns < CHANNELS)
    if SAVE:
        shift = _shift(largest)
        # Other threads than those that stored a query may load it.
        tl.debug_barrier()
        for start in range(0, num_tokens, BLOCK_N):
            tokens = start + tl.arange(0, BLOCK_N)
            mask = tokens < num_tokens
            query = tl.load(row + tokens, mask=mask, other=0.0)
            tl.store(row + tokens, tl.exp(query - shift) / total, mask=mask)


@triton.jit
def _pool_small_groups(
    x, affine, query_0, query_1, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b, stride_h,
    stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """GROUPS groups of at most BLOCK_N tokens side by side."""
    groups, tokens, mask = tile_slots(first_group, 0, num_groups, num_tokens, GROUPS * BLOCK_N, BLOCK_N)
    x_0, x_1 = load_normed_tokens(
        x, affine, first_group, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W,
        CHANNELS, PIECE_0, PIECE_1, NORM, False,
    )  # fmt: skip
    x_0 = x_0.to(tl.float32)
    x_1 = x_1.to(tl.float32)
    query = tl.reshape(_query(x_0, x_1, query_0, query_1, mask, PIECE_1), (GROUPS, BLOCK_N))
    weights = tl.exp(query - _shift(tl.max(query, 1))[:, None])
    weights = tl.reshape(weights / tl.sum(weights, 1)[:, None], (GROUPS * BLOCK_N,))
    if SAVE:
        tl.store(scores + groups.to(tl.int64) * num_tokens + tokens, weights, mask=mask)
    rows = first_group + tl.arange(0, GROUPS)
    offsets = rows.to(tl.int64) * CHANNELS
    sums = group_sums(weights[:, None] * x_0, GROUPS, BLOCK_N, PIECE_0)
    store_piece(pooled, offsets, rows < num_groups, sums, 0, PIECE_0, CHANNELS)
    if PIECE_1 > 0:
        sums = group_sums(weights[:, None] * x_1, GROUPS, BLOCK_N, PIECE_1)
        store_piece(pooled, offsets, rows < num_groups, sums, PIECE_0, PIECE_1, CHANNELS)


@triton.jit
def pool_groups(
    x, affine, qkv_weight, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b, stride_h,
    stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes the pooled tokens [groups, CHANNELS] of GROUPS groups, and their scores [groups, N] where SAVE.

    Several groups must not have more than BLOCK_N tokens.
    """
    query_0 = load_vector(qkv_weight, tl.arange(0, PIECE_0), CHANNELS, True)
    query_1 = query_0
    if PIECE_1 > 0:
        query_1 = load_vector(qkv_weight, PIECE_0 + tl.arange(0, PIECE_1), CHANNELS, True)
    if GROUPS == 1:
        _pool_one_group(
            x, affine, query_0, query_1, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b,
            stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, NORM, SAVE, BLOCK_N,
        )  # fmt: skip
    else:
        _pool_small_groups(
            x, affine, query_0, query_1, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b,
            stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, NORM, SAVE, GROUPS, BLOCK_N,
        )  # fmt: skip


@triton.jit
def project_pooled(
    x, pooled, qkv_weight, qkv_bias, context, first_group, num_groups, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr, HAS_QKV_BIAS: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes context = W_k pooled + b_k of GROUPS groups, whose pooled tokens this program has written."""
    dtype: tl.constexpr = x.dtype.element_ty
    # A matrix product takes 16 rows at least.
    ROWS: tl.constexpr = GROUPS if GROUPS > 16 else 16
    row = tl.arange(0, ROWS)
    groups = first_group + row
    mask = (row < GROUPS) & (groups < num_groups)
    offsets = groups.to(tl.int64) * CHANNELS
    # Other threads than those that stored a pooled token load it.
    tl.debug_barrier()
    rows_0 = load_piece(pooled, offsets, mask, 0, PIECE_0, CHANNELS).to(dtype)
    rows_1 = rows_0
    if PIECE_1 > 0:
        rows_1 = load_piece(pooled, offsets, mask, PIECE_0, PIECE_1, CHANNELS).to(dtype)
    key_weight = qkv_weight + CHANNELS
    for start in range(0, CHANNELS, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        weight = load_weight(
            key_weight,
            channels,
            tl.arange(0, PIECE_0),
            CHANNELS,
            CHANNELS % BLOCK_C == 0 and PIECE_0 <= CHANNELS,
        ).to(dtype)
        rows = tl.dot(rows_0, tl.trans(weight), input_precision=PRECISION)  # [ROWS, BLOCK_C]
        if PIECE_1 > 0:
            weight = load_weight(
                key_weight, channels, PIECE_0 + tl.arange(0, PIECE_1), CHANNELS,
                CHANNELS % BLOCK_C == 0 and PIECE_0 + PIECE_1 <= CHANNELS,
            )  # fmt: skip
            rows = tl.dot(rows_1, tl.trans(weight.to(dtype)), rows, input_precision=PRECISION)
        rows += load_vector(qkv_bias + 1, channels, CHANNELS, HAS_QKV_BIAS)[None, :]
        addresses = context + offsets[:, None] + channels[None, :]
        tl.store(addresses, rows, mask=mask[:, None] & (channels < CHANNELS)[None, :])


@triton.jit
def pool_kernel(
    x, affine, qkv_weight, qkv_bias, scores, pooled, context, num_groups, num_tokens, grid_width, stride_b, stride_h,
    stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr, NORM: tl.constexpr, HAS_QKV_BIAS: tl.constexpr, SAVE: tl.constexpr,
    PROJECT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pools the tokens of BLOCK_M / BLOCK_N groups, and projects the pooled ones where PROJECT.

    NORM: the tokens take the gain and the shift of their sample first.
    """
    GROUPS: tl.constexpr = BLOCK_M // BLOCK_N
    first_group = tl.program_id(0) * GROUPS
    pool_groups(
        x, affine, qkv_weight, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b, stride_h,
        stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, NORM, SAVE, GROUPS, BLOCK_N,
    )  # fmt: skip
    if PROJECT:
        project_pooled(
            x, pooled, qkv_weight, qkv_bias, context, first_group, num_groups, CHANNELS, PIECE_0, PIECE_1, HAS_QKV_BIAS,
            PRECISION, GROUPS, BLOCK_C,
        )  # fmt: skip
