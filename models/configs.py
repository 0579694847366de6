"""The variants: widths, depths and evaluation settings of every model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageConfig:
    """One stage: inverted residuals, then a MobileViT block if ``dim`` is set.

    Attributes:
        channels: output channels.
        stride: stride of the first inverted residual.
        num_residuals: number of inverted residuals.
        dim: channels of the tokens; 0 for a stage without a MobileViT block.
        depth: number of transformer layers.
    """

    channels: int
    stride: int = 2
    num_residuals: int = 1
    dim: int = 0
    depth: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """One variant.

    Attributes:
        block: "v1", "v2", "v3" (v3 on v1) or "v3_separable" (v3 on v2).
        stem_channels: channels of the stem.
        stages: the five stages.
        expand_ratio: expansion of every inverted residual.
        head_channels: channels of the 1x1 convolution before the pooling; 0 for none.
        dilate_local_conv: whether output_stride 8 and 16 also dilate the local convolution of the MobileViT blocks.
        crop_pct: share of the resized image that the evaluation crop keeps.
        interpolation: resize filter of the evaluation.
    """

    block: str
    stem_channels: int
    stages: tuple[StageConfig, ...]
    expand_ratio: float
    head_channels: int = 0
    dilate_local_conv: bool = False
    crop_pct: float = 0.9
    interpolation: str = "bicubic"


def _on_v1(
    block: str,
    stem: int,
    conv_channels: tuple[int, int],
    channels: tuple[int, int, int],
    dims: tuple[int, int, int],
    expand_ratio: float,
    depths: tuple[int, int, int] = (2, 4, 3),
) -> ModelConfig:
    """v1 (arXiv 2110.02178, table 4) and v3 on v1 (arXiv 2209.15159, table 1; head capped at 960 as published)."""
    first, second = conv_channels
    vit_stages = (
        StageConfig(c, dim=dim, depth=depth) for c, dim, depth in zip(channels, dims, depths, strict=True)
    )
    return ModelConfig(
        block=block,
        stem_channels=stem,
        stages=(StageConfig(first, stride=1), StageConfig(second, num_residuals=3), *vit_stages),
        expand_ratio=expand_ratio,
        head_channels=min(4 * channels[-1], 960),
        crop_pct=0.9 if block == "v1" else 0.888,
        interpolation="bicubic" if block == "v1" else "bilinear",
    )


def _on_v2(block: str, width: float) -> ModelConfig:
    """v2 (arXiv 2206.02680, table 5; two residuals in the second stage as published) and v3 on v2."""
    stem, first, second, *channels = (int(base * width) for base in (32, 64, 128, 256, 384, 512))
    vit_stages = (
        StageConfig(c, dim=c // 2, depth=depth) for c, depth in zip(channels, (2, 4, 3), strict=True)
    )
    return ModelConfig(
        block=block,
        stem_channels=stem,
        stages=(StageConfig(first, stride=1), StageConfig(second, num_residuals=2), *vit_stages),
        expand_ratio=2,
        dilate_local_conv=True,
        crop_pct=0.888,
    )


_DIMS = {"xxs": (64, 80, 96), "xs": (96, 120, 144), "s": (144, 192, 240)}
_FAST_DEPTHS = (2, 2, 3)

_V1 = {
    "mobilevit_xxs": _on_v1("v1", 16, (16, 24), (48, 64, 80), _DIMS["xxs"], 2),
    "mobilevit_xs": _on_v1("v1", 16, (32, 48), (64, 80, 96), _DIMS["xs"], 4),
    "mobilevit_s": _on_v1("v1", 16, (32, 64), (96, 128, 160), _DIMS["s"], 4),
}
_V2 = {
    f"mobilevitv2_{percent:03d}": _on_v2("v2", percent / 100) for percent in (50, 75, 100, 125, 150, 175, 200)
}
_V3 = {
    "mobilevitv3_xxs": _on_v1("v3", 16, (16, 24), (64, 80, 128), _DIMS["xxs"], 2),
    "mobilevitv3_xs": _on_v1("v3", 16, (32, 48), (96, 160, 160), _DIMS["xs"], 4),
    "mobilevitv3_s": _on_v1("v3", 16, (32, 64), (128, 256, 320), _DIMS["s"], 4),
    "mobilevitv3_xxs_fast": _on_v1("v3", 16, (16, 24), (64, 80, 128), _DIMS["xxs"], 2, _FAST_DEPTHS),
    "mobilevitv3_xs_fast": _on_v1("v3", 16, (32, 48), (96, 160, 160), _DIMS["xs"], 4, _FAST_DEPTHS),
    "mobilevitv3_s_fast": _on_v1("v3", 16, (32, 64), (128, 256, 320), _DIMS["s"], 4, _FAST_DEPTHS),
}
_V3_SEPARABLE = {
    f"mobilevitv3_{percent:03d}": _on_v2("v3_separable", percent / 100) for percent in (50, 75, 100)
}

CONFIGS: dict[str, ModelConfig] = {**_V1, **_V2, **_V3, **_V3_SEPARABLE}
