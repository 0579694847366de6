"""The correctness gate: no speed is reported for a result that is worse than plain PyTorch's."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilevit_kernels.benchmark.candidates import Candidate, Problem

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
# Of several results of one name, those below this part of the largest are judged on its scale.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class GateResult:
    """The quantity that came closest to its limit (or went past it).

    Attributes:
        passed: whether every quantity kept to its limit.
        quantity: name of the quantity.
        error: its largest error against float64, relative to the largest true value.
        peer_error: the same of plain PyTorch in the same dtype; of its forms the one that is furthest off.
        limit: what ``error`` may be.
    """

    passed: bool
    quantity: str
    error: float
    peer_error: float
    limit: float

    @property
    def finite(self) -> bool:
        """Whether the error is a number."""
        return math.isfinite(self.error)


def relative_error(actual: Tensor, truth: Tensor, least_scale: float = 0.0) -> float:
    """Largest absolute difference over the largest true value (or over 1 where the truth is all zero).

    Args:
        actual: the result.
        truth: float64, same shape.
        least_scale: what the difference is divided by at least.
    """
    scale = max(truth.abs().max().item(), least_scale) or 1.0
    return ((actual - truth).abs().max() / scale).item()


def error_limit(peer_error: float, dtype: torch.dtype, is_gradient: bool) -> float:
    """What the error may be: 2 times plain PyTorch's (3 times for gradients) and one rounding of the largest value."""
    factor = GRADIENT_FACTOR if is_gradient else OUTPUT_FACTOR
    return factor * peer_error + torch.finfo(dtype).eps


class Gate:
    """What is true of a problem, and how far plain PyTorch is from it.

    Args:
        problem: the problem; its truth and its peers are computed once, here.
        dtype: dtype of the problem.
        direction: "forward" checks the output, "forward+backward" every gradient too.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype, direction: str):
        self._problem = problem
        self._dtype = dtype
        self._direction = direction
        self._truth = problem.truth.results(direction)
        # A gradient that is zero but for rounding, as that of a bias before a norm, has no relative error to speak of.
        self._largest: dict[str, float] = defaultdict(float)
        for name, values in zip(problem.quantities, self._truth, strict=False):
            self._largest[name] = max(self._largest[name], values.abs().max().item())
        errors = [self._errors(peer) for peer in problem.peers]
        self._peer_errors = {name: max(each[name] for each in errors) for name in errors[0]}

    def check(self, candidate: Candidate | None = None) -> GateResult:
        """Computes ours (or another candidate) under the present thread count and compares it."""
        results = [self._result(*item) for item in self._errors(candidate or self._problem.ours).items()]
        failed = [result for result in results if not result.passed]
        return failed[0] if failed else max(results, key=lambda result: result.error / result.limit)

    def same_top1(self) -> float:
        """Share of the images ``[B]`` whose most probable class, by our logits ``[B, classes]``, is the true one."""
        classes = self._problem.ours.results(self._direction)[0].argmax(dim=1)
        return (classes == self._truth[0].argmax(dim=1)).double().mean().item()

    def _errors(self, candidate: Candidate) -> dict[str, float]:
        """The error of every quantity: the largest, where several results share its name."""
        results = candidate.results(self._direction)
        names = self._problem.quantities[: len(results)]
        errors: dict[str, list[float]] = {name: [] for name in names}
        for name, actual, truth in zip(names, results, self._truth, strict=True):
            errors[name].append(relative_error(actual, truth, _NEGLIGIBLE * self._largest[name]))
        # Unlike the built-in max, this one keeps a NaN.
        return {
            name: torch.tensor(values, dtype=torch.float64).max().item() for name, values in errors.items()
        }

    def _result(self, name: str, error: float) -> GateResult:
        peer_error = self._peer_errors[name]
        limit = error_limit(peer_error, self._dtype, is_gradient=name != self._problem.quantities[0])
        return GateResult(error <= limit, name, error, peer_error, limit)
