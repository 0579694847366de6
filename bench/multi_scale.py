"""What multi-scale sampling with variable batch size saves: updates, padding, pixels, and memory of a step.

The first table is counted from the samplers themselves, with the numbers of the paper: ImageNet-1k on 8 processes, 128
images of 256 x 256 each. Images repeated are those that fill up the last batch of every process. Pixels stand for
computation. The second table is measured: the peak of the resident memory in one training step (forward, cross
entropy, backward, AdamW, float32), above what the process takes between steps, at half the paper's sizes.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch

from bench.document import printed, write_document
from bench.model_steps import LAYOUTS, TrainingStep, Variant
from bench.peak_memory import MIB, peak_bytes, run_with_allocator
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.data import (
    MultiScaleBatchSampler,
    Scale,
    ScaleBatchSampler,
    SingleScaleBatchSampler,
    VariableBatchSampler,
)
from mobilevit_kernels.models import create_model

RESULTS = Path(__file__).parent / "results"
IMAGES, PROCESSES, BATCH, SIDE = 1_281_167, 8, 128, 256


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.multi_scale", description=__doc__)
    parser.add_argument(
        "--epochs", type=int, default=300, help="epochs that the samplers are counted for (300)"
    )
    parser.add_argument("--model", default="mobilevit_xxs", help="whose step is measured (mobilevit_xxs)")
    parser.add_argument("--batch", type=int, default=16, help="images of 128 x 128 in a step (16)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="two epochs, the smallest and the largest scale")
    return parser.parse_args(argv)


def counts(sampler: ScaleBatchSampler, epochs: int) -> tuple[int, float, float]:
    """Updates in all epochs; mean share of repeated images; mean pixels of an image, per process."""
    scales = [scale for epoch in range(epochs) for scale in sampler.scales_of_epoch(epoch)]
    images = sum(scale.batch for scale in scales)
    pixels = sum(scale.batch * scale.height * scale.width for scale in scales)
    return len(scales), images * sampler.world_size / (epochs * sampler.num_samples) - 1, pixels / images


def schedule_table(epochs: int) -> Iterator[str]:
    """The samplers of the paper's setting, counted."""
    samplers: dict[str, ScaleBatchSampler] = {
        f"fixed {SIDE}": SingleScaleBatchSampler(IMAGES, SIDE, BATCH, rank=0, world_size=PROCESSES),
        "multi-scale, fixed batch": MultiScaleBatchSampler(IMAGES, SIDE, BATCH, rank=0, world_size=PROCESSES),
        "multi-scale, variable batch": VariableBatchSampler(
            IMAGES, SIDE, BATCH, rank=0, world_size=PROCESSES
        ),
    }
    yield f"| sampler | updates in {epochs} epochs | per epoch | images repeated | pixels per image, of {SIDE}² |"
    yield "|---|---|---|---|---|"
    for name, sampler in samplers.items():
        updates, repeated, pixels = counts(sampler, epochs)
        cells = [
            name,
            f"{updates:,}",
            f"{updates / epochs:.1f}",
            f"{repeated:.2%}",
            f"{pixels / SIDE**2:.3f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def step_bytes(model: str, scale: Scale) -> int:
    """Peak resident bytes of one training step of a batch of this scale."""
    torch.manual_seed(0)
    images = torch.rand(scale.batch, 3, scale.height, scale.width)
    variant = Variant(OURS, create_model(model), None, LAYOUTS["NHWC"], "eager")
    return peak_bytes(TrainingStep(variant, images, torch.float32, "default"))


def memory_table(model: str, batch: int, smoke: bool) -> Iterator[str]:
    """Peak of a step at each scale: with the sampler's batch, and with that of the fixed sampler."""
    side = SIDE // 2
    scales = VariableBatchSampler(IMAGES, side, batch, min_size=80, max_size=160, divisor=16).scales
    fixed = step_bytes(model, Scale(side, side, batch))
    yield f"| size | variable batch | peak, MiB | of fixed {side} | fixed batch | peak, MiB | of fixed {side} |"
    yield "|---|---|---|---|---|---|---|"
    for scale in (scales[0], scales[-1]) if smoke else scales:
        cells = [f"{scale.height} x {scale.width}"]
        for images in (scale.batch, batch):
            peak = step_bytes(model, scale._replace(batch=images))
            cells += [str(images), f"{peak / MIB:.0f}", f"{peak / fixed:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def write(options: argparse.Namespace, command: str) -> None:
    """Counts and measures, and writes multi_scale.md."""
    facts = {**describe_environment(), "command": f"`{command}`", "model": options.model}
    tables: tuple[Iterable[str], ...] = (
        schedule_table(2 if options.smoke else options.epochs),
        [""],
        memory_table(options.model, options.batch, options.smoke),
    )
    body = printed(chain.from_iterable(tables))
    write_document(options.output / "multi_scale.md", "Multi-scale sampling", facts, __doc__, body)


def main(argv: list[str]) -> int:
    """Runs the command in a process with the allocator's settings."""
    options = parse_arguments(argv)
    command = ["-m", "bench.multi_scale", *argv]
    return run_with_allocator(command, lambda: write(options, " ".join(["python", *command])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
