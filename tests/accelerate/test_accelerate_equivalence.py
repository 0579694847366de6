"""An accelerated model computes what timm and transformers compute: outputs, gradients, updates, statistics."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilevit_kernels.models.accelerate import accelerate

KINDS = ("timm_v1", "timm_v2", "hf_v1", "hf_v1_segmentation", "hf_v2", "hf_v2_segmentation")
CLASSIFIERS = ("timm_v1", "timm_v2", "hf_v1", "hf_v2")
# (op, layers of the models in conftest)
OPS = {
    "timm_v1": ("mobilevit::unfold_attn_fold", 9),
    "timm_v2": ("mobilevit::separable_attn", 9),
    "hf_v1": ("mobilevit::unfold_attn_fold", 9),
    "hf_v1_segmentation": ("mobilevit::unfold_attn_fold", 9),
    "hf_v2": ("mobilevit::separable_attn", 4),
    "hf_v2_segmentation": ("mobilevit::separable_attn", 4),
}


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model, accelerate(copy.deepcopy(model))


def assert_close(actual: Tensor, expected: Tensor, rtol: float, floor: float = 0.0) -> None:
    """Error relative to the largest value: a small entry of a large tensor has the error of its neighbours."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale + floor)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def gradients_of(model: nn.Module, x: Tensor, logits: Callable) -> list[Tensor]:
    """Gradients of a loss in the image and in every parameter."""
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(logits(model, x), torch.tensor([1, 4, 0])).backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("size", [(64, 64), (97, 131)], ids=["even", "odd"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs(
    kind: str, size: tuple[int, int], build: Callable, images: Callable, logits: Callable
) -> None:
    original, accelerated = pair(build(kind))
    x = images(*size)
    with torch.no_grad():
        expected, actual = logits(original, x), logits(accelerated, x)
    assert expected.std() > 1e-2
    assert_close(actual, expected, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_runs_on_its_op(
    kind: str, build: Callable, images: Callable, logits: Callable, count_ops: Callable, kernels: str
) -> None:
    """Once per layer, and the original never does."""
    original, accelerated = pair(build(kind))
    name, layers = OPS[kind]
    with torch.no_grad():
        before, after = (count_ops(logits, model, images()) for model in (original, accelerated))
    assert not any(key.startswith("mobilevit::") for key in before)
    assert {key: calls for key, calls in after.items() if key.startswith("mobilevit::")} == {name: layers}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_nothing_is_unfolded(
    kind: str, build: Callable, images: Callable, logits: Callable, count_ops: Callable, kernels: str
) -> None:
    """A channels_last model copies no activation; otherwise each block makes its map channels_last, once."""
    copies = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::im2col", "aten::col2im")
    for memory_format, allowed in ((torch.channels_last, 0), (torch.contiguous_format, 3)):
        accelerated = accelerate(build(kind)).to(memory_format=memory_format)
        x = images().contiguous(memory_format=memory_format)
        with torch.no_grad():
            calls = count_ops(logits, accelerated, x)
        assert sum(calls[name] for name in copies) <= allowed


def test_mobilevit_s(images: Callable) -> None:
    timm = pytest.importorskip("timm")
    original, accelerated = pair(timm.create_model("mobilevit_s", num_classes=7).eval())
    x = images(96, 64, 1)
    with torch.no_grad():
        assert_close(accelerated(x), original(x), rtol=2e-5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_training_step_float64(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    """All gradients, the BatchNorm statistics, and the weights after one SGD step are the original's."""
    models = pair(build(kind).double().train())
    gradients = [gradients_of(model, images(66, 94, 3).double(), logits) for model in models]
    largest = max(gradient.abs().max().item() for gradient in gradients[0])
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        # The floor is for gradients that are zero but for rounding, such as that of a bias before a BatchNorm.
        assert_close(actual, expected, rtol=1e-10, floor=1e-14 * largest)
    assert sum(float(gradient.abs().max()) > 1e-6 * largest for gradient in gradients[0]) > 80
    for model in models:
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    for actual, expected in zip(
        models[1].state_dict().values(), models[0].state_dict().values(), strict=True
    ):
        assert_close(actual.double(), expected.double(), rtol=1e-10)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_gradients_float32(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    """float32 gradients are as near to the float64 ones as the original's: at most three times its error."""
    original, accelerated = pair(build(kind).train())
    x = images(66, 94, 3)
    truth = gradients_of(copy.deepcopy(original).double(), x.double(), logits)
    errors = []
    for model in (original, accelerated):
        pairs = zip(gradients_of(model, x, logits), truth, strict=True)
        errors.append(
            [relative_error(actual, expected) for actual, expected in pairs if expected.norm() > 1e-9]
        )
    expected, actual = (torch.tensor(values) for values in errors)
    assert actual.max() <= 3 * expected.max()
    assert actual.median() <= 3 * expected.median()
    assert actual.median() <= 1e-3


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_frozen_weights_get_no_gradient(
    kind: str, build: Callable, images: Callable, logits: Callable
) -> None:
    """Only the last classifier is trained: no other parameter is touched."""
    model = accelerate(build(kind).requires_grad_(False))
    head = model.head.fc if kind.startswith("timm") else model.classifier
    head.requires_grad_(True)
    logits(model, images()).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        name
        for name, parameter in model.named_parameters()
        if parameter is head.weight or parameter is head.bias
    }


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_autocast(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    """bfloat16 autocast: no further from the float64 truth than twice the original's error, and same dtype."""
    original, accelerated = pair(build(kind))
    x = images(64, 96)
    with torch.no_grad():
        truth = logits(copy.deepcopy(original).double(), x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = logits(original, x), logits(accelerated, x)
    assert actual.dtype == expected.dtype
    assert (actual - truth).abs().max() <= 2 * (expected - truth).abs().max()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_bfloat16_model(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    original, accelerated = pair(build(kind))
    x = images()
    with torch.no_grad():
        truth = logits(original.double(), x.double())
        expected = logits(original.bfloat16(), x.bfloat16())
        actual = logits(accelerated.bfloat16(), x.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert (actual - truth).abs().max() <= 2 * (expected - truth).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    original, accelerated = pair(build(kind))
    accelerated = accelerated.to(memory_format=torch.channels_last)
    x = images(65, 80)
    with torch.no_grad():
        actual = logits(accelerated, x.contiguous(memory_format=torch.channels_last))
        assert_close(actual, logits(original, x), rtol=2e-5)
