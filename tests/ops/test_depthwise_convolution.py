"""A depthwise convolution with its activation as one op on the CPU: ``depthwise_convolution``."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op
from torch import Tensor

from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_depthwise_convolution

pytestmark = pytest.mark.usefixtures("restored_threads")


@dataclass(frozen=True)
class Problem:
    """One layer: the map ``[B, C, H, W]``, weight and bias, and the op's options."""

    tensors: tuple[Tensor, Tensor, Tensor]
    stride: int = 1
    dilation: int = 1
    silu: bool = True

    @classmethod
    def random(
        cls, size: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: object
    ) -> "Problem":
        x = torch.randn(size).contiguous(memory_format=torch.channels_last)
        tensors = (x, torch.randn(size[1], 1, 3, 3) / 2, torch.randn(size[1]) / 5)
        return cls(tuple(tensor.to(dtype) for tensor in tensors), **options)  # type: ignore[arg-type]

    def arguments(self) -> tuple[object, ...]:
        x, weight, bias = self.tensors
        return (x, pack_depthwise_convolution(weight, bias), self.stride, self.dilation, self.silu)

    def fused(self) -> Tensor:
        return ops.depthwise_convolution(*self.arguments())  # type: ignore[arg-type]

    def reference(self) -> Tensor:
        return reference.depthwise_convolution(*self.tensors, self.stride, self.dilation, self.silu)

    baseline = reference

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Problem":
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "Problem":
        x, *others = self.tensors
        return replace(self, tensors=(torch.randn_like(x), *others))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("size", "stride", "dilation", "silu"),
    [
        ((1, 256, 32, 32), 1, 1, True),
        ((2, 64, 17, 16), 2, 1, True),
        ((3, 21, 9, 7), 1, 1, False),
        ((1, 48, 12, 10), 1, 3, True),
        ((2, 16, 2, 3), 1, 4, False),
        ((1, 5, 1, 1), 1, 1, True),
        ((1, 33, 8, 11), 3, 2, True),
    ],
    ids=str,
)
def test_error_rule(
    size: tuple[int, ...], stride: int, dilation: int, silu: bool, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    check_forward(Problem.random(size, dtype, stride=stride, dilation=dilation, silu=silu))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    size = (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 70)),
        draw(st.integers(0, 20)),
        draw(st.integers(0, 20)),
    )
    stride = draw(st.integers(1, 3))
    torch.set_num_threads(draw(st.integers(1, 4)))
    problem = Problem.random(size, stride=stride, dilation=draw(st.integers(1, 3)), silu=draw(st.booleans()))
    if 0 in size:
        assert problem.fused().shape == (*size[:2], *(-(-side // stride) for side in size[2:]))
    else:
        truth = (
            problem.map_tensors(Tensor.double).reference().float()
        )  # oneDNN takes no windows of padding alone
        torch.testing.assert_close(problem.fused(), truth, rtol=1e-4, atol=1e-5)


def test_threads_and_repeats_change_nothing() -> None:
    problem = Problem.random((2, 48, 31, 32))
    outs = []
    for threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs.append(problem.fused())
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


@pytest.mark.parametrize("channels", [20, 32])
def test_strides_and_memory(channels: int) -> None:
    problem = Problem.random((2, channels, 6, 4))
    x, packed, *others = problem.arguments()
    expected, kept = problem.fused(), packed.clone()
    wide = torch.full((2, channels + 4, 8, 9), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 2:-2, 1:7, 3:7] = x
    for view in (x.contiguous(), wide[:, 2:-2, 1:7, 3:7], x.transpose(2, 3).contiguous().transpose(2, 3)):
        before = view.clone()
        out = ops.depthwise_convolution(view, packed, *others)
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view, before)
    assert torch.equal(packed, kept)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_pixels_stay_in_their_window(value: float) -> None:
    problem = Problem.random((2, 20, 8, 8))
    x = problem.tensors[0].clone()
    x[1, 3, 4, 2] = value
    out = replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    window = torch.zeros(out.shape, dtype=torch.bool)
    window[1, 3, 3:6, 1:4] = True
    assert torch.equal(out[~window], problem.fused()[~window])
    if value != value:
        assert torch.isnan(out[window]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_and_compile(dtype: torch.dtype) -> None:
    x, *others = Problem.random((2, 20, 6, 5), stride=2).arguments()
    x = x.to(dtype)
    overload = torch.ops.mobilevit.depthwise_convolution.default
    check_inference_op(overload, x, *others)


def test_a_gradient_is_refused() -> None:
    x, *others = Problem.random((2, 20, 4, 4)).arguments()
    with pytest.raises(
        RuntimeError, match="mobilevit::depthwise_convolution is for inference and has no gradient"
    ):
        ops.depthwise_convolution(x.requires_grad_(), *others)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(fake: bool) -> None:
    x, packed, *_ = Problem.random((2, 20, 4, 4)).arguments()
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = ops.depthwise_convolution
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(x[0], packed)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed)
    with pytest.raises(TypeError, match=r"^packed: expected torch.float32, got torch.bfloat16"):
        run(x, packed.bfloat16())
    with pytest.raises(
        ValueError, match=rf"^packed: expected {packed.numel()} elements for 20 channels, got"
    ):
        run(x, packed[:-1])
    with pytest.raises(ValueError, match=r"^stride: expected a positive int, got 0"):
        run(x, packed, stride=0)
    with pytest.raises(ValueError, match=r"^dilation: expected a positive int, got 0"):
        run(x, packed, dilation=0)
