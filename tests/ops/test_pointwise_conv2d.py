"""1x1 convolution with its gradients as matrix products on the map: ``pointwise_conv2d``."""

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
OP = torch.ops.mobilevit.pointwise_conv2d.default
BACKWARD = torch.ops.mobilevit.pointwise_conv2d_backward.default
# Batch, channels in and out, height, width.
SIZES = [
    (2, 64, 128, 8, 8),
    (1, 16, 64, 65, 67),
    (3, 37, 5, 5, 7),
    (2, 1, 1, 3, 1),
    (1, 512, 96, 4, 4),
    (8, 24, 40, 40, 40),
    (1, 97, 33, 1, 1),
    (2, 30, 70, 17, 31),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Problem:
    """The map ``[B, C, H, W]``, the weight ``[O, C, 1, 1]``, and perhaps the bias ``[O]``."""

    tensors: tuple[Tensor, ...]
    silu: bool = False

    @classmethod
    def random(
        cls,
        size: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
        silu: bool = False,
    ) -> "Problem":
        batch, channels, outputs, height, width = size
        x = torch.randn(batch, channels, height, width, dtype=dtype)
        weight = torch.randn(outputs, channels, 1, 1, dtype=dtype) * channels**-0.5
        vector = (torch.randn(outputs, dtype=dtype),) if bias else ()
        return cls((x.contiguous(memory_format=torch.channels_last), weight, *vector), silu)

    def fused(self) -> Tensor:
        return ops.pointwise_conv2d(*self.tensors, silu_input=self.silu)

    def reference(self) -> Tensor:
        return reference.pointwise_conv2d(*self.tensors, silu_input=self.silu)

    def baseline(self) -> Tensor:
        x, *parameters = self.tensors
        return F.conv2d(F.silu(x) if self.silu else x, *parameters)

    def gradients(self, function: Any, grad_out: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        return list(torch.autograd.grad(function(replace(self, tensors=tuple(leaves))), leaves, grad_out))

    def map_tensors(self, function: Any) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x, weight = self.tensors[:2]
        batch, channels, height, width = x.shape
        return Problem.random(
            (batch, channels, weight.shape[0], height, width), x.dtype, len(self.tensors) == 3, self.silu
        )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("bias", "silu"), [(True, False), (False, False), (True, True)], ids=["bias", "plain", "silu"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_rule(size: tuple[int, ...], dtype: torch.dtype, bias: bool, silu: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    problem = Problem.random(size, dtype, bias, silu)
    check_forward(problem)
    check_backward(problem)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(*(st.integers(1, most) for most in (4, 70, 70, 20, 20))),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    silu=st.booleans(),
)
def test_any_shape(size: tuple[int, ...], dtype: torch.dtype, bias: bool, silu: bool) -> None:
    problem = Problem.random(size, dtype, bias, silu)
    check_forward(problem)
    check_backward(problem)


def test_long_sums_round_no_more_than_those_of_torch() -> None:
    problem = Problem.random((4, 16, 8, 160, 160))
    check_backward(problem)


@pytest.mark.parametrize("silu", [False, True])
def test_gradcheck(silu: bool) -> None:
    leaves = [tensor.requires_grad_() for tensor in Problem.random((2, 5, 3, 3, 4), torch.float64).tensors]
    assert torch.autograd.gradcheck(ops.pointwise_conv2d, (*leaves, silu))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, bias: bool) -> None:
    problem = Problem.random((2, 20, 12, 4, 6), dtype, bias)
    x, weight, vector = (*(tensor.requires_grad_() for tensor in problem.tensors), None)[:3]
    grad_out = torch.randn(2, 12, 4, 6, dtype=dtype)
    for silu in (False, True):
        torch.library.opcheck(OP, (x, weight, vector, silu))
        for mask in ([True, True, bias], [False, True, False], [True, False, False]):
            torch.library.opcheck(BACKWARD, (grad_out, x.detach(), weight.detach(), silu, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(threads: int, dtype: torch.dtype) -> None:
    problem = Problem.random((2, 40, 24, 61, 30), dtype, silu=True)
    torch.set_num_threads(1)
    expected = everything(problem)
    torch.set_num_threads(threads)
    assert_same_bits(everything(problem), expected)
    assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("layout", ["NCHW", "transposed", "slice"])
def test_any_strides(layout: str) -> None:
    problem = Problem.random((2, 20, 12, 6, 8))
    x, *parameters = problem.tensors
    laid_out = {
        "NCHW": x.contiguous(),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": torch.cat([x, x], dim=1)[:, 20:],
    }[layout]
    other = Problem((laid_out, *parameters))
    assert_same_bits(everything(other), everything(problem))
    assert other.fused().is_contiguous(memory_format=torch.channels_last)


def test_strides_of_weight_and_of_the_gradient() -> None:
    x, weight, bias = Problem.random((2, 20, 12, 6, 8)).tensors
    matrix = weight[:, :, 0, 0].t().contiguous().t()
    assert torch.equal(ops.pointwise_conv2d(x, matrix, bias), ops.pointwise_conv2d(x, weight, bias))
    grad_out = torch.randn(2, 12, 6, 8).contiguous(memory_format=torch.channels_last)
    for silu in (False, True):
        expected = BACKWARD(grad_out, x, weight, silu, (True, True, True))
        other = BACKWARD(grad_out.contiguous(), x.contiguous(), weight, silu, (True, True, True))
        assert_same_bits(list(other), list(expected))


def test_nothing_uninitialised_is_read() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for silu in (False, True):
            problem = Problem.random((3, 38, 20, 5, 7), dtype, silu=silu)
            expected = everything(problem)
            with poisoned_memory():
                assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_stay_in_their_pixel(bad: float, dtype: torch.dtype, silu: bool) -> None:
    problem = Problem.random((2, 20, 12, 4, 5), dtype, silu=silu)
    clean, x = problem.fused(), problem.tensors[0].clone()
    x[1, 7, 2, 3] = bad
    out = replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    assert not out[1, :, 2, 3].isfinite().any()
    out[1, :, 2, 3] = clean[1, :, 2, 3]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_wanted_has_a_gradient(wanted: int, silu: bool) -> None:
    problem = Problem.random((2, 8, 6, 4, 4), silu=silu)
    expected = problem.gradients(Problem.reference, torch.ones(2, 6, 4, 4))
    tensors = problem.tensors
    tensors[wanted].requires_grad_()
    problem.fused().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]
    torch.testing.assert_close(tensors[wanted].grad, expected[wanted])


def test_the_activated_map_is_not_kept() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in Problem.random((2, 8, 6, 4, 4)).tensors)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        ops.pointwise_conv2d(x, weight, bias, silu_input=True)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr(), weight.data_ptr()]


def test_empty_batch() -> None:
    leaves = [tensor.requires_grad_() for tensor in Problem.random((0, 8, 6, 4, 4)).tensors]
    out = ops.pointwise_conv2d(*leaves)
    assert out.shape == (0, 6, 4, 4)
    out.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_autocast() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in Problem.random((2, 8, 6, 4, 4)).tensors)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.pointwise_conv2d(x, weight, bias)
    assert torch.equal(out, ops.pointwise_conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
    out.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_compiled_with_dynamic_sizes() -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.pointwise_conv2d, fullgraph=True, dynamic=True)
    for size in ((2, 8, 6, 4, 4), (3, 8, 6, 5, 7)):
        problem = Problem.random(size)
        leaves = [tensor.requires_grad_() for tensor in problem.tensors]
        out = compiled(*leaves)
        grads = torch.autograd.grad(out.sin().sum(), leaves)
        plain = ops.pointwise_conv2d(*leaves)
        torch.testing.assert_close(out, plain)
        for one, other in zip(grads, torch.autograd.grad(plain.sin().sum(), leaves), strict=True):
            torch.testing.assert_close(one, other)


