"""Candidate configurations of the kernels of ``unfold_attn_fold``: few, the best guess first, none that spills."""

from dataclasses import dataclass
from functools import lru_cache

import triton

from mobilevit_kernels.triton_kernels.launch import Config, Target, register_group

FORWARD = "unfold_attn_fold_forward"
BACKWARD = "unfold_attn_fold_backward"
FAMILIES = (FORWARD, BACKWARD)
# Up to here a device has more processors than there are groups: more, smaller programs are then the better guess.
FEW_GROUPS = 64


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
    def group(self) -> str:
        """Problems for which a configuration compiles to about the same registers."""
        return register_group(self.itemsize, self.exact, self.pieces)

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
    if shape.width > 128:
        return (_online(16, 16, warps=4), _online(16, 16, warps=8))
    if shape.itemsize == 4:
        return _single_precision_forward(shape)
    block = shape.block
    if block == 16:
        counts = (1, 4) if shape.groups <= FEW_GROUPS else (4, 1)
        return tuple(_resident(16, 16, 1, warps=1, heads=shape.shared_heads(count)) for count in counts)
    if block == 32:
        return (_resident(32, 32, 1, warps=2), _resident(32, 32, 1, warps=4))
    if block == 64:
        shared = _resident(64, 64, 1, warps=4, heads=shape.shared_heads(2))
        return (_resident(64, 64, 1, warps=4), shared, _resident(64, 64, 1, warps=8))
    online = (
        _online(64, 64, warps=4, stages=2),
        _online(128, 64, warps=8, stages=2),
        _online(64, 32, warps=4),
    )
    if block > 256:
        return online
    whole, single = _resident(64, block, block // 64, warps=4), _resident(64, block, 1, warps=4)
    resident = (single, whole) if shape.groups <= FEW_GROUPS else (whole, single)
    return (*resident, online[0], online[2])


def _single_precision_forward(shape: Shape) -> tuple[Config, ...]:
    small = (
        _online(32, 32, warps=4),
        _online(32, 32, warps=8),
        _online(16, 16, warps=4),
        _online(16, 16, warps=1),
    )
    if shape.block == 16:
        return (_resident(16, 16, 1, warps=1), _resident(16, 16, 1, warps=4), *small[2:])
    return small if shape.exact else (_online(64, 64, warps=8), *small)


def _online(block_m: int, block_n: int, warps: int, stages: int = 1) -> Config:
    return Config.of(warps, stages, variant="online", BLOCK_M=block_m, BLOCK_N=block_n)


def _resident(block_m: int, block_n: int, query_blocks: int, warps: int, heads: int = 1) -> Config:
    return Config.of(
        warps, variant="resident", BLOCK_M=block_m, BLOCK_N=block_n, QUERY_BLOCKS=query_blocks, HEADS=heads
    )


@lru_cache(maxsize=1024)
def backward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the backward pass: one kernel where a group stays on chip, else three."""
    block = shape.block
    smallest = (_tiled(16, 16, warps=4), _tiled(16, 16, warps=8), _tiled(16, 16, warps=2))
    if shape.width > 128 or (shape.itemsize == 4 and block == 16):
        return smallest
    if shape.itemsize == 4:
        return (_tiled(32, 32, warps=8), _tiled(32, 32, warps=4), *smallest)
    if block == 16:
        shared = _resident_backward(16, 16, 1, shape.shared_heads(2))
        return (_resident_backward(16, 16, warps=1), shared, _resident_backward(16, 16, warps=4))
    if block == 32:
        return (
            _resident_backward(32, 32, warps=2),
            _resident_backward(32, 32, warps=4),
            _resident_backward(32, 16, warps=4),
        )
    tiled = (_tiled(64, 32, warps=4), _tiled(64, 64, warps=8), _tiled(32, 32, warps=4))
    if block == 64:
        return (
            _resident_backward(64, 64, warps=8),
            _resident_backward(64, 32, warps=8),
            _resident_backward(64, 16, warps=4),
            tiled[2],
        )
    return (*tiled, _tiled(64, 32, warps=8))


def _resident_backward(block_m: int, block_n: int, warps: int, heads: int = 1) -> Config:
    return Config.of(warps, variant="resident", BLOCK_M=block_m, BLOCK_N=block_n, HEADS=heads)


def _tiled(block: int, step: int, warps: int) -> Config:
    """Each program owns ``block`` rows and takes the rows it meets in steps."""
    return Config.of(warps, variant="tiled", BLOCK=block, STEP=step)
