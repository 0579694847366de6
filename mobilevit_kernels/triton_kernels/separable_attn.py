"""Launchers of the forward kernels of ``separable_attn``; the backward ones are in ``separable_attn_backward``."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels import separable_attn_configs as configs
from mobilevit_kernels.triton_kernels.launch import Config, Start, prepare
from mobilevit_kernels.triton_kernels.separable_attn_backward import separable_attn_backward
from mobilevit_kernels.triton_kernels.separable_attn_forward_kernels import (
    output_kernel,
    projection_kernel,
    whole_kernel,
)
from mobilevit_kernels.triton_kernels.separable_attn_pool_kernels import pool_kernel
from mobilevit_kernels.triton_kernels.separable_attn_problem import (
    Problem,
    empty_floats,
    map_strides,
    token_rows,
)
from mobilevit_kernels.triton_kernels.token_grid import empty_map, rows_of_channels

__all__ = ["separable_attn", "separable_attn_backward", "separable_attn_forward"]


class _Call(NamedTuple):
    """Tensors of one call, as kernels take them."""

    x: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    scores: Tensor | None
    pooled: Tensor
    context: Tensor
    out: Tensor
    affine: Tensor | None = None

    @property
    def norm(self) -> Tensor:
        """Gains and shifts of the tokens; where there are none they are never read."""
        return self.x if self.affine is None else self.affine

    @property
    def save(self) -> bool:
        """Whether scores and pooled tokens are kept."""
        return self.scores is not None

    @property
    def qkv(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the first projection; an absent bias is never read."""
        return self.qkv_weight, self.qkv_weight if self.qkv_bias is None else self.qkv_bias

    @property
    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, pooled tokens and contexts; scores that are not kept are never written."""
        return self.pooled if self.scores is None else self.scores, self.pooled, self.context

    @property
    def projections(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both weights and biases."""
        return *self.qkv, self.out_weight, self.out_weight if self.out_bias is None else self.out_bias


def separable_attn(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
) -> Tensor:
    """The op for inference: nothing is kept for a backward pass. See :func:`mobilevit_kernels.separable_attn`."""
    return _forward(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size, save=False).out


