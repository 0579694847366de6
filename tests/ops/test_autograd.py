"""Gradients: gradcheck, every choice of inputs that want one, graph lifetime, and what cannot be differentiated."""

import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("backend")
Builder = Callable[..., Any]


@pytest.mark.parametrize("patch", [(2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (3, 2)], ids=str)
def test_gradcheck(op: str, make_problem: Builder, patch: tuple[int, int], grid: tuple[int, int]) -> None:
    problem = make_problem(op, patch=patch, grid=grid, batch=2, dtype=torch.float64).leaves()

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return type(problem)(op, tensors, problem.args).fused()

    torch.autograd.gradcheck(run, problem.tensors, fast_mode=True, nondet_tol=0.0)


def test_gradcheck_without_biases(separable: Builder) -> None:
    problem = separable(channels=3, bias=False, grid=(2, 2), patch=(2, 1), dtype=torch.float64).leaves()
    x, qkv_weight, _, out_weight, _ = problem.tensors

    def run(x: torch.Tensor, qkv_weight: torch.Tensor, out_weight: torch.Tensor) -> torch.Tensor:
        return type(problem)(problem.op, (x, qkv_weight, None, out_weight, None), problem.args).fused()

    torch.autograd.gradcheck(run, (x, qkv_weight, out_weight))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_every_choice_of_inputs_that_want_a_gradient(separable: Builder, bias: bool) -> None:
    problem = separable(bias=bias, dtype=torch.float64)
    grad_out = torch.randn_like(problem.fused())
    everything = iter(problem.gradients(type(problem).reference, grad_out))
    expected = [None if tensor is None else next(everything) for tensor in problem.tensors]
    for wanted in itertools.product([False, True], repeat=5):
        tensors = [t if t is None else t.clone() for t in problem.tensors]
        for tensor, want in zip(tensors, wanted, strict=True):
            if tensor is not None:
                tensor.requires_grad_(want)
        out = type(problem)(problem.op, tuple(tensors), problem.args).fused()
        assert out.requires_grad == any(t is not None and t.requires_grad for t in tensors)
        if out.requires_grad:
            out.backward(grad_out)
        for tensor, grad in zip(tensors, expected, strict=True):
            if tensor is not None and tensor.requires_grad:
                torch.testing.assert_close(tensor.grad, grad)
            elif tensor is not None:
                assert tensor.grad is None


def test_gradients_have_the_shape_and_dtype_of_their_tensors(op: str, make_problem: Builder) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        problem = make_problem(op, dtype=dtype)
        grads = problem.gradients(type(problem).fused, torch.randn_like(problem.fused()))
        described = [(t.shape, t.dtype) for t in problem.tensors]
        assert [(g.shape, g.dtype) for g in grads] == described


def test_the_querys_bias_has_no_gradient(separable: Builder) -> None:
    problem = separable(dtype=torch.float64)
    grads = problem.gradients(type(problem).fused, torch.randn_like(problem.fused()))
    assert abs(grads[2][0].item()) < 1e-12


def test_retained_graph_gives_the_same_gradients_twice(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    out = problem.fused()
    grad_out = torch.randn_like(out)
    first = torch.autograd.grad(out, problem.tensors, grad_out, retain_graph=True)
    second = torch.autograd.grad(out, problem.tensors, grad_out)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, problem.tensors, grad_out)


def test_gradients_accumulate(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    problem.fused().sum().backward()
    once = [tensor.grad.clone() for tensor in problem.tensors]
    problem.fused().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in problem.tensors], [2 * grad for grad in once])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_without_gradients(op: str, make_problem: Builder, mode: Callable[[], Any]) -> None:
    problem = make_problem(op).leaves()
    expected = problem.fused().detach()
    with mode():
        out = problem.fused()
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)


def test_tensors_made_in_inference_mode(op: str, make_problem: Builder) -> None:
    with torch.inference_mode():
        problem = make_problem(op)
        out = problem.fused()
    torch.testing.assert_close(out, problem.reference(), rtol=1e-4, atol=1e-5)


def test_forward_mode_never_drops_a_tangent(op: str, make_problem: Builder, backend: str) -> None:
    problem = make_problem(op)
    x = problem.tensors[0]

    def directional_derivative() -> torch.Tensor | None:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            return torch.autograd.forward_ad.unpack_dual(problem.with_first(dual).fused()).tangent

    if backend == "reference":
        tangent = directional_derivative()
        assert tangent is not None
        assert tangent.abs().max() > 0
        return
    with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
        directional_derivative()


def test_backward_on_another_thread(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    grad_out = torch.randn_like(problem.fused())
    expected = problem.gradients(type(problem).fused, grad_out)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(problem.gradients, type(problem).fused, grad_out) for _ in range(16)]
    for run in runs:
        for one, other in zip(run.result(), expected, strict=True):
            assert torch.equal(one, other)


def test_saved_tensor_hooks_see_every_saved_tensor(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    grad_out = torch.randn_like(problem.fused())
    with torch.autograd.graph.save_on_cpu():
        offloaded = torch.autograd.grad(problem.fused(), problem.tensors, grad_out)
    torch.testing.assert_close(offloaded, torch.autograd.grad(problem.fused(), problem.tensors, grad_out))


class TestDoubleBackward:
    """Differentiating twice works on the reference and is an error that names the op on the kernels."""

    def first_gradient(self, problem: Any) -> Any:
        """Gradient of the map under a loss whose own gradient is constant, as in a gradient penalty."""
        (grad,) = torch.autograd.grad(problem.fused().sum(), problem.tensors[0], create_graph=True)
        return grad

    def test_gradient_of_a_gradient(self, op: str, make_problem: Builder, backend: str) -> None:
        problem = make_problem(op, dtype=torch.float64).leaves()
        grad = self.first_gradient(problem)
        if backend == "reference":
            grad.square().sum().backward()
            assert problem.tensors[0].grad.abs().max() > 0
            return
        with pytest.raises(RuntimeError, match=op):
            grad.square().sum().backward()

    def test_penalty_beside_a_loss_is_never_dropped(
        self, op: str, make_problem: Builder, backend: str
    ) -> None:
        problem = make_problem(op, dtype=torch.float64).leaves()
        penalty = self.first_gradient(problem).square().sum()
        if backend == "reference":
            (problem.fused().sum() + penalty).backward()
            return
        with pytest.raises(RuntimeError, match=op):
            (problem.fused().sum() + penalty).backward()

    def test_with_a_differentiable_output_gradient(
        self, op: str, make_problem: Builder, backend: str
    ) -> None:
        problem = make_problem(op, dtype=torch.float64).leaves()
        out = problem.fused()
        (grad,) = torch.autograd.grad(out.square().sum(), problem.tensors[0], create_graph=True)
        if backend == "reference":
            grad.sum().backward()
            return
        with pytest.raises(RuntimeError, match=op):
            grad.sum().backward()

    def test_the_first_gradient_is_right(self, op: str, make_problem: Builder) -> None:
        problem = make_problem(op, dtype=torch.float64).leaves()
        (expected,) = torch.autograd.grad(problem.reference().sum(), problem.tensors[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(self.first_gradient(problem).detach(), expected)
