"""Triton kernels of the backward pass of ``unfold_attn_fold`` for groups of any size: delta, then keys, then queries.

The mathematics is that of ``unfold_attn_fold_backward_kernels.py``; every gradient is summed in a fixed order.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import first_pixel, sample_offsets
from mobilevit_kernels.triton_kernels.unfold_attn_fold_backward_kernels import transposed_weights
from mobilevit_kernels.triton_kernels.unfold_attn_fold_tiles import (
    LOG2_E,
    load_head,
    row_products,
    row_sums,
    statistics_row,
    store_head,
)


@triton.jit
def delta_kernel(
    grad_out, out, delta, num_tokens, grid_width, num_heads, grad_stride_b, grad_stride_h, grad_stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO * O) of BLOCK queries of one head of one group, laid out as logsumexp is."""
    query_programs = tl.cdiv(num_tokens, BLOCK)
    program = tl.program_id(0)
    head = program % num_heads
    group = program // (num_heads * query_programs)
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    grad_out += sample * grad_stride_b
    out += pixel * channels
    queries = program // num_heads % query_programs * BLOCK + tl.arange(0, BLOCK)
    mask = queries < num_tokens
    grad_offsets = sample_offsets(
        group, queries, grid_width, grad_stride_h, grad_stride_w, PATCH_H, PATCH_W, WIDE
    )
    row_stride = grid_width * PATCH_W * channels
    rows = sample_offsets(group, queries, grid_width, row_stride, channels, PATCH_H, PATCH_W, WIDE)
    shift = head * HEAD_DIM
    grad_0, grad_1 = load_head(grad_out + shift, grad_offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
    out_0, out_1 = load_head(out + shift, rows, mask, PIECE_0, PIECE_1, HEAD_DIM)
    row = delta + statistics_row(group, head, num_heads, num_tokens)
    tl.store(row + queries, row_sums(grad_0, grad_1, out_0, out_1, PIECE_1), mask=mask)


@triton.jit
def key_backward_kernel(
    grad_out, qkv, logsumexp, delta, grad_qkv, scale, num_tokens, grid_width, num_heads,
    grad_stride_b, grad_stride_h, grad_stride_w, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dK and dV of BLOCK keys of one head of one group, while its queries pass in blocks of STEP."""
    key_programs = tl.cdiv(num_tokens, BLOCK)
    program = tl.program_id(0)
    head = program % num_heads
    group = program // (num_heads * key_programs)
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    grad_out += sample * grad_stride_b
    qkv += sample * stride_b
    grad_qkv += pixel * (3 * channels)
    row_stride = grid_width * PATCH_W * channels
    shift = head * HEAD_DIM
    scale_log2 = scale * LOG2_E
    statistics = statistics_row(group, head, num_heads, num_tokens)

    keys = program // num_heads % key_programs * BLOCK + tl.arange(0, BLOCK)
    key_mask = keys < num_tokens
    key_offsets = sample_offsets(group, keys, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
    keys_of = qkv + shift + channels
    key_0, key_1 = load_head(keys_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
    value_0, value_1 = load_head(keys_of + channels, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)

    grad_key_0 = tl.zeros([BLOCK, PIECE_0], tl.float32)
    grad_value_0 = tl.zeros([BLOCK, PIECE_0], tl.float32)
    if PIECE_1 > 0:
        grad_key_1 = tl.zeros([BLOCK, PIECE_1], tl.float32)
        grad_value_1 = tl.zeros([BLOCK, PIECE_1], tl.float32)
    for start in range(0, num_tokens, STEP):
        queries = start + tl.arange(0, STEP)
        mask = queries < num_tokens
        offsets = sample_offsets(group, queries, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
        grad_offsets = sample_offsets(
            group, queries, grid_width, grad_stride_h, grad_stride_w, PATCH_H, PATCH_W, WIDE
        )
        query_0, query_1 = load_head(qkv + shift, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
        grad_0, grad_1 = load_head(grad_out + shift, grad_offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
        logsumexp_log2 = tl.load(logsumexp + statistics + queries, mask=mask, other=0.0) * LOG2_E
        row_delta = tl.load(delta + statistics + queries, mask=mask, other=0.0)
        weights, grad_scores = transposed_weights(
            query_0, query_1, grad_0, grad_1, key_0, key_1, value_0, value_1, logsumexp_log2, row_delta,
            key_mask[:, None] & mask[None, :], scale_log2, PIECE_1, PRECISION,
        )  # fmt: skip
        grad_value_0 = tl.dot(weights, grad_0, grad_value_0, input_precision=PRECISION)
        grad_key_0 = tl.dot(grad_scores, query_0, grad_key_0, input_precision=PRECISION)
        if PIECE_1 > 0:
            grad_value_1 = tl.dot(weights, grad_1, grad_value_1, input_precision=PRECISION)
            grad_key_1 = tl.dot(grad_scores, query_1, grad_key_1, input_precision=PRECISION)

    rows = sample_offsets(group, keys, grid_width, 3 * row_stride, 3 * channels, PATCH_H, PATCH_W, WIDE)
    grad_key_0 = grad_key_0 * scale
    key_second = grad_key_0
    value_second = grad_value_0
    if PIECE_1 > 0:
        key_second = grad_key_1 * scale
        value_second = grad_value_1
    to = grad_qkv + shift + channels
    store_head(to, rows, key_mask, grad_key_0, key_second, PIECE_0, PIECE_1, HEAD_DIM)
    store_head(to + channels, rows, key_mask, grad_value_0, value_second, PIECE_0, PIECE_1, HEAD_DIM)


@triton.jit
def query_backward_kernel(
    grad_out, qkv, logsumexp, delta, grad_qkv, scale, num_tokens, grid_width, num_heads,
    grad_stride_b, grad_stride_h, grad_stride_w, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dQ of BLOCK queries of one head of one group, while its keys and values pass in blocks of STEP."""
    query_programs = tl.cdiv(num_tokens, BLOCK)
    program = tl.program_id(0)
    head = program % num_heads
    group = program // (num_heads * query_programs)
    channels = num_heads * HEAD_DIM
    sample, pixel = first_pixel(group, num_tokens, PATCH_H, PATCH_W)
    grad_out += sample * grad_stride_b
    qkv += sample * stride_b
    grad_qkv += pixel * (3 * channels)
    row_stride = grid_width * PATCH_W * channels
    shift = head * HEAD_DIM
    scale_log2 = scale * LOG2_E
    statistics = statistics_row(group, head, num_heads, num_tokens)

    queries = program // num_heads % query_programs * BLOCK + tl.arange(0, BLOCK)
    mask = queries < num_tokens
    offsets = sample_offsets(group, queries, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
    grad_offsets = sample_offsets(
        group, queries, grid_width, grad_stride_h, grad_stride_w, PATCH_H, PATCH_W, WIDE
    )
    query_0, query_1 = load_head(qkv + shift, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
    grad_0, grad_1 = load_head(grad_out + shift, grad_offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)
    logsumexp_log2 = tl.load(logsumexp + statistics + queries, mask=mask, other=0.0) * LOG2_E
    row_delta = tl.load(delta + statistics + queries, mask=mask, other=0.0)

    grad_query_0 = tl.zeros([BLOCK, PIECE_0], tl.float32)
    if PIECE_1 > 0:
        grad_query_1 = tl.zeros([BLOCK, PIECE_1], tl.float32)
    for start in range(0, num_tokens, STEP):
        keys = start + tl.arange(0, STEP)
        key_mask = keys < num_tokens
        key_offsets = sample_offsets(group, keys, grid_width, stride_h, stride_w, PATCH_H, PATCH_W, WIDE)
        keys_of = qkv + shift + channels
        key_0, key_1 = load_head(keys_of, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        value_0, value_1 = load_head(keys_of + channels, key_offsets, key_mask, PIECE_0, PIECE_1, HEAD_DIM)
        inside = mask[:, None] & key_mask[None, :]
        scores = row_products(query_0, query_1, key_0, key_1, PIECE_1, PRECISION) * scale_log2
        weights = tl.where(inside, tl.exp2(scores - logsumexp_log2[:, None]), 0.0)  # [BLOCK, STEP]
        grad_weights = row_products(grad_0, grad_1, value_0, value_1, PIECE_1, PRECISION)
        grad_scores = tl.where(inside, weights * (grad_weights - row_delta[:, None]), 0.0).to(key_0.dtype)
        grad_query_0 = tl.dot(grad_scores, key_0, grad_query_0, input_precision=PRECISION)
        if PIECE_1 > 0:
            grad_query_1 = tl.dot(grad_scores, key_1, grad_query_1, input_precision=PRECISION)

    rows = sample_offsets(group, queries, grid_width, 3 * row_stride, 3 * channels, PATCH_H, PATCH_W, WIDE)
    grad_query_0 = grad_query_0 * scale
    second = grad_query_0
    if PIECE_1 > 0:
        second = grad_query_1 * scale
    store_head(grad_qkv + shift, rows, mask, grad_query_0, second, PIECE_0, PIECE_1, HEAD_DIM)
