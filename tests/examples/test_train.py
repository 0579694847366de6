"""Runs of examples/train.py: interrupted ones, bad ones, and what they leave on disk."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit_kernels
from mobilevit_kernels.cli.preprocess import Preprocess
from tests.examples.conftest import EXAMPLES, SMALL

Train = Callable[..., None]

pytest.importorskip("sklearn")

# A run of its own that hangs fails its test.
TIMEOUT_S = 600

# Dies as under kill -9, just before the update whose number comes first.
KILLED = """
import os, signal, sys, train
die_at, train_update = int(sys.argv.pop(1)), train.Training.update
def update(run, *args):
    if run.step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_update(run, *args)
train.Training.update = update
train.main()
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_same_files(actual: Path, expected: Path) -> None:
    """Equal logs, and checkpoints that are equal bit by bit."""
    for name in ("updates.csv", "epochs.csv", "config.json"):
        assert (actual / name).read_text() == (expected / name).read_text()
    for name in ("last.pt", "best.pt"):
        check_same(*(torch.load(folder / name, weights_only=True) for folder in (actual, expected)))


def check_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        check_same(list(actual.values()), list(expected.values()))
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            check_same(a, b)
    else:
        assert actual == expected


def killed(update: int, *args: object) -> None:
    command = [sys.executable, "-c", KILLED, str(update), *SMALL, *map(str, args)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, capture_output=True, timeout=TIMEOUT_S
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()


@pytest.mark.parametrize("left", [1, 2, 4])
def test_a_stopped_run_resumes_to_the_same_weights(
    train: Train, train_until: Train, tmp_path: Path, left: int
) -> None:
    """As below, in this process; ``left`` updates were still to come."""
    train("--output", tmp_path / "whole")
    updates = rows(tmp_path / "whole" / "updates.csv")
    train_until(len(updates) - left, "--output", tmp_path / "stopped")
    train("--output", tmp_path / "stopped", "--resume")
    check_same_files(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_same_weights(train: Train, tmp_path: Path, workers: int) -> None:
    train("--output", tmp_path / "whole")
    updates = rows(tmp_path / "whole" / "updates.csv")
    # The last update of the last epoch: later than its checkpoint in mid-epoch.
    killed(len(updates) - 1, "--output", tmp_path / "killed", "--workers", workers)
    left = torch.load(tmp_path / "killed" / "last.pt", weights_only=True)
    assert 0 < left["sampler"]["batches"] < sum(row["epoch"] == "1" for row in updates)
    train("--output", tmp_path / "killed", "--workers", workers, "--resume")
    check_same_files(tmp_path / "killed", tmp_path / "whole")
    train("--output", tmp_path / "killed", "--resume")  # nothing is left to do
    check_same_files(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path: Path) -> None:
    """Under torchrun, with gloo: the updates have the images of both, and a killed run resumes to the same weights."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)

    def launch(die_at: int, output: Path, *args: str) -> int:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, str(script), str(die_at), *SMALL, "--output", str(output), *args]
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, capture_output=True, timeout=TIMEOUT_S
        ).returncode

    assert launch(-1, tmp_path / "whole") == 0
    updates = rows(tmp_path / "whole" / "updates.csv")
    assert {(row["height"], row["images"]) for row in updates} <= {
        ("20", "80"), ("24", "56"), ("28", "40"), ("32", "32"), ("36", "24"), ("40", "20")
    }  # fmt: skip
    assert launch(len(updates) - 1, tmp_path / "killed") != 0
    assert launch(-1, tmp_path / "killed", "--resume") == 0
    check_same_files(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(train: Train, tmp_path: Path) -> None:
    train("--output", tmp_path / "whole", "--epochs", 1)
    killed(1, "--output", tmp_path / "killed", "--epochs", 1)
    train("--output", tmp_path / "killed", "--epochs", 1, "--resume")
    check_same_files(tmp_path / "killed", tmp_path / "whole")


def test_logs(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("--output", tmp_path)
    updates, epochs = rows(tmp_path / "updates.csv"), rows(tmp_path / "epochs.csv")
    assert [int(row["update"]) for row in updates] == list(range(len(updates)))
    assert {(row["height"], row["images"]) for row in updates} <= {
        ("20", "40"), ("24", "28"), ("28", "20"), ("32", "16"), ("36", "12"), ("40", "10")
    }  # fmt: skip
    assert len({row["height"] for row in updates}) > 1
    for epoch in ("0", "1"):
        assert sum(int(row["images"]) for row in updates if row["epoch"] == epoch) >= 80
    out = capsys.readouterr().out
    for row in epochs:
        assert f"epoch {row['epoch']}: held-out accuracy {float(row['accuracy']):.2%}" in out
    assert [row["epoch"] for row in epochs] == ["0", "1"]


def test_a_loss_that_is_not_finite_stops_the_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"the loss of update \d+ \(epoch 0, images .*\) is (nan|inf)"):
        train("--output", tmp_path, "--lr", 1e30)
    assert not (tmp_path / "last.pt").exists()


def test_runs_are_not_mixed(train: Train, tmp_path: Path) -> None:
    train("--output", tmp_path, "--epochs", 1)
    with pytest.raises(SystemExit, match=r"last\.pt exists: continue that run with --resume"):
        train("--output", tmp_path, "--epochs", 1)
    with pytest.raises(SystemExit, match=r"was written with seed 0; expected the same, got 7"):
        train("--output", tmp_path, "--epochs", 1, "--resume", "--seed", 7)


@pytest.mark.parametrize(
    ("model", "precision"),
    [("mobilevitv2_050", "bf16"), ("mobilevitv3_050", "fp16"), ("mobilevitv3_xxs", "bf16")],
)
def test_other_models_and_precisions(train: Train, tmp_path: Path, model: str, precision: str) -> None:
    train("--output", tmp_path, "--model", model, "--precision", precision, "--epochs", 1)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(
        value.dtype != torch.bfloat16 and value.isfinite().all() for value in state["state_dict"].values()
    )
    assert (precision == "fp16") == bool(state["scaler"])
    fixed = model.endswith("050")
    assert ({row["height"] for row in rows(tmp_path / "updates.csv")} == {"32"}) == fixed


def test_classify_uses_the_averaged_weights(
    train: Train,
    example_module: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command line prepares the image as the run did, and names the classes."""
    train("--output", tmp_path, "--epochs", 1)
    _, held_out, _ = example_module("train_data").read_digits()
    image = tmp_path / "digit.png"
    held_out[0][0].save(image)
    model = mobilevit_kernels.create_model("mobilevit_xxs", num_classes=10)
    model.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["state_dict_ema"])
    pixels = Preprocess(32, 32, "bilinear")(Image.open(image).convert("RGB"))
    with torch.no_grad():
        probabilities = model.eval()(pixels[None]).softmax(1)[0]
    for weights in ("best.pt", "last.pt"):
        capsys.readouterr()
        mobilevit_kernels.cli.main(["classify", str(image), "--weights", str(tmp_path / weights)])
        words = capsys.readouterr().out.splitlines()[2].split()
        assert words == [f"{probabilities.max():.2%}", str(probabilities.argmax().item()), words[2]]
        assert words[2] == words[1]


def make_folder(folder: Path) -> None:
    """Two classes of plain images, 4 to learn from and 2 held out of each."""
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name, channel in (("green", 1), ("red", 0)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


@pytest.mark.parametrize("model", ["mobilevit_xxs", "mobilevitv2_050"])
def test_folders_of_images(train: Train, tmp_path: Path, model: str) -> None:
    """Both augmentations, with the mixing of v2, and names of the classes."""
    pytest.importorskip("torchvision")
    make_folder(tmp_path / "data")
    options = ("--data", tmp_path / "data", "--model", model, "--batch-size", 4, "--output", tmp_path / "run")
    train(*options, "--workers", 1)
    assert '"green"' in (tmp_path / "run" / "config.json").read_text()
    assert len(rows(tmp_path / "run" / "epochs.csv")) == 2


def test_bad_folders_are_named(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(
        SystemExit, match=r"--data: expected 'digits' or a folder with train and val, found no .*train"
    ):
        train("--output", tmp_path / "run", "--data", tmp_path)


@pytest.mark.slow
def test_trains_and_classifies_digits(
    train: Train,
    example_module: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """End to end, on real data: the default model learns the digits, and the command line reads those held out."""
    train("--output", tmp_path, "--limit", 2000, "--size", 64, "--batch-size", 32, "--epochs", 10)
    assert max(float(row["averaged"]) for row in rows(tmp_path / "epochs.csv")) >= 0.97
    _, held_out, _ = example_module("train_data").read_digits()
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file, (image, _) in zip(files, held_out, strict=False):
        image.save(file)
    capsys.readouterr()
    mobilevit_kernels.cli.main(
        ["classify", *map(str, files), "--weights", str(tmp_path / "best.pt"), "--topk", "1"]
    )
    # A line of the model, then two lines an image: its file, and probability, index and name of the class.
    answers = [line.split()[2] for line in capsys.readouterr().out.splitlines()[2::2]]
    assert len(answers) == 40
    assert sum(answer == str(label) for answer, (_, label) in zip(answers, held_out, strict=False)) >= 38
