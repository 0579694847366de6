"""Convolutions and linear layers of the models: on kernels of this package in training, and nothing that shows."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels.models import conv_chain, create_model
from mobilevit_kernels.models import convolve as module
from mobilevit_kernels.models.convolve import convolve, project

KINDS = ("pointwise_conv2d", "depthwise_conv2d")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ops ran."""
    seen: list[str] = []

    def counted(kind: str) -> Callable[..., Tensor]:
        op = getattr(module, kind)

        def call(*args: object, **options: object) -> Tensor:
            seen.append(" ".join([kind, *options]))
            return op(*args, **options)

        return call

    for kind in KINDS:
        monkeypatch.setattr(module, kind, counted(kind))
    return seen


def apply(x: Tensor, layer: nn.Module, act: nn.Module | None = None) -> Tensor:
    run: Callable[..., Tensor] = project if isinstance(layer, nn.Linear) else convolve
    return run(x, layer, act)


def step(x: Tensor, layer: nn.Module, act: nn.Module | None = None) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    out = apply(leaves[0] * 1, layer, act)
    weights = torch.linspace(-1, 2, out.numel()).reshape(out.shape).sin()
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


LAYERS = {
    "1x1": (lambda: nn.Conv2d(6, 10, 1, bias=False), "pointwise_conv2d"),
    "1x1 with bias": (lambda: nn.Conv2d(6, 10, 1), "pointwise_conv2d"),
    "linear": (lambda: nn.Linear(6, 10), "pointwise_conv2d"),
    "linear without bias": (lambda: nn.Linear(6, 10, bias=False), "pointwise_conv2d"),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False), "depthwise_conv2d"),
    "depthwise, stride 2": (lambda: nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False), "depthwise_conv2d"),
    "depthwise, dilation 2": (lambda: nn.Conv2d(6, 6, 3, 1, 2, 2, groups=6, bias=False), "depthwise_conv2d"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_same_as_the_module(name: str, calls: list[str]) -> None:
    make, kind = LAYERS[name]
    layer = make()
    x = torch.randn(3, 8, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 8, 7)
    actual = step(x, layer)
    assert calls == [kind]
    with mobilevit_kernels.use_backend("reference"):
        expected = step(x, layer)
    assert calls == [kind]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def watched(act: nn.Module) -> nn.Module:
    act.register_forward_hook(lambda *args: None)
    return act


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "SiLU": (nn.SiLU, True),
    "SiLU in place": (lambda: nn.SiLU(inplace=True), True),
    "GELU": (nn.GELU, False),
    "watched SiLU": (lambda: watched(nn.SiLU()), False),
    "nothing": (nn.Identity, False),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_activation_before_the_layer(name: str, act: str, calls: list[str]) -> None:
    (make, kind), (make_act, is_part) = LAYERS[name], ACTIVATIONS[act]
    layer = make()
    x = torch.randn(3, 8, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 8, 7)
    actual = step(x.sin(), layer, make_act())
    assert calls == ([f"{kind} silu_input"] if is_part and kind == "pointwise_conv2d" else [kind])
    with mobilevit_kernels.use_backend("reference"):
        expected = step(x.sin(), layer, make_act())
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_watched_activation_is_called(calls: list[str]) -> None:
    seen: list[object] = []
    act = nn.SiLU()
    act.register_forward_hook(lambda *args: seen.append(act))
    convolve(torch.randn(1, 6, 4, 4), nn.Conv2d(6, 10, 1), act)
    assert seen == [act]
    assert calls == ["pointwise_conv2d"]


OTHERS = {
    "3x3": lambda: nn.Conv2d(6, 10, 3, 1, 1),
    "stride": lambda: nn.Conv2d(6, 10, 1, 2),
    "padding": lambda: nn.Conv2d(6, 10, 1, padding=1),
    "groups": lambda: nn.Conv2d(6, 12, 1, groups=2),
    "depthwise 5x5": lambda: nn.Conv2d(6, 6, 5, 1, 2, groups=6, bias=False),
    "depthwise with bias": lambda: nn.Conv2d(6, 6, 3, 1, 1, groups=6),
    "depthwise without padding": lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False),
    "depthwise, two strides": lambda: nn.Conv2d(6, 6, 3, (1, 2), 1, groups=6, bias=False),
    "depthwise, two dilations": lambda: nn.Conv2d(6, 6, 3, 1, (1, 2), (1, 2), groups=6, bias=False),
    "depthwise multiplier": lambda: nn.Conv2d(6, 12, 3, 1, 1, groups=6, bias=False),
    "same": lambda: nn.Conv2d(6, 6, 3, 1, "same", groups=6, bias=False),
    "reflected": lambda: nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False, padding_mode="reflect"),
    "evaluation": lambda: nn.Conv2d(6, 10, 1).eval(),
    "subclass": lambda: type("Conv", (nn.Conv2d,), {})(6, 10, 1),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 10, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_run_themselves(name: str, calls: list[str]) -> None:
    layer, x = OTHERS[name](), torch.randn(3, 6, 8, 7)
    assert torch.equal(convolve(x, layer), layer(x))
    assert calls == []


@pytest.mark.parametrize(
    "hook", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_are_called(hook: str, calls: list[str]) -> None:
    seen = []
    layer = nn.Conv2d(6, 10, 1)
    getattr(layer, f"register_{hook}")(lambda *args: seen.append(hook))
    convolve(torch.randn(1, 6, 4, 4, requires_grad=True), layer).sum().backward()
    assert seen == [hook]
    assert calls == []


def test_without_a_batch_torch_decides(calls: list[str]) -> None:
    layer, x = nn.Conv2d(6, 10, 1), torch.randn(6, 4, 4)
    assert torch.equal(convolve(x, layer), layer(x))
    linear, tokens = nn.Linear(6, 10), torch.randn(5, 6)
    assert torch.equal(project(tokens, linear), linear(tokens))
    assert calls == []


def test_matrix_units_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setattr(module, "_C", type("Extension", (), {"has_matrix_unit": staticmethod(lambda: True)}))
    layer, depthwise = nn.Conv2d(6, 10, 1), nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)
    x = torch.randn(3, 6, 8, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, layer).dtype == torch.bfloat16
        assert calls == []
        assert convolve(x, depthwise).dtype == torch.bfloat16
    convolve(x, layer)
    assert calls == ["depthwise_conv2d", "pointwise_conv2d"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_C", type("Extension", (), {"has_matrix_unit": staticmethod(lambda: False)}))
    layer, x = nn.Conv2d(6, 10, 1), torch.randn(3, 6, 8, 7)
    with torch.autocast("cpu", dtype):
        out = convolve(x, layer)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert calls == ["pointwise_conv2d"]


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_s"])
def test_a_whole_model_trains_on_them(name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no norm runs inside a convolution, which test_model_conv_chain.py looks at."""
    monkeypatch.setattr(conv_chain, "takes_norm", lambda x, conv: False)
    model = create_model(name, num_classes=7).train()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 64, 64)
    model(x).sum().backward()
    assert set(calls) == {*KINDS, "pointwise_conv2d silu_input"}
    assert all(parameter.grad is not None for parameter in model.parameters())
    count = len(calls)
    with mobilevit_kernels.use_backend("reference"):
        plain(x).sum().backward()
    assert len(calls) == count
