"""Triton kernels of linear layers on the tokens of a channels_last map, with what stands before and after them.

Rows are the B * H * W tokens of the map. Weights may have another dtype than the map: they are converted as they are
read, so that float32 parameters under autocast need no copy.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import load_piece


@triton.jit
def _load_vector(pointer, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Elements START to START + WIDTH of a vector in float32, zeros beyond SIZE: [1, WIDTH]."""
    columns = START + tl.arange(0, WIDTH)
    return tl.load(pointer + columns, mask=columns < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _square_deviations(values, mean, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Row sums of (values - mean)^2 over the columns below SIZE: [BLOCK_M]."""
    inside = (START + tl.arange(0, WIDTH) < SIZE)[None, :]
    deviations = tl.where(inside, values - mean, 0.0)
    return tl.sum(deviations * deviations, 1)


@triton.jit
def _project_and_store(
    first, second, weight, bias, out, first_row, num_rows, column_block, IN: tl.constexpr, OUT: tl.constexpr,
    PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, SILU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Rows in two pieces times BLOCK_O rows of the weight, plus bias, then SiLU where asked."""
    columns = column_block * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = columns < OUT
    weight_0 = load_piece(weight, columns * IN, inside, 0, PIECE_0, IN).to(first.dtype)  # [BLOCK_O, PIECE_0]
    result = tl.dot(first, tl.trans(weight_0), input_precision=PRECISION)
    if PIECE_1 > 0:
        weight_1 = load_piece(weight, columns * IN, inside, PIECE_0, PIECE_1, IN).to(first.dtype)
        result = tl.dot(second, tl.trans(weight_1), result, input_precision=PRECISION)
    result += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        result = result * tl.sigmoid(result)
    rows = tl.arange(0, BLOCK_M)
    addresses = out + first_row * OUT + rows[:, None] * OUT + columns[None, :]
    mask = (first_row + rows < num_rows)[:, None] & inside[None, :]
    tl.store(addresses, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_linear_kernel(
    x, norm_weight, norm_bias, weight, bias, out, eps, num_rows,
    IN: tl.constexpr, OUT: tl.constexpr, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, SILU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """LayerNorm of BLOCK_M rows, then BLOCK_O columns of a linear layer, then SiLU where asked."""
    column_blocks = tl.cdiv(OUT, BLOCK_O)
    program = tl.program_id(0)
    column_block = program % column_blocks
    first_row = (program // column_blocks).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    mask = first_row + rows < num_rows

    tile = x + first_row * IN
    values_0 = load_piece(tile, rows * IN, mask, 0, PIECE_0, IN).to(tl.float32)  # [BLOCK_M, PIECE_0]
    total = tl.sum(values_0, 1)
    if PIECE_1 > 0:
        values_1 = load_piece(tile, rows * IN, mask, PIECE_0, PIECE_1, IN).to(tl.float32)
        total += tl.sum(values_1, 1)
    mean = (total / IN)[:, None]
    squares = _square_deviations(values_0, mean, 0, PIECE_0, IN)
    if PIECE_1 > 0:
        squares += _square_deviations(values_1, mean, PIECE_0, PIECE_1, IN)
    scale = tl.rsqrt(squares / IN + eps)[:, None]

    gain = _load_vector(norm_weight, 0, PIECE_0, IN)
    first = ((values_0 - mean) * scale * gain + _load_vector(norm_bias, 0, PIECE_0, IN)).to(
        x.dtype.element_ty
    )
    second = first
    if PIECE_1 > 0:
        gain = _load_vector(norm_weight, PIECE_0, PIECE_1, IN)
        shift = _load_vector(norm_bias, PIECE_0, PIECE_1, IN)
        second = ((values_1 - mean) * scale * gain + shift).to(x.dtype.element_ty)
    _project_and_store(
        first, second, weight, bias, out, first_row, num_rows, column_block, IN, OUT, PIECE_0, PIECE_1, SILU,
        PRECISION, BLOCK_M, BLOCK_O,
    )  # fmt: skip


@triton.jit
def group_norm_affine_kernel(
    x, norm_weight, norm_bias, affine, eps, num_values, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """GroupNorm of one group as a gain and a shift per sample and channel: affine [B, 2, CHANNELS].

    A program takes one sample, num_values dense values of whole pixels, in blocks of BLOCK.
    """
    sample = tl.program_id(0).to(tl.int64)
    values_of = x + sample * num_values
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_values, BLOCK):
        places = start + tl.arange(0, BLOCK)
        sums += tl.load(values_of + places, mask=places < num_values, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / num_values
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_values, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(values_of + places, mask=places < num_values, other=0.0).to(tl.float32)
        deviations = tl.where(places < num_values, values - mean, 0.0)
        squares += deviations * deviations
    scale = tl.rsqrt(tl.sum(squares, 0) / num_values + eps)
    channels = tl.arange(0, BLOCK_C)
    mask = channels < CHANNELS
    gain = tl.load(norm_weight + channels, mask=mask, other=0.0).to(tl.float32) * scale
    shift = tl.load(norm_bias + channels, mask=mask, other=0.0).to(tl.float32) - mean * gain
    row = affine + sample * (2 * CHANNELS)
    tl.store(row + channels, gain, mask=mask)
    tl.store(row + CHANNELS + channels, shift, mask=mask)


@triton.jit
def _affine_piece(tile, affine, rows, mask, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Columns of rows of one sample with its gain and its shift: [BLOCK_M, WIDTH] in the dtype of the map."""
    values = load_piece(tile, rows * SIZE, mask, START, WIDTH, SIZE).to(tl.float32)
    gain = _load_vector(affine, START, WIDTH, SIZE)
    return (values * gain + _load_vector(affine + SIZE, START, WIDTH, SIZE)).to(tile.dtype.element_ty)


@triton.jit
def affine_linear_kernel(
    x, affine, weight, bias, out, rows_per_sample,
    IN: tl.constexpr, OUT: tl.constexpr, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr, SILU: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Gain and shift of a sample on BLOCK_M of its rows, then BLOCK_O columns of a linear layer, then SiLU."""
    column_blocks = tl.cdiv(OUT, BLOCK_O)
    row_blocks = tl.cdiv(rows_per_sample, BLOCK_M)
    program = tl.program_id(0)
    sample = (program // (column_blocks * row_blocks)).to(tl.int64)
    first = program // column_blocks % row_blocks * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    mask = first + rows < rows_per_sample
    first_row = sample * rows_per_sample + first
    tile = x + first_row * IN
    affine += sample * (2 * IN)
    values_0 = _affine_piece(tile, affine, rows, mask, 0, PIECE_0, IN)
    values_1 = values_0
    if PIECE_1 > 0:
        values_1 = _affine_piece(tile, affine, rows, mask, PIECE_0, PIECE_1, IN)
    _project_and_store(
        values_0, values_1, weight, bias, out, first_row, (sample + 1) * rows_per_sample, program % column_blocks, IN,
        OUT, PIECE_0, PIECE_1, SILU, PRECISION, BLOCK_M, BLOCK_O,
    )  # fmt: skip


@triton.jit
def linear_residual_kernel(
    x, weight, bias, residual, out, num_rows,
    IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """residual + linear layer: BLOCK_O columns of BLOCK_M rows."""
    column_blocks = tl.cdiv(OUT, BLOCK_O)
    program = tl.program_id(0)
    first_row = (program // column_blocks).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    mask = first_row + rows < num_rows
    columns = program % column_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    inside = columns < OUT
    tile = x + first_row * IN
    products = tl.zeros([BLOCK_M, BLOCK_O], tl.float32)
    for start in range(0, IN, BLOCK_K):
        terms = start + tl.arange(0, BLOCK_K)
        within = (terms < IN)[None, :]
        values = tl.load(
            tile + rows[:, None] * IN + terms[None, :], mask=mask[:, None] & within, other=0.0
        )  # [BLOCK_M, BLOCK_K]
        weights = tl.load(
            weight + columns[:, None] * IN + terms[None, :], mask=inside[:, None] & within, other=0.0
        ).to(values.dtype)  # [BLOCK_O, BLOCK_K]
        products = tl.dot(values, tl.trans(weights), products, input_precision=PRECISION)
    offsets = rows[:, None] * OUT + columns[None, :]
    stored = mask[:, None] & inside[None, :]
    addend = tl.load(residual + first_row * OUT + offsets, mask=stored, other=0.0).to(tl.float32)
    result = addend + products + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + first_row * OUT + offsets, result.to(out.dtype.element_ty), mask=stored)
