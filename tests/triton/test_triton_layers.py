"""Whole layers as one op: the Triton kernels, the plain path of other devices, and the models that use them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_problems import LAYERS, others, parameters
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels import ops, reference
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.attention import MultiHeadAttention
from mobilevit_kernels.models.transformer import SeparableTransformerLayer, TransformerLayer

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """Runs the test once per op."""
    return request.param


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16], ids=["fp32-weights", "fp16-weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("channels", "size", "patch", "batch"),
    [(20, (6, 4), (2, 2), 2), (36, (3, 5), (1, 1), 1), (144, (4, 2), (2, 1), 3), (260, (2, 2), (2, 2), 1)],
    ids=str,
)
def test_against_float64(
    layer: str, channels: int, size: tuple[int, int], patch: tuple[int, int], batch: int,
    dtype: torch.dtype, weight_dtype: torch.dtype,
) -> None:  # fmt: skip
    x = torch.randn(batch, channels, *size).to(dtype)
    tensors = parameters(layer, channels, weight_dtype)
    out = getattr(ops, layer)(x, *tensors, *others(layer, patch))
    truth = getattr(reference, layer)(x.double(), *(t.double() for t in tensors), *others(layer, patch))
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    limit = TOLERANCES[dtype] * truth.abs().max().item()
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=limit)


@pytest.mark.usefixtures("kernels")
def test_a_sample_of_nan_stays_alone(layer: str) -> None:
    x = torch.randn(3, 20, 4, 4).half()
    tensors = parameters(layer, 20, torch.float16)
    expected = getattr(ops, layer)(x, *tensors, *others(layer, (2, 2)))
    x[1] = torch.nan
    out = getattr(ops, layer)(x, *tensors, *others(layer, (2, 2)))
    assert torch.isnan(out[1]).all()
    assert torch.equal(out[::2], expected[::2])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(0, 20, 4, 4), (2, 20, 0, 4)], ids=str)
def test_empty_maps(layer: str, shape: tuple[int, ...]) -> None:
    tensors = parameters(layer, 20, torch.float32)
    assert getattr(ops, layer)(torch.empty(shape), *tensors, *others(layer, (2, 2))).shape == shape


def test_plain_path_of_the_cpu_is_the_reference(layer: str) -> None:
    x, tensors = torch.randn(2, 20, 4, 6), parameters(layer, 20, torch.float32)
    out = getattr(ops, layer)(x, *tensors, *others(layer, (2, 2)))
    assert torch.equal(out, getattr(reference, layer)(x, *tensors, *others(layer, (2, 2))))


@pytest.mark.usefixtures("kernels")
def test_opcheck(layer: str) -> None:
    op = getattr(torch.ops.mobilevit, layer).default
    x = torch.randn(2, 20, 4, 4)
    for first in (x, x.contiguous(memory_format=torch.channels_last), torch.randn(2, 22, 4, 4)[:, 1:21]):
        torch.library.opcheck(op, (first, *parameters(layer, 20, torch.float32), *others(layer, (2, 2))))


def test_a_gradient_is_refused(layer: str) -> None:
    tensors = parameters(layer, 20, torch.float32)
    x = torch.randn(1, 20, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"mobilevit::{layer} is for inference and has no gradient"):
        getattr(ops, layer)(x, *tensors, *others(layer, (2, 2)))
    with torch.no_grad():
        getattr(ops, layer)(x, *tensors, *others(layer, (2, 2)))


@pytest.mark.parametrize(
    ("index", "name"),
    [(1, "norm1_bias"), (2, "qkv_weight"), (3, "qkv_bias"), (8, "fc1_weight"), (10, "fc2_weight")],
)
def test_wrong_shapes_name_the_parameter(layer: str, index: int, name: str) -> None:
    tensors = parameters(layer, 20, torch.float32)
    tensors[index] = tensors[index][:-1]
    with pytest.raises(ValueError, match=rf"^{name}: expected \[.*\], got \["):
        getattr(ops, layer)(torch.randn(1, 20, 4, 4), *tensors, *others(layer, (2, 2)))


def test_wrong_maps(layer: str) -> None:
    tensors = parameters(layer, 20, torch.float32)
    with pytest.raises(ValueError, match=r"^x: H and W must be divisible by patch_size \(2, 2\), got 3 x 4"):
        getattr(ops, layer)(torch.randn(1, 20, 3, 4), *tensors, *others(layer, (2, 2)))
    with pytest.raises(TypeError, match=r"^x: expected a floating-point dtype, got torch.int64"):
        getattr(ops, layer)(torch.ones(1, 20, 4, 4).long(), *tensors, *others(layer, (2, 2)))
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions"):
        getattr(ops, layer)(torch.ones(20, 4, 4), *tensors, *others(layer, (2, 2)))


class Calls:
    """Counts the calls of both ops."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in LAYERS:
            op = getattr(ops, name)
            monkeypatch.setattr(f"mobilevit_kernels.models.transformer.{name}", self.counted(op))

    def counted(self, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``op``, counting."""

        def call(*args: Any, **options: Any) -> Tensor:
            self.count += 1
            return op(*args, **options)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How often a model ran a layer as one op."""
    return Calls(monkeypatch)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("name", "layers"), [("mobilevit_xxs", 9), ("mobilevitv2_050", 9), ("mobilevitv3_xxs", 9)]
)
def test_models_run_whole_layers(name: str, layers: int, calls: Calls) -> None:
    model = create_model(name, num_classes=10).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        truth = model(images)
        assert calls.count == 0  # float32
        logits = model.half()(images.half())
    assert calls.count == layers
    torch.testing.assert_close(logits.float(), truth, rtol=0, atol=2e-2 * truth.abs().max().item())


