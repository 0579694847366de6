"""What examples/train.py --tensorboard writes, read as TensorBoard reads it."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Train = Callable[..., None]
Curve = list[tuple[int, float]]

pytest.importorskip("sklearn")

SCALARS = {"updates": {"lr", "loss"}, "epochs": {"accuracy", "averaged"}}


def shown(folder: Path) -> dict[str, Curve]:
    """Steps and values of every scalar that TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def logged(table: Path, names: set[str]) -> dict[str, Curve]:
    """The same of a CSV log; TensorBoard keeps float32."""
    with table.open(newline="") as stream:
        rows = list(csv.reader(stream))
    columns = {column[0]: column[1:] for column in zip(*rows, strict=True)}
    steps = [int(step) for step in columns[rows[0][0]]]
    values = {name: torch.tensor([*map(float, columns[name])]).tolist() for name in names}
    return {name: list(zip(steps, values[name], strict=True)) for name in names}


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_run_shows_every_step_once(
    train: Train, train_until: Train, tmp_path: Path, stop_at: int
) -> None:
    """Stopped before the first checkpoint, and after one more update than the checkpoint holds."""
    pytest.importorskip("tensorboard")
    train_until(stop_at, "--output", tmp_path, "--tensorboard")
    assert [step for step, _ in shown(tmp_path / "tensorboard" / "updates")["loss"]] == list(range(stop_at))
    assert (tmp_path / "last.pt").exists() == (stop_at > 1)
    train("--output", tmp_path, "--tensorboard", "--resume")
    for table, names in SCALARS.items():
        assert shown(tmp_path / "tensorboard" / table) == logged(tmp_path / f"{table}.csv", names)


def test_no_events_unless_asked_for(train: Train, tmp_path: Path) -> None:
    train("--output", tmp_path, "--epochs", 1)
    assert not (tmp_path / "tensorboard").exists()


def test_without_tensorboard_the_run_does_not_start(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match="--tensorboard needs tensorboard: pip install tensorboard"):
        train("--output", tmp_path / "run", "--tensorboard")
    assert not (tmp_path / "run").exists()
