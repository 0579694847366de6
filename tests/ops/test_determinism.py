"""The same bits for the same input: again, after other work, with other threads; nothing uninitialised is read."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from op_checks import assert_same_bits, everything, poisoned_memory

pytestmark = pytest.mark.usefixtures("kernels", "restored_threads")
Builder = Callable[..., Any]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of the kernels."""
    return request.param


@pytest.fixture
def poison() -> Iterator[None]:
    """Every ``torch.empty`` and ``at::empty`` gives NaN."""
    with poisoned_memory():
        yield


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_input_same_bits(op: str, make_problem: Builder, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    problem = make_problem(op, batch=3, grid=(5, 7), dtype=dtype)
    first = everything(problem)
    everything(make_problem(op, batch=1, grid=(8, 9), dtype=dtype, gain=50.0))
    assert_same_bits(everything(problem), first)


def test_thread_counts_agree_to_rounding(op: str, make_problem: Builder, dtype: torch.dtype) -> None:
    problem = make_problem(op, batch=5, grid=(9, 8), dtype=dtype)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(everything(problem))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            tolerance = 32 * torch.finfo(dtype).eps * one.abs().max().item()
            torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def test_a_sample_does_not_depend_on_its_batch(op: str, make_problem: Builder, dtype: torch.dtype) -> None:
    problem = make_problem(op, batch=4, grid=(5, 3), dtype=dtype)
    whole = problem.fused()
    for index in range(4):
        alone = problem.with_first(problem.tensors[0][index : index + 1]).fused()
        torch.testing.assert_close(alone[0], whole[index])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 7), (1, 33)], ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "nchw"])
def test_uninitialised_memory_is_never_read(
    op: str, make_problem: Builder, dtype: torch.dtype, grid: tuple[int, int], channels_last: bool
) -> None:
    problem = make_problem(op, grid=grid, dtype=dtype)
    if not channels_last:
        problem = problem.with_first(problem.tensors[0].contiguous())
    for index, result in enumerate(everything(problem)):
        assert torch.isfinite(result).all(), f"result {index}"


@pytest.mark.usefixtures("poison")
def test_empty_maps_leave_no_uninitialised_gradient(separable: Builder) -> None:
    problem = separable(grid=(0, 2))
    for grad in problem.gradients(type(problem).fused, torch.empty(2, 10, 0, 4)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_concurrent_calls_do_not_share_scratch(op: str, make_problem: Builder) -> None:
    torch.set_num_threads(1)
    problems = [make_problem(op, grid=(6, 5), gain=1.0 + index) for index in range(8)]
    expected = [problem.fused() for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            actual = list(pool.map(type(problems[0]).fused, problems))
            assert_same_bits(actual, expected)
