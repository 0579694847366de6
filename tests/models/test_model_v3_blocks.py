"""The v3 blocks against a plain restatement, and the order of their concatenations."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models import (
    MobileViTBlock,
    MobileViTv2Block,
    MobileViTv3Block,
    MobileViTv3SeparableBlock,
)
from mobilevit_kernels.reference import fold, unfold

CHANNELS, DIM, DEPTH, HEADS = 12, 8, 2, 4
Weights = Mapping[str, Tensor]


def conv_bn(w: Weights, name: str, x: Tensor, act: bool = True) -> Tensor:
    """Convolution (depthwise if the weight is), BatchNorm of inference, SiLU."""
    weight = w[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
    statistics = (w[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    x = F.batch_norm(x, *statistics, eps=1e-5)
    return F.silu(x) if act else x


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Statistics of each token."""
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def group_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Statistics of each sample over all its tokens and channels; x ``[B, P, N, C]``."""
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def feed_forward(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.fc2", F.silu(linear(w, f"{name}.fc1", x)))


def multi_head_layer(w: Weights, name: str, x: Tensor) -> Tensor:
    """Tokens ``[B, P, N, C]``; heads one by one."""
    query, key, value = linear(w, f"{name}.attn.qkv", layer_norm(w, f"{name}.norm1", x)).chunk(3, -1)
    size = DIM // HEADS
    heads = []
    for start in range(0, DIM, size):
        q, k, v = (t[..., start : start + size] for t in (query, key, value))
        heads.append((q @ k.mT / size**0.5).softmax(-1) @ v)
    x = x + linear(w, f"{name}.attn.proj", torch.cat(heads, -1))
    return x + feed_forward(w, f"{name}.mlp", layer_norm(w, f"{name}.norm2", x))


def separable_layer(w: Weights, name: str, x: Tensor) -> Tensor:
    """Tokens ``[B, P, N, C]``; the scores sum to one over N, for each P."""
    qkv = linear(w, f"{name}.attn.qkv_proj", group_norm(w, f"{name}.norm1", x))
    scores = qkv[..., :1].exp() / qkv[..., :1].exp().sum(2, keepdim=True)
    context = (scores * qkv[..., 1 : 1 + DIM]).sum(2, keepdim=True)
    x = x + linear(w, f"{name}.attn.out_proj", qkv[..., 1 + DIM :].clamp(min=0) * context)
    return x + feed_forward(w, f"{name}.mlp", group_norm(w, f"{name}.norm2", x))


def restated_tokens(w: Weights, local: Tensor, layer: Callable, norm: Callable) -> Tensor:
    tokens = unfold(local, (2, 2)).permute(0, 2, 3, 1)  # [B, P, N, C]
    for index in range(DEPTH):
        tokens = layer(w, f"transformer.{index}", tokens)
    return fold(norm(w, "norm", tokens).permute(0, 3, 1, 2), tuple(local.shape[2:]), (2, 2))


def restated_v3(w: Weights, x: Tensor) -> Tensor:
    local = F.conv2d(conv_bn(w, "conv_kxk", x), w["conv_1x1.weight"])
    height, width = local.shape[2:]
    enlarged = local
    if height % 2 or width % 2:
        size = (height + height % 2, width + width % 2)
        enlarged = F.interpolate(local, size, mode="bilinear", align_corners=False)
    tokens = restated_tokens(w, enlarged, multi_head_layer, layer_norm)
    if enlarged is not local:
        tokens = F.interpolate(tokens, (height, width), mode="bilinear", align_corners=False)
    return conv_bn(w, "conv_fusion", torch.cat((local, conv_bn(w, "conv_proj", tokens)), 1)) + x


def restated_v3_separable(w: Weights, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        size = (height + height % 2, width + width % 2)
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    local = F.conv2d(conv_bn(w, "conv_kxk", x), w["conv_1x1.weight"])
    tokens = restated_tokens(w, local, separable_layer, group_norm)
    return conv_bn(w, "conv_proj", torch.cat((tokens, local), 1), act=False) + x


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (5, 3)])
@pytest.mark.parametrize(
    ("block", "restated"),
    [(MobileViTv3Block, restated_v3), (MobileViTv3SeparableBlock, restated_v3_separable)],
)
def test_block_is_the_restated_one(
    block: type[nn.Module], restated: Callable, size: tuple[int, int], randomize: Callable, backend: str
) -> None:
    module = randomize(block(CHANNELS, DIM, DEPTH).double())
    x = torch.rand(2, CHANNELS, *size, dtype=torch.float64)
    torch.testing.assert_close(module(x), restated(module.state_dict(), x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def sees(module: nn.Module, zeroed: slice, branch: nn.Module, fusion: nn.Module) -> bool:
    """Whether ``branch`` still reaches the output once some input channels of the fusion are zeroed."""
    fusion.conv.weight[:, zeroed] = 0
    x = torch.rand(1, CHANNELS, 4, 4)
    before = module(x)
    branch.weight += 1.0
    return not torch.equal(module(x), before)


@pytest.mark.parametrize(("zeroed", "alive"), [(slice(0, DIM), True), (slice(DIM, None), False)])
def test_v3_fuses_local_then_global(zeroed: slice, alive: bool, randomize: Callable) -> None:
    """Without the first channels the global branch remains; without the others it is gone."""
    module = randomize(MobileViTv3Block(CHANNELS, DIM, DEPTH))
    assert sees(module, zeroed, module.norm, module.conv_fusion) is alive


@pytest.mark.parametrize(("zeroed", "alive"), [(slice(0, DIM), False), (slice(DIM, None), True)])
def test_v3_separable_fuses_global_then_local(zeroed: slice, alive: bool, randomize: Callable) -> None:
    """The opposite order: the first channels are the global branch."""
    module = randomize(MobileViTv3SeparableBlock(CHANNELS, DIM, DEPTH))
    assert sees(module, zeroed, module.norm, module.conv_proj) is alive


@pytest.mark.parametrize(("zeroed", "alive"), [(slice(0, CHANNELS), True), (slice(CHANNELS, None), False)])
def test_v1_fuses_input_then_global(zeroed: slice, alive: bool, randomize: Callable) -> None:
    module = randomize(MobileViTBlock(CHANNELS, DIM, DEPTH))
    assert sees(module, zeroed, module.norm, module.conv_fusion) is alive


def test_groupnorm_mixes_tokens_and_layernorm_does_not(randomize: Callable) -> None:
    """Changing one pixel position reaches the others through v2's statistics only."""
    x = torch.rand(1, DIM, 4, 4)
    changed = x.clone()
    changed[:, :, 0::2, 0::2] += torch.rand(1, DIM, 2, 2)
    v2 = randomize(MobileViTv2Block(CHANNELS, DIM, 1)).transformer
    assert not torch.equal(v2(x)[:, :, 1::2, 1::2], v2(changed)[:, :, 1::2, 1::2])
    v1 = randomize(MobileViTBlock(CHANNELS, DIM, 1)).transformer
    tokens, changed = x.permute(0, 2, 3, 1), changed.permute(0, 2, 3, 1)
    assert torch.equal(v1(tokens)[:, 1::2, 1::2], v1(changed)[:, 1::2, 1::2])
