"""What the launchers of ``separable_attn`` know of a problem before they look at its numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels.launch import (
    Config,
    Start,
    Target,
    launch,
    matmul_precision,
    prepare,
    target_of,
)
from mobilevit_kernels.triton_kernels.separable_attn_configs import Shape
from mobilevit_kernels.triton_kernels.token_grid import TokenGrid, pieces
from mobilevit_kernels.triton_kernels.tuning import Plans, choose


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that sizes, dtype and device decide; there is one object of each.

    Attributes:
        grid: the tokens of the map.
        shape: what configurations depend on.
        key: what measured configurations are remembered for; groups count by their power of two.
        precision: of matrix products, as ``tl.dot`` takes it.
        sizes: groups, tokens of a group and tokens of a group in a row of the map, as kernels take them.
        starts: kernels that were prepared for this problem.
        variants: how the forward pass was chosen to be cut into kernels.
    """

    grid: TokenGrid
    shape: Shape
    key: tuple[Any, ...]
    precision: str
    sizes: tuple[int, int, int]
    starts: Plans[Start] = field(default_factory=Plans)
    variants: Plans[Config] = field(default_factory=Plans)

    @staticmethod
    def of(x: Tensor, patch_size: Sequence[int]) -> "Problem":
        """The problem of a map ``[B, C, H, W]``."""
        patch = (patch_size[0], patch_size[1])
        index = x.device.index or 0
        return _problem(tuple(x.shape), patch, x.dtype, matmul_precision(x.dtype), target_of(x), index)

    @property
    def channels(self) -> int:
        """C."""
        return self.shape.channels

    @property
    def group_shape(self) -> tuple[int, int, int]:
        """``[B, P, C]``, of what there is one of per group."""
        return self.grid.batch, self.grid.positions, self.channels

    @property
    def score_shape(self) -> tuple[int, int, int]:
        """``[B, P, N]``, of what there is one of per token."""
        return self.grid.batch, self.grid.positions, self.grid.tokens

    @property
    def pieces(self) -> dict[str, int]:
        """Constants of kernels that read whole tokens."""
        first, second = pieces(self.channels)
        return {"PIECE_0": first, "PIECE_1": second}

    def run(
        self,
        family: str,
        kernel: Any,
        programs: Callable[[Config], int],
        candidates: Callable[[Shape], Sequence[Config]],
        tensors: tuple[Tensor, ...],
        strides: tuple[int, ...],
        **constants: Any,
    ) -> None:
        """Starts a kernel on tiles of tokens of this problem, configured once for its strides and constants."""

        def start(config: Config) -> Start:
            tile = {"CHANNELS": self.channels, "BLOCK_N": self.shape.block_n(config["BLOCK_M"])}
            merged = {**constants, **self.grid.constants, **tile}
            return prepare(kernel, programs(config), (*self.sizes, *strides), config, merged)

        def measure(config: Config) -> None:
            start(config)(*tensors)

        def decide() -> Start:
            return start(self.choose(family, candidates(self.shape), measure))

        self.starts.get((family, strides, *constants.values()), decide)(*tensors)

    def column_programs(self, config: Config) -> int:
        """Programs of a kernel of which each computes BLOCK_C channels of a tile."""
        return self.shape.tiles(config["BLOCK_M"]) * -(-self.channels // config["BLOCK_C"])

    def start(
        self, kernel: Any, programs: int, arguments: tuple[Any, ...], config: Config, **constants: Any
    ) -> None:
        """Starts a kernel on tiles of tokens of this problem."""
        constants.update(self.grid.constants)
        constants["CHANNELS"] = self.channels
        constants["BLOCK_N"] = self.shape.block_n(config["BLOCK_M"])
        launch(kernel, programs, arguments, config, **constants)

    def start_columns(
        self, kernel: Any, arguments: tuple[Any, ...], config: Config, **constants: Any
    ) -> None:
        """Starts a kernel of which a program computes BLOCK_C channels of a tile."""
        self.start(
            kernel, self.column_programs(config), arguments, config, PRECISION=self.precision, **constants
        )

    def choose(self, family: str, candidates: Sequence[Config], run: Callable[[Config], None]) -> Config:
        """The configuration of a family of kernels."""
        return choose(family, self.shape.group, self.shape.target, self.key, candidates, run)


@lru_cache(maxsize=1024)
def _problem(
    shape: tuple[int, ...],
    patch: tuple[int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
    device_index: int,
) -> Problem:
    batch, channels, height, width = shape
    grid = TokenGrid(batch, height, width, patch)
    exact = dtype == torch.float32 and precision == "ieee"
    key = (grid.groups.bit_length(), grid.tokens, patch, channels, dtype, exact, device_index)
    return Problem(
        grid,
        Shape(grid.groups, grid.tokens, channels, dtype.itemsize, exact, target),
        key,
        precision,
        (grid.groups, grid.tokens, grid.grid_width),
    )


def map_strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of samples, rows and columns, as kernels take them."""
    stride_b, _, stride_h, stride_w = x.stride()
    return stride_b, stride_h, stride_w


def token_rows(x: Tensor) -> Tensor:
    """``[B * H * W, C]``; a view of channels_last memory and of slices of it that keep rows evenly apart."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def empty_floats(like: Tensor, *shape: int) -> Tensor:
    """A new float32 tensor."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)
