"""Where the time of a training step goes, op by op: ours, the plain model in eager PyTorch, and timm's accelerated.

A step is forward, cross entropy, backward and AdamW, channels_last. An op's time is its own, without the ops that it
calls, averaged over some steps under torch's profiler. "no op" is the rest of the step: Python and the profiler itself.
The floor is three times the multiply-adds of inference at the matrix rate, measured in the same run as the higher of
those of a large matrix product and a large convolution in torch.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from bench.document import printed, write_document
from bench.model_steps import LAYOUTS, TrainingStep, Variant
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.cases import DTYPES, IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.benchmark.inference import model_flops
from mobilevit_kernels.benchmark.networks import Networks, make_networks
from mobilevit_kernels.benchmark.timing import matrix_rate, num_threads, seconds_per_call
from mobilevit_kernels.models import accelerate

RESULTS = Path(__file__).parent / "results"
MODELS = ("mobilevit_s", "mobilevitv2_100")
# Ops below this part of a step are summed up.
SMALL = 0.01


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_profile", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=8, help="images (8)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of autocast (fp32: without)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="steps (4)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="small images, one step")
    return parser.parse_args(argv)


def profile(step: Callable[[], object], rounds: int) -> tuple[float, dict[str, float]]:
    """Seconds per step: all of them, and those that every op spends in itself.

    Args:
        step: what is profiled; it has run before.
        rounds: steps that are averaged.
    """
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        step_s = seconds_per_call(step, rounds)
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        namespace, separator, name = event.key.partition("::")
        if separator:
            label = name if namespace == "aten" else f"{namespace}.{name}"
            seconds[label] = seconds.get(label, 0.0) + event.self_cpu_time_total / 1e6 / rounds
    return step_s, seconds


def table(seconds: Mapping[str, float], step_s: float, floor_s: float) -> Iterator[str]:
    """Markdown lines: the ops of a step, the longest first.

    Args:
        seconds: per step, of every op.
        step_s: seconds of a step.
        floor_s: seconds of its multiply-adds at the matrix rate.
    """
    yield "| op | ms | of the step |"
    yield "|---|---|---|"
    small_s = 0.0
    for name, own_s in sorted(seconds.items(), key=lambda item: -item[1]):
        if own_s < SMALL * step_s:
            small_s += own_s
        else:
            yield _cells(f"`{name}`", own_s, step_s)
    yield _cells("others", small_s, step_s)
    yield _cells("no op", step_s - sum(seconds.values()), step_s)
    yield _cells("whole step", step_s, step_s)
    yield _cells("floor", floor_s, step_s)


def _cells(name: str, own_s: float, step_s: float) -> str:
    return f"| {name} | {1e3 * own_s:.1f} | {own_s / step_s:.1%} |"


def sections(options: argparse.Namespace, flops_per_s: float) -> Iterator[str]:
    """Markdown lines of every model on every side."""
    image_side, rounds = (SMOKE_IMAGE_SIDE, 1) if options.smoke else (IMAGE_SIDE, options.rounds)
    for model in options.models:
        networks = make_networks(model)
        images = torch.rand(options.batch, 3, image_side, image_side)
        floor_s = 3 * model_flops(networks, images) / flops_per_s
        for name, network, backend in _sides(networks):
            variant = Variant(name, network, backend, LAYOUTS["NHWC"], "eager")
            step = TrainingStep(variant, images, DTYPES[options.dtype], "default")
            step()
            step_s, seconds = profile(step, rounds)
            yield from (f"## {model}, {name}", "")
            yield from table(seconds, step_s, floor_s)
            yield ""


def _sides(networks: Networks) -> list[tuple[str, nn.Module, str | None]]:
    """Name, network and backend: ours, the plain one and, where that is timm's, what ``accelerate`` makes of it."""
    ours = (OURS, networks.ours, None)
    if networks.plain_backend is not None:
        return [ours, ("reference ops", networks.plain, networks.plain_backend)]
    accelerated = accelerate(copy.deepcopy(networks.plain))
    return [ours, ("timm", networks.plain, None), ("timm after accelerate", accelerated, None)]


def main(argv: list[str]) -> int:
    """Runs the command and writes training_profile.md, or training_profile_bf16.md."""
    options = parse_arguments(argv)
    with num_threads(options.threads):
        flops_per_s = matrix_rate(DTYPES[options.dtype], options.threads)
        facts = {
            **describe_environment(),
            "threads": str(options.threads),
            "images": f"{options.batch}; dtype: {options.dtype}",
            "matrix rate": f"{flops_per_s / 1e9:.0f} GFLOP/s",
            "command": f"`{' '.join(['python -m bench.training_profile', *argv])}`",
        }
        body = printed(sections(options, flops_per_s))
    name = "training_profile.md" if options.dtype == "fp32" else f"training_profile_{options.dtype}.md"
    write_document(options.output / name, "Where the time of training steps goes", facts, __doc__, body[:-1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
