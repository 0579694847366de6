"""What is measured: the attention shapes of every model at 256 x 256 pixels, and the models."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mobilevit_kernels.benchmark.cases import DTYPES

PATCH_SIZE = (2, 2)
# Sides of the maps of the three stages that hold transformers, at 256 x 256 pixels.
MAP_SIDES = (32, 16, 8)
ALL_DTYPES = {**DTYPES, "fp16": torch.float16}
DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class StageShape:
    """One stage's attention.

    Attributes:
        op: "unfold_attn_fold" or "separable_attn".
        model: the model that has this stage.
        channels: width of a token (C of the op).
        side: height and width of the map.
        num_heads: heads of ``unfold_attn_fold``; 1 for ``separable_attn``, which has none.
    """

    op: str
    model: str
    channels: int
    side: int
    num_heads: int = 1

    def __str__(self) -> str:
        return f"C{self.channels}-{self.side}x{self.side}"

    @property
    def positions(self) -> int:
        """P: pixel positions in a patch, each a group of tokens."""
        return PATCH_SIZE[0] * PATCH_SIZE[1]

    @property
    def tokens(self) -> int:
        """N: tokens of one group."""
        return self.side * self.side // self.positions


_V1_CHANNELS = {
    "mobilevit_xxs": (64, 80, 96),
    "mobilevit_xs": (96, 120, 144),
    "mobilevit_s": (144, 192, 240),
}
_V2_WIDTHS = {"050": 0.5, "075": 0.75, "100": 1.0, "125": 1.25, "150": 1.5, "175": 1.75, "200": 2.0}
_V2_CHANNELS = {
    f"mobilevitv2_{name}": tuple(int(width * base) for base in (128, 192, 256))
    for name, width in _V2_WIDTHS.items()
}

# v3 has the transformers of v1 and v2, so their shapes are the same.
ATTENTION_SHAPES = tuple(
    StageShape("unfold_attn_fold", model, channels, side, num_heads=4)
    for model, stages in _V1_CHANNELS.items()
    for channels, side in zip(stages, MAP_SIDES, strict=True)
)
SEPARABLE_SHAPES = tuple(
    StageShape("separable_attn", model, channels, side)
    for model, stages in _V2_CHANNELS.items()
    for channels, side in zip(stages, MAP_SIDES, strict=True)
)
STAGE_SHAPES = ATTENTION_SHAPES + SEPARABLE_SHAPES

MODELS = (
    "mobilevit_xxs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_100",
    "mobilevitv3_s",
    "mobilevitv3_100",
)


def unique_shapes(shapes: Iterable[StageShape]) -> tuple[StageShape, ...]:
    """The shapes that differ in more than the model's name, each under the first model that has it."""
    seen: dict[tuple[str, int, int, int], StageShape] = {}
    for shape in shapes:
        seen.setdefault((shape.op, shape.channels, shape.side, shape.num_heads), shape)
    return tuple(seen.values())


def smoke_shapes(shapes: tuple[StageShape, ...]) -> tuple[StageShape, ...]:
    """The smallest map of the first model: enough to see that a benchmark runs."""
    return tuple(shape for shape in shapes if shape.side == MAP_SIDES[-1])[:1]
