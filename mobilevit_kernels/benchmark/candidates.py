"""A problem with everybody who solves it on the same numbers: ours, the peers, and the float64 truth."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

OURS = "ours"
# The directions that record nothing for a backward pass; every other one computes gradients.
INFERENCE = ("forward", "inference")


def is_ours(name: str) -> bool:
    """Whether a candidate's name is that of a way to run this package."""
    return name.split(" ")[0] == OURS


def unchanged(tensor: Tensor) -> Tensor:
    """The identity."""
    return tensor


@dataclass(frozen=True)
class Candidate:
    """One way to compute a problem.

    Attributes:
        name: how tables call it.
        call: computes the output from ``leaves``, which it holds.
        leaves: what gradients are taken of, in the same order for every candidate.
        grad_out: gradient of the output, in its layout.
        to_map: brings the output and the first leaf's gradient from the candidate's layout to the problem's.
    """

    name: str
    call: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    grad_out: Tensor
    to_map: Callable[[Tensor], Tensor] = unchanged

    def forward(self) -> Tensor:
        """Returns the output, recording nothing for a backward pass."""
        with torch.no_grad():
            return self.call()

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Returns the output and the gradient of every leaf."""
        out = self.call()
        return out, *torch.autograd.grad(out, self.leaves, self.grad_out)

    def runner(self, direction: str) -> Callable[[], object]:
        """What a direction times: the output alone in those of ``INFERENCE``, else the gradients too."""
        return self.forward if direction in INFERENCE else self.forward_backward

    def results(self, direction: str) -> list[Tensor]:
        """What a direction computes, in the problem's layout and float64: output, then gradients."""
        if direction in INFERENCE:
            return [self.to_map(self.forward()).double()]
        out, grad_first, *grads = self.forward_backward()
        return [
            self.to_map(out).double(),
            self.to_map(grad_first).double(),
            *(grad.double() for grad in grads),
        ]


@dataclass(frozen=True)
class Problem:
    """Inputs of one size and dtype, and who computes on them.

    Attributes:
        quantities: names of what ``Candidate.results`` returns; results of one name are judged as one.
        ours: this package; its name is ``OURS``.
        peers: plain PyTorch in its forms, whose errors the gate compares with.
        truth: the same in float64.
        forward_flops: operations (a multiply-add is two) that the forward pass needs; None where not counted.
        backward_flops: the same of the backward pass.
        runtimes: further peers, that is compilers and other runtimes.
        absent: runtimes that cannot run it, and why.
        also_ours: other ways to run this package, for comparison; their names begin with ``OURS``.
    """

    quantities: tuple[str, ...]
    ours: Candidate
    peers: tuple[Candidate, ...]
    truth: Candidate
    forward_flops: float | None = None
    backward_flops: float | None = None
    runtimes: tuple[Candidate, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    also_ours: tuple[Candidate, ...] = ()

    def with_runtimes(self, runtimes: Iterable[Candidate], absent: Mapping[str, str]) -> "Problem":
        """The same problem with more runtimes, and with the reasons of those that cannot run it."""
        return replace(self, runtimes=(*self.runtimes, *runtimes), absent={**self.absent, **absent})

    @property
    def candidates(self) -> dict[str, Candidate]:
        """Ours and the peers by name: what is timed."""
        return {
            candidate.name: candidate
            for candidate in (self.ours, *self.also_ours, *self.peers, *self.runtimes)
        }

    def flops(self, direction: str) -> float | None:
        """Operations that a direction needs."""
        if direction in INFERENCE or self.forward_flops is None:
            return self.forward_flops
        return None if self.backward_flops is None else self.forward_flops + self.backward_flops
