"""Chains of convolution, norm and activation: norms inside the convolutions behind them, and nothing that shows."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels.models import conv_chain, create_model
from mobilevit_kernels.models import convolve as convolve_module
from mobilevit_kernels.models.layers import ConvNormAct, InvertedResidual


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Kernel size of each convolution that took a norm along; no processor leaves them to torch."""
    seen: list[tuple[int, ...]] = []
    op = conv_chain.batch_norm_conv2d

    def counted(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, *rest: object) -> object:
        seen.append(tuple(weight.shape[2:]))
        return op(x, scale, shift, weight, *rest)

    monkeypatch.setattr(conv_chain, "batch_norm_conv2d", counted)
    use_matrix_unit(monkeypatch, has=False)
    return seen


def use_matrix_unit(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    extension = type("Extension", (), {"has_matrix_unit": staticmethod(lambda: has)})
    monkeypatch.setattr(convolve_module, "_C", extension)


@pytest.fixture
def block() -> InvertedResidual:
    block = InvertedResidual(8, 8)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return block.double().train()


def maps() -> Tensor:
    return torch.randn(3, 8, 9, 7, dtype=torch.float64)


def step(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients, and what the block remembers of two batches."""
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        out = block(leaf)
    weights = torch.linspace(-1, 2, out.numel(), dtype=x.dtype).reshape(out.shape).sin()
    grads = torch.autograd.grad((out * weights).sum(), [leaf, *block.parameters()])
    return [out.detach(), *grads, *block.buffers()]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
def test_same_as_the_modules(stride: int, calls: list[tuple[int, ...]]) -> None:
    block = InvertedResidual(8, 12, stride).double().train()
    plain, x = copy.deepcopy(block), maps()
    actual = step(block, x)
    assert calls == [(3, 3), (1, 1)] * 2
    with mobilevit_kernels.use_backend("reference"):
        expected = step(plain, x)
    assert len(calls) == 4
    assert_same(actual, expected)


CHANGES: dict[str, tuple[Callable[[InvertedResidual], object], list[tuple[int, ...]]]] = {
    "frozen norm": (lambda block: block.conv1_1x1.bn.eval(), [(1, 1)]),
    "other activation": (lambda block: setattr(block.conv2_kxk, "act", nn.ReLU()), [(3, 3)]),
    "bias": (lambda block: setattr(block.conv3_1x1, "conv", nn.Conv2d(32, 8, 1)), [(3, 3)]),
    "other convolution": (
        lambda block: setattr(block.conv2_kxk, "conv", nn.Conv2d(32, 32, 5, padding=2, groups=32)),
        [(1, 1)],
    ),
    "instance norm": (lambda block: setattr(block.conv2_kxk, "bn", nn.InstanceNorm2d(32)), [(3, 3)]),
    "another layer": (lambda block: setattr(block, "conv2_kxk", nn.Identity()), []),
    "evaluation": (lambda block: block.eval(), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_runs_itself(name: str, block: InvertedResidual, calls: list[tuple[int, ...]]) -> None:
    change, expected_calls = CHANGES[name]
    change(block)
    plain, x = copy.deepcopy(block.double()), maps()
    actual = step(block, x)
    assert calls == expected_calls * 2
    with mobilevit_kernels.use_backend("reference"):
        assert_same(actual, step(plain, x))


@pytest.mark.parametrize("part", ["conv1_1x1", "conv2_kxk", "conv3_1x1"])
@pytest.mark.parametrize("inner", ["", ".conv", ".bn", ".act"])
def test_hooks_see_and_change_what_passes(part: str, inner: str, block: InvertedResidual) -> None:
    """Of a layer, as feature extraction sets them, and of its parts."""
    x = maps()
    before = block(x)
    block.get_submodule(part + inner).register_forward_hook(lambda module, args, out: out * 0 + 1)
    after = block(x)
    with mobilevit_kernels.use_backend("reference"):
        expected = block(x)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, after)


def test_matrix_units_take_the_1x1_convolution(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_matrix_unit(monkeypatch, has=True)
    block = InvertedResidual(8, 12).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert block(torch.randn(3, 8, 9, 7)).dtype == torch.bfloat16
    assert calls == [(3, 3)]


def test_autocast(calls: list[tuple[int, ...]]) -> None:
    block = InvertedResidual(8, 12).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(torch.randn(3, 8, 9, 7))
    assert out.dtype == torch.bfloat16
    assert calls == [(3, 3), (1, 1)]
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())


def test_a_norm_that_autocast_leaves_alone_is_not_narrowed(
    block: InvertedResidual, calls: list[tuple[int, ...]]
) -> None:
    """float64 passes autocast: so does the norm."""
    with torch.autocast("cpu", torch.bfloat16):
        out = block(maps())
    assert out.dtype == torch.float64
    assert calls == []


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_s"])
def test_a_whole_model_trains_on_them(name: str, calls: list[tuple[int, ...]]) -> None:
    model = create_model(name, num_classes=7).train()
    residuals = sum(isinstance(module, InvertedResidual) for module in model.modules())
    blocks = sum(hasattr(module, "conv_proj") for module in model.modules())
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert calls.count((3, 3)) == residuals > 0
    assert calls.count((1, 1)) == residuals + blocks > residuals
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parts_of_other_modules_are_not_guessed() -> None:
    subclass = type("Other", (ConvNormAct,), {})(8, 8)
    assert mobilevit_kernels.models.layers.conv_layer(subclass) is None
