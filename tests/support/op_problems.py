"""Problems, what a user of PyTorch would write for them, and layouts, for all tests of the ops."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mobilevit_kernels
from mobilevit_kernels import reference

Pair = tuple[int, int]


def unfold_sdpa_fold(qkv: Tensor, num_heads: int, patch_size: Pair, scale: float | None = None) -> Tensor:
    """``unfold_attn_fold`` as timm computes it: unfold by copy, scaled_dot_product_attention, fold by copy."""
    batch, channels, height, width = qkv.shape
    ph, pw = patch_size
    nh, nw = height // ph, width // pw
    tokens = qkv.reshape(batch, channels, nh, ph, nw, pw).permute(0, 3, 5, 2, 4, 1)
    heads = tokens.reshape(batch * ph * pw, nh * nw, 3, num_heads, channels // (3 * num_heads))
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
    folded = out.reshape(batch, ph, pw, nh, nw, channels // 3).permute(0, 5, 3, 1, 4, 2)
    return folded.reshape(batch, channels // 3, height, width)


def separable_layer(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Pair,
) -> Tensor:
    """``separable_attn`` as timm computes it: unfold by copy, two 1x1 convolutions, fold by copy."""
    batch, channels, height, width = x.shape
    ph, pw = patch_size
    nh, nw = height // ph, width // pw
    grid = x.reshape(batch, channels, nh, ph, nw, pw).permute(0, 1, 3, 5, 2, 4)
    qkv = F.conv2d(
        grid.reshape(batch, channels, ph * pw, nh * nw), qkv_weight.reshape(-1, channels, 1, 1), qkv_bias
    )
    query, key, value = qkv.split([1, channels, channels], dim=1)
    context = (key * F.softmax(query, dim=-1)).sum(dim=-1, keepdim=True)
    out = F.conv2d(F.relu(value) * context, out_weight.reshape(channels, channels, 1, 1), out_bias)
    return out.reshape(batch, channels, ph, pw, nh, nw).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)


BASELINES: dict[str, Callable[..., Tensor]] = {
    "unfold_attn_fold": unfold_sdpa_fold,
    "separable_attn": separable_layer,
}


@dataclass(frozen=True)
class Problem:
    """One call of an op: its tensors (None for an absent bias), then its other arguments."""

    op: str
    tensors: tuple[Tensor | None, ...]
    args: tuple[Any, ...]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Problem":
        """The same problem with ``function`` applied to every tensor."""
        return replace(self, tensors=tuple(None if t is None else function(t) for t in self.tensors))

    def with_first(self, tensor: Tensor) -> "Problem":
        """The same problem on another map."""
        return replace(self, tensors=(tensor, *self.tensors[1:]))

    def call(self, function: Callable[..., Any]) -> Any:
        """``function`` on this problem."""
        return function(*self.tensors, *self.args)

    def fused(self) -> Tensor:
        """The public op, on the chosen backend."""
        return self.call(getattr(mobilevit_kernels, self.op))

    def raw(self) -> Tensor:
        """The registered operator, past the public function."""
        return self.call(getattr(torch.ops.mobilevit, self.op))

    def reference(self) -> Tensor:
        """The package's plain PyTorch definition."""
        return self.call(getattr(reference, self.op))

    def baseline(self) -> Tensor:
        """What a user of PyTorch would write."""
        return self.call(BASELINES[self.op])

    def leaves(self) -> "Problem":
        """The same problem on leaf tensors that want gradients; strides stay as they are."""
        return self.map_tensors(lambda tensor: tensor.detach().requires_grad_())

    def redrawn(self) -> "Problem":
        """Other numbers of the same magnitudes: every sign is drawn again."""
        return self.map_tensors(lambda t: t * torch.randint_like(t, 0, 2).mul(2).sub(1))

    def gradients(self, run: Callable[["Problem"], Tensor], grad_out: Tensor) -> list[Tensor]:
        """Gradients of every tensor under ``run``, for example ``Problem.fused``."""
        leaves = self.leaves()
        present = [tensor for tensor in leaves.tensors if tensor is not None]
        return list(torch.autograd.grad(run(leaves), present, grad_out))