def small_layer(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer in 16 bits and evaluation mode, and its input."""
    x = torch.randn(2, 20, 4, 4).half()
    if kind == "transformer_layer":
        return TransformerLayer(20, MultiHeadAttention(20)).half().eval(), x.permute(0, 2, 3, 1)
    return SeparableTransformerLayer(20).half().eval(), x


@pytest.mark.usefixtures("kernels")
def test_a_layer_runs_as_one_op(layer: str, calls: Calls) -> None:
    module, x = small_layer(layer)
    with torch.no_grad():
        module(x)
    assert calls.count == 1


def train(module: nn.Module) -> None:
    module.train()


def train_a_part(module: nn.Module) -> None:
    module.mlp.drop.train()


def hook_a_part(module: nn.Module) -> None:
    module.mlp.fc1.register_forward_hook(lambda *args: None)


def replace_a_part(module: nn.Module) -> None:
    class Adapted(type(module.mlp.fc2)):
        pass

    module.mlp.fc2.__class__ = Adapted


def other_epsilon(module: nn.Module) -> None:
    module.norm2.eps = 1e-3


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "change",
    [train, train_a_part, hook_a_part, replace_a_part, other_epsilon],
    ids=lambda change: change.__name__,
)
def test_what_the_op_does_not_stand_for_runs_by_itself(
    layer: str, change: Callable[[nn.Module], None], calls: Calls
) -> None:
    module, x = small_layer(layer)
    change(module)
    with torch.no_grad():
        module(x)
    assert calls.count == 0


def test_gradients_other_backends_and_large_batches_take_the_usual_path(layer: str, calls: Calls) -> None:
    module, x = small_layer(layer)
    with mobilevit_kernels.use_backend("triton"):
        module(x)
    with mobilevit_kernels.use_backend("native"), torch.no_grad():
        module(x)
    with mobilevit_kernels.use_backend("triton"), torch.no_grad():
        module(x.repeat(5, 1, 1, 1))
        module.float()(x.float())
    assert calls.count == 0
