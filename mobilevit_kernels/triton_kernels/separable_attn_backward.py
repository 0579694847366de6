"""Launchers of the backward kernels of ``separable_attn``."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels import separable_attn_configs as configs
from mobilevit_kernels.triton_kernels.launch import Config
from mobilevit_kernels.triton_kernels.separable_attn_backward_kernels import (
    gate_backward_kernel,
    input_backward_kernel,
    query_backward_kernel,
)
from mobilevit_kernels.triton_kernels.separable_attn_problem import (
    Problem,
    empty_floats,
    map_strides,
    token_rows,
)
from mobilevit_kernels.triton_kernels.token_grid import empty_map, rows_of_channels


class _Call(NamedTuple):
    """Tensors of one call, as kernels take them."""

    grad_out: Tensor
    x: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    scores: Tensor
    pooled: Tensor
    context: Tensor
    parameters: bool


class _Gates(NamedTuple):
    """Gradients on both sides of relu(value) * context.

    ``value`` and ``hidden`` (only for the parameters) are dense rows of tokens [B * H * W, C], ``context`` is
    float32 [groups, C], ``value_sums`` float32 [tiles, C].
    """

    value: Tensor
    hidden: Tensor
    context: Tensor
    value_sums: Tensor


def separable_attn_backward(
    grad_out: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    scores: Tensor,
    pooled: Tensor,
    context: Tensor,
    patch_size: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, qkv_weight, qkv_bias, out_weight and out_bias, from what the forward pass returned.

    ``output_mask``: whether that of x and those of the parameters are wanted; what is not wanted is empty. Every sum
    has a fixed order.
    """
    want_x, parameters = output_mask
    channels = x.shape[1]
    shapes = (qkv_weight.shape, (1 + 2 * channels,), out_weight.shape, (channels,))
    grad_x = empty_map(x, x.shape[1]) if want_x else x.new_empty(0)
    grads = [x.new_empty(shape if parameters else 0) for shape in shapes]
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
    elif want_x or parameters:
        call = _Call(
            rows_of_channels(grad_out),
            rows_of_channels(x),
            qkv_weight.contiguous(),
            None if qkv_bias is None else qkv_bias.contiguous(),
            out_weight.contiguous(),
            scores.contiguous(),
            pooled.contiguous(),
            context.contiguous(),
            parameters,
        )
        _backward(Problem.of(x, patch_size), call, grad_x if want_x else None, grads)
    return grad_x, grads[0], grads[1], grads[2], grads[3]


def _backward(problem: Problem, call: _Call, grad_x: Tensor | None, grads: list[Tensor]) -> None:
    channels = problem.channels
    gates = _gate_backward(problem, call)
    key_weight = call.qkv_weight.detach().view(-1, channels)[1 : 1 + channels]
    grad_pooled = empty_floats(call.x, problem.grid.groups, channels)
    # Given their result's memory, products and sums of torch ignore autocast.
    torch.mm(gates.context, key_weight.to(torch.float32), out=grad_pooled)
    grad_query, query_sums = _query_backward(problem, call, grad_pooled)
    if grad_x is not None:
        _input_backward(problem, call, gates.value, grad_pooled, grad_query, grad_x)
    if call.parameters:
        _qkv_gradients(call, gates, query_sums, grads[0].view(-1, channels), grads[1])
        grad_rows = token_rows(call.grad_out)
        torch.mm(grad_rows.t(), gates.hidden, out=grads[2].view(channels, channels))
        torch.sum(grad_rows, 0, out=grads[3])


def _gate_backward(problem: Problem, call: _Call) -> _Gates:
    grid, channels = problem.grid, problem.channels
    value = call.x.new_empty((grid.batch * grid.height * grid.width, channels))
    hidden = torch.empty_like(value) if call.parameters else value
    bias = call.qkv_weight if call.qkv_bias is None else call.qkv_bias

    def gates(config: Config) -> _Gates:
        tiles = problem.shape.tiles(config["BLOCK_M"])
        blocks = -(-grid.tokens // problem.shape.block_n(config["BLOCK_M"]))
        context = empty_floats(call.x, blocks, grid.groups, channels)
        value_sums = empty_floats(call.x, tiles, channels) if call.parameters else context
        arguments = (
            call.grad_out, call.x, call.qkv_weight, bias, call.out_weight, call.context, value, hidden, context,
            value_sums, *problem.sizes, *map_strides(call.grad_out), *map_strides(call.x),
        )  # fmt: skip
        problem.start_columns(
            gate_backward_kernel,
            arguments,
            config,
            HAS_QKV_BIAS=call.qkv_bias is not None,
            PARAMETERS=call.parameters,
        )
        return _Gates(value, hidden, context[0] if blocks == 1 else _sum_rows(context), value_sums)

    def run(config: Config) -> None:
        gates(config)

    candidates = configs.gate_backward_candidates(problem.shape)
    return gates(problem.choose(configs.GATE_BACKWARD, candidates, run))


def _query_backward(problem: Problem, call: _Call, grad_pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the query [groups, N], and sums of its products with the tokens [programs, C]."""
    grad_query = torch.empty_like(call.scores)

    def gradients(config: Config) -> tuple[Tensor, Tensor]:
        programs = problem.shape.pool_programs(config["BLOCK_M"])
        sums = empty_floats(call.x, programs, problem.channels) if call.parameters else grad_query
        arguments = (
            call.x, call.scores, call.pooled, grad_pooled, grad_query, sums, *problem.sizes, *map_strides(call.x)
        )  # fmt: skip
        constants = {"PARAMETERS": call.parameters, **problem.pieces}
        problem.start(query_backward_kernel, programs, arguments, config, **constants)
        return grad_query, sums

    def run(config: Config) -> None:
        gradients(config)

    candidates = configs.query_backward_candidates(problem.shape)
    return gradients(problem.choose(configs.QUERY_BACKWARD, candidates, run))


def _input_backward(
    problem: Problem, call: _Call, grad_value: Tensor, grad_pooled: Tensor, grad_query: Tensor, grad_x: Tensor
) -> None:
    arguments = (grad_value, call.qkv_weight, call.scores, grad_pooled, grad_query, grad_x, *problem.sizes)

    def run(config: Config) -> None:
        problem.start_columns(input_backward_kernel, arguments, config)

    candidates = configs.input_backward_candidates(problem.shape)
    run(problem.choose(configs.INPUT_BACKWARD, candidates, run))


def _qkv_gradients(
    call: _Call, gates: _Gates, query_sums: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Writes the gradients of the first projection, rows and elements query | key | value."""
    channels = grad_weight.shape[1]
    grad_weight[0].copy_(_sum_rows(query_sums))
    key = grad_weight[1 : 1 + channels]
    exact = key if key.dtype == torch.float32 else empty_floats(key, channels, channels)
    torch.mm(gates.context.t(), call.pooled.view(-1, channels), out=exact)
    if exact is not key:
        key.copy_(exact)
    torch.mm(gates.value.t(), token_rows(call.x), out=grad_weight[1 + channels :])
    grad_bias[:1].zero_()
    grad_bias[1 : 1 + channels].copy_(_sum_rows(gates.context))
    grad_bias[1 + channels :].copy_(_sum_rows(gates.value_sums))


def _sum_rows(rows: Tensor) -> Tensor:
    """Sum over the first dimension."""
    return torch.sum(rows, 0, out=torch.empty_like(rows[0]))
