"""What tests of the ops on any device assert: bits, layouts, groups, compiled layers, registered operators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import mobilevit_kernels


def readable(value: Any) -> str:
    """Test id: float32, 3x2, 36."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def everything(problem: Any) -> list[Tensor]:
    """Output and gradients."""
    out = problem.fused()
    grad_out = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return [out, *problem.gradients(type(problem).fused, grad_out)]


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Bit equality of every tensor."""
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), f"result {index}"


@contextmanager
def poisoned_memory(device: torch.device | str = "cpu") -> Iterator[None]:
    """Every ``torch.empty`` and ``at::empty`` gives NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=device).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def problem_and_dense_copy(problem: Any, layout: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """The problem in a layout, and the same values in a freshly allocated channels_last map."""
    laid_out = problem.with_first(layout(problem.tensors[0]))
    dense = laid_out.tensors[0].clone(memory_format=torch.channels_last)
    return laid_out, problem.with_first(dense)


def check_bad_numbers_stay_in_their_group(problem: Any, bad: float) -> None:
    """A number that is not finite reaches its own group (and head) only; default channels, patch (2, 2), batch 2."""
    x = problem.tensors[0].clone()
    height, width = x.shape[2:]
    grad_out = torch.randn_like(problem.fused())
    run = type(problem).fused
    clean, clean_grad = problem.fused(), problem.gradients(run, grad_out)[0]
    head = slice(5, 10) if problem.op == "unfold_attn_fold" else slice(0, 10)
    x[1, head, height - 2, width - 1] = bad  # the last token of position (0, 1), in one head
    poisoned = problem.with_first(x)
    out, grad = poisoned.fused(), poisoned.gradients(run, grad_out)[0]
    touched = torch.zeros_like(clean, dtype=torch.bool)
    touched[1, head, ::2, 1::2] = True
    assert torch.equal(out[~touched], clean[~touched])
    channels = torch.cat([touched] * 3, dim=1) if problem.op == "unfold_attn_fold" else touched
    assert torch.equal(grad[~channels], clean_grad[~channels])
    assert out[touched].isnan().any()


class Layer(nn.Module):
    """Arithmetic around the op, so that the compiler has something to fuse on both sides of it."""

    def __init__(self, problem: Any):
        super().__init__()
        self.op, self.args = problem.op, problem.args
        present = {f"p{i}": t for i, t in enumerate(problem.tensors[1:]) if t is not None}
        self.parameters_by_name = nn.ParameterDict({k: nn.Parameter(t.clone()) for k, t in present.items()})
        self.slots = [None if t is None else f"p{i}" for i, t in enumerate(problem.tensors[1:])]

    def forward(self, x: Tensor) -> Tensor:
        parameters = [None if slot is None else self.parameters_by_name[slot] for slot in self.slots]
        out = getattr(mobilevit_kernels, self.op)(x * 0.5 + 0.1, *parameters, *self.args)
        return torch.tanh(out) * 2


def outputs_and_gradients(function: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = function(x)
    grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
    return [out.detach(), *grads]


def operator(name: str) -> Any:
    """The registered overload."""
    return getattr(torch.ops.mobilevit, name).default


def backward_arguments(problem: Any, mask: tuple[bool, bool] = (True, True)) -> list[Any]:
    """Arguments of the backward operator of an op, in the order of its schema."""
    out, *saved = problem.call(operator(f"{problem.op}_forward"))
    grad_out = torch.randn_like(out)
    if problem.op == "separable_attn":
        return [grad_out, *problem.tensors[:4], *saved, *problem.args, list(mask)]
    return [grad_out, problem.tensors[0], out, *saved, *problem.args]


def check_inference_op(overload: Any, x: Tensor, *others: Any) -> None:
    """opcheck, and the same bits in a compiled graph of any size."""
    torch.library.opcheck(overload, (x, *others))
    torch.compiler.reset()  # graphs are counted by the code of the function, which is one for all ops
    compiled = torch.compile(
        lambda x: overload(x, *others) + 1, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch.no_grad():
        assert torch.equal(compiled(x), overload(x, *others) + 1)
