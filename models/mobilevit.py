"""The network: stem, five stages, head. One class for all generations; a ModelConfig makes the variant."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilevit_kernels.models.configs import ModelConfig
from mobilevit_kernels.models.head import ClassifierHead
from mobilevit_kernels.models.initialization import init_weights
from mobilevit_kernels.models.layers import ConvNormAct
from mobilevit_kernels.models.stages import BLOCKS, STEM_STRIDE, StageBuilder
from mobilevit_kernels.ops.registration import as_pair


class MobileViT(nn.Module):
    """MobileViT v1, v2 or v3 for classification; parameter names and methods are those of timm.

    Images go in as ``[B, in_chans, H, W]`` in [0, 1] without mean or standard deviation, of any size and in any
    memory format. Maps are channels_last from the first MobileViT block on; ``model.to(memory_format=
    torch.channels_last)`` with channels_last images avoids the one copy before it.

    Every dropout is 0 by default, as in timm. The recipes of the papers: v1 and v3 on v1 train with
    ``transformer_dropout`` 0.05 (XXS) or 0.1 (XS, S) and ``drop_rate=0.1``; v2 and v3 on v2 with none.

    Args:
        config: the variant.
        num_classes: classes; 0 leaves out the classifier, so that ``forward`` returns the pooled features.
        in_chans: channels of the images.
        global_pool: "avg", "max", "avgmax", "catavgmax", or "" with ``num_classes=0``.
        output_stride: 32, or 16 or 8 to dilate the last one or two stages instead of striding (segmentation).
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth rate of the last block; the rates grow linearly from 0.
        transformer_dropout: dropout after attention and after the feed-forward network of every transformer layer.
        img_size: largest image, (height, width) or one int, in pixels; sizes the token projections of
            ``attention="linformer"`` and changes nothing else.
        **block_options: options of the MobileViT blocks: those in the block's ``options``.

    Raises:
        ValueError: an argument has a value out of its range.
        TypeError: the MobileViT block of this variant has no such option.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        transformer_dropout: float = 0.0,
        img_size: int | Sequence[int] = 256,
        **block_options: Any,
    ) -> None:
        super().__init__()
        _check_block_options(config, block_options)
        block_options["dropout"] = transformer_dropout
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem = ConvNormAct(in_chans, config.stem_channels, 3, stride=STEM_STRIDE)
        builder = StageBuilder(config, output_stride, as_pair(img_size), drop_path_rate, block_options)
        stages, feature_info = [], []
        for index, stage in enumerate(config.stages):
            stages.append(builder.build(stage))
            feature_info.append(
                _feature_entry(builder.channels, builder.stride, f"stages.{index}", index + 1)
            )
        self.stages = nn.Sequential(*stages)
        self.num_features = config.head_channels or builder.channels
        self.final_conv = (
            ConvNormAct(builder.channels, config.head_channels) if config.head_channels else nn.Identity()
        )
        feature_info[-1] = _feature_entry(self.num_features, builder.stride, "final_conv", len(stages))
        self.feature_info = feature_info
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.default_cfg = self.pretrained_cfg = _evaluation_settings(config, num_classes, in_chans)
        self.apply(init_weights)

    @property
    def global_pool(self) -> str:
        """Kind of the global pooling."""
        return self.head.global_pool.pool_type

    @property
    def head_hidden_size(self) -> int:
        """Features that the classifier reads."""
        return self.head.num_features

    def get_classifier(self) -> nn.Module:
        """Returns the linear classifier, or an identity where there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one.

        Args:
            num_classes: classes; 0 leaves out the classifier.
            global_pool: new kind of pooling; None keeps it.

        Raises:
            ValueError: negative ``num_classes``, an unknown pooling, or no pooling before a classifier.
        """
        like = next(self.parameters())
        self.head.reset(num_classes, global_pool, like.device, like.dtype)
        self.head.fc.apply(init_weights)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory in training: each block of the stages recomputes its activations in the backward pass.

        Gradients stay the same. The stages themselves are not called: hooks, and FSDP's wrapping, belong on their
        blocks. BatchNorm updates its running statistics in both passes, as under any
        :func:`torch.utils.checkpoint.checkpoint`.
        """
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Computes the last map.

        Args:
            x: images ``[B, in_chans, H, W]``.

        Returns:
            ``[B, num_features, H / output_stride, W / output_stride]``, rounded up (to whole patches in v2).

        Raises:
            ValueError: not four dimensions, or another number of channels than ``in_chans``.
        """
        check_images(x, self.in_chans)
        x = self.stem(x)
        x = self._recomputed_stages(x) if self.grad_checkpointing else self.stages(x)
        return self.final_conv(x)

    def _recomputed_stages(self, x: Tensor) -> Tensor:
        for stage in self.stages.children():
            for block in stage.children():
                x = checkpoint(block, x, use_reentrant=False)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies: ``[B, num_features, h, w]`` -> ``[B, num_classes]``, or pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, in_chans, H, W]`` -> logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))


def check_images(x: Tensor, in_chans: int) -> None:
    """Raises ValueError unless ``x`` is ``[B, in_chans, H, W]`` with at least one pixel."""
    if x.dim() != 4:
        raise ValueError(
            f"x: expected images [B, {in_chans}, H, W], got {x.dim()} dimensions: {list(x.shape)}"
        )
    if x.shape[1] != in_chans:
        raise ValueError(f"x: expected {in_chans} channels (in_chans), got {x.shape[1]} in {list(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: expected at least one pixel, got {list(x.shape)}")


def _check_block_options(config: ModelConfig, options: dict[str, Any]) -> None:
    accepted = BLOCKS[config.block].options
    unknown = sorted(set(options) - accepted)
    if unknown:
        raise TypeError(
            f"unknown argument {', '.join(unknown)}; the {BLOCKS[config.block].__name__} of this model takes "
            f"{', '.join(sorted(accepted))}"
        )


def _feature_entry(channels: int, stride: int, module: str, stage: int) -> dict[str, Any]:
    return {"num_chs": channels, "reduction": stride, "module": module, "stage": stage}


def _evaluation_settings(config: ModelConfig, num_classes: int, in_chans: int) -> dict[str, Any]:
    """How the published weights were evaluated, in the form that timm.data.resolve_data_config reads."""
    return {
        "num_classes": num_classes,
        "input_size": (in_chans, 256, 256),
        "pool_size": (8, 8),
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
        "mean": (0.0,) * in_chans,
        "std": (1.0,) * in_chans,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
