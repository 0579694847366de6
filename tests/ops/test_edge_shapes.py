"""Empty maps, lone tokens and single channels: the right empty result, and gradients that match."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("backend")
Builder = Callable[..., Any]
EMPTY = {"batch": (0, (2, 3)), "rows": (2, (0, 3)), "columns": (2, (2, 0)), "all": (0, (0, 0))}


@pytest.mark.parametrize("empty", list(EMPTY))
def test_empty_map_gives_an_empty_map(op: str, make_problem: Builder, empty: str) -> None:
    batch, grid = EMPTY[empty]
    problem = make_problem(op, batch=batch, grid=grid)
    out = problem.fused()
    assert out.shape == (batch, 10, 2 * grid[0], 2 * grid[1])
    assert out.dtype == torch.float32


@pytest.mark.parametrize("empty", list(EMPTY))
def test_empty_map_gives_empty_and_zero_gradients(op: str, make_problem: Builder, empty: str) -> None:
    batch, grid = EMPTY[empty]
    problem = make_problem(op, batch=batch, grid=grid)
    grads = problem.gradients(type(problem).fused, torch.empty(batch, 10, 2 * grid[0], 2 * grid[1]))
    for tensor, grad in zip(problem.tensors, grads, strict=True):
        assert grad.shape == tensor.shape
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_one_pixel_one_channel(op: str, attention: Builder, separable: Builder, dtype: torch.dtype) -> None:
    if op == "unfold_attn_fold":
        problem = attention(batch=1, heads=1, head_dim=1, grid=(1, 1), patch=(1, 1), dtype=dtype)
    else:
        problem = separable(batch=1, channels=1, grid=(1, 1), patch=(1, 1), dtype=dtype)
    torch.testing.assert_close(problem.fused(), problem.reference())
    run, grad_out = type(problem), torch.ones(1, 1, 1, 1, dtype=dtype)
    torch.testing.assert_close(
        problem.gradients(run.fused, grad_out), problem.gradients(run.reference, grad_out)
    )


def test_patch_as_large_as_the_map(op: str, make_problem: Builder) -> None:
    problem = make_problem(op, grid=(1, 1), patch=(6, 4))
    torch.testing.assert_close(problem.fused(), problem.reference(), rtol=1e-5, atol=1e-5)


def test_patch_size_as_one_int_or_a_list(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    position = problem.args.index((2, 2))
    for patch in (2, [2, 2], torch.Size([2, 2])):
        args = (*problem.args[:position], patch, *problem.args[position + 1 :])
        assert torch.equal(type(problem)(op, problem.tensors, args).fused(), problem.fused())
