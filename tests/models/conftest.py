"""Random but telling weights, and pairs of timm's model and ours that share them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilevit_kernels.models import create_model

Pair = tuple[nn.Module, nn.Module]


@torch.no_grad()
def _randomize(model: nn.Module) -> nn.Module:
    """Weights that keep activations near one, biases and BatchNorm statistics away from their defaults."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, (1.5 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
        if getattr(module, "bias", None) is not None:
            module.bias.normal_(0, 0.2)
    return model.eval()


def _pair(name: str, **kwargs: object) -> Pair:
    import timm

    theirs = _randomize(timm.create_model(name, **kwargs))
    ours = create_model(name, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def _assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Largest difference at most ``tolerance`` times the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max().item()
    bound = tolerance * expected.abs().max().item()
    assert error <= bound, f"largest difference {error:.3g}, allowed {bound:.3g}"


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Randomizes a model in place, returns it in evaluation mode."""
    return _randomize


@pytest.fixture
def random_model() -> Callable[..., nn.Module]:
    """``create_model`` with random weights, in evaluation mode."""
    return lambda name, **kwargs: _randomize(create_model(name, **kwargs))


@pytest.fixture
def timm_pair() -> Callable[..., Pair]:
    """(timm's model, ours) of one name and arguments, same weights, in evaluation mode."""
    return _pair


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compares tensors relative to the largest expected value (1e-4 unless told)."""
    return _assert_same
