"""What accelerate leaves alone, what it says, and what it refuses."""

import copy
import io
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mobilevit_kernels.models.accelerate import accelerate, accelerated_modules

CLASSIFIERS = ("timm_v1", "timm_v2", "hf_v1", "hf_v2")
BLOCKS = {
    "timm_v1": ["stages.2.1", "stages.3.1", "stages.4.1"],
    "timm_v2": ["stages.2.1", "stages.3.1", "stages.4.1"],
    "hf_v1": [f"mobilevit.encoder.layer.{index}" for index in (2, 3, 4)],
    "hf_v2": [f"mobilevitv2.encoder.layer.{index}" for index in (2, 3, 4)],
}


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def attentions(model: nn.Module) -> list[nn.Module]:
    """The layers that compute attention, in the order of the model."""
    names = ("Attention", "LinearSelfAttention", "MobileViTSelfAttention", "MobileViTV2LinearSelfAttention")
    return [module for module in model.modules() if type(module).__name__ in names]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_state_is_untouched(kind: str, build: Callable) -> None:
    """Same object, same keys in the same order, the very same tensors, flags and modes."""
    model = build(kind)
    model.requires_grad_(False)
    model.get_parameter(next(iter(dict(model.named_parameters())))).requires_grad_(True)
    state = {key: value.data_ptr() for key, value in model.state_dict().items()}
    parameters = list(model.named_parameters())
    flags = [parameter.requires_grad for _, parameter in parameters]
    modules = list(model.named_modules())

    assert accelerate(model) is model

    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == state
    assert list(model.state_dict()) == list(state)
    for (name, parameter), (key, value) in zip(parameters, model.named_parameters(), strict=True):
        assert name == key
        assert parameter is value
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    for (name, module), (key, value) in zip(modules, model.named_modules(), strict=True):
        assert name == key
        assert module is value
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_says_what_it_replaced(kind: str, build: Callable, caplog: pytest.LogCaptureFixture) -> None:
    model = build(kind)
    assert accelerated_modules(model) == []
    with caplog.at_level(logging.INFO, logger="mobilevit_kernels"):
        accelerate(model)
    assert accelerated_modules(model) == BLOCKS[kind]
    (record,) = caplog.records
    assert record.name == "mobilevit_kernels"
    assert record.levelno == logging.INFO
    assert all(name in record.getMessage() for name in (type(model).__name__, *BLOCKS[kind]))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_twice_is_once(kind: str, build: Callable, caplog: pytest.LogCaptureFixture) -> None:
    model = accelerate(build(kind))
    before = classes(model)
    with caplog.at_level(logging.INFO, logger="mobilevit_kernels"):
        assert accelerate(model) is model
    assert classes(model) == before
    assert "already" in caplog.text


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_copies_stay_accelerated(
    kind: str, copier: str, build: Callable, images: Callable, logits: Callable
) -> None:
    model = accelerate(build(kind))
    if copier == "deepcopy":
        clone = copy.deepcopy(model)
    elif copier == "pickle":
        clone = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        clone = torch.load(buffer, weights_only=False)
    assert accelerated_modules(clone) == BLOCKS[kind]
    with torch.no_grad():
        torch.testing.assert_close(
            logits(clone, images(97, 64)), logits(model, images(97, 64)), rtol=0, atol=0
        )
        next(clone.parameters()).zero_()
    assert next(model.parameters()).abs().max() > 0


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_state_dict_goes_both_ways(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    """A checkpoint of the original loads into the accelerated model, strictly, and the other way round."""
    original, accelerated = build(kind), accelerate(build(kind))
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.1)
    accelerated.load_state_dict(original.state_dict())
    fresh = build(kind)
    fresh.load_state_dict(accelerated.state_dict())
    with torch.no_grad():
        expected = logits(original, images())
        torch.testing.assert_close(logits(accelerated, images()), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(fresh, images()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_hooks_fire_as_before(kind: str, build: Callable, images: Callable, logits: Callable) -> None:
    """Hooks on every module fire in the same order, those of projections that the ops take over included.

    Not called are the placeholders and the dropout inside attention, which do nothing.
    """
    attention = ("attn.q_norm", "attn.k_norm", "attn.norm", "attention.dropout")

    def trace(model: nn.Module) -> list[str]:
        fired: list[str] = []
        for name, module in model.named_modules():
            if not name.endswith(attention):
                module.register_forward_hook(lambda *_, name=name: fired.append(name))
        logits(model, images())
        return fired

    original, hooked = build(kind), build(kind)
    seen: list[nn.Module] = []
    hooked.register_forward_hook(lambda module, args, out: seen.append(module))
    accelerate(hooked)
    with torch.no_grad():
        assert trace(hooked) == trace(original)
    assert seen == [hooked]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_hooked_projections_change_no_output(
    kind: str, build: Callable, images: Callable, logits: Callable
) -> None:
    """A hook that replaces the output of a projection has its effect, as in the original model."""
    keys = {"timm_v1": "qkv", "timm_v2": "qkv_proj", "hf_v1": "key", "hf_v2": "qkv_proj.convolution"}
    models = [build(kind), accelerate(build(kind))]
    plain = logits(models[0], images())
    outputs = []
    for model in models:
        for name, module in model.named_modules():
            if name.endswith(keys[kind]):
                module.register_forward_hook(lambda module, args, out: out * 1.5)
        with torch.no_grad():
            outputs.append(logits(model, images()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    assert (outputs[0] - plain).abs().max() > 1e-2


def test_backbone_of_another_network(build: Callable, images: Callable) -> None:
    """Blocks are found wherever they are, also beside blocks that are accelerated already."""
    first, second = build("timm_v1"), build("timm_v2")
    expected = first(images()) + second(images())
    network = nn.ModuleDict({"first": accelerate(first), "second": second})
    accelerate(network)
    assert accelerated_modules(network) == [
        *(f"first.{name}" for name in BLOCKS["timm_v1"]),
        *(f"second.{name}" for name in BLOCKS["timm_v2"]),
    ]
    torch.testing.assert_close(first(images()) + second(images()), expected, rtol=1e-4, atol=1e-4)


def test_data_parallel_is_a_container(build: Callable, images: Callable) -> None:
    original = build("timm_v1")
    wrapped = accelerate(nn.DataParallel(copy.deepcopy(original)))
    assert accelerated_modules(wrapped) == [f"module.{name}" for name in BLOCKS["timm_v1"]]
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images()), original(images()), rtol=1e-4, atol=1e-4)


def test_own_models_are_returned(caplog: pytest.LogCaptureFixture) -> None:
    models = pytest.importorskip("mobilevit_kernels.models")
    model = models.create_model("mobilevit_xxs", num_classes=2)
    before = classes(model)
    with caplog.at_level(logging.INFO, logger="mobilevit_kernels"):
        assert accelerate(model) is model
    assert classes(model) == before
    assert accelerated_modules(model) == []
    assert "this package" in caplog.text


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())])
def test_no_block(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"no MobileViT block.*{type(model).__name__}"):
        accelerate(model)


