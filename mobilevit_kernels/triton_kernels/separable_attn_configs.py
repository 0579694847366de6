"""Candidate configurations of the kernels of ``separable_attn``: few, the best guess first, none that spills."""

from dataclasses import dataclass
from functools import lru_cache

import triton

from mobilevit_kernels.triton_kernels.launch import Config, Target, register_group
from mobilevit_kernels.triton_kernels.token_grid import pieces

FORWARD = "separable_attn_forward"
WHOLE = "separable_attn_whole"
POOL = "separable_attn_pool"
CONTEXT = "separable_attn_context"
OUTPUT = "separable_attn_output"
PROJECTION = "separable_attn_projection"
GATE_BACKWARD = "separable_attn_gate_backward"
QUERY_BACKWARD = "separable_attn_query_backward"
INPUT_BACKWARD = "separable_attn_input_backward"
FAMILIES = (
    FORWARD, WHOLE, POOL, CONTEXT, OUTPUT, PROJECTION, GATE_BACKWARD, QUERY_BACKWARD, INPUT_BACKWARD
)  # fmt: skip

# Programs below which the processors of a large GPU are not all busy.
FEW_PROGRAMS = 128


@dataclass(frozen=True)
class Shape:
    """What the best configuration depends on.

    Attributes:
        groups: B * P.
        tokens: N.
        channels: C.
        itemsize: bytes of an element.
        exact: products of float32 without tensor cores.
        target: what is compiled for.
    """

    groups: int
    tokens: int
    channels: int
    itemsize: int
    exact: bool
    target: Target

    @property
    def group(self) -> str:
        """Problems for which a configuration compiles to about the same registers."""
        return register_group(self.itemsize, self.exact, pieces(self.channels))

    @property
    def width(self) -> int:
        """Columns of a token with their padding."""
        return sum(pieces(self.channels))

    def block_n(self, block_m: int) -> int:
        """Tokens of one group in a tile of ``block_m`` slots."""
        return min(block_m, triton.next_power_of_2(self.tokens))

    def pool_programs(self, block_m: int) -> int:
        """Programs of a kernel that pools whole groups."""
        return -(-self.groups // (block_m // self.block_n(block_m)))

    def tiles(self, block_m: int) -> int:
        """Tiles of ``block_m`` slots that hold all tokens."""
        return self.pool_programs(block_m) * -(-self.tokens // self.block_n(block_m))


def _block(size: int, most: int) -> int:
    """A power of two of at least 16 and at most ``most`` that needs no more than ``size``."""
    return max(16, min(most, triton.next_power_of_2(size)))


@lru_cache(maxsize=1024)
def forward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Variants of the forward pass.

    "whole" is one kernel; "split" pools in one kernel and projects in another, which keeps more processors busy where
    groups are few; "products" writes relu(value) * context, for channels that do not fit on chip or exact products.
    """
    products = Config.of(variant="products")
    if shape.exact or shape.width > 256:
        return (products,)
    whole, split = Config.of(variant="whole"), Config.of(variant="split")
    if shape.pool_programs(64) < FEW_PROGRAMS:
        return split, whole, products
    return whole, split, products


@lru_cache(maxsize=1024)
def whole_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the kernel that does everything for some groups."""
    return tuple(Config.of(w, stages, BLOCK_M=m, BLOCK_C=c) for m, c, w, stages in _chained(shape))


@lru_cache(maxsize=1024)
def output_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the kernel that runs both products of a tile."""
    chained = _chained(shape)
    if shape.tiles(64) < FEW_PROGRAMS:
        chained.insert(0, (16, 32, 4, 2))
    return tuple(Config.of(w, stages, BLOCK_M=m, BLOCK_C=c) for m, c, w, stages in chained)


def _chained(shape: Shape) -> list[tuple[int, int, int, int]]:
    """BLOCK_M, BLOCK_C, warps and stages of two products in a chain, whose accumulators are as wide as a token."""
    wide = [(64, 32, 8, 2), (64, 64, 8, 2)] if shape.itemsize == 2 else [(64, 32, 8, 2), (32, 32, 8, 2)]
    narrow = [(64, 64, 4, 2), (64, 32, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)]
    small = [(32, 32, 4, 2), (16, 32, 4, 2), (16, 16, 4, 1)]
    blocks = [*(narrow if shape.width <= 128 else wide), *small]
    return [block for block in blocks if _chained_bytes(shape, *block) <= shape.target.shared_bytes]


def _chained_bytes(shape: Shape, block_m: int, block_c: int, warps: int, stages: int) -> int:
    """About what the tokens of a tile and both weights' blocks take of shared memory."""
    return (block_m + 2 * stages * block_c) * (shape.width + 16) * shape.itemsize


@lru_cache(maxsize=1024)
def pool_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the kernel that pools groups, and that may compute their contexts."""
    block_m = _block_of_rows(shape, 4096 if shape.width > 256 or shape.itemsize == 4 else 8192)
    pairs = ((4, block_m), (8, 2 * block_m), (4, max(1, block_m // 2)), (4, 1))
    return tuple(Config.of(warps, BLOCK_M=m, BLOCK_C=32) for warps, m in pairs)


@lru_cache(maxsize=1024)
def query_backward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the gradient of the query."""
    block_m = _block_of_rows(shape, 8192)
    pairs = ((4, block_m), (8, block_m), (4, max(1, block_m // 2)), (4, 1))
    return tuple(Config.of(warps, BLOCK_M=m) for warps, m in pairs)


def _block_of_rows(shape: Shape, values: int) -> int:
    """Slots of a tile of whole tokens that has about this many values."""
    return max(1, min(64, values // triton.next_power_of_2(shape.width)))


@lru_cache(maxsize=1024)
def context_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the product that projects pooled tokens, whose rows are groups."""
    return _products(shape, shape.groups, columns=128)


@lru_cache(maxsize=1024)
def projection_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the projection of values, whose rows are tokens."""
    return _products(shape, shape.tiles(64) * 64, columns=128)


@lru_cache(maxsize=1024)
def gate_backward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the two products whose results meet in relu(value) * context."""
    return _products(shape, shape.tiles(64) * 64, columns=64, operands=2)


@lru_cache(maxsize=1024)
def input_backward_candidates(shape: Shape) -> tuple[Config, ...]:
    """Configurations of the product that ends in the gradient of the map."""
    return _products(shape, shape.tiles(64) * 64, columns=128)


def _products(shape: Shape, rows: int, columns: int, operands: int = 1) -> tuple[Config, ...]:
    """Blocks of ``rows`` by C of ``operands`` products side by side."""
    if shape.exact:
        return (_product(shape, 64, 64, 16, 4, operands), _product(shape, 32, 32, 16, 4, operands))
    inner = 64 if shape.itemsize == 2 else 32
    if rows * shape.channels < FEW_PROGRAMS * 64 * 64:
        return (
            _product(shape, 16, 32, inner, 4, operands),
            _product(shape, 64, 32, inner, 4, operands),
        )
    return (
        _product(shape, 128, columns, inner, 8, operands),
        _product(shape, 64, columns, inner, 4, operands),
        _product(shape, 64, 32, inner, 4, operands),
    )


def _product(shape: Shape, m: int, c: int, k: int, warps: int, operands: int) -> Config:
    """As many stages, up to three, as the shared memory holds."""
    c, k = _block(shape.channels, c), _block(shape.channels, k)
    stage = operands * (m + c) * k * shape.itemsize
    stages = 1 if shape.exact else max(1, min(3, shape.target.shared_bytes // stage))
    return Config.of(warps, stages, BLOCK_M=m, BLOCK_C=c, BLOCK_K=k)
