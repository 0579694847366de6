"""The MobileViTv2 block."""

from collections.abc import Sequence

from torch import Tensor, nn

from mobilevit_kernels.models.conv_chain import run_chain
from mobilevit_kernels.models.layers import ConvNormAct, channels_last, conv_layer, resize_to_patches
from mobilevit_kernels.models.transformer import SeparableTransformerLayer
from mobilevit_kernels.ops.registration import as_pair


class MobileViTv2Block(nn.Module):
    """MobileViTv2 block (arXiv 2206.02680): local convolutions, separable attention, projection; no skip.

    An input that does not divide into patches is enlarged bilinearly with align_corners=True, and the output keeps
    the larger size, as in the published code.

    Args:
        channels: channels C of the input and output.
        dim: channels of the tokens.
        depth: number of transformer layers.
        patch_size: (patch_h, patch_w), or one int for both.
        dilation: dilation of the local depthwise 3x3 convolution.
        dropout: rate after attention and after the feed-forward network.
        drop_path: stochastic depth rate.
    """

    options = frozenset({"patch_size"})

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        patch_size: int | Sequence[int] = (2, 2),
        dilation: int = 1,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = as_pair(patch_size)
        self.conv_kxk = ConvNormAct(channels, channels, 3, dilation=dilation, groups=channels)
        self.conv_1x1 = nn.Conv2d(channels, dim, kernel_size=1, bias=False)
        self.transformer = nn.Sequential(
            *(
                SeparableTransformerLayer(dim, self.patch_size, dropout=dropout, drop_path=drop_path)
                for _ in range(depth)
            )
        )
        self.norm = nn.GroupNorm(1, dim)
        self.conv_proj = ConvNormAct(dim, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H', W']`` in channels_last memory, H' and W' the next patch multiples."""
        x = channels_last(resize_to_patches(x, self.patch_size, align_corners=True))
        local_features = run_chain(x, (self.conv_kxk, self.conv_1x1), conv_layer)
        return self.conv_proj(self.norm(self.transformer(local_features)))
