"""The MobileViT block, with the design choices that MobileViTv3 studies as arguments."""

from collections.abc import Sequence

from torch import Tensor, nn

from mobilevit_kernels.models.attention import MultiHeadAttention, SeparableAttention
from mobilevit_kernels.models.conv_chain import run_chain
from mobilevit_kernels.models.convolve import convolve_joined
from mobilevit_kernels.models.layers import ConvNormAct, channels_last, conv_layer, pad_to_patches
from mobilevit_kernels.models.linformer import LinformerAttention
from mobilevit_kernels.models.token_map import transform_map
from mobilevit_kernels.models.transformer import TransformerLayer
from mobilevit_kernels.ops.registration import as_pair

ATTENTIONS = ("mha", "linformer", "separable")
FUSION_INPUTS = ("input", "local")
FUSION_KERNELS = (1, 3)
LOCAL_CONVS = ("full", "depthwise")


class MobileViTBlock(nn.Module):
    """MobileViT block (arXiv 2110.02178, figure 1b): local convolutions, transformer, fusion with the input.

    The defaults are v1's; :class:`MobileViTv3Block` is the same block with v3's.
    The tokens are the pixels of one channels_last map from the local convolutions to the projection back.

    Args:
        channels: channels C of the input and output.
        dim: channels of the tokens.
        depth: number of transformer layers.
        map_size: (H, W) of the largest map; sizes the token projections of "linformer", else unused.
        attention: "mha", "linformer" or "separable" (compared in arXiv 2206.02680, table 1).
        num_heads: heads of "mha" and "linformer".
        patch_size: (patch_h, patch_w), or one int for both.
        local_conv: "full" or "depthwise" 3x3 convolution.
        fusion_input: what is concatenated with the global features: "input" or "local" features, always first.
        fusion_kernel: side of the fusion convolution, 1 or 3.
        input_residual: adds the input to the output.
        dilation: dilation of the local 3x3 convolution.
        dropout: rate after attention and after the feed-forward network.
        drop_path: stochastic depth rate.

    Raises:
        ValueError: an option is none of those listed.
    """

    options = frozenset(
        {
            "attention",
            "num_heads",
            "patch_size",
            "local_conv",
            "fusion_input",
            "fusion_kernel",
            "input_residual",
        }
    )

    def __init__(
        self,
        channels: int,
        dim: int,
        depth: int,
        map_size: tuple[int, int] = (32, 32),
        attention: str = "mha",
        num_heads: int = 4,
        patch_size: int | Sequence[int] = (2, 2),
        local_conv: str = "full",
        fusion_input: str = "input",
        fusion_kernel: int = 3,
        input_residual: bool = False,
        dilation: int = 1,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_option("attention", attention, ATTENTIONS)
        check_option("local_conv", local_conv, LOCAL_CONVS)
        check_option("fusion_input", fusion_input, FUSION_INPUTS)
        check_option("fusion_kernel", fusion_kernel, FUSION_KERNELS)
        self.patch_size = as_pair(patch_size)
        self.fusion_input = fusion_input
        self.input_residual = input_residual
        groups = channels if local_conv == "depthwise" else 1
        self.conv_kxk = ConvNormAct(channels, channels, 3, dilation=dilation, groups=groups)
        self.conv_1x1 = nn.Conv2d(channels, dim, kernel_size=1, bias=False)
        units = [
            _make_attention(attention, dim, num_heads, self.patch_size, map_size, dropout)
            for _ in range(depth)
        ]
        self.transformer = nn.Sequential(
            *(TransformerLayer(dim, unit, dropout=dropout, drop_path=drop_path) for unit in units)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = ConvNormAct(dim, channels)
        skip_channels = dim if fusion_input == "local" else channels
        self.conv_fusion = ConvNormAct(skip_channels + channels, channels, fusion_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]`` in channels_last memory, any H and W."""
        x = channels_last(x)
        local_features = run_chain(x, (self.conv_kxk, self.conv_1x1), conv_layer)
        tokens = transform_map(local_features, self.patch_size, self.transformer, self.norm)
        global_features = self.conv_proj(tokens)
        skip = local_features if self.fusion_input == "local" else x
        out = convolve_joined(self.conv_fusion, skip, global_features)
        return x + out if self.input_residual else out


def check_option(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _make_attention(
    kind: str,
    dim: int,
    num_heads: int,
    patch_size: tuple[int, int],
    map_size: tuple[int, int],
    dropout: float,
) -> nn.Module:
    if kind == "mha":
        return MultiHeadAttention(dim, num_heads, patch_size, dropout)
    if kind == "separable":
        return SeparableAttention(dim, patch_size, dropout)
    tokens_h, tokens_w = (
        pad_to_patches(size, patch) // patch for size, patch in zip(map_size, patch_size, strict=True)
    )
    return LinformerAttention(dim, tokens_h * tokens_w, num_heads, patch_size, dropout)
