"""BatchNorm, SiLU and the convolution behind them as one op on the CPU: ``batch_norm_conv2d``."""

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
OP = torch.ops.mobilevit.batch_norm_conv2d.default
BACKWARD = torch.ops.mobilevit.batch_norm_conv2d_backward.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Map; outputs of a 1x1 convolution, or stride and dilation of a depthwise one.
POINTWISE = [
    ((2, 64, 8, 8), 128),
    ((1, 16, 33, 35), 64),
    ((3, 37, 5, 7), 5),
    ((2, 1, 3, 1), 1),
    ((1, 512, 4, 4), 96),
    ((8, 24, 20, 20), 40),
    ((2, 97, 1, 1), 33),
    ((2, 30, 17, 31), 70),
]
DEPTHWISE = [
    ((2, 64, 8, 8), (1, 1)),
    ((1, 16, 33, 35), (2, 1)),
    ((3, 37, 5, 7), (1, 2)),
    ((2, 1, 3, 1), (1, 1)),
    ((1, 256, 4, 4), (2, 2)),
    ((4, 24, 40, 40), (1, 1)),
    ((2, 97, 1, 1), (2, 1)),
    ((2, 30, 17, 31), (3, 5)),
]
CASES = [(size, outputs, (1, 1)) for size, outputs in POINTWISE] + [
    (size, None, conv) for size, conv in DEPTHWISE
]


@dataclass(frozen=True)
class Problem:
    """The map ``[B, C, H, W]`` with means and scales of its own in each channel, weight and bias of the norm, the
    convolution's weight: ``[O, C, 1, 1]`` or ``[C, 1, 3, 3]``.
    """

    tensors: tuple[Tensor, ...]
    silu: bool = True
    stride: int = 1
    dilation: int = 1
    eps: float = 1e-5

    @classmethod
    def random(
        cls,
        size: tuple[int, ...],
        outputs: int | None = None,
        conv: tuple[int, int] = (1, 1),
        dtype: torch.dtype = torch.float32,
        silu: bool = True,
    ) -> "Problem":
        channels = size[1]
        scale, shift = torch.rand(channels) + 0.5, torch.randn(channels)
        x = torch.randn(size) * scale[:, None, None] + shift[:, None, None]
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        vectors = ((torch.rand(channels) + 0.5).to(wide), torch.randn(channels).to(wide))
        depthwise = torch.randn(channels, 1, 3, 3) / 3
        weight = depthwise if outputs is None else torch.randn(outputs, channels, 1, 1) * channels**-0.5
        return cls((x, *vectors, weight.to(dtype)), silu, *conv)

    def call(self, function: Any) -> Any:
        return function(*self.tensors, self.eps, self.silu, self.stride, self.dilation)

    def fused(self) -> Tensor:
        return self.call(ops.batch_norm_conv2d)[0]

    def reference(self) -> Tensor:
        return self.call(reference.batch_norm_conv2d)[0]

    def baseline(self) -> Tensor:
        x, norm_weight, norm_bias, weight = self.tensors
        x = F.batch_norm(x, None, None, norm_weight, norm_bias, training=True, eps=self.eps)
        x = F.silu(x) if self.silu else x
        if weight.shape[2] == 1:
            return F.conv2d(x, weight)
        return F.conv2d(x, weight, None, self.stride, self.dilation, self.dilation, x.shape[1])

    def gradients(self, function: Any, grad_out: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.tensors]
        return list(torch.autograd.grad(function(replace(self, tensors=tuple(leaves))), leaves, grad_out))

    def map_tensors(self, function: Any) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x, weight = self.tensors[0], self.tensors[3]
        outputs = weight.shape[0] if weight.shape[2] == 1 else None
        conv = (self.stride, self.dilation)
        return Problem.random(tuple(x.shape), outputs, conv, x.dtype, self.silu)


@pytest.fixture(params=["pointwise", "depthwise"])
def small(request: pytest.FixtureRequest) -> Problem:
    """One of each kind."""
    outputs = {"pointwise": 12, "depthwise": None}[request.param]
    return Problem.random((2, 20, 6, 8), outputs)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "outputs", "conv"), CASES, ids=str)