def make_attention(
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 5,
    grid: Pair = (3, 2),
    patch: Pair = (2, 2),
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    gain: float = 1.0,
) -> Problem:
    """A random ``unfold_attn_fold`` on ``grid`` tokens per pixel position, channels_last; ``gain`` scales qkv."""
    height, width = grid[0] * patch[0], grid[1] * patch[1]
    qkv = gain * torch.randn(batch, 3 * heads * head_dim, height, width)
    qkv = qkv.to(dtype).contiguous(memory_format=torch.channels_last)
    return Problem("unfold_attn_fold", (qkv,), (heads, patch, scale))


def make_separable(
    batch: int = 2,
    channels: int = 10,
    grid: Pair = (3, 2),
    patch: Pair = (2, 2),
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    gain: float = 1.0,
    weight_dims: int = 4,
) -> Problem:
    """A random ``separable_attn`` on ``grid`` tokens per pixel position; ``gain`` scales the query's weights."""
    x = torch.randn(batch, channels, grid[0] * patch[0], grid[1] * patch[1])
    qkv_weight = torch.randn(1 + 2 * channels, channels) * channels**-0.5
    qkv_weight[0] *= gain
    out_weight = torch.randn(channels, channels) * channels**-0.5
    qkv_bias, out_bias = torch.randn(1 + 2 * channels), torch.randn(channels)
    if weight_dims == 4:
        qkv_weight, out_weight = qkv_weight[..., None, None], out_weight[..., None, None]
    tensors = (x, qkv_weight, qkv_bias if bias else None, out_weight, out_bias if bias else None)
    problem = Problem("separable_attn", tensors, (patch,)).map_tensors(lambda tensor: tensor.to(dtype))
    return problem.with_first(problem.tensors[0].contiguous(memory_format=torch.channels_last))


BUILDERS: dict[str, Callable[..., Problem]] = {
    "unfold_attn_fold": make_attention,
    "separable_attn": make_separable,
}


def _slice_of(tensor: Tensor, dim: int, memory_format: torch.memory_format) -> Tensor:
    """The values of ``tensor`` as the middle of a larger map filled with NaN, which no kernel may read."""
    shape = list(tensor.shape)
    shape[dim] += 5
    larger = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device).contiguous(
        memory_format=memory_format
    )
    return larger.narrow(dim, 2, tensor.shape[dim]).copy_(tensor)


def _every_second(tensor: Tensor, dim: int) -> Tensor:
    """The values of ``tensor`` at every second index of a larger map filled with NaN."""
    shape = [2 * size if i == dim else size for i, size in enumerate(tensor.shape)]
    larger = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device).contiguous(
        memory_format=torch.channels_last
    )
    index = tuple(slice(None, None, 2) if i == dim else slice(None) for i in range(4))
    return larger[index].copy_(tensor)


def _constant_along(tensor: Tensor, dim: int) -> Tensor:
    """The first values of ``tensor`` along ``dim``, expanded with stride 0."""
    return tensor.narrow(dim, 0, min(1, tensor.shape[dim])).expand(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "dense_cwbh": lambda t: t.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1),
    "dense_hcbw": lambda t: t.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    "channel_slice": lambda t: _slice_of(t, 1, torch.channels_last),
    "channel_slice_nchw": lambda t: _slice_of(t, 1, torch.contiguous_format),
    "row_slice": lambda t: _slice_of(t, 2, torch.channels_last),
    "column_slice": lambda t: _slice_of(t, 3, torch.channels_last),
    "column_slice_nchw": lambda t: _slice_of(t, 3, torch.contiguous_format),
    "batch_step": lambda t: _every_second(t, 0),
    "channel_step": lambda t: _every_second(t, 1),
    "column_step": lambda t: _every_second(t, 3),
    "same_samples": lambda t: _constant_along(t, 0),
    "same_channels": lambda t: _constant_along(t, 1),
    "same_rows": lambda t: _constant_along(t, 2),
    "same_columns": lambda t: _constant_along(t, 3),
}
