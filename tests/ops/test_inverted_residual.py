"""A convolutional block as one op on the CPU: ``inverted_residual``."""

from dataclasses import replace

import pytest
import torch
from block_problems import BlockProblem
from capabilities import LOWER, needs_avx512, run_with
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op
from torch import Tensor

from mobilevit_kernels import ops

pytestmark = pytest.mark.usefixtures("restored_threads")

# Of the map, hidden channels, channels of the output, stride, dilation.
CASES = [
    ((1, 32, 64, 64), 128, 64, 2, 1),
    ((2, 64, 16, 16), 256, 64, 1, 1),
    ((1, 16, 5, 130), 32, 16, 1, 1),
    ((3, 20, 9, 7), 37, 11, 2, 1),
    ((1, 24, 12, 10), 48, 24, 1, 2),
    ((2, 24, 3, 2), 48, 24, 1, 4),
    ((1, 5, 1, 1), 9, 5, 1, 1),
    ((1, 8, 7, 11), 16, 8, 3, 2),
]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "hidden", "out", "stride", "dilation"), CASES, ids=str)
def test_error_rule(
    size: tuple[int, ...],
    hidden: int,
    out: int,
    stride: int,
    dilation: int,
    dtype: torch.dtype,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    check_forward(BlockProblem.random(size, hidden, out, dtype, stride=stride, dilation=dilation))


@needs_avx512
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("size", "hidden", "out", "stride", "dilation"), CASES, ids=str)
def test_error_rule_with_products_in_bfloat16(
    size: tuple[int, ...], hidden: int, out: int, stride: int, dilation: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    options = {"stride": stride, "dilation": dilation, "products": torch.bfloat16}
    check_forward(BlockProblem.random(size, hidden, out, torch.bfloat16, **options))


@needs_avx512
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bfloat16_products_take_maps_of_every_dtype(dtype: torch.dtype) -> None:
    problem = BlockProblem.random((2, 20, 6, 4), 44, 20, torch.float32)
    actual = replace(problem.map_tensors(lambda tensor: tensor.to(dtype)), products=torch.bfloat16).fused()
    torch.testing.assert_close(actual.float(), problem.reference(), rtol=0.05, atol=0.05)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    channels, hidden, stride = draw(st.integers(1, 40)), draw(st.integers(1, 70)), draw(st.integers(1, 3))
    out = draw(st.sampled_from([channels, draw(st.integers(1, 40))]))
    size = (draw(st.integers(0, 3)), channels, draw(st.integers(0, 20)), draw(st.integers(0, 20)))
    torch.set_num_threads(draw(st.integers(1, 4)))
    problem = BlockProblem.random(size, hidden, out, stride=stride, dilation=draw(st.integers(1, 3)))
    if 0 in size:
        rows, columns = (-(-side // stride) for side in size[2:])
        assert problem.fused().shape == (size[0], out, rows, columns)
    else:
        truth = (
            problem.map_tensors(Tensor.double).reference().float()
        )  # oneDNN takes no windows of padding alone
        torch.testing.assert_close(problem.fused(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_bit_for_bit(threads: int) -> None:
    torch.set_num_threads(threads)
    problem = BlockProblem.random((3, 24, 17, 12), 48, 24)
    assert torch.equal(problem.fused(), problem.fused())


def test_threads_change_nothing() -> None:
    problem = BlockProblem.random((2, 24, 31, 32), 96, 40, stride=2)
    outs = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs.append(problem.fused())
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


def test_strides() -> None:
    problem = BlockProblem.random((2, 20, 6, 4), 40, 20)
    x, expected = problem.tensors[0], problem.fused()
    wide = torch.full((2, 24, 8, 9), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 2:22, 1:7, 3:7] = x
    for view in (x.contiguous(), wide[:, 2:22, 1:7, 3:7], x.transpose(2, 3).contiguous().transpose(2, 3)):
        out = ops.inverted_residual(view, *problem.arguments()[1:])
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_other_parts_of_memory_stay() -> None:
    x, packed, *others = BlockProblem.random((1, 20, 5, 4), 40, 20).arguments()
    kept_x, kept_packed = x.clone(), packed.clone()
    ops.inverted_residual(x, packed, *others)
    assert torch.equal(x, kept_x)
    assert torch.equal(packed, kept_packed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_non_finite_pixels_stay_in_their_window(value: float) -> None:
    problem = BlockProblem.random((2, 20, 8, 8), 40, 20)
    x = problem.tensors[0].clone()
    x[1, 3, 4, 2] = value
    out = replace(problem, tensors=(x, *problem.tensors[1:])).fused()
    window = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    window[1, :, 3:6, 1:4] = True
    assert torch.equal(out[~window.expand_as(out)], problem.fused()[~window.expand_as(out)])
    if value != value:
        assert torch.isnan(out[window.expand_as(out)]).all()


def test_large_values_do_not_overflow_in_the_activation() -> None:
    problem = BlockProblem.random((1, 16, 8, 8), 32, 16)
    large = replace(problem, tensors=(300 * problem.tensors[0], *problem.tensors[1:]))
    truth = large.map_tensors(Tensor.double).reference()
    torch.testing.assert_close(large.fused().double(), truth, rtol=0, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_and_compile(dtype: torch.dtype) -> None:
    x, *others = BlockProblem.random((2, 20, 6, 5), 40, 24, stride=2).arguments()
    x = x.to(dtype)
    overload = torch.ops.mobilevit.inverted_residual.default
    check_inference_op(overload, x, *others)


def test_autocast_casts_the_map() -> None:
    x, *others = BlockProblem.random((2, 20, 4, 4), 40, 20).arguments()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.inverted_residual(x, *others)
    assert torch.equal(out, ops.inverted_residual(x.bfloat16(), *others))


def test_a_gradient_is_refused() -> None:
    x, *others = BlockProblem.random((2, 20, 4, 4), 40, 20).arguments()
    x.requires_grad_()
    with pytest.raises(
        RuntimeError, match="mobilevit::inverted_residual is for inference and has no gradient"
    ):
        ops.inverted_residual(x, *others)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(fake: bool) -> None:
    x, packed, *_ = BlockProblem.random((2, 20, 4, 4), 40, 24).arguments()
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = ops.inverted_residual
    with pytest.raises(ValueError, match=r"^x: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(x[0], packed, 40, 24)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed, 40, 24)
    with pytest.raises(
        TypeError, match=r"^packed: expected torch.float32 or torch.bfloat16, got torch.float16"
    ):
        run(x, packed.half(), 40, 24)
    with pytest.raises(
        ValueError, match=rf"^packed: expected {packed.numel()} elements for 20 channels, 40 hidden"
    ):
        run(x, packed[:-1], 40, 24)
    with pytest.raises(ValueError, match=r"^stride: expected a positive int, got 0"):
        run(x, packed, 40, 24, stride=0)
    with pytest.raises(ValueError, match=r"^dilation: expected a positive int, got -1"):
        run(x, packed, 40, 24, dilation=-1)
    with pytest.raises(ValueError, match=r"^hidden_dim: expected a positive int, got 0"):
        run(x, packed, 0, 24)
    with pytest.raises(
        ValueError, match=r"^residual: expected stride 1 and as many channels as x has, 20, got"
    ):
        run(x, packed, 40, 24, residual=True)


LOWER_ISA = """
import torch
from block_problems import BlockProblem
from capabilities import PRODUCTS
from error_rule import check_forward
torch.manual_seed(0)
for stride in (1, 2):
    for products in PRODUCTS:
        options = {"stride": stride, "products": products}
        check_forward(BlockProblem.random((2, 20, 9, 22), 44, 20, products, **options))
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(capability, LOWER_ISA, monkeypatch)
