"""Memory of the ops in training: what is kept for the backward pass, and the peak of forward and backward.

Runs itself in a process whose allocator gives freed memory back at once. The peak is that of the resident memory, so
that every kernel's own scratch memory counts; it is taken above what inputs, weights and incoming gradients take.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from bench.levels import PEER_MODELS
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
_MIB = 1 << 20
# Blocks of this size get pages of their own, which the system takes back when they are freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}


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


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_bytes(candidate: Candidate) -> int:
    """Most resident bytes during forward and backward, above those before."""
    for _ in range(2):
        candidate.forward_backward()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    candidate.forward_backward()
    return _resident_bytes("VmHWM") - before


def measure(problem: Problem) -> list[str]:
    """Cells of a row: bytes kept and peak of ours, then those of the peer with the lowest peak."""
    solvers = {name: (kept_bytes(c), peak_bytes(c)) for name, c in problem.candidates.items()}
    ours = solvers.pop(problem.ours.name)
    peer = min(solvers, key=lambda name: solvers[name][1])
    numbers = [f"{value / _MIB:.1f}" for value in (*ours, *solvers[peer])]
    return [*numbers[:2], peer, *numbers[2:], f"{solvers[peer][1] / ours[1]:.1f}"]


def table(shapes: Iterable[StageShape], options: argparse.Namespace) -> Iterable[str]:
    """The lines of the table, one by one as they are measured."""
    yield "| op | shape | dtype | batch | output, MiB | ours: kept | peak | best peer | kept | peak | peer / ours |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for shape in shapes:
        for dtype in options.dtypes:
            problem = stage_problem(shape, options.batch, DTYPES[dtype])
            output = f"{problem.ours.grad_out.nbytes / _MIB:.1f}"
            cells = [shape.op, str(shape), dtype, str(options.batch), output, *measure(problem)]
            yield "| " + " | ".join(cells) + " |"


def write(options: argparse.Namespace, command: str) -> None:
    """Measures, and writes op_memory.md."""
    shapes = unique_shapes(shape for shape in STAGE_SHAPES if shape.model in PEER_MODELS)
    if options.smoke:
        shapes = smoke_shapes(SEPARABLE_SHAPES) + smoke_shapes(ATTENTION_SHAPES)
    lines = ["# Memory of the ops, forward and backward", ""]
    lines += [f"- {name}: {value}" for name, value in describe_environment().items()]
    lines += [f"- command: `{command}`", "", *(__doc__ or "").splitlines()[2:], ""]
    for line in table(shapes, options):
        print(line, flush=True)
        lines.append(line)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "op_memory.md").write_text("\n".join(lines) + "\n")


def main(argv: list[str]) -> int:
    """Runs the command in a process with the allocator's settings."""
    options = parse_arguments(argv)
    command = ["-m", "bench.op_memory", *argv]
    if any(os.environ.get(name) != value for name, value in _ALLOCATOR.items()):
        return subprocess.run([sys.executable, *command], env={**os.environ, **_ALLOCATOR}).returncode
    write(options, " ".join(["python", *command]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
