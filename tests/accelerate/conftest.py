"""Models of timm and transformers, images, and a counter of the operators that run."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from foreign_models import build_model, logits_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class OpCounter(TorchDispatchMode):
    """Counts the operators that reach a kernel, by qualified name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """build(kind, **options): a model of this kind in eval mode; equal arguments give equal weights."""

    return build_model


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """images(height, width, batch=2): photographs' range of values, float32."""

    def make(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
        return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture
def logits() -> Callable[[nn.Module, Tensor], Tensor]:
    """logits(model, x): the same for both libraries."""

    return logits_of


@pytest.fixture
def count_ops() -> Callable[..., Counter[str]]:
    """count_ops(function, *args): how often each operator reached a kernel, "aten::clone" say."""

    def count(function: Callable[..., object], *args: object) -> Counter[str]:
        with OpCounter() as counter:
            function(*args)
        return counter.calls

    return count
