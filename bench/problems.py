"""The problem of each stage's op: ours, plain PyTorch, and the float64 truth, on the same numbers."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench import peers
from bench.shapes import PATCH_SIZE, StageShape
from mobilevit_kernels import reference, separable_attn, unfold_attn_fold
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem


def stage_problem(
    shape: StageShape, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Problem:
    """The problem of one stage's op, on random numbers that depend on nothing but the arguments."""
    torch.manual_seed(0)
    build = _attention_problem if shape.op == "unfold_attn_fold" else _separable_problem
    with torch.device(device):
        return build(shape, batch, dtype)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def _attention_problem(shape: StageShape, batch: int, dtype: torch.dtype) -> Problem:
    channels, side, heads = shape.channels, shape.side, shape.num_heads
    qkv = torch.randn(batch, 3 * channels, side, side).to(dtype)
    grad_out = torch.randn(batch, channels, side, side).to(dtype)

    def candidate(
        name: str, op: Callable[..., Tensor], layout: torch.memory_format, to: torch.dtype
    ) -> Candidate:
        leaf = _leaf(qkv.to(to, memory_format=layout))
        return Candidate(name, partial(op, leaf, heads), (leaf,), grad_out.to(to, memory_format=layout))

    # Two products of the forward pass; the backward repeats the first of them and needs four of its own.
    product = 2.0 * batch * shape.positions * shape.tokens**2 * channels
    return Problem(
        quantities=("out", "grad qkv"),
        ours=candidate(OURS, unfold_attn_fold, torch.channels_last, dtype),
        peers=(
            candidate("SDPA NCHW", peers.unfold_sdpa_fold, torch.contiguous_format, dtype),
            candidate("SDPA NHWC", peers.unfold_sdpa_fold, torch.channels_last, dtype),
        ),
        truth=candidate("truth", reference.unfold_attn_fold, torch.contiguous_format, torch.float64),
        forward_flops=2 * product,
        backward_flops=5 * product,
    )


def _separable_problem(shape: StageShape, batch: int, dtype: torch.dtype) -> Problem:
    channels, side = shape.channels, shape.side
    gain = 1 / math.sqrt(channels)
    x = torch.randn(batch, channels, side, side).to(dtype)
    grad_out = torch.randn(batch, channels, side, side).to(dtype)
    sizes = ((1 + 2 * channels, channels, 1, 1), (1 + 2 * channels,), (channels, channels, 1, 1), (channels,))
    parameters = [(gain * torch.randn(size)).to(dtype) for size in sizes]

    def on_map(
        name: str, op: Callable[..., Tensor], layout: torch.memory_format, to: torch.dtype
    ) -> Candidate:
        leaves = (_leaf(x.to(to, memory_format=layout)), *(_leaf(value.to(to)) for value in parameters))
        return Candidate(name, partial(op, *leaves), leaves, grad_out.to(to, memory_format=layout))

    def on_tokens(name: str, layout: torch.memory_format) -> Candidate:
        tokens = _leaf(reference.unfold(x, PATCH_SIZE).contiguous(memory_format=layout))
        leaves = (tokens, *(_leaf(value) for value in parameters))
        return _token_candidate(name, partial(peers.separable_layer, *leaves), leaves, grad_out, layout)

    solvers = [on_tokens("eager NCHW", torch.contiguous_format), on_tokens("eager NHWC", torch.channels_last)]
    layer = peers.timm_separable_layer(*parameters)
    if layer is not None:
        tokens = _leaf(reference.unfold(x, PATCH_SIZE))
        leaves = (tokens, *layer.parameters())
        solvers.append(
            _token_candidate("timm", partial(layer, tokens), leaves, grad_out, torch.contiguous_format)
        )

    # Value and output projection of every token; the backward passes take two products of each.
    product = 2.0 * batch * side * side * channels**2
    return Problem(
        quantities=("out", "grad x", "grad qkv_weight", "grad qkv_bias", "grad out_weight", "grad out_bias"),
        ours=on_map(OURS, separable_attn, torch.channels_last, dtype),
        peers=tuple(solvers),
        truth=on_map("truth", reference.separable_attn, torch.contiguous_format, torch.float64),
        forward_flops=2 * product,
        backward_flops=4 * product,
    )


def _token_candidate(
    name: str,
    call: Callable[[], Tensor],
    leaves: tuple[Tensor, ...],
    grad_out: Tensor,
    layout: torch.memory_format,
) -> Candidate:
    """A candidate on unfolded tokens ``[B, C, P, N]``, compared after folding."""
    grad_tokens = reference.unfold(grad_out, PATCH_SIZE).contiguous(memory_format=layout)
    size = (grad_out.shape[2], grad_out.shape[3])
    return Candidate(
        name, call, leaves, grad_tokens, partial(reference.fold, size=size, patch_size=PATCH_SIZE)
    )
