"""Training curves of the fused ops and of plain PyTorch: examples/train.py on handwritten digits, the same seed.

Both runs of a model start from the same weights and take the same batches with the same augmentation and dropout; the
second runs with `MOBILEVIT_BACKEND=reference`. Rounding differs, and training amplifies the difference: the curves are
to agree, not to be equal. Accuracy is that of the averaged weights on the fifth that is held out (359 images: one is
0.28 %), in brackets that of the weights themselves. Differences are the largest over the epochs, in percentage points:
over all, and over the second half, when the accuracy no longer rises by much from one epoch to the next. Seconds are
those of the processor for the whole run, with start and evaluation: other work on the machine counts little in them.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.curve_plot import plot_curves
from bench.document import write_document
from bench.training_runs import FUSED, REFERENCE, TrainingRun, train
from mobilevit_kernels.benchmark.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
MODELS = ("mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_050")
SMOKE_ARGUMENTS = ("--epochs", "2", "--size", "32", "--batch-size", "16", "--limit", "32")
_TABLE_HEAD = (
    "| model | fused: final accuracy | reference: final accuracy | largest difference | in the second half "
    "| fused, s | reference, s |",
    "|---|---|---|---|---|---|---|",
)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_curves", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seed", type=int, default=0, help="of both runs (0)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="the first model, two epochs of 32 small images")
    return parser.parse_args(argv)


def table_line(fused: TrainingRun, reference: TrainingRun) -> str:
    """The two runs of a model in Markdown."""
    half = len(fused.accuracies) // 2
    cells = [
        fused.model,
        _with_brackets(fused.averaged[-1], fused.accuracies[-1]),
        _with_brackets(reference.averaged[-1], reference.accuracies[-1]),
        _with_brackets(
            largest_difference(fused.averaged, reference.averaged),
            largest_difference(fused.accuracies, reference.accuracies),
        ),
        _with_brackets(
            largest_difference(fused.averaged[half:], reference.averaged[half:]),
            largest_difference(fused.accuracies[half:], reference.accuracies[half:]),
        ),
        f"{fused.seconds:.0f}",
        f"{reference.seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Of two curves of the same length."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def _with_brackets(averaged: float, plain: float) -> str:
    return f"{averaged:.2%} ({plain:.2%})"


def measure(options: argparse.Namespace) -> Iterator[tuple[TrainingRun, TrainingRun]]:
    """Both runs of every model."""
    arguments = ("--seed", str(options.seed), *(SMOKE_ARGUMENTS if options.smoke else ()))
    for model in options.models[:1] if options.smoke else options.models:
        yield train(model, FUSED, arguments), train(model, REFERENCE, arguments)


def write(runs: list[TrainingRun], table: list[str], facts: dict[str, str], output: Path) -> None:
    """Writes training_curves.md, .json and .png.

    Args:
        runs: those so far.
        table: the same in Markdown.
        facts: environment, command and settings, by name.
        output: the folder; made where it is missing.
    """
    body = ["![Curves](training_curves.png)", "", *table]
    write_document(output / "training_curves.md", "Training curves", facts, __doc__, body)
    document = {**facts, "runs": [asdict(run) for run in runs]}
    (output / "training_curves.json").write_text(json.dumps(document, indent=1) + "\n")
    plot_curves(runs, facts["processor"], output / "training_curves.png")


def main(argv: list[str]) -> int:
    """Runs the command; the files are whole after every model."""
    options = parse_arguments(argv)
    facts = {
        **describe_environment(),
        "threads": str(torch.get_num_threads()),
        "command": " ".join(["python -m bench.training_curves", *argv]),
    }
    runs: list[TrainingRun] = []
    table = list(_TABLE_HEAD)
    for pair in measure(options):
        runs += pair
        table.append(table_line(*pair))
        print(table[-1], flush=True)
        write(runs, table, facts, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
