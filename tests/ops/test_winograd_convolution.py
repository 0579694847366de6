"""A 3x3 convolution by minimal filtering, with its activation, as one op on the CPU: ``winograd_convolution``."""

from dataclasses import dataclass

import pytest
import torch
from capabilities import LOWER, run_with
from convolution_problems import ConvolutionProblem
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op, poisoned_memory
from torch import Tensor

from mobilevit_kernels import ops
from mobilevit_kernels.ops.packing import pack_winograd_convolution

pytestmark = pytest.mark.usefixtures("restored_threads")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of the map, channels of the output.
CASES = [
    ((1, 96, 32, 32), 96),
    ((2, 192, 16, 16), 96),
    ((1, 320, 8, 8), 160),
    ((3, 17, 7, 9), 37),
    ((1, 64, 40, 33), 20),
    ((2, 5, 1, 6), 3),
    ((1, 1, 1, 1), 1),
    ((1, 16, 100, 100), 16),
]


@dataclass(frozen=True)
class WinogradProblem(ConvolutionProblem):
    """A layer of a 3x3 kernel and padding 1."""

    padding: int = 1

    @classmethod
    def of(cls, size: tuple[int, ...], out: int, dtype: torch.dtype = torch.float32) -> "ConvolutionProblem":
        return cls.random(size, out, 3, dtype)

    def arguments(self) -> tuple[object, ...]:
        x, weight, bias = self.tensors
        return x, pack_winograd_convolution(weight, bias), weight.shape[0], self.silu

    def fused(self) -> Tensor:
        return ops.winograd_convolution(*self.arguments())  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "out"), CASES, ids=str)
def test_error_rule(size: tuple[int, ...], out: int, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    check_forward(WinogradProblem.of(size, out, dtype))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    size = (*(draw(st.integers(*bounds)) for bounds in ((0, 3), (1, 40), (1, 20), (1, 20))),)
    torch.set_num_threads(draw(st.integers(1, 4)))
    problem = WinogradProblem.random(size, draw(st.integers(1, 70)), 3, silu=draw(st.booleans()))
    truth = problem.map_tensors(Tensor.double).reference().float()
    torch.testing.assert_close(problem.fused(), truth, rtol=1e-4, atol=1e-5)


def test_threads_change_nothing() -> None:
    problem = WinogradProblem.of((2, 24, 31, 32), 96)
    outs = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs += [problem.fused(), problem.fused()]
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_memory(dtype: torch.dtype) -> None:
    x, packed, *others = WinogradProblem.of((2, 20, 7, 37), 24, dtype).arguments()
    assert isinstance(x, Tensor)
    expected = ops.winograd_convolution(x, packed, *others)
    frame = torch.full((3, 24, 9, 42), torch.nan, dtype=dtype).contiguous(memory_format=torch.channels_last)
    view = frame[1:, 2:22, 1:8, 3:40]
    view.copy_(x)
    for other in (x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3), view):
        out = ops.winograd_convolution(other, packed, *others)
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
    one = x[:1, :, :1, :1]
    expanded = one.expand(2, 20, 6, 5)
    assert torch.equal(
        ops.winograd_convolution(expanded, packed, *others),
        ops.winograd_convolution(expanded.contiguous(), packed, *others),
    )


def test_nothing_uninitialised_is_read() -> None:
    problem = WinogradProblem.of((2, 37, 7, 5), 20)
    expected = problem.fused()
    with poisoned_memory():
        assert torch.equal(problem.fused(), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_pixels_stay_in_the_tiles_that_read_them(value: float) -> None:
    problem = WinogradProblem.of((2, 20, 10, 10), 24)
    x, weight, bias = problem.tensors
    x = x.clone()
    x[1, 3, 4, 2] = value
    out = WinogradProblem((x, weight, bias)).fused()
    tiles = torch.zeros(out.shape, dtype=torch.bool)
    tiles[1, :, 2:6, 0:4] = True
    assert torch.equal(out[~tiles], problem.fused()[~tiles])
    assert not out[1, :, 3:6, 1:4].isfinite().any()


def test_opcheck_and_compile() -> None:
    x, *others = WinogradProblem.of((2, 20, 6, 5), 24).arguments()
    overload = torch.ops.mobilevit.winograd_convolution.default
    check_inference_op(overload, x, *others)


def test_autocast_casts_the_map() -> None:
    x, *others = WinogradProblem.of((2, 20, 4, 4), 24).arguments()
    assert isinstance(x, Tensor)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.winograd_convolution(x, *others)
    assert torch.equal(out, ops.winograd_convolution(x.bfloat16(), *others))


def test_a_gradient_is_refused() -> None:
    x, *others = WinogradProblem.of((2, 20, 4, 4), 24).arguments()
    assert isinstance(x, Tensor)
    with pytest.raises(
        RuntimeError, match="mobilevit::winograd_convolution is for inference and has no gradient"
    ):
        ops.winograd_convolution(x.requires_grad_(), *others)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(fake: bool) -> None:
    x, packed, *_ = WinogradProblem.of((2, 20, 4, 4), 24).arguments()
    assert isinstance(x, Tensor)
    assert isinstance(packed, Tensor)
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = ops.winograd_convolution
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(x[0], packed, 24)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed, 24)
    with pytest.raises(TypeError, match=r"^packed: expected torch.float32, got torch.bfloat16"):
        run(x, packed.bfloat16(), 24)
    with pytest.raises(
        ValueError, match=rf"^packed: expected {packed.numel()} elements for 20 channels and 24 of"
    ):
        run(x, packed[:-1], 24)
    with pytest.raises(ValueError, match=r"^out_channels: expected a positive int, got 0"):
        run(x, packed, 0)


LOWER_ISA = """
import torch
from test_winograd_convolution import WinogradProblem
from error_rule import check_forward
torch.manual_seed(0)
for size, out in (((2, 20, 9, 22), 44), ((1, 96, 16, 16), 96)):
    check_forward(WinogradProblem.of(size, out))
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
