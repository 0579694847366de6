"""The two MobileViTv3 blocks: one on the v1 block, one on the v2 block (arXiv 2209.15159)."""

from collections.abc import Sequence

from torch import Tensor

from mobilevit_kernels.models.block_v1 import (
    FUSION_INPUTS,
    FUSION_KERNELS,
    LOCAL_CONVS,
    MobileViTBlock,
    check_option,
)
from mobilevit_kernels.models.block_v2 import MobileViTv2Block
from mobilevit_kernels.models.conv_chain import run_chain
from mobilevit_kernels.models.convolve import convolve_joined
from mobilevit_kernels.models.layers import ConvNormAct, channels_last, conv_layer, resize_to_patches


class MobileViTv3Block(MobileViTBlock):
    """MobileViTv3 block on v1: the v1 block with v3's four choices as defaults.

    A depthwise local convolution; a 1x1 fusion; local instead of input features in it; and the input added at the
    end. The fusion convolution reads the local features first, then the global ones.

    Args: as :class:`MobileViTBlock`.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        map_size: tuple[int, int] = (32, 32),
        attention: str = "mha",
        num_heads: int = 4,
        patch_size: int | Sequence[int] = (2, 2),
        local_conv: str = "depthwise",
        fusion_input: str = "local",
        fusion_kernel: int = 1,
        input_residual: bool = True,
        dilation: int = 1,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            channels,
            dim,
            depth,
            map_size=map_size,
            attention=attention,
            num_heads=num_heads,
            patch_size=patch_size,
            local_conv=local_conv,
            fusion_input=fusion_input,
            fusion_kernel=fusion_kernel,
            input_residual=input_residual,
            dilation=dilation,
            dropout=dropout,
            drop_path=drop_path,
        )


class MobileViTv3SeparableBlock(MobileViTv2Block):
    """MobileViTv3 block on v2: the v2 block whose projection also reads the local features, and an input residual.

    The projection reads the global features first, then the local ones: the opposite order of the block on v1.

    Args:
        local_conv: "depthwise" or "full" 3x3 convolution.
        fusion_input: what is concatenated after the global features: "local" features or the "input".
        fusion_kernel: side of the projection's kernel, 1 or 3.
        input_residual: adds the (possibly enlarged) input to the output.
        channels, dim, depth, patch_size, dilation, dropout, drop_path: as :class:`MobileViTv2Block`.

    Raises:
        ValueError: an option is none of those listed.
    """

    options = frozenset({"patch_size", "local_conv", "fusion_input", "fusion_kernel", "input_residual"})

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        patch_size: int | Sequence[int] = (2, 2),
        local_conv: str = "depthwise",
        fusion_input: str = "local",
        fusion_kernel: int = 1,
        input_residual: bool = True,
        dilation: int = 1,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(channels, dim, depth, patch_size, dilation, dropout, drop_path)
        check_option("local_conv", local_conv, LOCAL_CONVS)
        check_option("fusion_input", fusion_input, FUSION_INPUTS)
        check_option("fusion_kernel", fusion_kernel, FUSION_KERNELS)
        self.fusion_input = fusion_input
        self.input_residual = input_residual
        if local_conv == "full":
            self.conv_kxk = ConvNormAct(channels, channels, 3, dilation=dilation)
        skip_channels = dim if fusion_input == "local" else channels
        self.conv_proj = ConvNormAct(dim + skip_channels, channels, fusion_kernel, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H', W']`` in channels_last memory, H' and W' the next patch multiples."""
        x = channels_last(resize_to_patches(x, self.patch_size, align_corners=True))
        local_features = run_chain(x, (self.conv_kxk, self.conv_1x1), conv_layer)
        global_features = self.norm(self.transformer(local_features))
        skip = local_features if self.fusion_input == "local" else x
        out = convolve_joined(self.conv_proj, global_features, skip)
        return x + out if self.input_residual else out
