"""Global average pooling and a linear layer as one op on the CPU: ``pooled_linear``."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from capabilities import LOWER, needs_avx512, run_with
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op
from torch import Tensor

from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_linear

pytestmark = pytest.mark.usefixtures("restored_threads")
SIZES = [(1, 640, 8, 8, 1000), (3, 37, 5, 7, 33), (2, 16, 1, 1, 1), (1, 1, 40, 30, 100), (9, 129, 2, 3, 64)]


@dataclass(frozen=True)
class Problem:
    """The map ``[B, C, H, W]``, weight and bias, and the dtype of the op's products."""

    tensors: tuple[Tensor, Tensor, Tensor]
    products: torch.dtype = torch.float32

    @classmethod
    def random(
        cls, batch: int, channels: int, height: int, width: int, out: int, dtype: torch.dtype = torch.float32
    ) -> "Problem":
        x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last) + 1
        tensors = (x, torch.randn(out, channels) / channels**0.5, torch.randn(out))
        return cls(tuple(tensor.to(dtype) for tensor in tensors))  # type: ignore[arg-type]

    def arguments(self) -> tuple[Tensor, Tensor, int]:
        x, weight, bias = self.tensors
        return x, pack_linear(weight, bias, self.products), weight.shape[0]

    def fused(self) -> Tensor:
        return ops.pooled_linear(*self.arguments())

    def reference(self) -> Tensor:
        return reference.pooled_linear(*self.tensors)

    baseline = reference

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x, *others = self.tensors
        return replace(self, tensors=(torch.randn_like(x) + 1, *others))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_rule(size: tuple[int, ...], dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    check_forward(Problem.random(*size, dtype))


@needs_avx512
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_rule_with_products_in_bfloat16(size: tuple[int, ...]) -> None:
    check_forward(replace(Problem.random(*size, torch.bfloat16), products=torch.bfloat16))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(
        st.integers(0, 4), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.integers(1, 80)
    ),
    threads=st.integers(1, 4),
)
def test_any_shape(size: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    problem = Problem.random(*size)
    truth = problem.map_tensors(Tensor.double).reference().float()
    torch.testing.assert_close(problem.fused(), truth, rtol=1e-5, atol=1e-5)


def test_threads_change_nothing() -> None:
    problem = Problem.random(5, 320, 17, 16, 1000)
    outs = []
    for threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs.append(problem.fused())
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


def test_strides_and_memory() -> None:
    problem = Problem.random(2, 20, 6, 4, 50)
    x, packed, out_features = problem.arguments()
    expected, kept = problem.fused(), packed.clone()
    wide = torch.full((2, 24, 8, 9), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 2:22, 1:7, 3:7] = x
    for view in (x.contiguous(), wide[:, 2:22, 1:7, 3:7], x.transpose(2, 3).contiguous().transpose(2, 3)):
        before = view.clone()
        out = ops.pooled_linear(view, packed, out_features)
        assert torch.equal(out, expected)
        assert out.is_contiguous()
        assert torch.equal(view, before)
    assert torch.equal(packed, kept)


def test_a_sample_that_is_not_finite_leaves_the_others_alone() -> None:
    problem = Problem.random(3, 20, 4, 4, 40)
    x = problem.tensors[0].clone()
    x[1, 3, 2, 2] = torch.nan
    out = replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    assert torch.isnan(out[1]).all()
    assert torch.equal(out[::2], problem.fused()[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_and_compile(dtype: torch.dtype) -> None:
    x, *others = Problem.random(2, 20, 6, 5, 7).arguments()
    x = x.to(dtype)
    overload = torch.ops.mobilevit.pooled_linear.default
    check_inference_op(overload, x, *others)


def test_autocast_casts_the_map() -> None:
    x, *others = Problem.random(2, 20, 4, 4, 8).arguments()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.pooled_linear(x, *others)
    assert torch.equal(out, ops.pooled_linear(x.bfloat16(), *others))


def test_a_gradient_is_refused() -> None:
    x, packed, out_features = Problem.random(2, 20, 4, 4, 8).arguments()
    for wanted in (x, packed):
        wanted.requires_grad_()
        with pytest.raises(
            RuntimeError,
            match="mobilevit::pooled_linear is for inference and has no gradient: use torch.no_grad",
        ):
            ops.pooled_linear(x, packed, out_features)
        with torch.no_grad():
            assert not ops.pooled_linear(x, packed, out_features).requires_grad
        wanted.requires_grad_(False)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(fake: bool) -> None:
    x, packed, out_features = Problem.random(2, 20, 4, 4, 8).arguments()
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = ops.pooled_linear
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(x[0], packed, out_features)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed, out_features)
    with pytest.raises(ValueError, match=r"^x: expected at least one pixel, got 0 x 4"):
        run(x[:, :, :0], packed, out_features)
    with pytest.raises(
        TypeError, match=r"^packed: expected torch.float32 or torch.bfloat16, got torch.int32"
    ):
        run(x, packed.int(), out_features)
    with pytest.raises(
        ValueError,
        match=rf"^packed: expected {packed.numel()} elements for 20 channels and 8 features of the",
    ):
        run(x, packed[:-1], out_features)
    with pytest.raises(ValueError, match=r"^out_features: expected a positive int, got 0"):
        run(x, packed, 0)


LOWER_ISA = """
import torch
from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_linear
torch.manual_seed(0)
x, weight, bias = torch.randn(3, 21, 5, 7), torch.randn(45, 21), torch.randn(45)
actual, expected = ops.pooled_linear(x, pack_linear(weight, bias), 45), reference.pooled_linear(x, weight, bias)
torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(capability, LOWER_ISA, monkeypatch)
