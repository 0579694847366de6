"""Where the time of an optimised model goes: every op against its floor, on one image.

The floor of an op is the larger of two times: its multiply-adds at the matrix rate, and the bytes of its tensors at the
rate of a large copy, both measured in the same run; what stays in cache can be faster than that. The matrix rate is the
higher of those of a large matrix product and a large convolution in torch, in the dtype that the model was optimised
for, even on a processor where the model stays in float32. An op's time is the shortest of several calls inside the
running model.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.document import write_document
from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.benchmark.cases import DTYPES, IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.benchmark.networks import make_networks
from mobilevit_kernels.benchmark.timing import matrix_rate, num_threads

RESULTS = Path(__file__).parent / "results"
MODELS = ("mobilevit_s", "mobilevitv2_100")
_COPY_BYTES = 256 << 20


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.inference_profile", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="of optimize_for_inference (fp32)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30, help="calls of which the shortest counts (30)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="a small image, two rounds")
    return parser.parse_args(argv)


def _transformer_flops(
    x: Tensor, packed: Tensor, layers: int, heads: int, hidden: int, patch: Any, *_: Any
) -> float:
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    tokens = x.shape[2] * x.shape[3] // (patch[0] * patch[1])
    return 2.0 * layers * pixels * channels * (4 * channels + 2 * hidden + 2 * tokens)


def _separable_flops(x: Tensor, packed: Tensor, layers: int, hidden: int, *_: Any) -> float:
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    return 2.0 * layers * pixels * channels * (2 * channels + 2 * hidden)


def _block_flops(x: Tensor, packed: Tensor, hidden: int, out: int, stride: int, *_: Any) -> float:
    pixels = x.numel() // x.shape[1]
    return 2.0 * hidden * pixels * (x.shape[1] + (9 + out) / stride**2)


def _channels(*maps: Any) -> int:
    """Of the maps that a convolution reads as one; other arguments count as none."""
    return sum(part.shape[1] for part in maps if isinstance(part, Tensor))


def _convolution_flops(x: Tensor, packed: Tensor, out: int, kernel: int, stride: int, *rest: Any) -> float:
    pixels = x.numel() // x.shape[1]
    return 2.0 * pixels * _channels(x, *rest) * out * kernel**2 / stride**2


def _winograd_flops(x: Tensor, packed: Tensor, out: int, *rest: Any) -> float:
    batch, _, height, width = x.shape
    return 2.0 * 16 * batch * math.ceil(height / 2) * math.ceil(width / 2) * _channels(x, *rest) * out


def _depthwise_flops(x: Tensor, packed: Tensor, stride: int, *_: Any) -> float:
    return 18.0 * x.numel() / stride**2


def _pooled_linear_flops(x: Tensor, packed: Tensor, out: int) -> float:
    return 2.0 * x.shape[0] * x.shape[1] * out


def _addmm_flops(bias: Tensor, a: Tensor, b: Tensor, *_: Any) -> float:
    return 2.0 * a.numel() * b.shape[1]


# Operations of each op, a multiply-add being two; others are counted by their bytes alone.
FLOPS: dict[str, Callable[..., float]] = {
    "mobilevit.transformer": _transformer_flops,
    "mobilevit.separable_transformer": _separable_flops,
    "mobilevit.inverted_residual": _block_flops,
    "mobilevit.convolution": _convolution_flops,
    "mobilevit.winograd_convolution": _winograd_flops,
    "mobilevit.depthwise_convolution": _depthwise_flops,
    "mobilevit.pooled_linear": _pooled_linear_flops,
    "aten.addmm": _addmm_flops,
}
_VIEWS = ("view", "permute", "t", "expand", "unsqueeze", "detach", "alias", "_unsafe_view", "slice")


class Recorder(TorchDispatchMode):
    """Notes name, input size, operations, bytes and seconds of every op that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, float, int, float]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the op and takes its time."""
        start_s = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start_s
        name = str(func).rpartition(".")[0]
        if name.rpartition(".")[2] not in _VIEWS:
            tensors = [
                part for part in torch.utils._pytree.tree_leaves((args, result)) if isinstance(part, Tensor)
            ]
            size = " x ".join(map(str, tensors[0].shape)) if tensors else ""
            flops = FLOPS[name](*args) if name in FLOPS else 0.0
            self.calls.append((name, size, flops, sum(tensor.nbytes for tensor in tensors), seconds))
        return result


def shortest(function: Callable[[], object], rounds: int) -> float:
    """Seconds of the shortest of several calls."""
    best = math.inf
    for _ in range(rounds):
        start_s = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start_s)
    return best


def copy_rate(rounds: int) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * _COPY_BYTES / shortest(lambda: target.copy_(source), rounds)


def profile(model: str, dtype: torch.dtype, image_side: int, rounds: int) -> tuple[float, list[list[Any]]]:
    """Seconds of the whole model, and of each op [name, size, operations, bytes, seconds], in order.

    Args:
        model: a name of ``list_models()``.
        dtype: as in ``optimize_for_inference``.
        image_side: height and width of the float32 image in pixels.
        rounds: calls of which the shortest counts.
    """
    network = optimize_for_inference(make_networks(model).ours, dtype)
    images = torch.rand(1, 3, image_side, image_side)
    with torch.no_grad():
        total_s = shortest(lambda: network(images), rounds)
        ops: list[list[Any]] = []
        for _ in range(rounds):
            with Recorder() as recorder:
                network(images)
            ops = ops or [list(call) for call in recorder.calls]
            for op, call in zip(ops, recorder.calls, strict=True):
                op[4] = min(op[4], call[4])
    return total_s, ops


def table(ops: Sequence[Sequence[Any]], total_s: float, flops_per_s: float, bytes_per_s: float) -> list[str]:
    """Markdown lines: every op, then the sum by kind."""
    lines = ["| op | input | ms | floor, ms | of the floor |", "|---|---|---|---|---|"]
    kinds: dict[str, list[float]] = {}
    for name, size, flops, nbytes, seconds in ops:
        floor_s = max(flops / flops_per_s, nbytes / bytes_per_s)
        sums = kinds.setdefault(name, [0.0, 0.0])
        sums[0], sums[1] = sums[0] + seconds, sums[1] + floor_s
        lines.append(_cells(f"`{name}`", size, seconds, floor_s))
    spent_s, floor_s = (sum(values) for values in zip(*kinds.values(), strict=True))
    lines += ["", "| kind | | ms | floor, ms | of the floor |", "|---|---|---|---|---|"]
    for name, (seconds, floor) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        lines.append(_cells(f"`{name}`", "", seconds, floor))
    lines.append(_cells("between ops", "", total_s - spent_s, 0.0))
    lines.append(_cells("whole model", "", total_s, floor_s))
    return lines


def _cells(name: str, size: str, seconds: float, floor_s: float) -> str:
    share = f"{floor_s / seconds:.0%}" if seconds > 0 and floor_s > 0 else ""
    return f"| {name} | {size} | {1e3 * seconds:.3f} | {1e3 * floor_s:.3f} | {share} |"


def main(argv: list[str]) -> int:
    """Runs the command and writes inference_profile.md, or inference_profile_bf16.md."""
    options = parse_arguments(argv)
    image_side, rounds = (SMOKE_IMAGE_SIDE, 2) if options.smoke else (IMAGE_SIDE, options.rounds)
    dtype = DTYPES[options.dtype]
    with num_threads(options.threads):
        flops_per_s = matrix_rate(dtype, options.threads)
        bytes_per_s = copy_rate(min(rounds, 5))
        facts = {
            **describe_environment(),
            "threads": f"{options.threads}; float32 images: 1 x 3 x {image_side} x {image_side}",
            "optimised for": str(dtype),
            "matrix rate": f"{flops_per_s / 1e9:.0f} GFLOP/s; copy: {bytes_per_s / 1e9:.1f} GB/s",
            "command": f"`{' '.join(['python -m bench.inference_profile', *argv])}`",
        }
        body: list[str] = []
        for model in options.models:
            total_s, ops = profile(model, dtype, image_side, rounds)
            body += ["", f"## {model}", "", *table(ops, total_s, flops_per_s, bytes_per_s)]
            print(*body[-len(ops) :], sep="\n", flush=True)
    name = "inference_profile.md" if options.dtype == "fp32" else f"inference_profile_{options.dtype}.md"
    write_document(options.output / name, "Where the time of optimised models goes", facts, __doc__, body[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
