"""Memory of the ops in training: what is kept for the backward pass, and the peak of forward and backward.

Runs itself in a process whose allocator gives freed memory back at once. The peak is that of the resident memory, so
that every kernel's own scratch memory counts; it is taken above what inputs, weights and incoming gradients take.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from bench.document import printed, write_document
from bench.levels import PEER_MODELS
from bench.peak_memory import MIB, peak_bytes, run_with_allocator
from bench.problems import stage_problem
from bench.shapes import (
    ATTENTION_SHAPES,
    SEPARABLE_SHAPES,
    STAGE_SHAPES,
    StageShape,
    smoke_shapes,
    unique_shapes,
)
from mobilevit_kernels.benchmark.candidates import Candidate, Problem
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.environment import describe_environment

RESULTS = Path(__file__).parent / "results"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.op_memory", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=32, help="samples (32)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="one small shape of each op")
    return parser.parse_args(argv)


def kept_bytes(candidate: Candidate) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, inputs and weights left out."""
    leaves = {leaf.untyped_storage().data_ptr() for leaf in candidate.leaves}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in leaves:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = candidate.call()
    total = sum(kept.values())
    del out
    return total


def measure(problem: Problem) -> list[str]:
    """Cells of a row: bytes kept and peak of ours, then those of the peer with the lowest peak."""
    solvers = {
        name: (kept_bytes(c), peak_bytes(c.forward_backward)) for name, c in problem.candidates.items()
    }
    ours = solvers.pop(problem.ours.name)
    peer = min(solvers, key=lambda name: solvers[name][1])
    numbers = [f"{value / MIB:.1f}" for value in (*ours, *solvers[peer])]
    return [*numbers[:2], peer, *numbers[2:], f"{solvers[peer][1] / ours[1]:.1f}"]


def table(shapes: Iterable[StageShape], options: argparse.Namespace) -> Iterable[str]:
    """The lines of the table, one by one as they are measured."""
    yield "| op | shape | dtype | batch | output, MiB | ours: kept | peak | best peer | kept | peak | peer / ours |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for shape in shapes:
        for dtype in options.dtypes:
            problem = stage_problem(shape, options.batch, DTYPES[dtype])
            output = f"{problem.ours.grad_out.nbytes / MIB:.1f}"
            cells = [shape.op, str(shape), dtype, str(options.batch), output, *measure(problem)]
            yield "| " + " | ".join(cells) + " |"


def write(options: argparse.Namespace, command: str) -> None:
    """Measures, and writes op_memory.md."""
    shapes = unique_shapes(shape for shape in STAGE_SHAPES if shape.model in PEER_MODELS)
    if options.smoke:
        shapes = smoke_shapes(SEPARABLE_SHAPES) + smoke_shapes(ATTENTION_SHAPES)
    facts = {**describe_environment(), "command": f"`{command}`"}
    body = printed(table(shapes, options))
    write_document(
        options.output / "op_memory.md", "Memory of the ops, forward and backward", facts, __doc__, body
    )


def main(argv: list[str]) -> int:
    """Runs the command in a process with the allocator's settings."""
    options = parse_arguments(argv)
    command = ["-m", "bench.op_memory", *argv]
    return run_with_allocator(command, lambda: write(options, " ".join(["python", *command])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
