"""Candidate configurations of the kernels of ``unfold_attn_fold``: few, the best guess first, none that spills."""

from dataclasses import dataclass
from functools import lru_cache

import triton

from mobilevit_kernels.triton_kernels.launch import Config, Target

FORWARD = "unfold_attn_fold_forward"
BACKWARD = "unfold_attn_fold_backward"
FAMILIES = (FORWARD, BACKWARD)


@dataclass(frozen=True)
class Shape:
    """What the best configuration depends on.

    Attributes:
        groups: B * P.
        tokens: N.
        heads: number of heads.
        pieces: columns of a head in one or two powers of two.
        itemsize: bytes of an element.
        exact: products of float32 without tensor cores.
        target: what is compiled for.
    """

    groups: int
    tokens: int
    heads: int
    pieces: tuple[int, int]
    itemsize: int
    exact: bool
    target: Target

    @property
    def width(self) -> int:
        """Columns of a head with their padding."""
        return sum(self.pieces)

    @property
    def block(self) -> int:
        """Smallest tile that holds all tokens of a group."""
        return max(16, triton.next_power_of_2(self.tokens))

    def shared_heads(self, most: int) -> int:
        """The largest power of two up to ``most`` that divides the heads."""
        return next(count for count in (4, 2, 1) if count <= most and self.heads % count == 0)


@lru_cache(maxsize=1024)
def forward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the forward pass: all keys on chip where they fit, else blocks of them."""
    if shape.exact:
        return _exact_forward(shape)
    resident = _resident_forward(shape)
    online = (
        _online(64, 64, warps=4, stages=2),
        _online(128, 64, warps=8, stages=2),
    )
    if shape.width > 128 or shape.itemsize == 4:
        online = (_online(64, 32, warps=4, stages=1),)
    if shape.width > 256:
        online = (_online(16, 16, warps=4, stages=1),)
    return resident or online


def _online(block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config.of(warps, stages, variant="online", BLOCK_M=block_m, BLOCK_N=block_n)


def _resident(block_m: int, block_n: int, query_blocks: int, heads: int, warps: int) -> Config:
    return Config.of(
        warps,
        variant="resident",
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        QUERY_BLOCKS=query_blocks,
        HEADS=heads,
    )


def _resident_forward(shape: Shape) -> tuple[Config, ...]:
    block = shape.block
    if shape.width > 128 or block > (256 if shape.itemsize == 2 else 64):
        return ()
    if block <= 32:
        return tuple(
            _resident(block, block, 1, shape.shared_heads(heads), warps=1)
            for heads in ((1, 4) if shape.groups <= 64 else (4, 1))
        )
    if block == 64:
        return (
            _resident(64, 64, 1, 1, warps=4),
            _resident(64, 64, 1, shape.shared_heads(2), warps=4),
            _resident(32, 64, 2, 1, warps=2),
        )
    blocks = block // 64
    return (
        _resident(64, block, blocks, 1, warps=4),
        _resident(64, block, 1, 1, warps=4),
        _online(64, 64, warps=4, stages=2),
    )


def _exact_forward(shape: Shape) -> tuple[Config, ...]:
    if shape.width > 128:
        return (_online(16, 16, warps=4, stages=1),)
    if shape.block == 16:
        return (_resident(16, 16, 1, 1, warps=1),)
    return (_online(32, 32, warps=4, stages=1),)


@lru_cache(maxsize=1024)
def backward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the backward pass: one kernel where a group stays on chip, else three."""
    if shape.exact:
        block = 16 if shape.width > 128 or shape.block == 16 else 32
        return (_tiled(block, block, warps=1 if shape.block == 16 else 4),)
    block = shape.block
    if shape.width > 128:
        return (_tiled(16, 16, warps=4),) if shape.width > 256 else (_tiled(32, 32, warps=4),)
    if shape.itemsize == 4:
        return (_tiled(32, 32, warps=4),)
    if block <= 32:
        return tuple(
            _resident_backward(block, 16, shape.shared_heads(heads), warps=1)
            for heads in ((1, 4) if shape.groups <= 64 else (4, 1))
        )
    if block == 64:
        return (
            _resident_backward(64, 32, 1, warps=4),
            _resident_backward(64, 64, 1, warps=4),
        )
    tiled = _tiled(64, 64, warps=4)
    if shape.width > 64:
        return (tiled,)
    return (_resident_backward(block, 32, 1, warps=4 if block == 128 else 8), tiled)


def _resident_backward(block_m: int, block_n: int, heads: int, warps: int) -> Config:
    return Config.of(warps, variant="resident", BLOCK_M=block_m, BLOCK_N=block_n, HEADS=heads)


def _tiled(block_m: int, block_n: int, warps: int) -> Config:
    return Config.of(warps, variant="tiled", BLOCK_M=block_m, BLOCK_N=block_n)
