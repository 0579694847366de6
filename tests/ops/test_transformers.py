"""Whole transformers as one op on the CPU: ``transformer`` and ``separable_transformer``."""

import pytest
import torch
from capabilities import LOWER, needs_avx512, run_with
from error_rule import check_forward
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_inference_op
from torch import Tensor
from transformer_problems import TRANSFORMERS, TransformerProblem

from mobilevit_kernels import ops

pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture(params=TRANSFORMERS)
def op(request: pytest.FixtureRequest) -> str:
    """Runs the test once per op."""
    return request.param


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("size", "patch", "layers"),
    [
        ((1, 144, 32, 32), (2, 2), 2),
        ((2, 96, 8, 8), (2, 2), 3),
        ((3, 60, 6, 10), (2, 2), 1),
        ((1, 20, 9, 7), (3, 7), 2),
        ((2, 36, 1, 1), (1, 1), 2),
        ((1, 4, 50, 2), (1, 1), 1),
        ((5, 132, 4, 4), (4, 4), 1),
        ((1, 64, 4, 4), (2, 2), 0),
    ],
    ids=str,
)
def test_error_rule(
    op: str, size: tuple[int, ...], patch: tuple[int, int], layers: int, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    check_forward(TransformerProblem.random(op, size, layers, dtype, patch=patch))


@needs_avx512
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("size", "heads"),
    [((1, 144, 16, 16), 4), ((3, 60, 6, 10), 3), ((2, 35, 4, 4), 5), ((1, 1, 2, 2), 1), ((2, 256, 2, 2), 4)],
    ids=str,
)
def test_error_rule_with_products_in_bfloat16(
    op: str, size: tuple[int, ...], heads: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    check_forward(
        TransformerProblem.random(op, size, 2, torch.bfloat16, heads=heads, products=torch.bfloat16)
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    op = draw(st.sampled_from(TRANSFORMERS))
    heads, head_dim = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    patch = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = (
        draw(st.integers(0, 3)),
        heads * head_dim,
        patch[0] * draw(st.integers(0, 9)),
        patch[1] * draw(st.integers(0, 9)),
    )
    torch.set_num_threads(draw(st.integers(1, 4)))
    problem = TransformerProblem.random(op, size, draw(st.integers(0, 2)), heads=heads, patch=patch)
    if 0 in size:
        assert problem.fused().shape == size
    else:
        torch.testing.assert_close(problem.fused(), problem.reference(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_repeats_bit_for_bit(op: str, threads: int) -> None:
    torch.set_num_threads(threads)
    problem = TransformerProblem.random(op, (3, 48, 12, 12))
    assert torch.equal(problem.fused(), problem.fused())


def test_threads_change_nothing_but_rounding(op: str) -> None:
    problem = TransformerProblem.random(op, (1, 48, 12, 12))
    outs = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        outs.append(problem.fused())
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-5, atol=1e-5)


def test_strides(op: str) -> None:
    problem = TransformerProblem.random(op, (2, 20, 6, 4))
    x, expected = problem.tensors[0], problem.fused()
    wide = torch.full((2, 24, 8, 9), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 2:22, 1:7, 3:7] = x
    for view in (
        x.contiguous(),
        wide[:, 2:22, 1:7, 3:7],
        x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.flip(0).flip(0),
    ):
        out = getattr(ops, op)(view, *problem.arguments()[1:])
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_other_parts_of_memory_stay(op: str) -> None:
    problem = TransformerProblem.random(op, (1, 20, 4, 4))
    x, packed = problem.tensors[0].clone(), problem.packed()
    kept = packed.clone()
    getattr(ops, op)(x, packed, *problem.arguments()[2:])
    assert torch.equal(x, problem.tensors[0])
    assert torch.equal(packed, kept)


def test_a_sample_of_nan_stays_alone(op: str) -> None:
    problem = TransformerProblem.random(op, (3, 20, 4, 4))
    expected = problem.fused()
    x = problem.tensors[0].clone()
    x[1] = torch.nan
    out = getattr(ops, op)(x, *problem.arguments()[1:])
    assert torch.isnan(out[1]).all()
    assert torch.equal(out[::2], expected[::2])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_pixels_spread_as_in_plain_pytorch(op: str, value: float) -> None:
    problem = TransformerProblem.random(op, (1, 20, 4, 4))
    x = problem.tensors[0].clone()
    x[0, 3, 1, 2] = value
    problem = TransformerProblem(op, (x, *problem.tensors[1:]))
    assert torch.equal(torch.isfinite(problem.fused()), torch.isfinite(problem.reference()))


def test_huge_logits(op: str) -> None:
    """Softmax at one-hot: logits of 1e4 and more, and all equal ones."""
    problem = TransformerProblem.random(op, (2, 20, 4, 6), layers=1)
    tensors = list(problem.tensors)
    for factor in (1e4, 0.0):
        tensors[3] = problem.tensors[3] * factor
        case = TransformerProblem(op, tuple(tensors))
        truth = case.map_tensors(Tensor.double).reference()
        torch.testing.assert_close(case.fused().double(), truth, rtol=0, atol=2e-4 * truth.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_and_compile(op: str, dtype: torch.dtype) -> None:
    problem = TransformerProblem.random(op, (2, 20, 4, 4))
    x, *others = problem.arguments()
    x = x.to(dtype)
    overload = getattr(torch.ops.mobilevit, op).default
    check_inference_op(overload, x, *others)


def test_autocast_casts_the_map(op: str) -> None:
    problem = TransformerProblem.random(op, (2, 20, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = problem.fused()
    expected = getattr(ops, op)(problem.tensors[0].bfloat16(), *problem.arguments()[1:])
    assert torch.equal(out, expected)


def test_a_gradient_is_refused(op: str) -> None:
    x, *others = TransformerProblem.random(op, (2, 20, 4, 4)).arguments()
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=f"mobilevit::{op} is for inference and has no gradient"):
        getattr(ops, op)(x, *others)
    with torch.no_grad():
        getattr(ops, op)(x, *others)


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_bad_input(op: str, fake: bool) -> None:
    x, packed, *others = TransformerProblem.random(op, (2, 20, 4, 4)).arguments()
    if fake:
        x, packed = x.to("meta"), packed.to("meta")
    run = getattr(ops, op)
    with pytest.raises(ValueError, match=r"^x: H and W must be divisible by patch_size \(2, 2\), got 3 x 4"):
        run(x[:, :, :3], packed, *others)
    with pytest.raises(TypeError, match=r"^x: expected float32, bfloat16 or float16, got torch.float64"):
        run(x.double(), packed, *others)
    with pytest.raises(
        TypeError, match=r"^packed: expected torch.float32 or torch.bfloat16, got torch.float64"
    ):
        run(x, packed.double(), *others)
    with pytest.raises(
        ValueError, match=rf"^packed: expected {packed.numel()} elements for 2 layers of 20 channels"
    ):
        run(x, packed[:-1], *others)
    with pytest.raises(ValueError, match=r"^packed: expected \d+ elements for 2 layers of 16 channels"):
        run(x[:, :16], packed, *others)


def test_heads_that_do_not_divide() -> None:
    x, packed, layers, _, *others = TransformerProblem.random("transformer", (1, 20, 4, 4)).arguments()
    with pytest.raises(ValueError, match=r"^num_heads: expected a positive divisor of C=20, got 3"):
        ops.transformer(x, packed, layers, 3, *others)


LOWER_ISA = """
import torch
from capabilities import PRODUCTS
from error_rule import check_forward
from transformer_problems import TRANSFORMERS, TransformerProblem
torch.manual_seed(0)
for op in TRANSFORMERS:
    for size in ((1, 36, 6, 10), (2, 64, 8, 8)):
        for products in PRODUCTS:
            check_forward(TransformerProblem.random(op, size, 2, products, products=products))
"""


@pytest.mark.parametrize("capability", LOWER)
def test_lower_instruction_sets(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(capability, LOWER_ISA, monkeypatch)
