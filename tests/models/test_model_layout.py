"""The tokens stay in one channels_last map: no unfolded copy, no change of layout between the ops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilevit_kernels.models import (
    MobileViTBlock,
    MobileViTv2Block,
    MobileViTv3Block,
    MobileViTv3SeparableBlock,
    attention,
)

BLOCKS = [MobileViTBlock, MobileViTv2Block, MobileViTv3Block, MobileViTv3SeparableBlock]
COPIES = {"aten::clone", "aten::copy_", "aten::_to_copy", "aten::im2col", "aten::col2im"}


class CopyCounter(TorchDispatchMode):
    """Names the operators that copy a tensor into another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in COPIES:
            self.copies.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("block", BLOCKS)
def test_no_copy_in_a_block(block: type[nn.Module], size: tuple[int, int], randomize: Callable) -> None:
    """A channels_last input is never copied to another layout; an NCHW input once."""
    module = randomize(block(16, 8, 2)).to(memory_format=torch.channels_last)
    x = torch.rand(2, 16, *size)
    for images, copies in ((x.contiguous(memory_format=torch.channels_last), []), (x, ["aten::clone"])):
        with CopyCounter() as counter:
            out = module(images)
        assert counter.copies == copies
        assert is_channels_last(out)


@torch.no_grad()
@pytest.mark.parametrize("block", BLOCKS)
def test_op_reads_and_writes_views(
    block: type[nn.Module], randomize: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The op gets the tensor that the projection wrote, and what it returns is projected or added in place."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *args: Any) -> Tensor:
            out = op(x, *args)
            seen.append((x, out))
            return out

        return run

    for name in ("unfold_attn_fold", "separable_attn"):
        monkeypatch.setattr(attention, name, spy(getattr(attention, name)))
    module = randomize(block(16, 8, 2))
    projected: list[int] = []
    consumed: list[int] = []
    for layer in module.transformer:
        if isinstance(layer.attn, attention.MultiHeadAttention):
            layer.attn.qkv.register_forward_hook(lambda _, __, out: projected.append(out.data_ptr()))
            layer.attn.proj.register_forward_pre_hook(lambda _, args: consumed.append(args[0].data_ptr()))
        else:
            layer.norm1.register_forward_hook(lambda _, __, out: projected.append(out.data_ptr()))
            layer.attn.out_drop.register_forward_pre_hook(lambda _, args: consumed.append(args[0].data_ptr()))
    module(torch.rand(2, 16, 8, 6))
    assert len(seen) == 2
    assert all(is_channels_last(x) and is_channels_last(out) for x, out in seen)
    assert [x.data_ptr() for x, _ in seen] == projected
    assert [out.data_ptr() for _, out in seen] == consumed


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050"])
def test_memory_format_changes_nothing(
    name: str, random_model: Callable[..., nn.Module], assert_same: Callable[..., None], backend: str
) -> None:
    """NCHW or channels_last, model or images: same logits, and channels_last maps from the first block on."""
    model = random_model(name)
    x = torch.rand(2, 3, 64, 70)
    expected = model(x)
    assert_same(model(x.contiguous(memory_format=torch.channels_last)), expected)
    model.to(memory_format=torch.channels_last)
    assert_same(model(x), expected)
    features = model.forward_features(x.contiguous(memory_format=torch.channels_last))
    assert is_channels_last(features)
