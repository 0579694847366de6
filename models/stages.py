"""Builds the five stages: strides, dilations and stochastic depth rates along the network."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from mobilevit_kernels.models.block_v1 import MobileViTBlock
from mobilevit_kernels.models.block_v2 import MobileViTv2Block
from mobilevit_kernels.models.block_v3 import MobileViTv3Block, MobileViTv3SeparableBlock
from mobilevit_kernels.models.configs import ModelConfig, StageConfig
from mobilevit_kernels.models.layers import InvertedResidual

BLOCKS: dict[str, type[MobileViTBlock | MobileViTv2Block]] = {
    "v1": MobileViTBlock,
    "v2": MobileViTv2Block,
    "v3": MobileViTv3Block,
    "v3_separable": MobileViTv3SeparableBlock,
}
OUTPUT_STRIDES = (8, 16, 32)
STEM_STRIDE = 2


class StageBuilder:
    """Builds stages in order, carrying channels, stride and dilation from one to the next.

    A stage that would exceed ``output_stride`` keeps its resolution instead: its inverted residual has stride 1 and
    the dilation reached so far, and everything after it has the doubled dilation. In the blocks on v1 the local
    convolution is not dilated and in those on v2 it is (``dilate_local_conv``), as in the published code.

    Args:
        config: the variant.
        output_stride: 8, 16 or 32: input size over the size of the last map.
        img_size: (height, width) in pixels of the largest image; sizes what depends on the number of tokens.
        drop_path_rate: stochastic depth rate of the last block; the rates grow linearly from 0.
        block_options: passed on to the MobileViT blocks.

    Raises:
        ValueError: ``output_stride`` is none of those.
    """

    def __init__(
        self,
        config: ModelConfig,
        output_stride: int,
        img_size: tuple[int, int],
        drop_path_rate: float,
        block_options: Mapping[str, Any],
    ) -> None:
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride: expected one of {OUTPUT_STRIDES}, got {output_stride}")
        self.config = config
        self.output_stride = output_stride
        self.img_size = img_size
        self.block_options = dict(block_options)
        self.channels = config.stem_channels
        self.stride = STEM_STRIDE
        self.dilation = 1
        num_blocks = sum(stage.num_residuals + bool(stage.dim) for stage in config.stages)
        self.drop_paths = iter([drop_path_rate * i / (num_blocks - 1) for i in range(num_blocks)])

    def build(self, stage: StageConfig) -> nn.Sequential:
        """Returns the next stage; ``channels`` and ``stride`` then describe its output."""
        stride, dilation = stage.stride, self.dilation
        if self.stride * stride > self.output_stride:
            self.dilation *= stride
            stride = 1
        self.stride *= stride
        blocks: list[nn.Module] = []
        for index in range(stage.num_residuals):
            first = index == 0
            blocks.append(
                InvertedResidual(
                    self.channels,
                    stage.channels,
                    stride=stride if first else 1,
                    expand_ratio=self.config.expand_ratio,
                    dilation=dilation if first else self.dilation,
                    drop_path=next(self.drop_paths),
                )
            )
            self.channels = stage.channels
        if stage.dim:
            blocks.append(self._mobilevit_block(stage))
        return nn.Sequential(*blocks)

    def _mobilevit_block(self, stage: StageConfig) -> nn.Module:
        options = dict(self.block_options)
        block = BLOCKS[self.config.block]
        if issubclass(block, MobileViTBlock):
            height, width = (math.ceil(size / self.stride) for size in self.img_size)
            options["map_size"] = (height, width)
        return block(
            stage.channels,
            stage.dim,
            stage.depth,
            dilation=self.dilation if self.config.dilate_local_conv else 1,
            drop_path=next(self.drop_paths),
            **options,
        )
