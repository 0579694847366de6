"""Who computes an op on a GPU: ours, unfold + every SDPA backend + fold, the plain layer, and what compilers make."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.meters import Scoped
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem

SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class OpCandidate:
    """One way to compute an op's problem.

    Attributes:
        name: how tables call it.
        candidate: the computation.
        runner: what is timed.
        compiled: whether the first call runs torch.compile.
    """

    name: str
    candidate: Candidate
    runner: Scoped
    compiled: bool = False


def op_candidates(problem: Problem, direction: str, compile_mode: str | None) -> Iterator[OpCandidate]:
    """Ours first, then every peer.

    Args:
        problem: the op's problem.
        direction: "forward" or "forward+backward".
        compile_mode: mode of ``torch.compile``; None leaves the compiled peers out.
    """
    yield OpCandidate(OURS, problem.ours, Scoped(problem.ours.runner(direction)))
    for peer in problem.peers:
        if not peer.name.startswith("SDPA "):
            yield OpCandidate(peer.name, peer, Scoped(peer.runner(direction)))
            continue
        layout = peer.name.removeprefix("SDPA ")
        for name, backend in SDPA_BACKENDS.items():
            runner = Scoped(peer.runner(direction), partial(sdpa_kernel, backend))
            yield OpCandidate(f"SDPA {name} {layout}", peer, runner)
    if compile_mode is None:
        return
    for peer in problem.peers:
        call = torch.compile(peer.call, mode=compile_mode, fullgraph=True, dynamic=False)
        compiled = replace(peer, name=f"compile {peer.name}", call=call)
        yield OpCandidate(compiled.name, compiled, Scoped(compiled.runner(direction)), compiled=True)
