"""Where the tokens of a group lie in a map, for kernels and for their launchers."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """A map ``[B, C, H, W]`` as groups of tokens, one group per sample and pixel position in the patch.

    Attributes:
        batch: samples B.
        height: H, divisible by the patch.
        width: W, divisible by the patch.
        patch_size: (patch_h, patch_w).
    """

    batch: int
    height: int
    width: int
    patch_size: tuple[int, int]

    @staticmethod
    def of(x: Tensor, patch_size: tuple[int, int]) -> "TokenGrid":
        """The grid of a map."""
        return TokenGrid(x.shape[0], x.shape[2], x.shape[3], (patch_size[0], patch_size[1]))

    @property
    def positions(self) -> int:
        """P: pixel positions in a patch."""
        return self.patch_size[0] * self.patch_size[1]

    @property
    def groups(self) -> int:
        """B * P."""
        return self.batch * self.positions

    @property
    def grid_width(self) -> int:
        """Tokens of a group in one row of the map."""
        return self.width // self.patch_size[1]

    @property
    def tokens(self) -> int:
        """N: tokens of a group."""
        return self.height // self.patch_size[0] * self.grid_width

    def is_wide(self, *maps: Tensor) -> bool:
        """Whether an offset inside one sample of a map may exceed int32."""
        return any(
            (self.height - 1) * x.stride(2) + (self.width - 1) * x.stride(3) + x.shape[1] >= 2**31
            for x in maps
        )

    @property
    def constants(self) -> dict[str, int]:
        """The compile-time constants that the addressing takes."""
        return {"PATCH_H": self.patch_size[0], "PATCH_W": self.patch_size[1]}


def rows_of_channels(x: Tensor) -> Tensor:
    """``x`` where its channels are dense in memory, else a channels_last copy: kernels read tokens as rows."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def empty_map(like: Tensor, channels: int) -> Tensor:
    """A new map ``[B, channels, H, W]`` in channels_last memory, of the size, dtype and device of ``like``."""
    shape = (like.shape[0], channels, like.shape[2], like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@triton.jit
def token_pixels(group, tokens, grid_width, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Sample, row and column of tokens of a group (b * P + p), the sample as int64 so that offsets are."""
    position = group % (PATCH_H * PATCH_W)
    sample = (group // (PATCH_H * PATCH_W)).to(tl.int64)
    rows = tokens // grid_width * PATCH_H + position // PATCH_W
    columns = tokens % grid_width * PATCH_W + position % PATCH_W
    return sample, rows, columns


@triton.jit
def strided_offsets(sample, rows, columns, stride_b, stride_h, stride_w):
    """Offsets of pixels in a map of any strides."""
    return sample * stride_b + rows.to(tl.int64) * stride_h + columns.to(tl.int64) * stride_w


@triton.jit
def dense_rows(sample, rows, columns, num_tokens, grid_width, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Indices of pixels among all B * H * W of a channels_last map."""
    height = num_tokens // grid_width * PATCH_H
    return (sample * height + rows) * (grid_width * PATCH_W) + columns


@triton.jit
def map_offsets(
    group, tokens, grid_width, stride_b, stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr
):
    """Offsets of tokens of a group in a map of any strides."""
    sample, rows, columns = token_pixels(group, tokens, grid_width, PATCH_H, PATCH_W)
    return strided_offsets(sample, rows, columns, stride_b, stride_h, stride_w)


@triton.jit
def map_rows(group, tokens, num_tokens, grid_width, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Indices of tokens of a group among all B * H * W pixels of a channels_last map."""
    sample, rows, columns = token_pixels(group, tokens, grid_width, PATCH_H, PATCH_W)
    return dense_rows(sample, rows, columns, num_tokens, grid_width, PATCH_H, PATCH_W)


@triton.jit
def first_pixel(group, num_tokens, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """Sample of a group, and its first pixel among all B * H * W, both int64."""
    sample = (group // (PATCH_H * PATCH_W)).to(tl.int64)
    return sample, sample * (num_tokens * (PATCH_H * PATCH_W))


@triton.jit
def sample_offsets(
    group, tokens, grid_width, stride_h, stride_w, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets of tokens of a group inside their sample, for any strides; WIDE where int32 cannot hold them.

    Inside a sample int32 saves registers: a tile holds an address per element.
    """
    position = group % (PATCH_H * PATCH_W)
    rows = tokens // grid_width * PATCH_H + position // PATCH_W
    columns = tokens % grid_width * PATCH_W + position % PATCH_W
    if WIDE:
        rows = rows.to(tl.int64)
        columns = columns.to(tl.int64)
    return rows * stride_h + columns * stride_w


@triton.jit
def load_piece(pointer, offsets, mask, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Columns START to START + WIDTH of rows at ``offsets``, zeros beyond SIZE and where ``mask`` is false."""
    columns = START + tl.arange(0, WIDTH)
    addresses = pointer + offsets[:, None] + columns[None, :]
    inside = mask[:, None]
    if START + WIDTH > SIZE:
        inside = inside & (columns < SIZE)[None, :]
    return tl.load(addresses, mask=inside, other=0.0)


@triton.jit
def store_piece(pointer, offsets, mask, values, START: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Writes columns START to START + WIDTH of rows at ``offsets``, nothing beyond SIZE or where ``mask`` is false."""
    columns = START + tl.arange(0, WIDTH)
    addresses = pointer + offsets[:, None] + columns[None, :]
    inside = mask[:, None]
    if START + WIDTH > SIZE:
        inside = inside & (columns < SIZE)[None, :]
    tl.store(addresses, values.to(pointer.dtype.element_ty), mask=inside)


@lru_cache(maxsize=1024)
def pieces(size: int) -> tuple[int, int]:
    """Splits a row into one or two powers of two that cover it, at least 16 each, with the least padding.

    Matrix products of Triton take powers of two: 36 is computed as 32 + 16 rather than 64.
    """
    whole = max(16, triton.next_power_of_2(size))
    first = whole // 2
    second = max(16, triton.next_power_of_2(size - first)) if first >= 16 and size > first else whole
    return (first, second) if first + second < whole else (whole, 0)
