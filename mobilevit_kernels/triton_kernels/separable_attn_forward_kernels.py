"""Triton kernels of the forward pass of ``separable_attn`` past the pooling.

For each token x_n of a group: out_n = W_o (relu(W_v x_n + b_v) * context) + b_o. Either both products run in one
kernel, and their intermediate never leaves the chip, or :func:`projection_kernel` writes it.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.separable_attn_pool_kernels import (
    pool_groups,
    project_pooled,
)
from mobilevit_kernels.triton_kernels.separable_attn_tiles import (
    load_columns,
    load_group_rows,
    load_normed_tokens,
    load_tokens,
    load_vector,
    load_weight,
    rectified,
    store_columns,
    tile_slots,
    tile_start,
)
from mobilevit_kernels.triton_kernels.token_grid import map_offsets, map_rows, store_piece


@triton.jit
def _project_tile(
    x, affine, qkv_weight, qkv_bias, out_weight, out_bias, context, out, first_group, first_token, num_groups,
    num_tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    CHANNELS: tl.constexpr, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, LAYER: tl.constexpr,
    HAS_QKV_BIAS: tl.constexpr, HAS_OUT_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes the output of a tile; values pass in blocks of BLOCK_C channels from one product to the next.

    LAYER: the tokens take the gain and the shift of their sample first, and are added to the output as they were.
    """
    groups, tokens, mask = tile_slots(first_group, first_token, num_groups, num_tokens, BLOCK_M, BLOCK_N)
    x_0, x_1 = load_normed_tokens(
        x, affine, first_group, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W,
        CHANNELS, PIECE_0, PIECE_1, LAYER, BLOCK_M == BLOCK_N,
    )  # fmt: skip
    columns_0 = tl.arange(0, PIECE_0)
    columns_1 = columns_0
    out_0 = tl.zeros([BLOCK_M, PIECE_0], tl.float32)
    out_1 = out_0
    if PIECE_1 > 0:
        columns_1 = PIECE_0 + tl.arange(0, PIECE_1)
        out_1 = tl.zeros([BLOCK_M, PIECE_1], tl.float32)
    EVEN_0: tl.constexpr = CHANNELS % BLOCK_C == 0 and PIECE_0 <= CHANNELS
    EVEN_1: tl.constexpr = CHANNELS % BLOCK_C == 0 and PIECE_0 + PIECE_1 <= CHANNELS
    value_weight = qkv_weight + (1 + CHANNELS) * CHANNELS
    for start in range(0, CHANNELS, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        weight = load_weight(value_weight, channels, columns_0, CHANNELS, EVEN_0).to(x_0.dtype)
        value = tl.dot(x_0, tl.trans(weight), input_precision=PRECISION)  # [BLOCK_M, BLOCK_C]
        if PIECE_1 > 0:
            weight = load_weight(value_weight, channels, columns_1, CHANNELS, EVEN_1).to(x_0.dtype)
            value = tl.dot(x_1, tl.trans(weight), value, input_precision=PRECISION)
        value += load_vector(qkv_bias + 1 + CHANNELS, channels, CHANNELS, HAS_QKV_BIAS)[None, :]
        factors = load_group_rows(context, first_group, groups, mask, channels, CHANNELS, BLOCK_M == BLOCK_N)
        hidden = (rectified(value) * factors).to(x_0.dtype)
        weight = load_weight(out_weight, columns_0, channels, CHANNELS, EVEN_0).to(x_0.dtype)
        out_0 = tl.dot(hidden, tl.trans(weight), out_0, input_precision=PRECISION)
        if PIECE_1 > 0:
            weight = load_weight(out_weight, columns_1, channels, CHANNELS, EVEN_1).to(x_0.dtype)
            out_1 = tl.dot(hidden, tl.trans(weight), out_1, input_precision=PRECISION)

    if LAYER:
        x_0, x_1 = load_tokens(
            x, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0,
            PIECE_1,
        )  # fmt: skip
        out_0 += x_0.to(tl.float32)
        if PIECE_1 > 0:
            out_1 += x_1.to(tl.float32)
    offsets = map_rows(groups, tokens, num_tokens, grid_width, PATCH_H, PATCH_W) * CHANNELS
    out_0 += load_vector(out_bias, columns_0, CHANNELS, HAS_OUT_BIAS)[None, :]
    store_piece(out, offsets, mask, out_0, 0, PIECE_0, CHANNELS)
    if PIECE_1 > 0:
        out_1 += load_vector(out_bias, columns_1, CHANNELS, HAS_OUT_BIAS)[None, :]
        store_piece(out, offsets, mask, out_1, PIECE_0, PIECE_1, CHANNELS)


@triton.jit
def output_kernel(
    x, affine, qkv_weight, qkv_bias, out_weight, out_bias, context, out, num_groups, num_tokens, grid_width, stride_b,
    stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, LAYER: tl.constexpr, HAS_QKV_BIAS: tl.constexpr,
    HAS_OUT_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The output of one tile, from contexts [groups, CHANNELS]."""
    first_group, first_token = tile_start(tl.program_id(0), num_tokens, BLOCK_M, BLOCK_N)
    _project_tile(
        x, affine, qkv_weight, qkv_bias, out_weight, out_bias, context, out, first_group, first_token, num_groups,
        num_tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, LAYER,
        HAS_QKV_BIAS, HAS_OUT_BIAS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_C,
    )  # fmt: skip


@triton.jit
def whole_kernel(
    x, qkv_weight, qkv_bias, out_weight, out_bias, scores, pooled, context, out, num_groups, num_tokens, grid_width,
    stride_b, stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, HAS_QKV_BIAS: tl.constexpr, HAS_OUT_BIAS: tl.constexpr,
    SAVE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Everything about BLOCK_M / BLOCK_N groups, whose tokens come from the cache the second time.

    A lone group is pooled in smaller blocks, as the tokens are in float32 then.
    """
    GROUPS: tl.constexpr = BLOCK_M // BLOCK_N
    POOL_N: tl.constexpr = BLOCK_N if GROUPS > 1 else (BLOCK_N + 1) // 2
    first_group = tl.program_id(0) * GROUPS
    pool_groups(
        x, x, qkv_weight, scores, pooled, first_group, num_groups, num_tokens, grid_width, stride_b, stride_h,
        stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, False, SAVE, GROUPS, POOL_N,
    )  # fmt: skip
    project_pooled(
        x, pooled, qkv_weight, qkv_bias, context, first_group, num_groups, CHANNELS, PIECE_0, PIECE_1, HAS_QKV_BIAS,
        PRECISION, GROUPS, BLOCK_C,
    )  # fmt: skip
    # Other threads than those that stored a context load it.
    tl.debug_barrier()
    for start in range(0, num_tokens, BLOCK_N):
        _project_tile(
            x, x, qkv_weight, qkv_bias, out_weight, out_bias, context, out, first_group, start, num_groups, num_tokens,
            grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1, False, HAS_QKV_BIAS,
            HAS_OUT_BIAS, PRECISION, BLOCK_M, BLOCK_N, BLOCK_C,
        )  # fmt: skip


@triton.jit
def projection_kernel(
    source, weight, bias, context, out, num_groups, num_tokens, grid_width, stride_b, stride_h, stride_w,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, FIRST_ROW: tl.constexpr,
    HAS_QKV_BIAS: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """W x_n + b for BLOCK_C channels of a tile, W and b being CHANNELS rows from FIRST_ROW; dense rows are written.

    GATED: relu(W x_n + b) * context of the token's group.
    """
    column_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    dtype: tl.constexpr = weight.dtype.element_ty
    first_group, first_token = tile_start(tl.program_id(0) // column_blocks, num_tokens, BLOCK_M, BLOCK_N)
    channels = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    groups, tokens, mask = tile_slots(first_group, first_token, num_groups, num_tokens, BLOCK_M, BLOCK_N)
    offsets = map_offsets(groups, tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W)
    EVEN: tl.constexpr = CHANNELS % BLOCK_C == 0 and CHANNELS % BLOCK_K == 0
    rows = weight + FIRST_ROW * CHANNELS
    value = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, CHANNELS, BLOCK_K):
        inputs = start + tl.arange(0, BLOCK_K)
        x = load_columns(source, offsets, mask, inputs, CHANNELS, EVEN).to(dtype)
        block = load_weight(rows, channels, inputs, CHANNELS, EVEN)
        value = tl.dot(x, tl.trans(block), value, input_precision=PRECISION)
    value += load_vector(bias + FIRST_ROW, channels, CHANNELS, HAS_QKV_BIAS)[None, :]
    if GATED:
        factors = load_group_rows(context, first_group, groups, mask, channels, CHANNELS, BLOCK_M == BLOCK_N)
        value = rectified(value) * factors
    rows = map_rows(groups, tokens, num_tokens, grid_width, PATCH_H, PATCH_W)
    store_columns(out, rows * CHANNELS, mask, channels, value, CHANNELS, EVEN)
