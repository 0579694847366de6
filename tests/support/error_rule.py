"""The error rule: a kernel against float64 truth, next to plain PyTorch in the same dtype."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What a result may be off by where plain PyTorch happens to be exact, in roundings of the largest value: the
# rounding to its dtype; in float32 the gradients' sums are rounded too; float64 has no wider truth, so both sides
# round every sum.
FLOOR_ULPS = {torch.float64: 256.0}
GRADIENT_FLOOR_ULPS = {torch.float64: 256.0, torch.float32: 4.0}


def max_error(actual: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, in float64; 0 for empty tensors."""
    return (actual.double() - truth.double()).abs().max().item() if truth.numel() else 0.0


@dataclass(frozen=True)
class Comparison:
    """A result against float64 truth, next to the error of plain PyTorch in the same dtype."""

    what: str
    error: float
    peer: float
    floor: float

    def holds(self, factor: float) -> bool:
        """The error rule."""
        return self.error <= factor * self.peer + self.floor


def compare(
    what: str,
    actual: Tensor,
    plain: Sequence[Tensor],
    truth: Tensor,
    floors: dict[torch.dtype, float],
    terms: float = 0.0,
) -> Comparison:
    """Compares one tensor; its shape and dtype must be right and its numbers finite.

    ``terms`` is the size of the terms whose sum is exactly 0 where plain PyTorch has no error at all: the gradient
    of a lone token's query is a difference of two equal dot products, which a kernel may round apart.

    A plain form that is not finite itself sets no bar: oneDNN's bfloat16 gradient of depthwise weights adds memory
    that nothing wrote for some maps smaller than the kernel's reach.
    """
    assert actual.shape == truth.shape
    assert actual.dtype == plain[0].dtype
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    magnitude = truth.abs().max().item() if truth.numel() else 0.0
    floor = floors.get(actual.dtype, 1.0) * torch.finfo(actual.dtype).eps * magnitude
    peer = max((max_error(form, truth) for form in plain if torch.isfinite(form).all()), default=0.0)
    if peer == 0:
        floor = max(floor, torch.finfo(actual.dtype).eps * terms)
    return Comparison(what, max_error(actual, truth), peer, floor)


def plain_forms(problem: Any) -> list[Callable[[Any], Tensor]]:
    """What the error rule compares with: what a user would write and, in full precision, the definition too.

    In half precision the definition rounds its scores, which scaled_dot_product_attention does not: too weak a peer.
    """
    half = problem.tensors[0].dtype in (torch.bfloat16, torch.float16)
    return [type(problem).baseline] if half else [type(problem).baseline, type(problem).reference]


def compare_forward(problem: Any, out: Tensor | None = None) -> list[Comparison]:
    """The output, computed here if not given."""
    truth = problem.map_tensors(Tensor.double).reference()
    plain = [form(problem) for form in plain_forms(problem)]
    return [compare("out", problem.fused() if out is None else out, plain, truth, FLOOR_ULPS)]


def compare_backward(
    problem: Any, grad_out: Tensor | None = None, grads: list[Tensor] | None = None
) -> list[Comparison]:
    """The gradients, computed here if not given."""
    grad_out = torch.randn_like(problem.fused()) if grad_out is None else grad_out
    grads = problem.gradients(type(problem).fused, grad_out) if grads is None else grads
    truth = problem.map_tensors(Tensor.double).gradients(type(problem).reference, grad_out.double())
    plain = [problem.gradients(form, grad_out) for form in plain_forms(problem)]
    largest = problem.tensors[0].abs().max().item() if problem.tensors[0].numel() else 0.0
    terms = largest**2 * (grad_out.abs().max().item() if grad_out.numel() else 0.0)
    return [
        compare(f"gradient {index}", grad, forms, one, GRADIENT_FLOOR_ULPS, terms)
        for index, (grad, *forms, one) in enumerate(zip(grads, *plain, truth, strict=True))
    ]


def check_rule(factor: float, measure: Callable[..., list[Comparison]], problem: Any, *results: Any) -> None:
    """The error rule for a problem, or for the mean of eight draws of it where its own draw breaks the rule.

    The largest of a few rounding errors is luck: that of plain PyTorch may be near 0. A kernel that is less precise
    is so on average too. Results that are given cannot be drawn again and must satisfy the rule as they are.
    """
    draws = [measure(problem, *results)]
    if not results and not all(comparison.holds(factor) for comparison in draws[0]):
        draws += [measure(problem.redrawn()) for _ in range(7)]
    for group in zip(*draws, strict=True):
        means = [
            sum(values) / len(group)
            for values in zip(*((c.error, c.peer, c.floor) for c in group), strict=True)
        ]
        assert Comparison(group[0].what, *means).holds(factor), group[0]


def check_forward(problem: Any, *results: Any) -> None:
    """At most twice the error of plain PyTorch."""
    check_rule(2.0, compare_forward, problem, *results)


def check_backward(problem: Any, *results: Any) -> None:
    """At most three times the error of plain PyTorch."""
    check_rule(3.0, compare_backward, problem, *results)
