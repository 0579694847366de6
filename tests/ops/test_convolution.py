"""A convolution with its activation as one op on the CPU: ``convolution``."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from capabilities import LOWER, needs_avx512, run_with
from convolution_problems import ConvolutionProblem
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op
from torch import Tensor

from mobilevit_kernels import ops

pytestmark = pytest.mark.usefixtures("restored_threads")

# Of the map, channels of the output, side of the kernel, options.
CASES: list[tuple[tuple[int, ...], int, int, dict[str, Any]]] = [
    ((1, 96, 32, 32), 96, 3, {"padding": 1}),
    ((2, 3, 64, 62), 16, 3, {"padding": 1, "stride": 2}),
    ((1, 200, 8, 8), 100, 3, {"padding": 1, "silu": False}),
    ((3, 24, 7, 9), 37, 1, {}),
    ((3, 25, 7, 9), 37, 1, {"silu": False, "stride": 2}),
    ((1, 17, 12, 10), 20, 3, {"padding": 4, "dilation": 4}),
    ((2, 4, 6, 5), 8, 2, {"stride": 2}),
    ((1, 5, 4, 3), 1, 3, {}),
    ((1, 1, 1, 1), 1, 5, {"padding": 2}),
    ((1, 16, 200, 200), 16, 3, {"padding": 1}),
]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "out", "kernel", "options"), CASES, ids=str)
def test_error_rule(
    size: tuple[int, ...], out: int, kernel: int, options: dict[str, Any], dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    check_forward(ConvolutionProblem.random(size, out, kernel, dtype, **options))


@needs_avx512
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("size", "out", "kernel", "options"), CASES, ids=str)
def test_error_rule_with_products_in_bfloat16(
    size: tuple[int, ...], out: int, kernel: int, options: dict[str, Any], threads: int
) -> None:
    torch.set_num_threads(threads)
    problem = ConvolutionProblem.random(size, out, kernel, torch.bfloat16, **options)
    check_forward(replace(problem, products=torch.bfloat16))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.integers(dilation * (kernel - 1), dilation * (kernel - 1) + 2))
    channels, out, stride = draw(st.integers(1, 40)), draw(st.integers(1, 70)), draw(st.integers(1, 3))
    size = (draw(st.integers(0, 3)), channels, draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    torch.set_num_threads(draw(st.integers(1, 4)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "silu": draw(st.booleans())}
    problem = ConvolutionProblem.random(size, out, kernel, **options)
    # In float64, which oneDNN does not take: it ends the process where a window covers nothing but padding.
    truth = problem.map_tensors(Tensor.double).reference().float()
    torch.testing.assert_close(problem.fused(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_bit_for_bit(threads: int) -> None:
    torch.set_num_threads(threads)
    problem = ConvolutionProblem.random((3, 24, 17, 12), 48, 3, padding=1)
    assert torch.equal(problem.fused(), problem.fused())


@pytest.mark.parametrize("kernel", [1, 3])
def test_threads_change_nothing(kernel: int) -> None:
    problem = ConvolutionProblem.random((2, 24, 31, 32), 96, kernel)
    outs = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs.append(problem.fused())
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "products", [torch.float32, pytest.param(torch.bfloat16, marks=needs_avx512)], ids=str
)
@pytest.mark.parametrize(("channels", "kernel"), [(20, 1), (20, 3), (3, 3), (3, 1), (1, 3), (5, 2)])
def test_strides_and_memory(channels: int, kernel: int, products: torch.dtype, dtype: torch.dtype) -> None:
    problem = ConvolutionProblem.random(
        (2, channels, 7, 37), 24, kernel, dtype, stride=2, padding=kernel // 2
    )
    problem = replace(problem, products=products)
    x, packed, *others = problem.arguments()
    expected, kept = problem.fused(), packed.clone()
    wide = torch.full((3, channels + 4, 9, 42), torch.nan, dtype=dtype)
    views = [
        x.contiguous(),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    ]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        frame = wide.contiguous(memory_format=memory_format)
        view = frame[1:, 2 : 2 + channels, 1:8, 3:40]
        view.copy_(x)
        every_second = torch.empty(2, channels, 7, 74, dtype=dtype, memory_format=memory_format)[..., ::2]
        views += [view, every_second.copy_(x)]
    for view in views:
        before = view.clone()
        out = ops.convolution(view, packed, *others)
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view, before)
    assert torch.equal(packed.view(torch.uint8), kept.view(torch.uint8))


@pytest.mark.parametrize(
    "products", [torch.float32, pytest.param(torch.bfloat16, marks=needs_avx512)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_another_dtype_of_the_output(
    kernel: int, out_dtype: torch.dtype, dtype: torch.dtype, products: torch.dtype
) -> None:
    problem = ConvolutionProblem.random((2, 32, 6, 5), 24, kernel, padding=kernel // 2)
    problem = replace(problem.map_tensors(lambda tensor: tensor.to(dtype)), products=products)
    x, *others = problem.arguments()
    assert isinstance(x, Tensor)
    out = ops.convolution(x, *others, out_dtype=out_dtype)  # type: ignore[arg-type]
    assert out.dtype == out_dtype
    expected = ops.convolution(x.float(), *others).to(out_dtype)  # type: ignore[arg-type]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_dtype_of_the_output(device: str) -> None:
    x, packed, *others = ConvolutionProblem.random((2, 20, 6, 5), 24, 1).arguments()
    assert isinstance(x, Tensor)
    assert isinstance(packed, Tensor)
    with pytest.raises(
        TypeError, match=r"^out_dtype: expected float32, bfloat16 or float16, got torch.float64"
    ):
        ops.convolution(x.to(device), packed.to(device), *others, out_dtype=torch.float64)  # type: ignore[arg-type]


def test_one_pixel_for_all() -> None:
    """An expanded map repeats its memory."""
    x, packed, *others = ConvolutionProblem.random((1, 3, 1, 1), 24, 3, padding=1).arguments()
    expanded = x.expand(2, 3, 6, 5)
    assert torch.equal(
        ops.convolution(expanded, packed, *others), ops.convolution(expanded.contiguous(), packed, *others)
    )


@needs_avx512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bfloat16_products_take_maps_of_every_dtype(dtype: torch.dtype) -> None:
    problem = ConvolutionProblem.random((2, 20, 6, 4), 24, 3, padding=1)
    actual = replace(problem.map_tensors(lambda tensor: tensor.to(dtype)), products=torch.bfloat16).fused()
    torch.testing.assert_close(actual.float(), problem.reference(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_non_finite_pixels_stay_in_their_window(value: float) -> None:
    problem = ConvolutionProblem.random((2, 20, 8, 8), 24, 3, padding=1)
    x = problem.tensors[0].clone()
    x[1, 3, 4, 2] = value
    out = replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    window = torch.zeros(out.shape, dtype=torch.bool)
    window[1, :, 3:6, 1:4] = True
    assert torch.equal(out[~window], problem.fused()[~window])
    if value != value:
        assert torch.isnan(out[window]).all()


def test_large_values_do_not_overflow_in_the_activation() -> None:
    problem = ConvolutionProblem.random((1, 16, 8, 8), 32, 1)
    large = problem.map_tensors(lambda tensor: 300 * tensor)
    truth = large.map_tensors(Tensor.double).reference()
    torch.testing.assert_close(large.fused().double(), truth, rtol=0, atol=1e-6 * truth.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_opcheck_and_compile(kernel: int, dtype: torch.dtype) -> None:
    x, *others = ConvolutionProblem.random((2, 20, 6, 5), 24, kernel, dtype, stride=2).arguments()
    overload = torch.ops.mobilevit.convolution.default
    check_inference_op(overload, x, *others)


def test_autocast_casts_the_map() -> None:
    x, *others = ConvolutionProblem.random((2, 20, 4, 4), 24, 3).arguments()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.convolution(x, *others)
    assert torch.equal(out, ops.convolution(x.bfloat16(), *others))


def test_a_gradient_is_refused() -> None:
    x, *others = ConvolutionProblem.random((2, 20, 4, 4), 24, 3).arguments()
    with pytest.raises(RuntimeError, match="mobilevit::convolution is for inference and has no gradient"):
        ops.convolution(x.requires_grad_(), *others)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(fake: bool) -> None:
    x, packed, *_ = ConvolutionProblem.random((2, 20, 4, 4), 24, 3).arguments()
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = ops.convolution
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(x[0], packed, 24, 3)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed, 24, 3)
    with pytest.raises(
        TypeError, match=r"^packed: expected torch.float32 or torch.bfloat16, got torch.int32"
    ):
        run(x, packed.int(), 24, 3)
    with pytest.raises(
        ValueError, match=rf"^packed: expected {packed.numel()} elements for 20 channels, 24 of"
    ):
        run(x, packed[:-1], 24, 3)
    with pytest.raises(ValueError, match=r"^stride: expected a positive int, got 0"):
        run(x, packed, 24, 3, stride=0)
    with pytest.raises(ValueError, match=r"^dilation: expected a positive int, got -1"):
        run(x, packed, 24, 3, dilation=-1)
    with pytest.raises(ValueError, match=r"^padding: expected 0 or more, got -1"):
        run(x, packed, 24, 3, padding=-1)
    with pytest.raises(
        ValueError, match=r"^x: expected a padded map of at least 5 x 5 pixels, which the kernel"
    ):
        run(x, packed, 24, 3, dilation=2)


LOWER_ISA = """
from dataclasses import replace
import torch
from capabilities import PRODUCTS
from convolution_problems import ConvolutionProblem
from error_rule import check_forward
torch.manual_seed(0)
for kernel in (1, 3):
    for products in PRODUCTS:
        problem = ConvolutionProblem.random((2, 20, 9, 22), 44, kernel, products)
        check_forward(replace(problem, products=products))
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(capability, LOWER_ISA, monkeypatch)
