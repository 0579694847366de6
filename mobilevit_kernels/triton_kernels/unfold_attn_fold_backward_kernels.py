"""Triton kernel of the backward pass of ``unfold_attn_fold`` for groups that stay on chip, free of atomics.

With P the attention weights, recomputed from logsumexp: dV = P^T dO, dP = dO V^T, delta = rowsum(dO * O),
dS = P * (dP - delta), dQ = scale dS K, dK = scale dS^T Q (arXiv 2205.14135, algorithm 4).
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import first_pixel, sample_offsets
from mobilevit_kernels.triton_kernels.unfold_attn_fold_tiles import (
    LOG2_E,
    load_head,
    row_products,
    row_sums,
    statistics_row,
    store_head,
)


@triton.jit
def transposed_weights(
    query_0, query_1, grad_0, grad_1, key_0, key_1, value_0, value_1, logsumexp_log2, delta, mask, scale_log2,
    PIECE_1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P^T and dS^T (without the scale) of a tile, both [keys, queries]; ``mask`` is false outside the group."""
    scores = row_products(key_0, key_1, query_0, query_1, PIECE_1, PRECISION) * scale_log2
    weights = tl.where(mask, tl.exp2(scores - logsumexp_log2[None, :]), 0.0)
    grad_weights = row_products(value_0, value_1, grad_0, grad_1, PIECE_1, PRECISION)
    grad_scores = tl.where(mask, weights * (grad_weights - delta[None, :]), 0.0)
    return weights.to(query_0.dtype), grad_scores.to(query_0.dtype)


@triton.jit
def resident_backward_kernel(
    grad_out, qkv, out, logsumexp, grad_qkv, scale, num_tokens, grid_width, num_heads,
    grad_stride_b, grad_stride_h, grad_stride_w, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """All queries of a head stay on chip (N <= BLOCK_M) while its keys pass in blocks of BLOCK_N.

    A program computes all three gradients of HEADS heads of one group.
    """
    head_programs = num_heads // HEADS
    program = tl.program_id(0)
    first_head = program % head_programs * HEADS
    group = program // head_programs
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    grad_out += sample * grad_stride_b
    qkv += sample * stride_b
    out += pixel * channels
    grad_qkv += pixel * (3 * channels)
    row_stride = grid_width * PATCH_W * channels
    scale_log2 = scale * LOG2_E

    queries = tl.arange(0, BLOCK_M)
    mask = queries < num_tokens
    offsets = sample_offsets(group, queries, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
    grad_offsets = sample_offsets(
        group, queries, grid_width, grad_stride_h, grad_stride_w, PATCH_H, PATCH_W, WIDE
    )
    rows = sample_offsets(group, queries, grid_width, row_stride, channels, PATCH_H, PATCH_W, WIDE)
    for index in tl.static_range(HEADS):
        head = first_head + index
        shift = head * HEAD_DIM
        query_0, query_1 = load_head(qkv + shift, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
        grad_0, grad_1 = load_head(grad_out + shift, grad_offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
        out_0, out_1 = load_head(out + shift, rows, mask, PIECE_0, PIECE_1, HEAD_DIM)
        delta = row_sums(grad_0, grad_1, out_0, out_1, PIECE_1)
        statistics = logsumexp + statistics_row(group, head, num_heads, num_tokens)
        logsumexp_log2 = tl.load(statistics + queries, mask=mask, other=0.0) * LOG2_E

        grad_query_0 = tl.zeros([BLOCK_M, PIECE_0], tl.float32)
        if PIECE_1 > 0:
            grad_query_1 = tl.zeros([BLOCK_M, PIECE_1], tl.float32)
        for start in range(0, num_tokens, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            key_mask = keys < num_tokens
            key_offsets = sample_offsets(group, keys, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
            keys_of = qkv + shift + channels
            key_0, key_1 = load_head(keys_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
            values_of = keys_of + channels
            value_0, value_1 = load_head(values_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
            weights, grad_scores = transposed_weights(
                query_0, query_1, grad_0, grad_1, key_0, key_1, value_0, value_1, logsumexp_log2, delta,
                key_mask[:, None] & mask[None, :], scale_log2, PIECE_1, PRECISION,
            )  # fmt: skip
            grad_value_0 = tl.dot(weights, grad_0, input_precision=PRECISION)  # [BLOCK_N, PIECE_0]
            grad_key_0 = tl.dot(grad_scores, query_0, input_precision=PRECISION) * scale
            grad_value_1 = grad_value_0
            grad_key_1 = grad_key_0
            by_query = tl.trans(grad_scores)  # [BLOCK_M, BLOCK_N]
            grad_query_0 = tl.dot(by_query, key_0, grad_query_0, input_precision=PRECISION)
            if PIECE_1 > 0:
                grad_value_1 = tl.dot(weights, grad_1, input_precision=PRECISION)  # [BLOCK_N, PIECE_1]
                grad_key_1 = tl.dot(grad_scores, query_1, input_precision=PRECISION) * scale
                grad_query_1 = tl.dot(by_query, key_1, grad_query_1, input_precision=PRECISION)
            key_rows = sample_offsets(
                group, keys, grid_width, 3 * row_stride, 3 * channels, PATCH_H, PATCH_W, WIDE
            )
            to = grad_qkv + shift + channels
            store_head(to, key_rows, key_mask, grad_key_0, grad_key_1, PIECE_0, PIECE_1, HEAD_DIM)
            to = to + channels
            store_head(to, key_rows, key_mask, grad_value_0, grad_value_1, PIECE_0, PIECE_1, HEAD_DIM)
        grad_query_0 = grad_query_0 * scale
        second = grad_query_0
        if PIECE_1 > 0:
            second = grad_query_1 * scale
        to = grad_qkv + shift
        store_head(to, 3 * rows, mask, grad_query_0, second, PIECE_0, PIECE_1, HEAD_DIM)
