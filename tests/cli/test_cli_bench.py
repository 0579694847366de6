"""``mobilevit bench``: a small run from arguments to files, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilevit_kernels.benchmark import engine as engine_module
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.engines import PEERS
from mobilevit_kernels.cli import bench
from mobilevit_kernels.cli.main import BENCH_DTYPES, BENCH_PEERS, build_parser

Command = Callable[..., Any]


def test_choices_are_those_of_the_benchmark() -> None:
    assert BENCH_PEERS == PEERS
    assert tuple(DTYPES) == BENCH_DTYPES


def test_small_run_writes_files_and_reports_absent_peers(
    mobilevit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda name: None)
    arguments = ["--models", "mobilevit_xxs", "--threads", "1", "--peers", "onnxruntime", "openvino"]
    code, out, err = mobilevit("bench", "--smoke", *arguments, "--output", tmp_path / "new" / "results")
    assert (code, err) == (0, "")
    assert "[1/1] mobilevit_xxs fp32 batch 1 inference, 1 thread(s): " in out
    document = json.loads((tmp_path / "new" / "results" / "models.json").read_text())
    (row,) = document["rows"]
    assert set(row["absent"]) == {"ONNX Runtime", "OpenVINO"}
    assert "onnxruntime, onnx, onnxscript not installed" in row["absent"]["ONNX Runtime"]
    assert row["gate"]["passed"]
    command = (
        "mobilevit bench --models mobilevit_xxs --dtypes fp32 bf16 --batches 1 8 --threads 1 "
        "--peers onnxruntime openvino --smoke"
    )
    assert document["command"] == command
    text = (tmp_path / "new" / "results" / "models.md").read_text()
    assert f"Made by `{command}`." in text
    assert "- openvino: " in text
    assert (tmp_path / "new" / "results" / "models.png").is_file()


def test_cases_are_every_combination() -> None:
    args = build_parser().parse_args(
        ["bench", "--models", "mobilevit_s", "mobilevit_xs", "--dtypes", "fp32", "--batches", "1", "4"]
    )
    assert [str(case) for case in bench.select_cases(args, [])] == [
        "mobilevit_s fp32 batch 1 inference",
        "mobilevit_s fp32 batch 4 inference",
        "mobilevit_xs fp32 batch 1 inference",
        "mobilevit_xs fp32 batch 4 inference",
    ]


def test_an_unknown_model_is_one_line(mobilevit: Command, tmp_path: Path) -> None:
    code, _, err = mobilevit("bench", "--models", "mobilevit_m", "--output", tmp_path)
    assert code == 1
    assert err.startswith("mobilevit: error: ")
    assert "mobilevit_m" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--peers", "tflite"], "invalid choice: 'tflite'"),
        (["--threads", "0"], "expected a positive integer, got '0'"),
        (["--budget", "-1"], "expected a positive number, got '-1'"),
        (["--budget", "nan"], "expected a positive number, got 'nan'"),
    ],
)
def test_wrong_arguments_exit_with_2(mobilevit: Command, arguments: list[str], reason: str) -> None:
    code, _, err = mobilevit("bench", *arguments)
    assert code == 2
    assert reason in err


def test_a_folder_that_cannot_be_made_is_one_line(mobilevit: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = mobilevit("bench", "--smoke", "--output", tmp_path / "file" / "below")
    assert code == 1
    assert "--output: expected a folder that can be made" in err
