"""Huge, equal, infinite and NaN values: finite where the definition is, NaN only where the definition is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import check_bad_numbers_stay_in_their_group
from torch import Tensor

pytestmark = pytest.mark.usefixtures("kernels")
Builder = Callable[..., Any]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of the kernels."""
    return request.param


def wide(problem: Any) -> Any:
    """The problem in the dtype the kernels sum in."""
    first = problem.tensors[0].dtype
    return problem.map_tensors(lambda t: t.to(torch.float64 if first == torch.float64 else torch.float32))


def pattern(tensor: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 +inf, 3 -inf."""
    kinds = [tensor.isnan(), tensor.isposinf(), tensor.isneginf()]
    return sum(index * kind.int() for index, kind in enumerate(kinds, start=1))


def assert_same_pattern(problem: Any) -> None:
    """Output and gradient of the map are NaN and infinite exactly where those of the reference are.

    The parameters' gradients are sums in which the kernels use that scores add up to one, so that single elements
    may stay finite; a loss scaler must still find NaN in every tensor where the reference has one.
    """
    reference = wide(problem)
    out = problem.fused()
    assert torch.equal(pattern(out), pattern(reference.reference().to(out.dtype))), "out"
    grad_out = torch.rand_like(out) + 0.5
    actual = problem.gradients(type(problem).fused, grad_out)
    expected = reference.gradients(type(problem).reference, grad_out.to(reference.tensors[0].dtype))
    assert torch.equal(actual[0].isnan(), expected[0].isnan()), "gradient of the map"
    for index, (grad, truth) in enumerate(zip(actual, expected, strict=True)):
        assert grad.isnan().any() == truth.isnan().any(), f"gradient {index}"


@pytest.mark.parametrize("logit", [1e2, 1e4])
def test_huge_logits_stay_within_the_error_rule(
    op: str,
    make_problem: Builder,
    dtype: torch.dtype,
    logit: float,
    forward_rule: Callable[[Any], None],
    backward_rule: Callable[[Any], None],
) -> None:
    gain = logit**0.5 if op == "unfold_attn_fold" else logit
    problem = make_problem(op, grid=(5, 5), dtype=dtype, gain=gain)
    forward_rule(problem)
    backward_rule(problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("values", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("gain", [0.1, 1.0, 2.5, 3.0, 6.0, 40.0])
@pytest.mark.parametrize(
    ("grid", "head_dim"), [((8, 8), 16), ((9, 13), 16), ((17, 18), 16), ((10, 15), 18)], ids=str
)
def test_small_and_large_scores_in_one_map(
    attention: Builder,
    grid: tuple[int, int],
    head_dim: int,
    gain: float,
    values: float,
    dtype: torch.dtype,
    forward_rule: Callable[[Any], None],
) -> None:
    """A kernel may do without a maximum where it knows that scores are small."""
    problem = attention(patch=(1, 1), grid=grid, heads=2, head_dim=head_dim, dtype=dtype, gain=gain)
    qkv = problem.tensors[0]
    qkv[:, : 2 * head_dim, : grid[0] // 2] *= 0.1  # queries of the first blocks
    qkv[:, 4 * head_dim :] *= values / gain
    forward_rule(problem)


@pytest.mark.parametrize("gain", [0.1, 1.0], ids=["small-scores", "larger-scores"])
def test_values_near_the_largest_float32(attention: Builder, gain: float) -> None:
    """Sums that a kernel divides only at their end must not overflow where the mean does not."""
    problem = attention(patch=(1, 1), grid=(9, 13), heads=2, head_dim=16, dtype=torch.float32, gain=gain)
    problem.tensors[0][:, 64:] = 1e36
    torch.testing.assert_close(problem.fused(), torch.full((2, 32, 9, 13), 1e36), rtol=1e-5, atol=0.0)


def test_logits_beyond_the_range_of_float16(attention: Builder) -> None:
    problem = attention(grid=(4, 5), head_dim=16, dtype=torch.float16, gain=200.0, scale=2.0)
    truth = problem.map_tensors(Tensor.double).reference()
    torch.testing.assert_close(problem.fused().double(), truth, rtol=2e-3, atol=0.5)


def test_values_near_the_largest_float16(attention: Builder) -> None:
    problem = attention(grid=(4, 5), dtype=torch.float16)
    problem.tensors[0][:, 20:] = 65504.0
    assert torch.equal(problem.fused(), torch.full_like(problem.fused(), 65504.0))


def test_context_beyond_the_range_of_float16_is_infinite_or_finite_like_the_reference(
    separable: Builder,
) -> None:
    problem = separable(grid=(3, 3), dtype=torch.float16)
    huge = problem.with_first(problem.tensors[0] * 2000)
    out, truth = huge.fused(), wide(huge).reference()
    clear = (truth.abs() < 65000) | (truth.abs() > 66000)
    assert truth.abs().max() > 66000
    assert torch.equal(pattern(out)[clear], pattern(truth.half())[clear])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e4])
def test_equal_tokens_keep_their_value(
    op: str, make_problem: Builder, dtype: torch.dtype, value: float
) -> None:
    problem = make_problem(op, grid=(5, 7), dtype=dtype)
    same = problem.with_first(torch.full_like(problem.tensors[0], value))
    truth = same.map_tensors(Tensor.double).reference().to(dtype)
    torch.testing.assert_close(same.fused(), truth, rtol=8 * torch.finfo(dtype).eps, atol=1e-3)


def test_one_token_far_above_all_others(attention: Builder, dtype: torch.dtype) -> None:
    problem = attention(heads=1, patch=(1, 1), grid=(20, 20), dtype=dtype)
    qkv = problem.tensors[0]
    qkv[:, :10] = 1.0
    qkv[:, 5:10, 13, 7] = 200.0  # the key of a late token: what came before must be forgotten
    expected = qkv[:, 10:, 13:14, 7:8].expand(-1, -1, 20, 20)
    assert torch.equal(problem.fused(), expected)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("grid", [(3, 3), (20, 20)], ids=str)
def test_attention_pattern_of_one_bad_number(
    attention: Builder, bad: float, part: int, grid: tuple[int, int], dtype: torch.dtype
) -> None:
    problem = attention(grid=grid, patch=(1, 1), dtype=dtype)
    problem.tensors[0][1, part * 10 + 7, 1, 1] = bad
    assert_same_pattern(problem)


@pytest.mark.parametrize("sign", [1, -1], ids=["inf", "-inf"])
def test_attention_pattern_of_rows_without_a_finite_score(
    attention: Builder, sign: int, dtype: torch.dtype
) -> None:
    problem = attention(heads=1, patch=(1, 1), grid=(4, 5), batch=1, dtype=dtype)
    qkv = problem.tensors[0]
    qkv[:, :10] = qkv[:, :10].abs() + 0.5
    qkv[:, 5, 0, :3] = torch.inf * sign  # some keys
    qkv[:, 0, 3, 4] = -torch.inf * sign  # the query of one token: -inf against every key
    assert_same_pattern(problem)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("grid", [(3, 3), (9, 9)], ids=str)
def test_separable_pattern_of_one_bad_pixel_value(
    separable: Builder, bad: float, grid: tuple[int, int], dtype: torch.dtype
) -> None:
    problem = separable(grid=grid, patch=(1, 1), dtype=dtype)
    problem.tensors[0][1, 7, 1, 1] = bad
    assert_same_pattern(problem)


@pytest.mark.parametrize(
    ("which", "row"), [(1, 0), (1, 3), (1, 13), (2, 3), (2, 13)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan], ids=str)
def test_separable_pattern_of_one_bad_parameter(
    separable: Builder, which: int, row: int, bad: float, dtype: torch.dtype
) -> None:
    problem = separable(patch=(1, 1), dtype=dtype)
    problem.tensors[which][row] = bad
    out = problem.fused()
    assert torch.equal(pattern(out), pattern(wide(problem).reference().to(out.dtype)))


def test_relu_lets_nan_through(separable: Builder, dtype: torch.dtype) -> None:
    problem = separable(dtype=dtype)
    problem.tensors[2][11 + 4] = torch.nan  # the bias of one value channel
    assert problem.fused().isnan().all()


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 7)], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_bad_numbers_stay_in_their_group(
    op: str, make_problem: Builder, grid: tuple[int, int], bad: float, dtype: torch.dtype
) -> None:
    check_bad_numbers_stay_in_their_group(make_problem(op, grid=grid, dtype=dtype), bad)


def test_bad_gradients_stay_in_their_group(op: str, make_problem: Builder, dtype: torch.dtype) -> None:
    problem = make_problem(op, grid=(3, 3), dtype=dtype)
    grad_out = torch.randn_like(problem.fused())
    run = type(problem).fused
    clean = problem.gradients(run, grad_out)[0]
    grad_out[0, 3, 5, 5] = torch.nan
    touched = torch.zeros_like(clean, dtype=torch.bool)
    touched[0, :, 1::2, 1::2] = True
    grad = problem.gradients(run, grad_out)[0]
    assert torch.equal(grad[~touched], clean[~touched])
    assert grad[touched].isnan().any()
