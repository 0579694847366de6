"""What timm users do with a model: features, checkpointing, stochastic depth, torch.compile, export."""

import copy
import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from mobilevit_kernels.models.accelerate import accelerate, accelerated_modules

KINDS = ("timm_v1", "timm_v2")
OPS = {"timm_v1": "unfold_attn_fold", "timm_v2": "separable_attn"}


def randomized(model: nn.Module) -> nn.Module:
    """timm starts the last BatchNorm of a residual at zero; here it has an effect."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_features_only(name: str, images: Callable) -> None:
    original = randomized(timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))).eval()
    accelerated = accelerate(copy.deepcopy(original))
    assert accelerated_modules(accelerated) == ["stages_2.1", "stages_3.1", "stages_4.1"]
    assert accelerated.feature_info.channels() == original.feature_info.channels()
    with torch.no_grad():
        for actual, expected in zip(accelerated(images(97, 80)), original(images(97, 80)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_model_methods(kind: str, build: Callable, images: Callable) -> None:
    original = build(kind)
    accelerated = accelerate(copy.deepcopy(original))
    x = images()
    with torch.no_grad():
        expected, actual = original.forward_features(x), accelerated.forward_features(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        expected, actual = original.forward_intermediates(x)[1], accelerated.forward_intermediates(x)[1]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    accelerated.reset_classifier(11)
    assert accelerated(x).shape == (2, 11)
    assert len(accelerated_modules(accelerated)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(
    kind: str, build: Callable, images: Callable, count_ops: Callable, kernels: str
) -> None:
    """The op runs again in the backward pass, and the gradients stay."""
    gradients = []
    for enable in (False, True):
        model = accelerate(build(kind)).double().train()
        model.set_grad_checkpointing(enable)
        x = images().double()
        calls = count_ops(lambda model=model, x=x: model(x).square().sum().backward())
        assert calls[f"mobilevit::{OPS[kind]}_forward"] == (18 if enable else 9)
        assert calls[f"mobilevit::{OPS[kind]}_backward"] == 9
        gradients.append([parameter.grad for parameter in model.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_drops_what_timm_drops(kind: str, build: Callable, images: Callable) -> None:
    """From the same seed the same sequences are dropped: in v1, those of one pixel position of one sample."""
    original = build(kind, drop_path_rate=0.4).double().train()
    accelerated = accelerate(copy.deepcopy(original))
    outputs = []
    for model in (original, accelerated):
        torch.manual_seed(3)
        outputs.append(model(images(batch=4).double()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    torch.manual_seed(4)
    assert (accelerated(images(batch=4).double()) - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training(kind: str, build: Callable, images: Callable) -> None:
    """Dropout after the output projection at rate 1 leaves the block with its residual branch and its MLP alone."""
    models = []
    for drop in (0.0, 1.0):
        model = accelerate(build(kind)).double().train()
        for block in accelerated_modules(model):
            for layer in model.get_submodule(block).transformer:
                dropout = layer.attn.proj_drop if kind == "timm_v1" else layer.attn.out_drop
                dropout.p = drop
        models.append(model)
    original = build(kind).double().train()
    for stage in original.stages[2:]:
        for layer in stage[1].transformer:
            nn.init.zeros_(layer.get_submodule("attn.proj" if kind == "timm_v1" else "attn.out_proj").weight)
            nn.init.zeros_(layer.get_submodule("attn.proj" if kind == "timm_v1" else "attn.out_proj").bias)
    x = images().double()
    torch.testing.assert_close(models[1](x), original(x), rtol=1e-9, atol=1e-9)
    assert (models[0](x) - models[1](x)).abs().max() > 1e-3


def block_and_input(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The last block of a model, and the map that reaches it."""
    block = model.stages[4][1]
    with torch.no_grad():
        for module in (model.stem, *model.stages[:4], model.stages[4][0]):
            x = module(x)
    return block, x


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_compile_fullgraph(kind: str, training: bool, build: Callable, images: Callable) -> None:
    """One graph, at an odd size, with the gradients of eager mode."""
    block, x = block_and_input(accelerate(build(kind)).train(training), images(97, 131))
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        if training:
            x, y = (x.clone().requires_grad_() for _ in range(2))
            compiled(x).square().mean().backward()
            copy.deepcopy(block)(y).square().mean().backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-6)
        else:
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compile_dynamic(kind: str, build: Callable) -> None:
    """One stage compiled by inductor for every batch and size, rounding up to whole patches included."""
    stage = accelerate(build(kind)).stages[2]
    channels = stage[0].conv1_1x1.conv.in_channels
    torch.compiler.reset()
    compiled = torch.compile(stage, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, channels, 32, 48), (3, channels, 24, 20), (1, channels, 25, 18)):
            x = torch.linspace(-1, 1, math.prod(shape)).mul(99).sin().reshape(shape)
            torch.testing.assert_close(compiled(x), stage(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind: str, build: Callable, images: Callable, kernels: str) -> None:
    """torch.export keeps the op as one node."""
    block, x = block_and_input(accelerate(build(kind)), images())
    program = torch.export.export(block, (x,))
    ops = [str(node.target) for node in program.graph.nodes]
    assert ops.count(f"mobilevit.{OPS[kind]}.default") == 3
    torch.testing.assert_close(program.module()(x), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_cross_attention_are_refused(kind: str, build: Callable) -> None:
    layer = accelerate(build(kind)).stages[2][1].transformer[0]
    x = torch.zeros(1, 64, 4, 64 if kind == "timm_v1" else 4)
    with pytest.raises(ValueError, match="not supported"):
        layer(x, torch.zeros(4, 4))


@pytest.mark.parametrize(("key", "expected"), [("q_norm", "no norm inside"), ("gate", "no gate")])
def test_other_attention_is_refused(key: str, expected: str, build: Callable) -> None:
    model = build("timm_v1")
    attention = model.stages[4][1].transformer[2].attn
    setattr(attention, key, nn.LayerNorm(attention.head_dim) if key == "q_norm" else nn.Linear(96, 96))
    with pytest.raises(ValueError, match=rf"stages\.4\.1\.transformer\.2\.attn\.{key}: expected {expected}"):
        accelerate(model)
    assert accelerated_modules(model) == []
