"""Strides, uninitialised memory, bad numbers, repeatability, double backward, streams and devices."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from error_rule import compare_backward, compare_forward
from op_checks import (
    assert_same_bits,
    backward_arguments,
    check_bad_numbers_stay_in_their_group,
    everything,
    operator,
    poisoned_memory,
    problem_and_dense_copy,
    readable,
)
from torch import Tensor

pytestmark = pytest.mark.usefixtures("gpu_kernels")

Builder = Callable[..., Any]
Layout = Callable[[Tensor], Tensor]
STAGE_SIZES = {
    "unfold_attn_fold": {"heads": 4, "head_dim": 36},
    "separable_attn": {"channels": 128},
}


class TestLayouts:
    """The result depends on the values of a tensor, not on its strides."""

    def test_forward(self, op: str, make_problem: Builder, layout: Layout, dtype: torch.dtype) -> None:
        problem, dense = problem_and_dense_copy(make_problem(op, dtype=dtype, batch=3), layout)
        out = problem.fused()
        torch.testing.assert_close(out, dense.fused())
        assert out.is_contiguous(memory_format=torch.channels_last)

    def test_gradients(self, op: str, make_problem: Builder, layout: Layout, dtype: torch.dtype) -> None:
        problem, dense = problem_and_dense_copy(make_problem(op, dtype=dtype, batch=3), layout)
        grad_out = layout(torch.randn_like(dense.fused()))
        run = type(problem).fused
        torch.testing.assert_close(
            problem.gradients(run, grad_out),
            dense.gradients(run, grad_out.clone(memory_format=torch.channels_last)),
        )


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 7), (1, 33)], ids=readable)
def test_uninitialised_memory_is_never_read(
    op: str, make_problem: Builder, dtype: torch.dtype, grid: tuple[int, int], device: torch.device
) -> None:
    problem = make_problem(op, grid=grid, dtype=dtype)
    with poisoned_memory(device):
        results = everything(problem)
    for index, result in enumerate(results):
        assert torch.isfinite(result).all(), f"result {index}"


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 7)], ids=readable)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_bad_numbers_stay_in_their_group(
    op: str, make_problem: Builder, grid: tuple[int, int], bad: float, dtype: torch.dtype
) -> None:
    check_bad_numbers_stay_in_their_group(make_problem(op, grid=grid, dtype=dtype), bad)


@pytest.mark.parametrize("grid", [(4, 4), (16, 16)], ids=readable)
def test_same_input_same_bits(
    op: str, make_problem: Builder, dtype: torch.dtype, grid: tuple[int, int], small: bool
) -> None:
    sizes = {} if small else STAGE_SIZES[op]
    problem = make_problem(op, batch=2 if small else 32, grid=grid, dtype=dtype, **sizes)
    first = everything(problem)
    everything(make_problem(op, batch=1, grid=(5, 5), dtype=dtype, gain=50.0))
    assert_same_bits(everything(problem), first)


def test_double_backward_is_an_error_that_names_the_op(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    (grad,) = torch.autograd.grad(problem.fused().sum(), problem.tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=op):
        grad.square().sum().backward()


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_opcheck(op: str, make_problem: Builder, grad: bool) -> None:
    problem = make_problem(op)
    problem = problem.leaves() if grad else problem
    torch.library.opcheck(operator(op), (*problem.tensors, *problem.args))


def test_opcheck_of_forward_and_backward_operators(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    torch.library.opcheck(operator(f"{op}_forward"), (*problem.tensors, *problem.args))
    torch.library.opcheck(operator(f"{op}_backward"), backward_arguments(problem))


@pytest.mark.usefixtures("cuda")
def test_runs_on_the_current_stream(op: str, make_problem: Builder) -> None:
    problem = make_problem(op, batch=32, grid=(8, 8))
    expected = everything(problem)
    late = problem.with_first(torch.zeros_like(problem.tensors[0]))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what runs on another stream reads the zeros
        late.tensors[0].copy_(problem.tensors[0])
        actual = everything(late)
    stream.synchronize()
    assert_same_bits(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device(op: str, make_problem: Builder, dtype: torch.dtype) -> None:
    problem = make_problem(op, dtype=dtype)
    moved = problem.map_tensors(lambda tensor: tensor.to("cuda:1"))
    actual = everything(moved)
    assert {tensor.device.index for tensor in actual} == {1}
    assert_same_bits([tensor.to("cuda:0") for tensor in actual], everything(problem))


class TestOffsetsBeyond32Bits:
    """More than 2**31 elements: the first and last samples are checked. Off the GPU the same on few elements."""

    @pytest.fixture
    def elements(self, small: bool) -> Iterator[int]:
        """Elements of the map; skips where they would not fit."""
        if small:
            yield 2**12
            return
        elements = 2**31 + 2**20
        free = torch.cuda.mem_get_info()[0]
        needed = 6 * 2 * elements  # map, output, their gradients, and one of each to spare
        if free < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, got {free / 2**30:.0f}")
        yield elements
        torch.cuda.empty_cache()

    @pytest.mark.parametrize(
        ("large_op", "low"),
        [("unfold_attn_fold", torch.float16), ("separable_attn", torch.bfloat16)],
        ids=readable,
    )
    def test_last_samples(
        self, large_op: str, make_problem: Builder, low: torch.dtype, elements: int, small: bool
    ) -> None:
        sizes = STAGE_SIZES[large_op] | {"grid": (2, 2) if small else (16, 16), "dtype": low}
        one = make_problem(large_op, batch=1, **sizes)
        x = one.tensors[0]
        batch = elements // x.numel() + 3
        large = torch.empty(
            (batch, *x.shape[1:]), dtype=low, device=x.device, memory_format=torch.channels_last
        )
        leaf = large.normal_().requires_grad_()
        out = one.with_first(leaf).fused()
        grad_out = torch.empty_like(out).normal_()
        (grad,) = torch.autograd.grad(out, leaf, grad_out)
        for where in (slice(0, 2), slice(batch - 2, batch)):
            part = one.with_first(large[where].detach().clone(memory_format=torch.preserve_format))
            (forward,) = compare_forward(part, out[where].detach())
            grads = part.gradients(type(part).fused, grad_out[where])
            backward, *_ = compare_backward(part, grad_out[where], [grad[where], *grads[1:]])
            assert forward.holds(2.0), forward
            assert backward.holds(3.0), backward

    def test_distant_strides(self, op: str, make_problem: Builder, small: bool) -> None:
        problem = make_problem(op, batch=2, dtype=torch.float16)
        x = problem.tensors[0]
        _, channels, _, width = x.shape
        step = 2**12 if small else 2**31 + 16
        reserved = torch.empty(step + x[0].numel(), dtype=x.dtype, device=x.device)
        distant = reserved.as_strided(x.shape, (step, 1, width * channels, channels)).copy_(x)
        torch.testing.assert_close(problem.with_first(distant).fused(), problem.fused(), rtol=0, atol=0)
