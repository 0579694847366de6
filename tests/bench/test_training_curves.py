"""Runs of both paths, and what is made of them. Most tests put a script in place of examples/train.py."""

import json
import subprocess
from pathlib import Path

import pytest

from bench import training_curves, training_runs
from bench.training_runs import FUSED, REFERENCE, TrainingRun, train

# Logs the backend, the seed and whether there are other arguments as if they were numbers of a training.
SCRIPT = """
import argparse, os
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--output", type=Path)
parser.add_argument("--seed", type=int)
args, others = parser.parse_known_args()
if args.model == "broken":
    raise SystemExit(3)
plain = int(os.environ["MOBILEVIT_BACKEND"] == "reference")
(args.output / "updates.csv").write_text(f"update,epoch,loss\\n0,0,2.5\\n1,0,{plain}\\n2,1,{args.seed}\\n")
(args.output / "epochs.csv").write_text(f"epoch,accuracy,averaged\\n0,0.{5 - plain},0.75\\n1,0.9,0.{8 + plain}\\n")
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(training_runs, "TRAIN", tmp_path / "script.py")


@pytest.mark.usefixtures("script")
def test_a_run_is_what_its_logs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the backend of its path, whatever the environment says."""
    monkeypatch.setenv("MOBILEVIT_BACKEND", "reference")
    fused = train("m", FUSED, ["--seed", "7"])
    monkeypatch.setenv("MOBILEVIT_BACKEND", "auto")
    reference = train("m", REFERENCE, ["--seed", "7"])
    assert fused == TrainingRun("m", FUSED, [2.5, 0, 7], [0.5, 0.9], [0.75, 0.8], fused.seconds)
    assert reference == TrainingRun("m", REFERENCE, [2.5, 1, 7], [0.4, 0.9], [0.75, 0.9], reference.seconds)
    assert 0 < fused.seconds < 60


@pytest.mark.usefixtures("script")
def test_a_run_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        train("broken", FUSED)


@pytest.mark.usefixtures("script")
def test_files(tmp_path: Path) -> None:
    arguments = ["--models", "a", "b", "--seed", "3", "--output", str(tmp_path / "results")]
    assert training_curves.main(arguments) == 0
    lines = (tmp_path / "results" / "training_curves.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| a", "| b"))]
    assert [row[:5] for row in rows] == [
        [model, "80.00% (90.00%)", "90.00% (90.00%)", "10.00% (10.00%)", "10.00% (0.00%)"] for model in "ab"
    ]
    document = json.loads((tmp_path / "results" / "training_curves.json").read_text())
    assert [(run["model"], run["path"]) for run in document["runs"]] == [
        ("a", "fused"), ("a", "reference"), ("b", "fused"), ("b", "reference")
    ]  # fmt: skip
    assert all(run["losses"][-1] == 3 for run in document["runs"])
    assert (tmp_path / "results" / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_largest_difference() -> None:
    assert training_curves.largest_difference([0.1, 0.5, 0.9], [0.2, 0.2, 0.9]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="zip"):
        training_curves.largest_difference([0.1], [0.1, 0.2])


@pytest.mark.slow
def test_both_paths_of_a_model_train(tmp_path: Path) -> None:
    """examples/train.py itself: the first updates are the same but for rounding."""
    pytest.importorskip("sklearn")
    assert training_curves.main(["--smoke", "--output", str(tmp_path)]) == 0
    fused, reference = json.loads((tmp_path / "training_curves.json").read_text())["runs"]
    assert fused["losses"][:2] == pytest.approx(reference["losses"][:2], abs=1e-3)
    assert len(fused["accuracies"]) == len(reference["averaged"]) == 2
