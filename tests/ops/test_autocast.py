"""Autocast: the dtype it promises, the values of a cast by hand, gradients in the dtype of the parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Builder = Callable[..., Any]


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def low(request: pytest.FixtureRequest) -> torch.dtype:
    """The autocast dtypes."""
    return request.param


@pytest.mark.usefixtures("backend")
class TestAutocast:
    """The same on every backend."""

    def test_output_is_that_of_a_cast_by_hand(self, op: str, make_problem: Builder, low: torch.dtype) -> None:
        problem = make_problem(op)
        with torch.autocast("cpu", low):
            out = problem.fused()
        assert out.dtype == low
        by_hand = problem.map_tensors(lambda tensor: tensor.to(low)).fused()
        torch.testing.assert_close(out, by_hand, rtol=2e-2, atol=2e-2)

    def test_gradients_keep_the_dtype_of_the_parameters(
        self, op: str, make_problem: Builder, low: torch.dtype
    ) -> None:
        problem = make_problem(op)
        grad_out = torch.randn_like(problem.fused())
        leaves = problem.leaves()
        with torch.autocast("cpu", low):
            out = leaves.fused()
        grads = torch.autograd.grad(out, leaves.tensors, grad_out.to(low))
        by_hand = problem.map_tensors(lambda tensor: tensor.to(low))
        expected = by_hand.gradients(type(problem).fused, grad_out.to(low))
        for grad, truth in zip(grads, expected, strict=True):
            assert grad.dtype == torch.float32
            tolerance = 2e-2 * truth.abs().max().item()
            torch.testing.assert_close(grad, truth.float(), rtol=2e-2, atol=tolerance)

    def test_float64_stays(self, op: str, make_problem: Builder, low: torch.dtype) -> None:
        problem = make_problem(op, dtype=torch.float64)
        with torch.autocast("cpu", low):
            out = problem.fused()
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, problem.reference())

    def test_disabled_autocast_changes_nothing(self, op: str, make_problem: Builder) -> None:
        problem = make_problem(op)
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            out = problem.fused()
        assert out.dtype == torch.float32
        assert torch.equal(out, problem.fused())

    def test_mixed_dtypes_are_cast(self, separable: Builder, low: torch.dtype) -> None:
        problem = separable()
        mixed = problem.with_first(problem.tensors[0].to(low))
        with torch.autocast("cpu", low):
            out = mixed.fused()
        assert out.dtype == low
        torch.testing.assert_close(out.float(), problem.reference(), rtol=5e-2, atol=1e-1)

    def test_output_is_channels_last(self, op: str, make_problem: Builder, low: torch.dtype) -> None:
        problem = make_problem(op)
        problem = problem.with_first(problem.tensors[0].contiguous())
        with torch.autocast("cpu", low):
            out = problem.fused()
        assert out.is_contiguous(memory_format=torch.channels_last)

    def test_wrong_shapes_are_still_reported(self, separable: Builder, low: torch.dtype) -> None:
        problem = separable()
        x, weight, *others = problem.tensors
        wrong = type(problem)(problem.op, (x, weight[:-1], *others), problem.args)
        with torch.autocast("cpu", low), pytest.raises(ValueError, match=r"qkv_weight: expected \[21, 10\]"):
            wrong.fused()

    def test_a_float64_weight_beside_a_float32_map_is_reported(
        self, separable: Builder, low: torch.dtype
    ) -> None:
        problem = separable()
        x, weight, *others = problem.tensors
        wrong = type(problem)(problem.op, (x, weight.double(), *others), problem.args)
        with torch.autocast("cpu", low), pytest.raises(TypeError, match=r"qkv_weight: expected torch\."):
            wrong.fused()


@pytest.mark.usefixtures("kernels")
def test_kernels_cast_exactly_as_by_hand(op: str, make_problem: Builder, low: torch.dtype) -> None:
    problem = make_problem(op)
    with torch.autocast("cpu", low):
        out = problem.fused()
    assert torch.equal(out, problem.map_tensors(lambda tensor: tensor.to(low)).fused())


@pytest.mark.usefixtures("kernels")
def test_autocast_reaches_the_operator_itself(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    with torch.autocast("cpu", torch.bfloat16):
        assert problem.raw().dtype == torch.bfloat16


@pytest.mark.usefixtures("kernels")
def test_training_step_beside_layers_of_torch(separable: Builder) -> None:
    problem = separable()
    conv = torch.nn.Conv2d(10, 10, 1)
    parameters: list[Tensor] = [t.requires_grad_() for t in problem.tensors[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(type(problem)(problem.op, (conv(problem.tensors[0]), *parameters), problem.args).fused())
        loss = out.float().square().mean()
    loss.backward()
    for parameter in [*parameters, *conv.parameters()]:
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0
