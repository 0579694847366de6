"""A 3x3 depthwise convolution and its gradients on the CPU: ``depthwise_conv2d``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from capabilities import LOWER, run_with
from error_rule import check_backward, check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import assert_same_bits, everything, poisoned_memory
from torch import Tensor

from mobilevit_kernels import ops, reference

pytestmark = pytest.mark.usefixtures("restored_threads")
OP = torch.ops.mobilevit.depthwise_conv2d.default
BACKWARD = torch.ops.mobilevit.depthwise_conv2d_backward.default
CASES = [  # size, stride, dilation
    ((2, 64, 8, 8), 1, 1),
    ((1, 16, 65, 67), 1, 1),
    ((1, 16, 66, 70), 2, 1),
    ((3, 37, 5, 7), 2, 1),
    ((2, 37, 6, 8), 3, 1),
    ((2, 1, 3, 1), 1, 1),
    ((2, 3, 1, 9), 2, 1),
    ((4, 97, 1, 1), 1, 1),
    ((2, 97, 1, 1), 3, 2),
    ((2, 40, 20, 13), 1, 2),
    ((1, 37, 13, 21), 2, 2),
    ((1, 16, 11, 14), 3, 2),
    ((2, 64, 4, 5), 1, 7),
    ((1, 16, 4, 30), 2, 5),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Problem:
    """The map ``[B, C, H, W]`` and the weight ``[C, 1, 3, 3]``."""

    tensors: tuple[Tensor, ...]
    stride: int = 1
    dilation: int = 1

    @classmethod
    def random(
        cls, size: tuple[int, ...], dtype: torch.dtype = torch.float32, stride: int = 1, dilation: int = 1
    ) -> "Problem":
        x = torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)
        return cls((x, torch.randn(size[1], 1, 3, 3).to(dtype)), stride, dilation)

    def fused(self) -> Tensor:
        return ops.depthwise_conv2d(*self.tensors, self.stride, self.dilation)

    def reference(self) -> Tensor:
        return reference.depthwise_conv2d(*self.tensors, self.stride, self.dilation)

    baseline = reference

    def gradients(self, function: Any, grad_out: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        return list(torch.autograd.grad(function(replace(self, tensors=tuple(leaves))), leaves, grad_out))

    def map_tensors(self, function: Any) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x = self.tensors[0]
        return Problem.random(tuple(x.shape), x.dtype, self.stride, self.dilation)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "stride", "dilation"), CASES, ids=str)
def test_error_rule(
    size: tuple[int, ...], stride: int, dilation: int, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    problem = Problem.random(size, dtype, stride, dilation)
    check_forward(problem)
    check_backward(problem)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 4),
)
def test_any_shape(size: tuple[int, ...], dtype: torch.dtype, stride: int, dilation: int) -> None:
    problem = Problem.random(size, dtype, stride, dilation)
    check_forward(problem)
    check_backward(problem)


@pytest.mark.parametrize("huge", [1000, 2**62])
def test_strides_and_dilations_beyond_the_map(huge: int) -> None:
    problem = Problem.random((2, 20, 3, 5))
    assert_same_bits(everything(replace(problem, stride=huge)), everything(replace(problem, stride=5)))
    assert_same_bits(everything(replace(problem, dilation=huge)), everything(replace(problem, dilation=5)))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
def test_gradcheck(stride: int, dilation: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in Problem.random((2, 10, 4, 5), torch.float64).tensors]
    assert torch.autograd.gradcheck(lambda *t: ops.depthwise_conv2d(*t, stride, dilation), leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    problem = Problem.random((2, 20, 5, 6), dtype)
    torch.library.opcheck(OP, (*(tensor.clone().requires_grad_() for tensor in problem.tensors), 2, 1))
    grad_out = torch.randn_like(OP(*problem.tensors, 2, 1))
    for mask in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(BACKWARD, (grad_out, *problem.tensors, 2, 1, mask))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(low: torch.dtype) -> None:
    problem = Problem.random((2, 20, 5, 6))
    leaves = problem.map_tensors(lambda tensor: tensor.clone().requires_grad_())
    with torch.autocast("cpu", low):
        out = leaves.fused()
    by_hand = problem.map_tensors(lambda tensor: tensor.to(low))
    assert out.dtype == low
    assert torch.equal(out, by_hand.fused())
    grad_out = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves.tensors, grad_out)
    assert [grad.dtype for grad in grads] == [torch.float32] * 2
    assert_same_bits([grad.to(low) for grad in grads], by_hand.gradients(Problem.fused, grad_out))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_threads(threads: int, stride: int) -> None:
    problem = Problem.random((2, 40, 121, 70), stride=stride)  # several blocks of rows
    torch.set_num_threads(1)
    expected = everything(problem)
    torch.set_num_threads(threads)
    assert_same_bits(everything(problem), expected)
    assert_same_bits(everything(problem), expected)


LAYOUTS = {
    "NCHW": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "slice": lambda x: torch.cat([x, x], dim=1).contiguous(memory_format=torch.channels_last)[
        :, x.shape[1] :
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    problem = Problem.random((2, 20, 6, 8))
    x, weight = problem.tensors
    other = replace(
        problem, tensors=(LAYOUTS[layout](x), weight.transpose(2, 3).contiguous().transpose(2, 3))
    )
    assert_same_bits(everything(other), everything(problem))
    assert other.fused().is_contiguous(memory_format=torch.channels_last)
    grad_out = torch.randn_like(problem.fused())
    laid_out = LAYOUTS[layout](grad_out)
    assert laid_out.stride() != grad_out.stride()
    arguments = (x, weight, 1, 1, [True, True])
    assert_same_bits(list(BACKWARD(laid_out, *arguments)), list(BACKWARD(grad_out, *arguments)))


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("channels", [5, 37])
def test_nothing_uninitialised_is_read_or_left(channels: int, stride: int) -> None:
    problem = Problem.random((3, channels, 5, 13), stride=stride)
    expected = everything(problem)
    assert all(tensor.isfinite().all() for tensor in expected)
    with poisoned_memory():
        assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_stay_in_their_channel_and_window(bad: float) -> None:
    problem = Problem.random((2, 20, 9, 14))
    x, weight = problem.tensors
    grad_out = torch.randn_like(problem.fused())
    poisoned = x.clone()
    poisoned[1, 7, 4, 6] = bad
    window = torch.zeros(x.shape, dtype=torch.bool)
    window[1, 7, 3:6, 5:8] = True
    out, clean = OP(poisoned, weight), OP(x, weight)
    assert torch.equal(out[~window], clean[~window])
    assert not out[window].isfinite().any()

    others = torch.arange(20) != 7
    grad_weight = BACKWARD(grad_out, poisoned, weight, 1, 1, [False, True])[1]
    clean_weight = BACKWARD(grad_out, x, weight, 1, 1, [False, True])[1]
    assert torch.equal(grad_weight[others], clean_weight[others])
    assert not grad_weight[7].isfinite().any()

    clean_x = BACKWARD(grad_out, x, weight, 1, 1, [True, False])[0]
    grad_out[1, 7, 4, 6] = bad
    grad_x = BACKWARD(grad_out, x, weight, 1, 1, [True, False])[0]
    assert torch.equal(grad_x[~window], clean_x[~window])
    assert not grad_x[window].isfinite().any()


def test_a_weight_that_is_not_finite_meets_no_padding() -> None:
    x = torch.randn(1, 20, 6, 12)
    weight = torch.randn(20, 1, 3, 3)
    weight[3, 0, 0, 0] = torch.inf
    out = OP(x, weight)
    assert out[:, 3, 0].isfinite().all()
    assert out[:, 3, :, 0].isfinite().all()
    assert not out[:, 3, 1:, 1:].isfinite().any()


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_is_wanted_has_a_gradient(wanted: int) -> None:
    problem = Problem.random((2, 20, 4, 5), stride=2)
    grad_out = torch.ones_like(problem.fused())
    both = problem.gradients(Problem.fused, grad_out)
    tensors = list(problem.tensors)
    tensors[wanted].requires_grad_()
    problem.fused().backward(grad_out)
    assert tensors[1 - wanted].grad is None
    assert tensors[wanted].grad is not None
    assert torch.equal(tensors[wanted].grad, both[wanted])
    mask = [wanted == 0, wanted == 1]
    grads = BACKWARD(grad_out, *(tensor.detach() for tensor in tensors), 2, 1, mask)
    assert grads[1 - wanted].shape == (0,)


def test_empty_batch() -> None:
    problem = Problem.random((0, 20, 4, 5), stride=2)
    out = problem.fused()
    assert out.shape == (0, 20, 2, 3)
    grad_x, grad_weight = problem.gradients(Problem.fused, out)
    assert grad_x.shape == (0, 20, 4, 5)
    assert torch.equal(grad_weight, torch.zeros(20, 1, 3, 3))


def test_double_backward_says_that_there_is_none() -> None:
    x, weight = Problem.random((2, 8, 4, 4)).tensors
    out = ops.depthwise_conv2d(x.requires_grad_(), weight)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="depthwise_conv2d_backward: double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device: str) -> None:
    x, weight = (tensor.to(device) for tensor in Problem.random((2, 8, 4, 5)).tensors)
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        OP(x[0], weight)
    with pytest.raises(TypeError, match="^x: expected a floating-point dtype, got torch.int32"):
        OP(x.int(), weight)
    with pytest.raises(ValueError, match="^x: expected at least one channel, got 0"):
        OP(x[:, :0], weight)
    with pytest.raises(ValueError, match=r"^weight: expected \[8, 1, 3, 3\], got \[7, 1, 3, 3\]"):
        OP(x, weight[:7])
    with pytest.raises(ValueError, match=r"^weight: expected \[8, 1, 3, 3\], got \[8, 3, 3\]"):
        OP(x, weight[:, 0])
    with pytest.raises(TypeError, match="^weight: expected torch.float32 as x has, got torch.float64"):
        OP(x, weight.double())
    with pytest.raises(ValueError, match="^stride: expected a positive int, got 0"):
        OP(x, weight, 0)
    with pytest.raises(ValueError, match="^dilation: expected a positive int, got -1"):
        OP(x, weight, 1, -1)
    with pytest.raises(ValueError, match="^x: expected at least one pixel, got 4 x 0"):
        OP(x[:, :, :, :0], weight)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input_of_backward(device: str) -> None:
    x, weight = (tensor.to(device) for tensor in Problem.random((2, 8, 4, 5)).tensors)
    grad_out, mask = OP(x, weight, 2), [True, True]
    with pytest.raises(ValueError, match=r"^grad_out: expected \[2, 8, 2, 3\] as the forward returned, got"):
        BACKWARD(x, x, weight, 2, 1, mask)
    with pytest.raises(TypeError, match="^grad_out: expected torch.float32 as the forward returned, got"):
        BACKWARD(grad_out.double(), x, weight, 2, 1, mask)
    with pytest.raises(ValueError, match=r"^weight: expected \[8, 1, 3, 3\], got"):
        BACKWARD(grad_out, x, weight[:7], 2, 1, mask)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from, or for, another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("stride", [1, 2])
def test_compiled_training_step(stride: int) -> None:
    weight = torch.randn(20, 1, 3, 3, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return ops.depthwise_conv2d(x * 0.5 + 0.1, weight, stride).tanh()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, size in enumerate([(2, 20, 5, 6), (3, 20, 8, 7), (5, 20, 4, 9)]):
        x = torch.randn(size).contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            actual = compiled(x)
        expected = step(x)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(out.square().sum(), [x, weight]) for out in (actual, expected)]
        torch.testing.assert_close(*grads)


LOWER_ISA = """
import torch
from test_depthwise_conv2d import Problem
from error_rule import check_backward, check_forward
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for stride, dilation in ((1, 1), (2, 1), (1, 2), (3, 1)):
        for channels in (5, 37):
            problem = Problem.random((2, channels, 9, 22), dtype, stride, dilation)
            check_forward(problem)
            check_backward(problem)
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
