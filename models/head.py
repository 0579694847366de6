"""Global pooling, dropout and the linear classifier."""

import torch
from torch import Tensor, nn

POOL_TYPES = ("avg", "max", "avgmax", "catavgmax", "")


class GlobalPool(nn.Module):
    """Pools a map to one vector.

    Args:
        pool_type: "avg", "max", "avgmax" (their mean), "catavgmax" (both, concatenated) or "" (leaves the map).

    Raises:
        ValueError: ``pool_type`` is none of these.
    """

    def __init__(self, pool_type: str = "avg") -> None:
        super().__init__()
        if pool_type not in POOL_TYPES:
            raise ValueError(
                f"global_pool: expected one of {', '.join(map(repr, POOL_TYPES))}, got {pool_type!r}"
            )
        self.pool_type = pool_type

    def feat_mult(self) -> int:
        """Returns pooled features per channel."""
        return 2 if self.pool_type == "catavgmax" else 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C * feat_mult()]``, or the map itself for ""."""
        if self.pool_type == "":
            return x
        if self.pool_type == "avg":
            return x.mean(dim=(2, 3))
        if self.pool_type == "max":
            return x.amax(dim=(2, 3))
        average, maximum = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        if self.pool_type == "avgmax":
            return 0.5 * (average + maximum)
        return torch.cat((average, maximum), dim=1)

    def extra_repr(self) -> str:
        """Shows the kind in ``print(model)``."""
        return f"pool_type={self.pool_type!r}"


class ClassifierHead(nn.Module):
    """Pooling, dropout and a linear classifier, with the interface of timm's head of the same name.

    Args:
        in_features: channels of the map.
        num_classes: classes; 0 leaves out the classifier.
        pool_type: see :class:`GlobalPool`; "" only with ``num_classes=0``.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: negative ``num_classes``, an unknown pooling, or no pooling before a classifier.
    """

    def __init__(
        self, in_features: int, num_classes: int, pool_type: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        _check_head(num_classes, pool_type)
        self.in_features = in_features
        self.global_pool = GlobalPool(pool_type)
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._make_fc(num_classes)

    @property
    def num_features(self) -> int:
        """Features that the classifier reads."""
        return self.in_features * self.global_pool.feat_mult()

    def reset(
        self, num_classes: int, pool_type: str | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Replaces the classifier by a fresh one, and the pooling unless ``pool_type`` is None.

        Raises:
            ValueError: as the constructor; the head then stays as it is.
        """
        pool_type = self.global_pool.pool_type if pool_type is None else pool_type
        _check_head(num_classes, pool_type)
        self.global_pool = GlobalPool(pool_type).train(self.training)
        self.fc = self._make_fc(num_classes).to(device=device, dtype=dtype).train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``[B, C, H, W]`` -> logits ``[B, num_classes]``, or the pooled features for ``pre_logits``."""
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def _make_fc(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()


def _check_head(num_classes: int, pool_type: str) -> None:
    if num_classes < 0:
        raise ValueError(f"num_classes: expected 0 or more, got {num_classes}")
    if pool_type == "" and num_classes > 0:
        raise ValueError("global_pool: '' (no pooling) needs num_classes=0, the classifier reads one vector")
