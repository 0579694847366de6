"""Tiles of tokens and of weights for the kernels of ``separable_attn``.

A tile is BLOCK_M slots: BLOCK_N tokens of each of BLOCK_M / BLOCK_N groups. Several groups share a tile only where
BLOCK_N holds all tokens of a group. Slots without a token are masked.
"""

import triton
import triton.language as tl

from mobilevit_kernels.triton_kernels.token_grid import load_piece, map_offsets


@triton.jit
def tile_start(tile, num_tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """First group and first token of a tile; tiles of the same groups follow each other."""
    blocks = tl.cdiv(num_tokens, BLOCK_N)
    return tile // blocks * (BLOCK_M // BLOCK_N), tile % blocks * BLOCK_N


@triton.jit
def tile_slots(
    first_group, first_token, num_groups, num_tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Group and token of every slot of a tile, and whether there is one: three times [BLOCK_M]."""
    slots = tl.arange(0, BLOCK_M)
    groups = first_group + slots // BLOCK_N
    tokens = first_token + slots % BLOCK_N
    return groups, tokens, (groups < num_groups) & (tokens < num_tokens)


@triton.jit
def load_tokens(
    x, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr,
):  # fmt: skip
    """Whole tokens as two pieces of columns; the second repeats the first where there is one only."""
    offsets = map_offsets(groups, tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W)
    first = load_piece(x, offsets, mask, 0, PIECE_0, CHANNELS)  # [BLOCK_M, PIECE_0]
    second = load_piece(x, offsets, mask, PIECE_0, PIECE_1, CHANNELS) if PIECE_1 > 0 else first
    return first, second


@triton.jit
def _normed(
    values, affine, first_group, groups, mask, POSITIONS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, ONE_GROUP: tl.constexpr,
):  # fmt: skip
    """Columns of tokens with the gain and the shift of their sample, affine [B, 2, CHANNELS], in their own dtype."""
    channels = START + tl.arange(0, WIDTH)
    inside = (channels < CHANNELS)[None, :]
    rows = affine + (first_group // POSITIONS).to(tl.int64) * (2 * CHANNELS)
    addresses = rows + channels[None, :]
    if not ONE_GROUP:
        samples = groups // POSITIONS - first_group // POSITIONS
        addresses = addresses + (samples * (2 * CHANNELS))[:, None]
        inside = inside & mask[:, None]
    gain = tl.load(addresses, mask=inside, other=0.0)
    shift = tl.load(addresses + CHANNELS, mask=inside, other=0.0)
    return (values.to(tl.float32) * gain + shift).to(values.dtype)


@triton.jit
def load_normed_tokens(
    x, affine, first_group, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr, CHANNELS: tl.constexpr, PIECE_0: tl.constexpr, PIECE_1: tl.constexpr,
    NORM: tl.constexpr, ONE_GROUP: tl.constexpr,
):  # fmt: skip
    """:func:`load_tokens`, and their norm where NORM; ONE_GROUP where all are of the first group."""
    x_0, x_1 = load_tokens(
        x, groups, tokens, mask, grid_width, stride_b, stride_h, stride_w, PATCH_H, PATCH_W, CHANNELS, PIECE_0, PIECE_1
    )  # fmt: skip
    if NORM:
        POSITIONS: tl.constexpr = PATCH_H * PATCH_W
        x_0 = _normed(x_0, affine, first_group, groups, mask, POSITIONS, 0, PIECE_0, CHANNELS, ONE_GROUP)
        if PIECE_1 > 0:
            x_1 = _normed(
                x_1, affine, first_group, groups, mask, POSITIONS, PIECE_0, PIECE_1, CHANNELS, ONE_GROUP
            )
    return x_0, x_1


@triton.jit
def load_weight(weight, rows, columns, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """A block of a weight [any, CHANNELS], zeros where a row or a column is not below CHANNELS; none is if EVEN."""
    addresses = weight + rows[:, None] * CHANNELS + columns[None, :]
    if EVEN:
        return tl.load(addresses)
    return tl.load(addresses, mask=(rows < CHANNELS)[:, None] & (columns < CHANNELS)[None, :], other=0.0)


@triton.jit
def load_columns(pointer, offsets, mask, columns, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """Some columns of rows at ``offsets``, zeros where ``mask`` is false or (unless EVEN) a column is past CHANNELS."""
    addresses = pointer + offsets[:, None] + columns[None, :]
    if EVEN:
        return tl.load(addresses, mask=mask[:, None], other=0.0)
    return tl.load(addresses, mask=mask[:, None] & (columns < CHANNELS)[None, :], other=0.0)


@triton.jit
def store_columns(pointer, offsets, mask, columns, values, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """Writes what :func:`load_columns` reads."""
    addresses = pointer + offsets[:, None] + columns[None, :]
    values = values.to(pointer.dtype.element_ty)
    if EVEN:
        tl.store(addresses, values, mask=mask[:, None])
    else:
        tl.store(addresses, values, mask=mask[:, None] & (columns < CHANNELS)[None, :])


@triton.jit
def load_vector(vector, channels, CHANNELS: tl.constexpr, PRESENT: tl.constexpr):
    """Elements of a bias as float32, zeros beyond CHANNELS and where the bias is absent."""
    if PRESENT:
        return tl.load(vector + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    return tl.zeros(channels.shape, tl.float32)


@triton.jit
def load_group_rows(
    vectors, first_group, groups, mask, channels, CHANNELS: tl.constexpr, ONE_GROUP: tl.constexpr
):  # fmt: skip
    """Channels of the vector of each slot's group, of vectors [groups, CHANNELS]: [BLOCK_M or 1, channels]."""
    rows = vectors + first_group.to(tl.int64) * CHANNELS
    if ONE_GROUP:
        values = tl.load(rows + channels, mask=channels < CHANNELS, other=0.0)[None, :]
    else:
        addresses = rows + ((groups - first_group) * CHANNELS)[:, None] + channels[None, :]
        values = tl.load(addresses, mask=mask[:, None] & (channels < CHANNELS)[None, :], other=0.0)
    return values


@triton.jit
def rectified(value):
    """max(value, 0) that keeps NaN, as torch's relu does."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def group_sums(values, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr):
    """Sums over the slots of each group: [GROUPS * BLOCK_N, WIDTH] to [GROUPS, WIDTH]."""
    return tl.sum(tl.reshape(values, (GROUPS, BLOCK_N, WIDTH)), 1)