def test_double_backward_says_that_there_is_none() -> None:
    x, weight, _ = Problem.random((2, 8, 6, 4, 4)).tensors
    out = ops.pointwise_conv2d(x.requires_grad_(), weight)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="pointwise_conv2d_backward: double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device: str) -> None:
    x, weight, bias = (tensor.to(device) for tensor in Problem.random((2, 8, 6, 4, 4)).tensors)
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        ops.pointwise_conv2d(x[0], weight, bias)
    with pytest.raises(ValueError, match="^x: expected at least one channel, got 0"):
        ops.pointwise_conv2d(x[:, :0], weight, bias)
    with pytest.raises(TypeError, match="^x: expected a floating-point dtype, got"):
        ops.pointwise_conv2d(x.int(), weight, bias)
    with pytest.raises(ValueError, match="^weight: expected at least one row, got"):
        ops.pointwise_conv2d(x, weight[:0], bias)
    with pytest.raises(ValueError, match=r"^weight: expected \[6, 8\] or \[6, 8, 1, 1\], got"):
        ops.pointwise_conv2d(x, weight[:, :7], bias)
    with pytest.raises(TypeError, match="^weight: expected torch.float32 as x has"):
        ops.pointwise_conv2d(x, weight.double(), bias)
    with pytest.raises(ValueError, match=r"^bias: expected \[6\], got"):
        ops.pointwise_conv2d(x, weight, bias[:5])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input_of_backward(device: str) -> None:
    x, weight, bias = (tensor.to(device) for tensor in Problem.random((2, 8, 6, 4, 4)).tensors)
    grad_out, rest = OP(x, weight, bias), (False, [True, True, True])
    with pytest.raises(ValueError, match=r"^grad_out: expected \[2, 6, 4, 4\] as the forward returned, got"):
        BACKWARD(x, x, weight, *rest)
    with pytest.raises(TypeError, match="^grad_out: expected torch.float32 as the forward returned, got"):
        BACKWARD(grad_out.double(), x, weight, *rest)
    with pytest.raises(ValueError, match=r"^weight: expected \[6, 8\] or \[6, 8, 1, 1\], got"):
        BACKWARD(grad_out, x, weight[:, :7], *rest)


LOWER_ISA = """
import torch
from test_pointwise_conv2d import Problem
from error_rule import check_backward, check_forward
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for size in ((2, 37, 20, 9, 22), (2, 64, 30, 20, 20)):
        for silu in (False, True):
            problem = Problem.random(size, dtype, silu=silu)
            check_forward(problem)
            check_backward(problem)
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
