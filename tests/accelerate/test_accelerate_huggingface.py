"""What transformers users do with a model: hidden states, losses, segmentation, saving, checkpointing."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from mobilevit_kernels.models.accelerate import accelerate, accelerated_modules

KINDS = ("hf_v1", "hf_v2")
OPS = {"hf_v1": "unfold_attn_fold", "hf_v2": "separable_attn"}


def backbone(model: nn.Module) -> nn.Module:
    return model.base_model


@pytest.mark.parametrize("kind", KINDS)
def test_bare_model_and_hidden_states(kind: str, build: Callable, images: Callable) -> None:
    original = backbone(build(kind))
    accelerated = accelerate(copy.deepcopy(original))
    assert len(accelerated_modules(accelerated)) == 3
    with torch.no_grad():
        expected = original(images(97, 131), output_hidden_states=True)
        actual = accelerated(images(97, 131), output_hidden_states=True)
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-4)


def test_rows_beyond_the_last_patch_are_zero(build: Callable, images: Callable) -> None:
    """MobileViTV2Layer projects zeros there, and so gives the same values in every pixel of such a row."""
    model = accelerate(build("hf_v2"))
    layer = backbone(model).encoder.layer[4]
    seen = []
    layer.conv_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images(97, 160))
    (x,) = seen
    assert x.shape[2:] == (4, 5)
    assert (x[..., 4] == 0).all()
    assert (x[..., :4] != 0).any(dim=1).all()


def test_map_without_a_whole_patch(build: Callable, images: Callable) -> None:
    with pytest.raises(ValueError, match="a map of 1 x 2 holds no patch of 2 x 2"):
        accelerate(build("hf_v2"))(images(32, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_labels(kind: str, build: Callable, images: Callable) -> None:
    original = build(kind)
    accelerated = accelerate(copy.deepcopy(original))
    labels = torch.tensor([3, 0])
    expected, actual = (model(images(), labels=labels) for model in (original, accelerated))
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hf_v1_segmentation", "hf_v2_segmentation"])
def test_segmentation_training(kind: str, build: Callable, images: Callable) -> None:
    original = build(kind).double().train()
    accelerated = accelerate(copy.deepcopy(original))
    labels = torch.randint(0, 5, (2, 66, 82))
    for model in (original, accelerated):
        model(images(66, 82).double(), labels=labels).loss.backward()
    for (name, actual), expected in zip(accelerated.named_parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(
    kind: str, build: Callable, images: Callable, count_ops: Callable, kernels: str
) -> None:
    """The op runs again in the backward pass, and the gradients stay."""
    gradients = []
    for enable in (False, True):
        model = accelerate(build(kind)).double().train()
        if enable:
            model.gradient_checkpointing_enable()
        layers = 9 if kind == "hf_v1" else 4
        x = images().double()
        calls = count_ops(lambda model=model, x=x: model(x).logits.square().sum().backward())
        assert calls[f"mobilevit::{OPS[kind]}_forward"] == (2 * layers if enable else layers)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_pretrained(kind: str, build: Callable, images: Callable, tmp_path: Path) -> None:
    """The saved folder is the original's: transformers loads it as its own class, not accelerated."""
    model = accelerate(build(kind))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert accelerated_modules(loaded) == []
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()).logits, model(images()).logits, rtol=1e-4, atol=1e-4)


def test_query_without_bias(images: Callable) -> None:
    config = transformers.MobileViTConfig(
        hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 16, 24, 32, 40, 80], qkv_bias=False
    )
    original = transformers.MobileViTModel(config).eval()
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (3.0 if "query" in name else 1.5) * parameter[0].numel() ** -0.5)
            elif "normalization.weight" in name:
                parameter.fill_(1.0)
        expected = original(images()).last_hidden_state
        actual = accelerate(original)(images()).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_projection_is_called(kind: str, build: Callable, images: Callable) -> None:
    """A low-rank adapter around a projection has its effect, though the op could read the weight inside it."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        @property
        def weight(self) -> torch.Tensor:
            return self.base.weight

        @property
        def bias(self) -> torch.Tensor:
            return self.base.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * self.base(x)

    outputs = []
    for model in (build(kind), accelerate(build(kind))):
        name = "query" if kind == "hf_v1" else "qkv_proj"
        for path in [path for path, _ in model.named_modules() if path.endswith(f".{name}")]:
            model.set_submodule(path, Adapter(model.get_submodule(path)))
        with torch.no_grad():
            outputs.append(model(images()).logits)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (outputs[0] - build(kind)(images()).logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_attention_maps_are_refused(kind: str, build: Callable) -> None:
    model = build(kind)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        accelerate(model)
    assert accelerated_modules(model) == []


@pytest.mark.parametrize("kind", KINDS)
def test_compile_fullgraph(kind: str, build: Callable) -> None:
    """One graph for a whole layer, at an odd size, with the gradients of eager mode."""
    layer = backbone(accelerate(build(kind))).encoder.layer[3].train()
    channels = layer.downsampling_layer.expand_1x1.convolution.in_channels
    x, y = (
        torch.linspace(-1, 1, 2 * channels * 14 * 17).reshape(2, channels, 14, 17).sin() for _ in range(2)
    )
    twin = copy.deepcopy(layer)
    torch.compiler.reset()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x.requires_grad_()).square().mean().backward()
    twin(y.requires_grad_()).square().mean().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5)
