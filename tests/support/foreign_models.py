"""Models of timm and transformers with weights that leave no part of a block without effect."""

import copy
import functools
from collections.abc import Callable

import timm
import torch
import transformers
from torch import Tensor, nn

V1_CONFIG = {
    "hidden_sizes": [24, 32, 40],
    "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 80],
    "aspp_out_channels": 16,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
    "aspp_dropout_prob": 0.0,
}
V2_CONFIG = {
    "width_multiplier": 0.25,
    "n_attn_blocks": [1, 2, 1],
    "aspp_out_channels": 16,
    "num_labels": 5,
    "classifier_dropout_prob": 0.0,
    "aspp_dropout_prob": 0.0,
}
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "timm_v1": lambda **kwargs: timm.create_model("mobilevit_xxs", num_classes=5, **kwargs),
    "timm_v2": lambda **kwargs: timm.create_model("mobilevitv2_050", num_classes=5, **kwargs),
    "hf_v1": lambda **kwargs: transformers.MobileViTForImageClassification(
        transformers.MobileViTConfig(**V1_CONFIG, **kwargs)
    ),
    "hf_v1_segmentation": lambda **kwargs: transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(**{"output_stride": 16, **V1_CONFIG}, **kwargs)
    ),
    "hf_v2": lambda **kwargs: transformers.MobileViTV2ForImageClassification(
        transformers.MobileViTV2Config(**V2_CONFIG, **kwargs)
    ),
    "hf_v2_segmentation": lambda **kwargs: transformers.MobileViTV2ForSemanticSegmentation(
        transformers.MobileViTV2Config(**{"output_stride": 16, **V2_CONFIG}, **kwargs)
    ),
}


def randomize(model: nn.Module) -> nn.Module:
    """Draws every parameter and BatchNorm statistic; softmax is far from uniform and biases are not zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            start = 1.0 if name.endswith("weight") else 0.0
            parameter.data.normal_(start, 0.2, generator=generator)
        else:
            gain = 2.0 if any(key in name for key in ("qkv", "query", "key")) else 1.4
            fan_in = parameter[0].numel()
            parameter.data.normal_(0, gain * fan_in**-0.5, generator=generator)
    return model


@functools.cache
def prototype(kind: str, options: tuple[tuple[str, object], ...]) -> nn.Module:
    return randomize(BUILDERS[kind](**dict(options))).eval()


def build_model(kind: str, **options: object) -> nn.Module:
    """A model of this kind in eval mode; equal arguments give equal weights."""
    return copy.deepcopy(prototype(kind, tuple(sorted(options.items()))))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The same for both libraries."""
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits
