"""examples/train.py as a module, on few small images."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Three updates of each epoch at least, each scale small.
SMALL = ("--epochs", "2", "--size", "32", "--batch-size", "16", "--limit", "80", "--checkpoint-every", "2")


@pytest.fixture
def example_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the examples by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def train(
    example_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """train(*args) runs ``python examples/train.py ARGS...`` in this process, on few small images."""

    def run(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *SMALL, *map(str, args)])
        example_module("train").main()

    return run


class Stopped(Exception):
    """Ends a run in this process."""


@pytest.fixture
def train_until(
    train: Callable[..., None], example_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """train_until(update, *args) is ``train(*args)``, stopped just before the update of this number."""

    def run(stop_at: int, *args: object) -> None:
        training = example_module("train").Training
        update = training.update

        def stopping(run: Any, *args: Any) -> float:
            if run.step == stop_at:
                raise Stopped
            return update(run, *args)

        with monkeypatch.context() as patch:
            patch.setattr(training, "update", stopping)
            with pytest.raises(Stopped):
                train(*args)

    return run