def separable_attn_forward(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op, with scores ``[B, P, N]``, pooled tokens and contexts ``[B, P, C]`` in float32."""
    call = _forward(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size, save=True)
    return call.out, *call.statistics


def _forward(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
    save: bool,
) -> _Call:
    x = rows_of_channels(x)
    problem = Problem.of(x, patch_size)
    call = _Call(
        x,
        qkv_weight.contiguous(),
        None if qkv_bias is None else qkv_bias.contiguous(),
        out_weight.contiguous(),
        None if out_bias is None else out_bias.contiguous(),
        empty_floats(x, *problem.score_shape) if save else None,
        empty_floats(x, *problem.group_shape),
        empty_floats(x, *problem.group_shape),
        empty_map(x, x.shape[1]),
    )
    if call.out.numel() == 0:
        # Groups without tokens have nothing to pool; zero keeps what is saved defined.
        call.pooled.zero_()
        call.context.zero_()
        return call

    def run(config: Config) -> None:
        {"whole": _whole, "split": _split, "products": _products}[config.variant](problem, call)

    def decide() -> Config:
        return problem.choose(configs.FORWARD, configs.forward_candidates(problem.shape), run)

    run(problem.variants.get(save, decide))
    return call


def normed_attention_residual(
    x: Tensor, affine: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor, out_bias: Tensor,
    patch_size: Sequence[int],
) -> Tensor:  # fmt: skip
    """x + separable_attn(gain * x + shift), in two kernels, for inference.

    Args:
        x: ``[B, C, H, W]`` in channels_last memory, not empty.
        affine: ``[B, 2, C]`` in float32, gain and shift of every sample and channel.
        qkv_weight, qkv_bias, out_weight, out_bias: as ``separable_attn`` takes them; any floating-point dtype, dense.
        patch_size: (patch_h, patch_w).

    Returns:
        ``[B, C, H, W]`` in channels_last memory, dtype of ``x``.
    """
    problem = Problem.of(x, patch_size)
    pooled, context = (empty_floats(x, *problem.group_shape) for _ in range(2))
    out = empty_map(x, x.shape[1])
    call = _Call(x, qkv_weight, qkv_bias, out_weight, out_bias, None, pooled, context, out, affine)
    _split(problem, call)
    return out


def _whole(problem: Problem, call: _Call) -> None:
    """One kernel."""
    problem.run(
        configs.WHOLE,
        whole_kernel,
        lambda config: problem.shape.pool_programs(config["BLOCK_M"]),
        configs.whole_candidates,
        (call.x, *call.projections, *call.statistics, call.out),
        map_strides(call.x),
        SAVE=call.save,
        HAS_QKV_BIAS=call.qkv_bias is not None,
        HAS_OUT_BIAS=call.out_bias is not None,
        PRECISION=problem.precision,
        **problem.pieces,
    )


def _split(problem: Problem, call: _Call) -> None:
    """One kernel up to the contexts, one for the outputs."""
    _pool(problem, call, project=True)
    problem.run(
        configs.OUTPUT,
        output_kernel,
        lambda config: problem.shape.tiles(config["BLOCK_M"]),
        configs.output_candidates,
        (call.x, call.norm, *call.projections, call.context, call.out),
        map_strides(call.x),
        LAYER=call.affine is not None,
        HAS_QKV_BIAS=call.qkv_bias is not None,
        HAS_OUT_BIAS=call.out_bias is not None,
        PRECISION=problem.precision,
        **problem.pieces,
    )


def _products(problem: Problem, call: _Call) -> None:
    """A kernel for each step, and torch's own product for the last projection."""
    _pool(problem, call, project=False)
    _project_pooled(problem, call)
    hidden = torch.empty_like(token_rows(call.out))
    problem.run(
        configs.PROJECTION,
        projection_kernel,
        problem.column_programs,
        configs.projection_candidates,
        (call.x, *call.qkv, call.context, hidden),
        map_strides(call.x),
        PRECISION=problem.precision,
        FIRST_ROW=1 + problem.channels,
        HAS_QKV_BIAS=call.qkv_bias is not None,
        GATED=True,
    )
    # Given their result's memory, products of torch ignore autocast; they must not ask for a graph either.
    weight = call.out_weight.detach().view(problem.channels, problem.channels).t()
    if call.out_bias is None:
        torch.mm(hidden, weight, out=token_rows(call.out))
    else:
        torch.addmm(call.out_bias.detach(), hidden, weight, out=token_rows(call.out))


def _pool(problem: Problem, call: _Call, project: bool) -> None:
    problem.run(
        configs.POOL,
        pool_kernel,
        lambda config: problem.shape.pool_programs(config["BLOCK_M"]),
        configs.pool_candidates,
        (call.x, call.norm, *call.qkv, *call.statistics),
        map_strides(call.x),
        NORM=call.affine is not None,
        HAS_QKV_BIAS=call.qkv_bias is not None,
        SAVE=call.save,
        PROJECT=project,
        PRECISION=problem.precision,
        **problem.pieces,
    )


def _project_pooled(problem: Problem, call: _Call) -> None:
    """Contexts from pooled tokens, which are the tokens of this product: groups of one."""
    groups, channels = problem.grid.groups, problem.channels
    constants = {
        "PATCH_H": 1,
        "PATCH_W": 1,
        "CHANNELS": channels,
        "FIRST_ROW": 1,
        "HAS_QKV_BIAS": call.qkv_bias is not None,
        "GATED": False,
        "PRECISION": problem.precision,
        "BLOCK_N": 1,
    }
    tensors = (call.pooled, *call.qkv, call.context, call.context)

    def start(config: Config) -> Start:
        programs = -(-groups // config["BLOCK_M"]) * -(-channels // config["BLOCK_C"])
        return prepare(projection_kernel, programs, (groups, 1, 1, channels, 0, 0), config, constants)

    def measure(config: Config) -> None:
        start(config)(*tensors)

    def decide() -> Start:
        return start(problem.choose(configs.CONTEXT, configs.context_candidates(problem.shape), measure))

    problem.starts.get((configs.CONTEXT, call.qkv_bias is not None), decide)(*tensors)
