"""Runs the classifier after a MobileViT, and the average pooling before it, as one op."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.head import ClassifierHead
from mobilevit_kernels.models.optimize.folding import qualified_name
from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.optimize.predicates import is_observed, weight_and_bias
from mobilevit_kernels.ops.packing import pack_linear
from mobilevit_kernels.ops.pooled_linear import pooled_linear

_OURS = "mobilevit_kernels.models.head.ClassifierHead"
_TIMM = "timm.layers.classifier.ClassifierHead"
# Attribute with the linear classifier, by class.
_CLASSIFIERS = {
    _OURS: "fc",
    _TIMM: "fc",
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTForImageClassification": "classifier",
    "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2ForImageClassification": "classifier",
}
_POOLS = ("mobilevit_kernels.models.head.GlobalPool", "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d")


class _Sizes(NamedTuple):
    out_features: int


class PackedLinear(PackedOp):
    """Linear layer on packed weights, alone or with the average pooling before it.

    Its weights are a parameter, so that a model all of whose layers are packed still has a device and a dtype.

    Args:
        linear: the layer.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        packed = nn.Parameter(pack_linear(*weight_and_bias(linear), dtype=dtype), requires_grad=False)
        super().__init__(packed, _Sizes(linear.out_features))
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return self.of_map(x.reshape(-1, self.in_features, 1, 1)).view(*x.shape[:-1], self.out_features)

    def of_map(self, x: Tensor) -> Tensor:
        """``[B, in_features, H, W]`` -> ``[B, out_features]``, of the mean of all pixels."""
        return pooled_linear(x, self.packed, self.out_features)


class OneOpHead(nn.Module):
    """What a head takes on to run pooling and classifier as one op; the head's own class comes after this one.

    Where the parts have to run (for the features before the classifier, in training, after a reset, under hooks) the
    head runs as before.
    """

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``[B, C, H, W]`` -> logits, or the pooled features for ``pre_logits``."""
        classifier: Any = self.fc
        averages = getattr(self.global_pool, "pool_type", None) == "avg"
        watched = any(is_observed(part) for part in self._modules.values() if part is not None)
        if pre_logits or self.training or watched or not (averages and type(classifier) is PackedLinear):
            return super().forward(x, pre_logits)
        return classifier.of_map(x)


class OneOpClassifierHead(OneOpHead, ClassifierHead):
    """Head of this package as one op."""


def fuse_heads(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Packs every linear classifier of a head that is known; where the mean of a map is all it reads, pooling joins it.

    Args:
        model: in evaluation mode.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        How many were packed.
    """
    fused = 0
    for head in list(model.modules()):
        name = _CLASSIFIERS.get(qualified_name(head))
        classifier = getattr(head, name) if name and "forward" not in vars(head) else None
        if name is None or type(classifier) is not nn.Linear or is_observed(classifier):
            continue
        setattr(head, name, PackedLinear(classifier, dtype))
        if qualified_name(head) in (_OURS, _TIMM) and _reads_a_mean(head):
            head.__class__ = OneOpClassifierHead if qualified_name(head) == _OURS else _timm_head()
        fused += 1
    return fused


def _reads_a_mean(head: Any) -> bool:
    """Whether a head averages a map ``[B, C, H, W]`` before its classifier, and nobody watches how."""
    pool, drop = head.global_pool, head.drop
    if qualified_name(pool) not in _POOLS or type(drop) is not nn.Dropout:
        return False
    of_pixels = pool.pool_type == "avg" and getattr(head, "input_fmt", "NCHW") == "NCHW"
    return of_pixels and not any(is_observed(part) for part in (*pool.modules(), drop, head.fc))


def _timm_head() -> type[nn.Module]:
    """Imports timm's head: only where a model has one."""
    from mobilevit_kernels.models.optimize.timm_head import OneOpTimmHead

    return OneOpTimmHead
