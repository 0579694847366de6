"""What torch knows of the operators: schemas, opcheck, dispatch to autograd, saved tensors, misuse of backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import backward_arguments, operator
from torch import Tensor

import mobilevit_kernels

pytestmark = pytest.mark.usefixtures("kernels")
Builder = Callable[..., Any]
Layout = Callable[[Tensor], Tensor]

SCHEMAS = {
    "unfold_attn_fold": (
        "mobilevit::unfold_attn_fold(Tensor qkv, int num_heads, int[2] patch_size, float? scale=None) -> Tensor"
    ),
    "separable_attn": (
        "mobilevit::separable_attn(Tensor x, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight, "
        "Tensor? out_bias, int[2] patch_size) -> Tensor"
    ),
}
OPCHECK_LAYOUTS = ["nchw", "channels_last", "channel_slice"]


def test_schema(op: str) -> None:
    assert str(operator(op)._schema) == SCHEMAS[op]


@pytest.mark.parametrize("first_layout", OPCHECK_LAYOUTS)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_opcheck(
    op: str, make_problem: Builder, layouts: dict[str, Layout], first_layout: str, grad: bool
) -> None:
    problem = make_problem(op)
    problem = problem.with_first(layouts[first_layout](problem.tensors[0]))
    problem = problem.leaves() if grad else problem
    torch.library.opcheck(operator(op), (*problem.tensors, *problem.args))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_opcheck_dtypes(op: str, make_problem: Builder, dtype: torch.dtype) -> None:
    problem = make_problem(op, dtype=dtype)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator(op), (*problem.tensors, *problem.args), test_utils=tests)


def test_opcheck_without_biases(separable: Builder) -> None:
    problem = separable(bias=False).leaves()
    torch.library.opcheck(operator(problem.op), (*problem.tensors, *problem.args))


@pytest.mark.parametrize("first_layout", OPCHECK_LAYOUTS)
def test_opcheck_forward_and_backward_operators(
    op: str, make_problem: Builder, layouts: dict[str, Layout], first_layout: str
) -> None:
    problem = make_problem(op)
    problem = problem.with_first(layouts[first_layout](problem.tensors[0]))
    torch.library.opcheck(operator(f"{op}_forward"), (*problem.tensors, *problem.args))
    torch.library.opcheck(operator(f"{op}_backward"), backward_arguments(problem))


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)], ids=str)
def test_opcheck_backward_masks(separable: Builder, mask: tuple[bool, bool]) -> None:
    torch.library.opcheck(operator("separable_attn_backward"), backward_arguments(separable(), mask))


def test_keywords_and_defaults_reach_the_kernel(attention: Builder) -> None:
    problem = attention(scale=0.3)
    (qkv,) = problem.tensors
    expected = problem.reference()
    raw = torch.ops.mobilevit.unfold_attn_fold
    for out in (
        raw(qkv=qkv, num_heads=2, patch_size=(2, 2), scale=0.3),
        raw(qkv, 2, patch_size=[2, 2], scale=0.3),
        mobilevit_kernels.unfold_attn_fold(qkv, num_heads=2, scale=0.3),
        mobilevit_kernels.unfold_attn_fold(qkv.requires_grad_(), 2, patch_size=2, scale=0.3),
    ):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_the_documented_ones(attention: Builder, separable: Builder) -> None:
    problem = attention(heads=1, patch=(1, 1), dtype=torch.float64)
    query, key, _ = problem.tensors[0].flatten(2).split(5, dim=1)
    logits = torch.einsum("bcn,bcm->bnm", query, key) * 5**-0.5
    _, logsumexp = problem.call(operator("unfold_attn_fold_forward"))
    torch.testing.assert_close(logsumexp[:, 0, 0], logits.logsumexp(-1))
    problem = separable(patch=(1, 1), dtype=torch.float64, weight_dims=2)
    x, weight, bias = problem.tensors[0].flatten(2), *problem.tensors[1:3]
    expected = torch.einsum("c,bcn->bn", weight[0], x).softmax(-1)
    _, scores, pooled, context = problem.call(operator("separable_attn_forward"))
    torch.testing.assert_close(scores[:, 0], expected)
    expected = torch.einsum("bn,bcn->bc", expected, x)
    torch.testing.assert_close(pooled[:, 0], expected)
    torch.testing.assert_close(context[:, 0], expected @ weight[1:11].t() + bias[1:11])


def test_input_changed_in_place_before_backward(op: str, make_problem: Builder) -> None:
    problem = make_problem(op).leaves()
    x = problem.tensors[0] * 1
    out = problem.with_first(x).fused()
    x += 1
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()


def test_output_is_a_tensor_of_its_own(op: str, make_problem: Builder) -> None:
    problem = make_problem(op, grid=(1, 1))
    before = [tensor.clone() for tensor in problem.tensors]
    problem.fused().fill_(7)
    for tensor, copy in zip(problem.tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def wrong_backward_arguments(problem: Any) -> list[tuple[str, int, Tensor]]:
    """(argument name, its position, a tensor that does not fit) for the backward operator."""
    arguments = backward_arguments(problem)
    names = [argument.name for argument in operator(f"{problem.op}_backward")._schema.arguments]
    wrong = []
    for position, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if not isinstance(value, Tensor):
            continue
        wrong.append((name, position, value[:, :1, ...].contiguous() if value.dim() > 1 else value[:1]))
        wrong.append((name, position, value.to(torch.float16)))
        wrong.append((name, position, torch.empty(0)))
    return wrong


def test_backward_operator_reads_nothing_that_does_not_fit(op: str, make_problem: Builder) -> None:
    problem = make_problem(op)
    arguments = backward_arguments(problem)
    accepted = []
    for name, position, tensor in wrong_backward_arguments(problem):
        try:
            operator(f"{op}_backward")(*arguments[:position], tensor, *arguments[position + 1 :])
        except (ValueError, TypeError):
            continue
        accepted.append(f"{name} {list(tensor.shape)} {tensor.dtype}")
    assert not accepted