def test_error_rule(
    size: tuple[int, ...],
    outputs: int | None,
    conv: tuple[int, int],
    dtype: torch.dtype,
    silu: bool,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    problem = Problem.random(size, outputs, conv, dtype, silu)
    check_forward(problem)
    if (
        problem.tensors[0][:, 0].numel() > 8
    ):  # of few values the gradient is a difference of nearly equal numbers
        check_backward(problem)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 20), st.integers(2, 20)),
    outputs=st.one_of(st.none(), st.integers(1, 70)),
    conv=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    dtype=st.sampled_from(DTYPES),
    silu=st.booleans(),
)
def test_any_shape(
    size: tuple[int, ...], outputs: int | None, conv: tuple[int, int], dtype: torch.dtype, silu: bool
) -> None:
    problem = Problem.random(size, outputs, conv if outputs is None else (1, 1), dtype, silu)
    check_forward(problem)
    if size[0] * size[2] * size[3] > 8:
        check_backward(problem)


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize(("size", "outputs", "conv"), CASES, ids=str)
def test_same_as_the_ops_one_by_one(
    size: tuple[int, ...], outputs: int | None, conv: tuple[int, int], silu: bool
) -> None:
    """Output and statistics bit for bit; the gradient of the norm sums in another order."""
    problem = Problem.random(size, outputs, conv, silu=silu)
    x, norm_weight, norm_bias, weight = problem.tensors
    out, mean, var = problem.call(ops.batch_norm_conv2d)
    normed, *statistics = ops.batch_norm(x, norm_weight, norm_bias, problem.eps, silu)
    expected = (
        ops.depthwise_conv2d(normed, weight, *conv)
        if outputs is None
        else ops.pointwise_conv2d(normed, weight)
    )
    assert_same_bits([out, mean, var], [expected, *statistics])


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize(("outputs", "conv"), [(3, (1, 1)), (None, (1, 1)), (None, (2, 1)), (None, (1, 2))])
def test_gradcheck(outputs: int | None, conv: tuple[int, int], silu: bool) -> None:
    problem = Problem.random((2, 5, 3, 4), outputs, conv, torch.float64, silu)
    leaves = [tensor.requires_grad_() for tensor in problem.tensors]
    assert torch.autograd.gradcheck(lambda *t: ops.batch_norm_conv2d(*t, 1e-3, silu, *conv)[0], leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [12, None])
def test_opcheck(outputs: int | None, dtype: torch.dtype) -> None:
    problem = Problem.random((2, 20, 4, 6), outputs, dtype=dtype)
    options = (1e-5, True, 1, 1)
    inner = problem.tensors
    out, mean, var = OP(*inner, *options)
    torch.library.opcheck(BACKWARD, (torch.randn_like(out), *inner, mean, var, *options))
    torch.library.opcheck(OP, (*(tensor.clone().requires_grad_() for tensor in inner), *options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("outputs", "conv"), [(24, (1, 1)), (None, (1, 1)), (None, (2, 2))])
def test_bits_do_not_depend_on_threads(
    outputs: int | None, conv: tuple[int, int], threads: int, dtype: torch.dtype
) -> None:
    problem = Problem.random((2, 40, 61, 30), outputs, conv, dtype)
    torch.set_num_threads(1)
    expected = everything(problem)
    torch.set_num_threads(threads)
    assert_same_bits(everything(problem), expected)
    assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("layout", ["NCHW", "transposed", "slice"])
def test_any_strides(layout: str, small: Problem) -> None:
    x, *parameters = small.tensors
    laid_out = {
        "NCHW": x.contiguous(),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "slice": torch.cat([x, x], dim=1)[:, 20:],
    }[layout]
    other = replace(small, tensors=(laid_out, *parameters))
    assert_same_bits(everything(other), everything(small))
    assert other.fused().is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outputs", [20, None])
def test_nothing_uninitialised_is_read(outputs: int | None, dtype: torch.dtype) -> None:
    problem = Problem.random((3, 38, 5, 7), outputs, dtype=dtype)
    expected = everything(problem)
    with poisoned_memory():
        assert_same_bits(everything(problem), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_stay_in_their_channel(bad: float) -> None:
    problem = Problem.random((2, 20, 6, 8))
    x, *parameters = problem.tensors
    poisoned = x.clone()
    poisoned[1, 7, 2, 3] = bad
    clean, out = problem.fused(), replace(problem, tensors=(poisoned, *parameters)).fused()
    others = [c for c in range(20) if c != 7]
    assert torch.equal(out[:, others], clean[:, others])
    assert out[:, 7].isnan().all()


def test_the_normalised_map_is_not_kept(small: Problem) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in small.tensors]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        ops.batch_norm_conv2d(*leaves)
    sizes = [tuple(tensor.shape) for tensor in (*leaves, leaves[1], leaves[2])]
    assert [tuple(tensor.shape) for tensor in saved] == sizes
    assert saved[0].data_ptr() == leaves[0].data_ptr()


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_wanted_has_a_gradient(wanted: int, small: Problem) -> None:
    out, mean, var = ops.batch_norm_conv2d(
        *(tensor.requires_grad_(index == wanted) for index, tensor in enumerate(small.tensors))
    )
    assert out.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    assert [tensor.grad is not None for tensor in small.tensors] == [index == wanted for index in range(4)]


def test_autocast(small: Problem) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in small.tensors]
    x, norm_weight, norm_bias, weight = leaves
    with torch.autocast("cpu", torch.bfloat16):
        out, mean, _ = ops.batch_norm_conv2d(*leaves)
    expected = ops.batch_norm_conv2d(x.bfloat16(), norm_weight, norm_bias, weight.bfloat16())[0]
    assert torch.equal(out, expected)
    assert mean.dtype == torch.float32
    out.float().square().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves if leaf.grad is not None] == [torch.float32] * 4


