"""Source models with random weights, and cvnets' names written out on their own."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

HF_V1 = {
    "mobilevit_xxs": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
    "mobilevit_xs": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "mobilevit_s": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and every BatchNorm statistic a value of its own; returns the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(torch.randint(1, 10**6, (), generator=generator).item())
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.dim() > 1:
                normal(tensor, 0.0, (tensor[0].numel()) ** -0.5)
            else:
                normal(tensor, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return model.eval()


@cache
def _timm_model(name: str) -> nn.Module:
    import timm

    return randomize(timm.create_model(name))


def _hf_model(name: str, head: str = "ForImageClassification") -> nn.Module:
    import transformers

    labels = 21 if head == "ForSemanticSegmentation" else 1000
    if name in HF_V1:
        dims, widths, expand = HF_V1[name]
        config = transformers.MobileViTConfig(
            hidden_sizes=dims, neck_hidden_sizes=widths, expand_ratio=expand, num_labels=labels
        )
        return randomize(getattr(transformers, f"MobileViT{head}")(config), seed=1)
    width = int(name.removeprefix("mobilevitv2_")) / 100
    config = transformers.MobileViTV2Config(width_multiplier=width, num_labels=labels)
    return randomize(getattr(transformers, f"MobileViTV2{head}")(config), seed=1)


def cvnets_names(name: str) -> list[str]:
    """Every key of the cvnets model that ``name`` has, in its order, by walking through its layers."""
    separable = name.startswith("mobilevitv2") or name in (
        "mobilevitv3_050",
        "mobilevitv3_075",
        "mobilevitv3_100",
    )
    depths = (2, 2, 3) if name.endswith("_fast") else (2, 4, 3)
    keys = _conv_bn("conv_1")
    for layer, blocks in ((1, 1), (2, 2 if separable else 3)):
        for index in range(blocks):
            keys += _inverted_residual(f"layer_{layer}.{index}")
    for layer, depth in zip((3, 4, 5), depths, strict=True):
        keys += _inverted_residual(f"layer_{layer}.0")
        keys += (_separable_block if separable else _mha_block)(f"layer_{layer}.1", depth)
    if separable:
        return [*keys, "classifier.1.weight", "classifier.1.bias"]
    return [*keys, *_conv_bn("conv_1x1_exp"), "classifier.fc.weight", "classifier.fc.bias"]


def _both(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def _conv_bn(name: str) -> list[str]:
    statistics = ["running_mean", "running_var", "num_batches_tracked"]
    return [
        f"{name}.block.conv.weight",
        *(f"{name}.block.norm.{key}" for key in ["weight", "bias", *statistics]),
    ]


def _inverted_residual(name: str) -> list[str]:
    return [key for conv in ("exp_1x1", "conv_3x3", "red_1x1") for key in _conv_bn(f"{name}.block.{conv}")]


def _mha_block(name: str, depth: int) -> list[str]:
    keys = [*_conv_bn(f"{name}.local_rep.conv_3x3"), f"{name}.local_rep.conv_1x1.block.conv.weight"]
    parts = ["mha.0", "mha.1.qkv_proj", "mha.1.out_proj", "ffn.0", "ffn.1", "ffn.4"]
    for layer in range(depth):
        for part in parts:
            keys += _both(f"{name}.global_rep.{layer}.pre_norm_{part}")
    keys += _both(f"{name}.global_rep.{depth}")
    return [*keys, *_conv_bn(f"{name}.conv_proj"), *_conv_bn(f"{name}.fusion")]


def _separable_block(name: str, depth: int) -> list[str]:
    keys = [*_conv_bn(f"{name}.local_rep.0"), f"{name}.local_rep.1.block.conv.weight"]
    parts = [
        "attn.0",
        "attn.1.qkv_proj.block.conv",
        "attn.1.out_proj.block.conv",
        "ffn.0",
        "ffn.1.block.conv",
        "ffn.3.block.conv",
    ]
    for layer in range(depth):
        for part in parts:
            keys += _both(f"{name}.global_rep.{layer}.pre_norm_{part}")
    return [*keys, *_both(f"{name}.global_rep.{depth}"), *_conv_bn(f"{name}.conv_proj")]


@pytest.fixture(scope="session")
def timm_model() -> Callable[[str], nn.Module]:
    """timm's model of a name, random weights, eval mode; the same object each time: do not change it."""
    return _timm_model


@pytest.fixture(scope="session")
def hf_model() -> Callable[..., nn.Module]:
    """transformers' model of a name, built from a config, random weights, eval mode."""
    return _hf_model


@pytest.fixture(scope="session")
def our_model() -> Callable[..., nn.Module]:
    """This package's model, random weights, eval mode."""
    from mobilevit_kernels.models import create_model

    return lambda name, **kwargs: randomize(create_model(name, **kwargs), seed=2)


@pytest.fixture(scope="session")
def cvnets_state() -> Callable[[str, StateDict], StateDict]:
    """Gives a state dict in timm's names and order the names of cvnets, which has the same order."""
    return lambda name, state: dict(zip(cvnets_names(name), state.values(), strict=True))


@pytest.fixture(scope="session")
def snapshot() -> Callable[[nn.Module], StateDict]:
    """Copies the state dict of a model, to compare with later."""
    return lambda model: copy.deepcopy(model.state_dict())


@pytest.fixture(scope="session")
def assert_unchanged() -> Callable[[nn.Module, StateDict], None]:
    """Fails unless the model has exactly these tensors."""

    def check(model: nn.Module, expected: StateDict) -> None:
        state = model.state_dict()
        assert set(state) == set(expected)
        assert [key for key in expected if not torch.equal(state[key], expected[key])] == []

    return check


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(3))
