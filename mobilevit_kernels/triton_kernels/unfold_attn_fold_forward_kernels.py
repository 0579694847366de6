"""Triton kernels of the forward pass of ``unfold_attn_fold``.

A group is the N tokens of one sample and pixel position; a row is the 3C values of a token: query | key | value.
A head's HEAD_DIM values are read as PIECE_0 (and PIECE_1) columns, powers of two that cover it.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import first_pixel, sample_offsets
from mobilevit_kernels.triton_kernels.unfold_attn_fold_tiles import (
    LN_2,
    load_head,
    row_products,
    statistics_row,
    store_head,
)


@triton.jit
def resident_forward_kernel(
    qkv, out, logsumexp, scale_log2, num_tokens, grid_width, num_heads, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, SAVE_LOGSUMEXP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, QUERY_BLOCKS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """All keys and values of a head stay on chip (N <= BLOCK_N), so that softmax takes one pass.

    A program computes QUERY_BLOCKS blocks of BLOCK_M queries of HEADS heads of one group.
    """
    head_programs = num_heads // HEADS
    query_programs = tl.cdiv(num_tokens, BLOCK_M * QUERY_BLOCKS)
    program = tl.program_id(0)
    first_head = program % head_programs * HEADS
    first_block = program // head_programs % query_programs * QUERY_BLOCKS
    group = program // (head_programs * query_programs)
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    qkv += sample * stride_b
    out += pixel * channels
    row_stride = grid_width * PATCH_W * channels

    keys = tl.arange(0, BLOCK_N)
    key_mask = keys < num_tokens
    key_offsets = sample_offsets(group, keys, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
    for index in tl.static_range(HEADS):
        head = first_head + index
        queries_of = qkv + head * HEAD_DIM
        keys_of = queries_of + channels
        values_of = keys_of + channels
        key_0, key_1 = load_head(keys_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        value_0, value_1 = load_head(values_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        for block in range(QUERY_BLOCKS):
            queries = (first_block + block) * BLOCK_M + tl.arange(0, BLOCK_M)
            mask = queries < num_tokens
            offsets = sample_offsets(group, queries, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
            query_0, query_1 = load_head(queries_of, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
            scores = row_products(query_0, query_1, key_0, key_1, PIECE_1, PRECISION) * scale_log2
            scores = tl.where(key_mask[None, :], scores, -float("inf"))  # [BLOCK_M, BLOCK_N]
            largest = tl.max(scores, 1)
            weights = tl.exp2(scores - largest[:, None])
            total = tl.sum(weights, 1)
            weights = weights.to(value_0.dtype)
            inverse = (1.0 / total)[:, None]
            out_0 = tl.dot(weights, value_0, input_precision=PRECISION) * inverse  # [BLOCK_M, PIECE_0]
            out_1 = out_0
            if PIECE_1 > 0:
                out_1 = tl.dot(weights, value_1, input_precision=PRECISION) * inverse  # [BLOCK_M, PIECE_1]
            rows = sample_offsets(group, queries, grid_width, row_stride, channels, PATCH_H, PATCH_W, WIDE)
            store_head(out + head * HEAD_DIM, rows, mask, out_0, out_1, PIECE_0, PIECE_1, HEAD_DIM)
            if SAVE_LOGSUMEXP:
                row = logsumexp + statistics_row(group, head, num_heads, num_tokens)
                tl.store(row + queries, (largest + tl.log2(total)) * LN_2, mask=mask)


@triton.jit
def online_forward_kernel(
    qkv, out, logsumexp, scale_log2, num_tokens, grid_width, num_heads, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, SAVE_LOGSUMEXP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Keys and values pass in blocks of BLOCK_N, with a running maximum and sum (arXiv 2205.14135, algorithm 1).

    A program computes one block of BLOCK_M queries of one head of one group.
    """
    query_programs = tl.cdiv(num_tokens, BLOCK_M)
    program = tl.program_id(0)
    head = program % num_heads
    group = program // (num_heads * query_programs)
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    qkv += sample * stride_b
    out += pixel * channels
    row_stride = grid_width * PATCH_W * channels
    queries_of = qkv + head * HEAD_DIM
    keys_of = queries_of + channels
    values_of = keys_of + channels

    queries = program // num_heads % query_programs * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = queries < num_tokens
    offsets = sample_offsets(group, queries, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
    query_0, query_1 = load_head(queries_of, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)

    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out_0 = tl.zeros([BLOCK_M, PIECE_0], tl.float32)
    if PIECE_1 > 0:
        out_1 = tl.zeros([BLOCK_M, PIECE_1], tl.float32)
    for start in range(0, num_tokens, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        key_mask = keys < num_tokens
        key_offsets = sample_offsets(group, keys, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
        key_0, key_1 = load_head(keys_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        value_0, value_1 = load_head(values_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        scores = row_products(query_0, query_1, key_0, key_1, PIECE_1, PRECISION) * scale_log2
        scores = tl.where(key_mask[None, :], scores, -float("inf"))  # [BLOCK_M, BLOCK_N]
        next_largest = tl.maximum(largest, tl.max(scores, 1))
        # While every score is -inf there is no maximum to subtract: -inf - (-inf) would be NaN.
        shift = tl.where(next_largest == -float("inf"), 0.0, next_largest)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(largest - shift)
        total = total * decay + tl.sum(weights, 1)
        largest = next_largest
        weights = weights.to(value_0.dtype)
        out_0 = tl.dot(weights, value_0, out_0 * decay[:, None], input_precision=PRECISION)
        if PIECE_1 > 0:
            out_1 = tl.dot(weights, value_1, out_1 * decay[:, None], input_precision=PRECISION)

    inverse = (1.0 / total)[:, None]
    out_0 = out_0 * inverse
    second = out_0
    if PIECE_1 > 0:
        second = out_1 * inverse
    rows = sample_offsets(group, queries, grid_width, row_stride, channels, PATCH_H, PATCH_W, WIDE)
    store_head(out + head * HEAD_DIM, rows, mask, out_0, second, PIECE_0, PIECE_1, HEAD_DIM)
    if SAVE_LOGSUMEXP:
        row = logsumexp + statistics_row(group, head, num_heads, num_tokens)
        tl.store(row + queries, (largest + tl.log2(total)) * LN_2, mask=mask)
