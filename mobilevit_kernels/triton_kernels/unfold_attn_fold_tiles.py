"""Tiles of one head's queries, keys or values, as one or two pieces of columns."""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import load_piece, store_piece

LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_head(pointer, offsets, mask, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The values of one head of some tokens, in two pieces; the second repeats the first where there is one only."""
    first = load_piece(pointer, offsets, mask, 0, PIECE_0, HEAD_DIM)  # [BLOCK, PIECE_0]
    second = first
    if PIECE_1 > 0:
        second = load_piece(pointer, offsets, mask, PIECE_0, PIECE_1, HEAD_DIM)  # [BLOCK, PIECE_1]
    return first, second


@triton.jit
def store_head(
    pointer,
    offsets,
    mask,
    first,
    second,
    PIECE_0: tl.constexpr,
    PIECE_1: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Writes what :func:`load_head` reads."""
    store_piece(pointer, offsets, mask, first, 0, PIECE_0, HEAD_DIM)
    if PIECE_1 > 0:
        store_piece(pointer, offsets, mask, second, PIECE_0, PIECE_1, HEAD_DIM)


@triton.jit
def row_products(a_0, a_1, b_0, b_1, PIECE_1: tl.constexpr, PRECISION: tl.constexpr):
    """A B^T of two tiles of rows: [rows of A, rows of B]."""
    products = tl.dot(a_0, tl.trans(b_0), input_precision=PRECISION)
    if PIECE_1 > 0:
        products = tl.dot(a_1, tl.trans(b_1), products, input_precision=PRECISION)
    return products


@triton.jit
def row_sums(a_0, a_1, b_0, b_1, PIECE_1: tl.constexpr):
    """Sums of the elementwise products of two tiles of rows, in float32."""
    sums = tl.sum(a_0.to(tl.float32) * b_0.to(tl.float32), 1)
    if PIECE_1 > 0:
        sums += tl.sum(a_1.to(tl.float32) * b_1.to(tl.float32), 1)
    return sums


@triton.jit
def statistics_row(group, head, num_heads, num_tokens):
    """Where logsumexp and delta ``[B, P, heads, N]`` of a group and head begin."""
    return (group.to(tl.int64) * num_heads + head) * num_tokens
