"""Convolutions that read their last channels from a second map, ``beside``: what they compute of both joined."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from capabilities import LOWER, needs_avx512, run_with
from convolution_problems import ConvolutionProblem
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op, poisoned_memory
from torch import Tensor

from mobilevit_kernels import ops
from mobilevit_kernels.ops.packing import pack_winograd_convolution

pytestmark = pytest.mark.usefixtures("restored_threads")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Run = Callable[..., Tensor]


def dense(problem: ConvolutionProblem) -> tuple[Run, Tensor, Tensor]:
    """The op with all but its map and the map beside it, the packed parameters, and the joined map."""
    x, packed, *others = problem.arguments()
    return lambda x, packed, beside=None: ops.convolution(x, packed, *others, beside=beside), packed, x  # type: ignore[arg-type, return-value]


def winograd(problem: ConvolutionProblem) -> tuple[Run, Tensor, Tensor]:
    """The same of the other op."""
    x, weight, bias = problem.tensors
    packed = pack_winograd_convolution(weight, bias)
    return (
        lambda x, packed, beside=None: ops.winograd_convolution(
            x, packed, weight.shape[0], problem.silu, beside
        ),
        packed,
        x,
    )


FORMS = [dense, winograd]


def split(x: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Two maps of their own."""
    parts = (x[:, :first], x[:, first:])
    return tuple(part.clone(memory_format=torch.channels_last) for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [1, 2, 7, 16, 32, 39])
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_as_of_the_joined_map(form: Any, first: int, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    run, packed, x = form(ConvolutionProblem.random((2, 40, 7, 9), 37, 3, dtype, padding=1))
    one, other = split(x, first)
    with poisoned_memory():
        assert torch.equal(run(one, packed, other), run(x, packed))


@pytest.mark.parametrize(
    "products", [torch.float32, pytest.param(torch.bfloat16, marks=needs_avx512)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_every_kernel_and_dtype(kernel: int, dtype: torch.dtype, products: torch.dtype) -> None:
    problem = ConvolutionProblem.random((2, 33, 6, 5), 24, kernel, dtype, stride=2, dilation=2, padding=3)
    run, packed, x = dense(replace(problem, products=products))
    one, other = split(x, 20)
    assert torch.equal(run(one, packed, other), run(x, packed))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    size = (*(draw(st.integers(*bounds)) for bounds in ((0, 3), (2, 70), (1, 12), (1, 12))),)
    form = draw(st.sampled_from(FORMS))
    run, packed, x = form(ConvolutionProblem.random(size, draw(st.integers(1, 40)), 3, padding=1))
    torch.set_num_threads(draw(st.integers(1, 4)))
    one, other = split(x, draw(st.integers(1, size[1] - 1)))
    assert torch.equal(run(one, packed, other), run(x, packed))


@pytest.mark.parametrize("form", FORMS)
def test_strides(form: Any) -> None:
    run, packed, x = form(ConvolutionProblem.random((2, 40, 7, 9), 24, 3, padding=1))
    one, other = split(x, 24)
    expected = run(x, packed)
    frame = torch.full((3, 48, 9, 12), torch.nan).contiguous(memory_format=torch.channels_last)
    inside = frame[1:, 3:19, 1:8, 2:11]
    inside.copy_(other)
    for view in (other.contiguous(), other.transpose(2, 3).contiguous().transpose(2, 3), inside, x[:, 24:]):
        assert torch.equal(run(one, packed, view), expected)
        assert torch.equal(run(one.contiguous(), packed, view), expected)


def test_opcheck_compile_and_autocast() -> None:
    problem = ConvolutionProblem.random((2, 20, 6, 5), 24, 3, padding=1)
    x, packed, *others = problem.arguments()
    assert isinstance(x, Tensor)
    one, other = split(x, 12)
    check_inference_op(torch.ops.mobilevit.convolution.default, one, packed, *others, other)
    tensors = (one, pack_winograd_convolution(*problem.tensors[1:]), 24, True, other)
    check_inference_op(torch.ops.mobilevit.winograd_convolution.default, *tensors)
    for form in FORMS:
        run, packed, _ = form(problem)
        with torch.autocast("cpu", torch.bfloat16):
            out = run(one, packed, other)
        assert torch.equal(out, run(one.bfloat16(), packed, other.bfloat16()))
        with pytest.raises(RuntimeError, match="is for inference and has no gradient"):
            run(one, packed, other.clone().requires_grad_())


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
@pytest.mark.parametrize("form", FORMS)
def test_bad_input(form: Any, fake: bool) -> None:
    run, packed, x = form(ConvolutionProblem.random((2, 20, 6, 5), 24, 3, padding=1))
    one, other = split(x, 12)
    if fake:
        one, other, packed = one.to("meta"), other.to("meta"), packed.to("meta")
    with pytest.raises(ValueError, match=r"^beside: expected 4 dimensions \[B, C, H, W\], got 3"):
        run(one, packed, other[0])
    with pytest.raises(TypeError, match=r"^beside: expected torch.float32 as x has, got torch.bfloat16"):
        run(one, packed, other.bfloat16())
    with pytest.raises(
        ValueError, match=r"^beside: expected batch, height and width of x, 2, 6 and 5, got 2, 6 and 4"
    ):
        run(one, packed, other[..., :4])
    with pytest.raises(
        ValueError, match=rf"^packed: expected \d+ elements for 19 channels.*{packed.numel()}"
    ):
        run(one, packed, other[:, :7])


LOWER_ISA = """
import torch
from convolution_problems import ConvolutionProblem
from test_beside import FORMS, split
for form in FORMS:
    run, packed, x = form(ConvolutionProblem.random((2, 40, 7, 9), 37, 3, padding=1))
    assert torch.equal(run(split(x, 13)[0], packed, split(x, 13)[1]), run(x, packed))
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(
    capability: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.syspath_prepend(str(request.path.parent))
    run_with(capability, LOWER_ISA, monkeypatch)
