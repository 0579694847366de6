"""Peak memory of a whole training step: ours, timm's model in eager PyTorch and compiled, and ours on plain PyTorch.

A step is forward, cross entropy, backward and AdamW in float32, channels_last. The peak is that of the resident memory
in a process whose allocator gives freed memory back at once; it is taken above what the process holds between steps:
weights, the last gradients, the optimizer's state and the images. `reference ops` is this package's model under
`use_backend("reference")`. torch.compile compiles forward and backward in the steps before; a smoke run leaves it out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.document import printed, write_document
from bench.model_steps import LAYOUTS, TrainingStep, Variant
from bench.peak_memory import MIB, peak_bytes, run_with_allocator
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.cases import IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.benchmark.networks import make_networks
from mobilevit_kernels.benchmark.timm_models import has_timm_model

RESULTS = Path(__file__).parent / "results"
MODELS = ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_100")
TIMM, COMPILED, REFERENCE = "timm", "torch.compile of timm", "reference ops"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="models that timm has")
    parser.add_argument("--batch", type=int, default=8, help="images (8)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="the first model on small images")
    options = parser.parse_args(argv)
    absent = [model for model in options.models if not has_timm_model(model)]
    if absent:
        parser.error(f"--models: expected models of an installed timm, got {', '.join(absent)}")
    return options


def step_peaks(model: str, names: Sequence[str], batch: int, image_side: int) -> list[int]:
    """Peak resident bytes of a training step.

    Args:
        model: a name of ``list_models()`` that timm has.
        names: who takes it.
        batch: images.
        image_side: height and width of the images in pixels.
    """
    networks = make_networks(model)
    images = torch.rand(batch, 3, image_side, image_side)

    def peak(name: str) -> int:
        network = networks.plain if name in (TIMM, COMPILED) else networks.ours
        backend = "reference" if name == REFERENCE else None
        how = "compile" if name == COMPILED else "eager"
        variant = Variant(name, network, backend, LAYOUTS["NHWC"], how)
        return peak_bytes(TrainingStep(variant, images, torch.float32, "default"))

    return [peak(name) for name in names]


def table(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, one by one as they are measured."""
    others = [TIMM, REFERENCE] if options.smoke else [TIMM, COMPILED, REFERENCE]
    yield "| model | ours, MiB | " + " | ".join(f"{name}, MiB | over ours" for name in others) + " |"
    yield "|---" * (2 + 2 * len(others)) + "|"
    side = SMOKE_IMAGE_SIDE if options.smoke else IMAGE_SIDE
    for model in options.models[:1] if options.smoke else options.models:
        ours, *peaks = step_peaks(model, [OURS, *others], options.batch, side)
        cells = [model, f"{ours / MIB:.1f}"]
        for peak in peaks:
            cells += [f"{peak / MIB:.1f}", f"{peak / ours:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def write(options: argparse.Namespace, command: str) -> None:
    """Measures, and writes training_memory.md."""
    side = SMOKE_IMAGE_SIDE if options.smoke else IMAGE_SIDE
    facts = {
        **describe_environment(),
        "images": f"{options.batch} x 3 x {side} x {side}, float32",
        "command": f"`{command}`",
    }
    body = printed(table(options))
    write_document(options.output / "training_memory.md", "Memory of a training step", facts, __doc__, body)


def main(argv: list[str]) -> int:
    """Runs the command in a process with the allocator's settings."""
    options = parse_arguments(argv)
    command = ["-m", "bench.training_memory", *argv]
    return run_with_allocator(command, lambda: write(options, " ".join(["python", *command])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
