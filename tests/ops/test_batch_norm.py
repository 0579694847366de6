"""BatchNorm by the statistics of the batch, and its SiLU, as one op on the CPU: ``batch_norm``."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capabilities import LOWER, run_with
from error_rule import check_backward, check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import assert_same_bits, everything, poisoned_memory
from torch import Tensor

from mobilevit_kernels import ops, reference

pytestmark = pytest.mark.usefixtures("restored_threads")
SIZES = [
    (2, 64, 8, 8),
    (1, 16, 65, 67),
    (3, 37, 5, 7),
    (2, 1, 3, 1),
    (1, 640, 4, 4),
    (4, 24, 40, 40),
    (2, 97, 1, 1),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Problem:
    """The map ``[B, C, H, W]`` with means and scales of its own in each channel, weight and bias."""

    tensors: tuple[Tensor, ...]
    silu: bool = True
    eps: float = 1e-5

    @classmethod
    def random(
        cls, size: tuple[int, ...], dtype: torch.dtype = torch.float32, silu: bool = True, **options: Any
    ) -> "Problem":
        channels = size[1]
        scale, shift = torch.rand(channels) + 0.5, torch.randn(channels)
        x = torch.randn(size) * scale[:, None, None] + shift[:, None, None]
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        vectors = (torch.rand(channels) + 0.5, torch.randn(channels))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return cls((x, *(vector.to(wide) for vector in vectors)), silu, **options)

    def fused(self) -> Tensor:
        return ops.batch_norm(*self.tensors, self.eps, self.silu)[0]

    def reference(self) -> Tensor:
        return reference.batch_norm(*self.tensors, self.eps, self.silu)[0]

    def baseline(self) -> Tensor:
        x, weight, bias = self.tensors
        out = F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        return F.silu(out) if self.silu else out

    def gradients(self, function: Any, grad_out: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        return list(torch.autograd.grad(function(replace(self, tensors=tuple(leaves))), leaves, grad_out))

    def map_tensors(self, function: Any) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x = self.tensors[0]
        return replace(Problem.random(tuple(x.shape), x.dtype, self.silu), eps=self.eps)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_rule(size: tuple[int, ...], dtype: torch.dtype, silu: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    problem = Problem.random(size, dtype, silu)
    check_forward(problem)
    check_backward(problem)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 20), st.integers(2, 20)),
    dtype=st.sampled_from(DTYPES),
    silu=st.booleans(),
)
def test_any_shape(size: tuple[int, ...], dtype: torch.dtype, silu: bool) -> None:
    problem = Problem.random(size, dtype, silu)
    check_forward(problem)
    if size[0] * size[2] * size[3] > 8:  # of few values the gradient is a difference of nearly equal numbers
        check_backward(problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype: torch.dtype) -> None:
    x = Problem.random((3, 37, 20, 30), dtype).tensors[0]
    _, mean, var = ops.batch_norm(x, torch.ones(37), torch.zeros(37))
    wide = x.double()
    assert mean.dtype == var.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), wide.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)


def test_variance_of_numbers_far_from_zero() -> None:
    x = 1000 + torch.randn(4, 32, 30, 30).mul_(0.01)
    _, _, var = ops.batch_norm(x, torch.ones(32), torch.zeros(32))
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-3, atol=0)


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
def test_gradcheck(silu: bool) -> None:
    problem = Problem.random((2, 5, 3, 4), torch.float64, silu)
    leaves = [tensor.requires_grad_() for tensor in problem.tensors]
    assert torch.autograd.gradcheck(lambda *t: ops.batch_norm(*t, 1e-3, silu)[0], leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    tensors = [tensor.requires_grad_() for tensor in Problem.random((2, 20, 4, 6), dtype).tensors]
    torch.library.opcheck(torch.ops.mobilevit.batch_norm.default, (*tensors, 1e-5, True))
    inner = [tensor.detach() for tensor in tensors]
    _, mean, var = ops.batch_norm(*inner)
    backward = torch.ops.mobilevit.batch_norm_backward.default
    torch.library.opcheck(backward, (torch.randn_like(inner[0]), *inner, mean, var, 1e-5, True))


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    problem = Problem.random((2, 40, 61, 30))
    torch.set_num_threads(1)
    expected = everything(problem)
    torch.set_num_threads(threads)
    assert_same_bits(everything(problem), expected)
    assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("layout", ["NCHW", "transposed", "slice"])
def test_any_strides(layout: str) -> None:
    problem = Problem.random((2, 20, 6, 8))
    x = problem.tensors[0]
    laid_out = {
        "NCHW": x.contiguous(),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": torch.cat([x, x], dim=1)[:, 20:],
    }[layout]
    other = replace(problem, tensors=(laid_out, *problem.tensors[1:]))
    assert_same_bits(everything(other), everything(problem))
    assert other.fused().is_contiguous(memory_format=torch.channels_last)


def test_nothing_uninitialised_is_read() -> None:
    problem = Problem.random((3, 37, 5, 7))
    expected = everything(problem)
    with poisoned_memory():
        assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_stay_in_their_channel(bad: float) -> None:
    problem = Problem.random((2, 20, 4, 4))
    x = problem.tensors[0].clone()
    x[1, 7, 2, 3] = bad
    clean, out = problem.fused(), replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    others = [c for c in range(20) if c != 7]
    assert torch.equal(out[:, others], clean[:, others])
    assert out[:, 7].isnan().all()


def test_only_what_is_wanted_has_a_gradient() -> None:
    x, weight, bias = Problem.random((2, 8, 4, 4)).tensors
    out, mean, var = ops.batch_norm(x, weight.requires_grad_(), bias)
    assert out.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad
    out.sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_double_backward_says_that_there_is_none() -> None:
    x, weight, bias = Problem.random((2, 8, 4, 4)).tensors
    out, _, _ = ops.batch_norm(x.requires_grad_(), weight, bias)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm_backward: double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device: str) -> None:
    x, weight, bias = (tensor.to(device) for tensor in Problem.random((2, 8, 4, 4)).tensors)
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        ops.batch_norm(x[0], weight, bias)
    with pytest.raises(ValueError, match="^x: expected more than one value per channel, got"):
        ops.batch_norm(x[:1, :, :1, :1], weight, bias)
    with pytest.raises(ValueError, match="^x: expected more than one value per channel, got"):
        ops.batch_norm(x[:0], weight, bias)
    with pytest.raises(TypeError, match="^x: expected a floating-point dtype, got"):
        ops.batch_norm(x.int(), weight, bias)
    with pytest.raises(ValueError, match=r"^bias: expected \[8\]"):
        ops.batch_norm(x, weight, bias[:7])
    with pytest.raises(ValueError, match="^eps: expected 0 or more, got -1"):
        ops.batch_norm(x, weight, bias, -1.0)


LOWER_ISA = """
import torch
from test_batch_norm import Problem
from error_rule import check_backward, check_forward
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    problem = Problem.random((2, 37, 9, 22), dtype)
    check_forward(problem)
    check_backward(problem)
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