def test_compiled_with_dynamic_sizes() -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.batch_norm_conv2d, fullgraph=True, dynamic=True)
    for size in ((2, 8, 4, 4), (3, 8, 5, 7)):
        for outputs in (6, None):
            leaves = [tensor.requires_grad_() for tensor in Problem.random(size, outputs).tensors]
            out = compiled(*leaves, silu=True)[0]
            grads = torch.autograd.grad(out.sin().sum(), leaves)
            plain = ops.batch_norm_conv2d(*leaves, silu=True)[0]
            torch.testing.assert_close(out, plain)
            for one, other in zip(grads, torch.autograd.grad(plain.sin().sum(), leaves), strict=True):
                torch.testing.assert_close(one, other)


def test_double_backward_says_that_there_is_none(small: Problem) -> None:
    x, *parameters = small.tensors
    out, _, _ = ops.batch_norm_conv2d(x.requires_grad_(), *parameters)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm_conv2d_backward: double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device: str) -> None:
    x, norm_weight, norm_bias, weight = (t.to(device) for t in Problem.random((2, 8, 4, 4), 6).tensors)
    norm = (norm_weight, norm_bias)
    taps = torch.zeros(8, 1, 3, 3, device=device)
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        ops.batch_norm_conv2d(x[0], *norm, weight)
    with pytest.raises(ValueError, match="^x: expected more than one value per channel, got"):
        ops.batch_norm_conv2d(x[:1, :, :1, :1], *norm, weight)
    with pytest.raises(TypeError, match="^x: expected a floating-point dtype, got"):
        ops.batch_norm_conv2d(x.int(), *norm, weight)
    with pytest.raises(ValueError, match=r"^norm_bias: expected \[8\]"):
        ops.batch_norm_conv2d(x, norm_weight, norm_bias[:7], weight)
    with pytest.raises(ValueError, match=r"^weight: expected \[O, 8, 1, 1\] or \[8, 1, 3, 3\], got"):
        ops.batch_norm_conv2d(x, *norm, weight[:, :7])
    with pytest.raises(ValueError, match=r"^weight: expected \[O, 8, 1, 1\] or \[8, 1, 3, 3\], got"):
        ops.batch_norm_conv2d(x, *norm, taps[:7])
    with pytest.raises(TypeError, match="^weight: expected torch.float32 as x has"):
        ops.batch_norm_conv2d(x, *norm, weight.double())
    with pytest.raises(ValueError, match="^stride: expected a positive int, got 0"):
        ops.batch_norm_conv2d(x, *norm, taps, stride=0)
    with pytest.raises(ValueError, match="^dilation: expected a positive int, got -1"):
        ops.batch_norm_conv2d(x, *norm, taps, dilation=-1)
    with pytest.raises(ValueError, match="^stride: expected 1 with a kernel of one pixel, got 2"):
        ops.batch_norm_conv2d(x, *norm, weight, stride=2)
    with pytest.raises(ValueError, match="^eps: expected 0 or more, got -1"):
        ops.batch_norm_conv2d(x, *norm, weight, eps=-1.0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input_of_backward(device: str) -> None:
    tensors = [tensor.to(device) for tensor in Problem.random((2, 8, 4, 4), 6).tensors]
    options = (1e-5, True, 1, 1)
    out, mean, var = OP(*tensors, *options)
    with pytest.raises(ValueError, match=r"^grad_out: expected \[2, 6, 4, 4\] as the forward returned, got"):
        BACKWARD(out[:1], *tensors, mean, var, *options)
    with pytest.raises(ValueError, match=r"^mean: expected \[8\] as the forward returned, got"):
        BACKWARD(out, *tensors, mean[:7], var, *options)
    with pytest.raises(TypeError, match="^var: expected torch.float32 as the forward returned, got"):
        BACKWARD(out, *tensors, mean, var.double(), *options)


LOWER_ISA = """
import torch
from test_batch_norm_conv2d import Problem
from error_rule import check_backward, check_forward
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for outputs, conv in ((20, (1, 1)), (None, (1, 1)), (None, (2, 1))):
        for silu in (False, True):
            problem = Problem.random((2, 37, 9, 22), outputs, conv, dtype, silu)
            check_forward(problem)
            check_backward(problem)
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
