"""Runs of examples/train.py on the fused ops or on plain PyTorch, and the logs that they leave."""

import csv
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "examples" / "train.py"
FUSED, REFERENCE = "fused", "reference"
BACKENDS = {FUSED: "auto", REFERENCE: "reference"}


@dataclass(frozen=True)
class TrainingRun:
    """What a run of examples/train.py logged.

    Attributes:
        model: a name of ``list_models()``.
        path: a key of ``BACKENDS``.
        losses: of every update.
        accuracies: held-out accuracy after every epoch, from 0 to 1.
        averaged: the same of the averaged weights.
        seconds: of processors, those of several threads added up.
    """

    model: str
    path: str
    losses: list[float]
    accuracies: list[float]
    averaged: list[float]
    seconds: float


def train(model: str, path: str, arguments: Sequence[str] = ()) -> TrainingRun:
    """Trains in a process of its own, whose output is this one's.

    Args:
        model: a name of ``list_models()``.
        path: a key of ``BACKENDS``.
        arguments: more of those of examples/train.py.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), "--model", model, "--output", folder, *arguments]
        before = _processor_seconds()
        subprocess.run(command, env={**os.environ, "MOBILEVIT_BACKEND": BACKENDS[path]}, check=True)
        seconds = _processor_seconds() - before
        epochs = Path(folder, "epochs.csv")
        return TrainingRun(
            model,
            path,
            read_column(Path(folder, "updates.csv"), "loss"),
            read_column(epochs, "accuracy"),
            read_column(epochs, "averaged"),
            seconds,
        )


def read_column(path: Path, name: str) -> list[float]:
    """The numbers of a column of a CSV file with a header."""
    with path.open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


def _processor_seconds() -> float:
    """Of the processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
