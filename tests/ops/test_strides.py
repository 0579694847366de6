"""Inputs and gradients of any strides; channels_last results; the strides that fake tensors promise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import problem_and_dense_copy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Builder = Callable[..., Any]
Layout = Callable[[Tensor], Tensor]
SHAPES = [(2, (3, 2)), (1, (1, 1)), (1, (3, 2)), (2, (1, 1)), (0, (2, 2)), (2, (0, 2)), (2, (2, 0))]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
class TestLayouts:
    """The result depends on the values of a tensor, not on its strides."""

    def test_forward(self, op: str, make_problem: Builder, layout: Layout, dtype: torch.dtype) -> None:
        problem, dense = problem_and_dense_copy(make_problem(op, dtype=dtype, batch=3), layout)
        out = problem.fused()
        torch.testing.assert_close(out, dense.fused())
        assert out.is_contiguous(memory_format=torch.channels_last)

    def test_gradients(self, op: str, make_problem: Builder, layout: Layout, dtype: torch.dtype) -> None:
        problem, dense = problem_and_dense_copy(make_problem(op, dtype=dtype, batch=3), layout)
        grad_out = torch.randn_like(dense.fused())
        run = type(problem).fused
        torch.testing.assert_close(problem.gradients(run, grad_out), dense.gradients(run, grad_out))

    def test_grad_out(self, op: str, make_problem: Builder, layout: Layout, dtype: torch.dtype) -> None:
        problem = make_problem(op, dtype=dtype, batch=3)
        grad_out = layout(torch.randn_like(problem.fused()))
        dense = grad_out.clone(memory_format=torch.channels_last)
        run = type(problem).fused
        torch.testing.assert_close(problem.gradients(run, grad_out), problem.gradients(run, dense))


@pytest.mark.usefixtures("backend")
def test_grad_out_of_a_sum_is_expanded(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    problem.fused().sum().backward()
    ones = make_problem(op)  # other values, same shapes
    expected = problem.gradients(type(problem).reference, torch.ones_like(ones.fused()))
    actual = [tensor.grad for tensor in problem.tensors]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
def test_weights_of_any_strides(separable: Builder) -> None:
    problem = separable(channels=7, weight_dims=2)
    x, weight, bias, out_weight, out_bias = problem.tensors
    strided = (
        x,
        weight.t().contiguous().t(),
        torch.stack([bias, bias], dim=1)[:, 0],
        out_weight[:, :1].expand(7, 7),
        out_bias[:1].expand(7),
    )
    strided_problem = type(problem)(problem.op, strided, problem.args)
    dense_problem = strided_problem.map_tensors(lambda t: t.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(strided_problem.fused(), dense_problem.fused())
    grad_out, run = torch.randn_like(x), type(problem).fused
    torch.testing.assert_close(
        strided_problem.gradients(run, grad_out), dense_problem.gradients(run, grad_out)
    )


def forward_and_backward(problem: Any, grad_out: Tensor) -> list[Tensor]:
    """Every tensor that the three registered operators of an op return."""
    namespace = torch.ops.mobilevit
    out, *saved = problem.call(getattr(namespace, f"{problem.op}_forward"))
    backward = getattr(namespace, f"{problem.op}_backward")
    if problem.op == "separable_attn":
        grads = backward(grad_out, *problem.tensors[:4], *saved, *problem.args, [True, True])
    else:
        grads = [backward(grad_out, problem.tensors[0], out, *saved, *problem.args)]
    return [problem.raw(), out, *saved, *grads]


@pytest.mark.parametrize(("batch", "grid"), SHAPES, ids=str)
@pytest.mark.parametrize(
    "first_layout", ["channels_last", "nchw", "channel_slice", "dense_cwbh", "same_rows"]
)
def test_fake_results_are_like_the_real_ones(
    op: str,
    make_problem: Builder,
    batch: int,
    grid: tuple[int, int],
    first_layout: str,
    layouts: dict[str, Layout],
) -> None:
    problem = make_problem(op, batch=batch, grid=grid)
    problem = problem.with_first(layouts[first_layout](problem.tensors[0]))
    grad_out = torch.randn(batch, 10, *problem.tensors[0].shape[2:])
    real = forward_and_backward(problem, grad_out)
    with FakeTensorMode() as mode:
        fake = forward_and_backward(problem.map_tensors(mode.from_tensor), mode.from_tensor(grad_out))
    for index, (one, other) in enumerate(zip(real, fake, strict=True)):
        described = [(t.shape, t.stride(), t.dtype, t.device, t.storage_offset()) for t in (one, other)]
        assert described[0] == described[1], f"result {index}"


@pytest.mark.parametrize(("batch", "grid"), SHAPES, ids=str)
def test_results_have_the_strides_torch_gives_channels_last(
    op: str,
    make_problem: Builder,
    batch: int,
    grid: tuple[int, int],
    channels_last_strides: Callable[..., tuple[int, ...]],
) -> None:
    problem = make_problem(op, batch=batch, grid=grid)
    problem = problem.with_first(problem.tensors[0].contiguous())
    out = problem.raw()
    assert out.stride() == channels_last_strides(out.shape)


@pytest.mark.usefixtures("kernels")
def test_offsets_beyond_32_bits(op: str, make_problem: Builder) -> None:
    problem = make_problem(op, batch=2)
    x = problem.tensors[0]
    _, channels, height, width = x.shape
    reserved = torch.empty(2**31 + x[0].numel() + 16)  # address space only: pages are never touched
    distant = reserved.as_strided(x.shape, (2**31 + 16, 1, width * channels, channels)).copy_(x)
    torch.testing.assert_close(problem.with_first(distant).fused(), problem.fused())
