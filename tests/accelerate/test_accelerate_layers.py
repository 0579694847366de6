"""The convolutions and norms of an accelerated model: in training on the CPU on this package's kernels."""

import copy
from collections.abc import Callable

import pytest
import torch
import transformers
from foreign_models import V1_CONFIG
from timm.models.byobnet import BottleneckBlock
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, fx, nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTInvertedResidual, MobileViTLayer
from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2InvertedResidual, MobileViTV2Layer

import mobilevit_kernels
from mobilevit_kernels.models import accelerate

KINDS = ("timm_v1", "timm_v2", "hf_v1", "hf_v2")
OPS = ("pointwise_conv2d", "depthwise_conv2d", "batch_norm", "batch_norm_conv2d")
RESIDUALS = (BottleneckBlock, MobileViTInvertedResidual, MobileViTV2InvertedResidual)
BLOCKS = (MobileVitBlock, MobileVitV2Block, MobileViTLayer, MobileViTV2Layer)
pytestmark = pytest.mark.usefixtures("kernels")


def layer_ops(calls: dict[str, int]) -> dict[str, int]:
    return {name: calls[f"mobilevit::{name}"] for name in OPS if calls[f"mobilevit::{name}"]}


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """But for the projections of separable attention, which its op has inside."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and "qkv_proj" not in name and "out_proj" not in name
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_training_runs_on_the_kernels(
    kind: str, build: Callable, images: Callable, logits: Callable, count_ops: Callable
) -> None:
    """Every 1x1 and depthwise convolution and every BatchNorm; dense 3x3 convolutions stay with PyTorch.

    In inverted residuals the depthwise and the second 1x1 convolution have the norms before them inside, in MobileViT
    blocks the first 1x1 convolution.
    """
    model = accelerate(build(kind)).train()
    calls = count_ops(logits, model, images())
    convs = convolutions(model)
    pointwise = sum(conv.kernel_size == (1, 1) for conv in convs)
    depthwise = sum(conv.groups > 1 for conv in convs)
    residuals = sum(isinstance(module, RESIDUALS) for module in model.modules())
    inside = 2 * residuals + sum(isinstance(module, BLOCKS) for module in model.modules())
    assert calls["mobilevit::batch_norm_conv2d"] == inside > 2 * residuals > 0
    linear = 36 if kind == "timm_v1" else 0
    assert calls["mobilevit::pointwise_conv2d"] == pointwise + linear - (inside - residuals)
    assert calls["mobilevit::depthwise_conv2d"] == depthwise - residuals
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert calls["mobilevit::batch_norm"] == norms - inside > 0
    dense = len(convs) - pointwise - depthwise
    assert calls["aten::convolution"] == dense > 0
    assert calls["aten::native_batch_norm"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_inference_and_the_reference_backend_do_not(
    kind: str, build: Callable, images: Callable, logits: Callable, count_ops: Callable
) -> None:
    model = accelerate(build(kind))
    assert layer_ops(count_ops(logits, model, images())) == {}
    with mobilevit_kernels.use_backend("reference"):
        assert layer_ops(count_ops(logits, model.train(), images())) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_watches_runs_itself(
    kind: str, build: Callable, images: Callable, logits: Callable, count_ops: Callable
) -> None:
    """Hooks on every part fire in training too, and change what comes out."""
    model, seen = accelerate(build(kind)).train(), set()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in norms:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    calls = layer_ops(count_ops(logits, model, images()))
    assert seen == set(norms)
    assert set(calls) == {"pointwise_conv2d", "depthwise_conv2d"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_set_on_an_instance_is_called(
    kind: str, build: Callable, images: Callable, logits: Callable
) -> None:
    """Offloading replaces the forward of convolutions and norms after the model was accelerated."""
    model, seen = accelerate(build(kind)).train(), set()
    watched = [*convolutions(model), *(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))]
    for module in watched:
        module.forward = lambda x, module=module: (seen.add(module), type(module).forward(module, x))[1]
    logits(model, images())
    assert seen == set(watched)


def test_timm_norm_with_dropout_runs_itself(build: Callable, images: Callable, count_ops: Callable) -> None:
    model = accelerate(build("timm_v1")).train()
    before = count_ops(model, images())
    model.stem.bn.drop = nn.Dropout2d(1.0)
    model.stages[0][0].conv1_1x1.bn.act = nn.ReLU()
    calls = count_ops(model, images())
    assert before["mobilevit::batch_norm"] - calls["mobilevit::batch_norm"] == 1
    assert before["mobilevit::batch_norm_conv2d"] - calls["mobilevit::batch_norm_conv2d"] == 1
    assert (model.stem(images()) == 0).all()


def test_symbolic_traces_are_timms(build: Callable, images: Callable) -> None:
    """A layer can be traced as before, by torchvision's feature extraction for one."""
    plain = build("timm_v1").stages[0][0].conv2_kxk
    traces = [
        fx.symbolic_trace(layer) for layer in (plain, accelerate(build("timm_v1")).stages[0][0].conv2_kxk)
    ]
    nodes = [[(node.op, node.target) for node in trace.graph.nodes] for trace in traces]
    assert nodes[0] == nodes[1]
    x = torch.randn(2, plain.in_channels, 6, 8)
    torch.testing.assert_close(traces[1](x), plain(x), rtol=0, atol=0)


def test_activation_that_is_no_module(images: Callable) -> None:
    config = transformers.MobileViTConfig(**V1_CONFIG)
    original = transformers.MobileViTModel(config).double().train()
    for module in original.modules():
        if getattr(module, "activation", None) is not None:
            del module.activation
            module.activation = torch.tanh
    accelerated = accelerate(copy.deepcopy(original))
    outputs: list[Tensor] = [model(images().double()).last_hidden_state for model in (original, accelerated)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
