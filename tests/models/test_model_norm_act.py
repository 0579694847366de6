"""BatchNorm and SiLU of the convolutional layers: one op in training, and nothing that shows."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels.models import create_model, norm_act
from mobilevit_kernels.models.layers import ConvNormAct


@pytest.fixture
def layer() -> ConvNormAct:
    layer = ConvNormAct(5, 12, kernel_size=3).train()
    nn.init.uniform_(layer.bn.weight)
    nn.init.normal_(layer.bn.bias)
    return layer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the activation was part of the op, call by call."""
    seen: list[bool] = []
    op = norm_act.batch_norm

    def counted(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(silu)
        return op(x, weight, bias, eps, silu)

    monkeypatch.setattr(norm_act, "batch_norm", counted)
    return seen


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients, and what the layer remembers of two batches."""
    for _ in range(2):
        out = layer(x)
    weights = torch.linspace(-1, 2, out.numel()).reshape(out.shape).sin()
    grads = torch.autograd.grad((out * weights).sum(), list(layer.parameters()))
    return [out.detach(), *grads, *layer.state_dict().values()]


@pytest.mark.parametrize("act", [True, False])
def test_same_as_the_modules(layer: ConvNormAct, act: bool, calls: list[bool]) -> None:
    if not act:
        layer.act = nn.Identity()
    plain, x = copy.deepcopy(layer), torch.randn(3, 5, 8, 6)
    actual = step(layer, x)
    assert calls == [act, act]
    with mobilevit_kernels.use_backend("reference"):
        expected = step(plain, x)
    assert len(calls) == 2
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def freeze(layer: ConvNormAct) -> None:
    layer.bn.eval()


def synchronize(layer: ConvNormAct) -> None:
    layer.bn = nn.SyncBatchNorm(12)


def forget(layer: ConvNormAct) -> None:
    layer.bn = nn.BatchNorm2d(12, track_running_stats=False)


def watch(layer: ConvNormAct) -> None:
    layer.bn.register_forward_hook(lambda module, args, out: 2 * out)


def activate_otherwise(layer: ConvNormAct) -> None:
    layer.act = nn.ReLU()


@pytest.mark.parametrize(
    "change", [freeze, forget, watch, activate_otherwise], ids=lambda change: change.__name__
)
def test_other_modules_run_themselves(layer: ConvNormAct, change: object, calls: list[bool]) -> None:
    assert callable(change)
    change(layer)
    x = torch.randn(3, 5, 8, 6)
    expected = copy.deepcopy(layer)
    assert torch.equal(layer(x), expected.act(expected.bn(expected.conv(x))))
    assert calls == []


def test_evaluation_uses_running_statistics(layer: ConvNormAct, calls: list[bool]) -> None:
    x = torch.randn(3, 5, 8, 6)
    layer.eval()
    assert torch.equal(layer(x), layer.act(layer.bn(layer.conv(x))))
    assert calls == []


def test_a_single_value_per_channel_is_the_error_of_torch(layer: ConvNormAct) -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(torch.randn(1, 5, 1, 1))


def test_autocast_keeps_the_statistics_in_float32(layer: ConvNormAct, calls: list[bool]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(3, 5, 8, 6))
    assert out.dtype == torch.bfloat16
    assert layer.bn.running_mean is not None
    assert layer.bn.running_mean.dtype == torch.float32
    assert calls == [True]


def test_a_whole_model_trains_on_it(calls: list[bool]) -> None:
    """But for the norms in front of convolutions (test_model_conv_chain.py): in seven residuals and three blocks."""
    model = create_model("mobilevit_xxs", num_classes=7).train()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert len(calls) == 32 - 2 * 7 - 3
    assert sum(calls) < len(calls)
    assert all(parameter.grad is not None for parameter in model.parameters())