def test_another_timm_model() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no MobileViT block"):
        accelerate(timm.create_model("mobilenetv3_small_050"))


def test_neither_library_is_needed() -> None:
    """Without timm and transformers the functions import, answer and refuse, and load neither."""
    code = """
import sys
sys.modules["timm"] = sys.modules["transformers"] = None  # importing them fails
from torch import nn
from mobilevit_kernels.models.accelerate import accelerate, accelerated_modules
assert accelerated_modules(nn.Identity()) == []
try:
    accelerate(nn.Identity())
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert "no MobileViT block" in done.stdout


@pytest.mark.parametrize("value", ["mobilevit_xxs", None, {"a": 1}])
def test_not_a_module(value: object) -> None:
    with pytest.raises(TypeError, match=f"torch.nn.Module, got {type(value).__name__}"):
        accelerate(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_model_is_refused(in_place: bool, build: Callable) -> None:
    model = build("timm_v1")
    before = classes(model)
    compiled = model if in_place else torch.compile(model)
    if in_place:
        model.compile()
    with pytest.raises(ValueError, match="compiled"):
        accelerate(compiled)
    assert classes(model) == before


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_all_or_nothing(kind: str, build: Callable) -> None:
    """Attention dropout in the last layer of the last block stops the first block from being replaced."""
    model = build(kind).train()
    dropout = next(module for module in attentions(model)[-1].children() if isinstance(module, nn.Dropout))
    dropout.p = 0.1
    before = classes(model)
    with pytest.raises(ValueError, match=r"dropout.*p=0\.1"):
        accelerate(model)
    assert classes(model) == before
    assert accelerated_modules(model) == []


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_attention_dropout_acts_in_training_only(
    kind: str, build: Callable, images: Callable, logits: Callable
) -> None:
    original = build(kind)
    for attention in attentions(original):
        for module in attention.children():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
    accelerated = accelerate(copy.deepcopy(original))
    with torch.no_grad():
        expected = logits(original, images())
        torch.testing.assert_close(logits(accelerated, images()), expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match=r"attention dropout .* in training, got p=0\.1"):
            logits(accelerated.train(), images())


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_subclassed_attention_is_refused(kind: str, build: Callable) -> None:
    """A subclass may compute something else."""
    model = build(kind)
    attention = attentions(model)[0]
    (name,) = [name for name, module in model.named_modules() if module is attention]
    attention.__class__ = type("CustomAttention", (type(attention),), {})
    with pytest.raises(ValueError, match=f"{name}: expected .*, got .*CustomAttention"):
        accelerate(model)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_forward_set_on_an_instance_is_refused(kind: str, build: Callable) -> None:
    """Device placement wraps a module so; its wrapper would hide the new forward."""
    model = build(kind)
    block = model.get_submodule(BLOCKS[kind][1])
    block.forward = block.forward
    before = classes(model)
    with pytest.raises(ValueError, match=f"{BLOCKS[kind][1]}: .*forward"):
        accelerate(model)
    assert classes(model) == before


@pytest.mark.parametrize("patch_size", [(0, 2), 2, (2,), (2.0, 2.0)])
def test_patch_size(patch_size: object, build: Callable) -> None:
    model = build("timm_v1")
    model.stages[3][1].patch_size = patch_size
    with pytest.raises(ValueError, match=r"stages\.3\.1: expected patch_size of two positive ints"):
        accelerate(model)
    assert accelerated_modules(model) == []
