"""The start of a process: what counts as memory, that engines agree, and no number where they do not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import startup, startup_files
from bench.resident_memory import can_measure_peak
from bench.startup_files import EAGER, ONNXRUNTIME, OPENVINO, OPENVINO_IR
from bench.startup_process import MORE_IMAGES, Start, measure
from mobilevit_kernels.benchmark.candidates import OURS

MIB = 1 << 20
needs_peak = pytest.mark.skipif(not can_measure_peak(), reason="counts resident memory as Linux does")


def block(mib: int) -> Any:
    return np.ones(mib * MIB, np.uint8)


@needs_peak
def test_memory_is_the_peak_of_loading_and_running_above_the_framework(tmp_path: Path) -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    np.save(tmp_path / "image.npy", image)
    framework, images = [], []

    def load(model: str, file: Path, threads: int) -> Any:
        block(96)

        def run(given: Any) -> Any:
            images.append(given)
            return given.sum(axis=(1, 2, 3))

        return run

    start = Start(lambda: framework.append(block(256)), load)
    measured, logits = measure(start, "any", tmp_path, tmp_path / "image.npy", 1)
    assert 95 * MIB < measured["peak_bytes"] < 160 * MIB
    assert measured["import_s"] > 0
    assert measured["cold_s"] > 0
    assert len(images) == 1 + MORE_IMAGES
    assert logits.tolist() == [66.0]


def test_a_process_begins_without_any_framework() -> None:
    code = (
        "import sys, bench.startup_process; "
        "print([name for name in ('torch', 'numpy', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=startup.ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'nobody'"):
        startup.start("nobody", "mobilevit_xxs", tmp_path, tmp_path, 1)


def test_an_engine_that_cannot_start_is_absent_but_ours_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: str, *_: Any) -> Any:
        if engine == broken:
            raise RuntimeError("out of order")
        return {"logits": [1.0], "import_s": 1.0, "cold_s": 2.0, "peak_bytes": 3}

    monkeypatch.setattr(startup, "start", fail)
    starts = {OURS: ("ours", Path()), ONNXRUNTIME: ("onnxruntime", Path())}
    files = startup_files.StartFiles(starts, {OPENVINO: "not installed"}, Path(), torch.ones(1, 1).double())
    broken = "onnxruntime"
    rows, absent = startup.measure("m", files, 1, repeats=2)
    assert [(row.engine, row.cold_s, row.error) for row in rows] == [(OURS, [2.0, 2.0], 0.0)]
    assert absent == {OPENVINO: "not installed", ONNXRUNTIME: "out of order"}
    broken = "ours"
    with pytest.raises(RuntimeError, match="out of order"):
        startup.measure("m", files, 1, repeats=2)


def rows(error: float) -> list[startup.Row]:
    return [
        startup.Row("m", OURS, 1e-6, [0.5], [0.010, 0.020, 0.030], [50 * MIB]),
        startup.Row("m", ONNXRUNTIME, error, [0.1], [0.050], [75 * MIB]),
    ]


def test_ratios_are_over_ours() -> None:
    ours, peer = startup.table_lines(rows(error=1e-6))
    assert ours == "| m | ours | 500 (500–500) | 20 (15–25) | 1.00 | 50.0 | 1.00 |"
    assert peer == "| m | ONNX Runtime | 100 (100–100) | 50 (50–50) | 2.50 | 75.0 | 1.50 |"


@pytest.mark.parametrize("error", [2e-3, float("nan")])
def test_no_number_of_a_model_where_a_result_is_wrong(error: float) -> None:
    ours, peer = startup.table_lines(rows(error))
    assert ours == "| m | ours | right | | | | |"
    assert peer == f"| m | ONNX Runtime | gate failed: error {error:.1e} > 1e-03 | | | | |"


@needs_peak
def test_ours_and_eager_start_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_files, "missing_packages", lambda *packages: "not here")
    assert startup.main(["--smoke", "--models", "mobilevit_xxs", "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "startup.json").read_text())
    assert [row["engine"] for row in document["rows"]] == [OURS, EAGER]
    assert all(row["error"] < 1e-5 for row in document["rows"])
    assert all(row["cold_s"][0] > 0 and row["peak_bytes"][0] > 5 * MIB for row in document["rows"])
    text = (tmp_path / "startup.md").read_text()
    assert all(f"- absent: {engine}: not here" in text for engine in (ONNXRUNTIME, OPENVINO, OPENVINO_IR))


@needs_peak
@pytest.mark.slow
def test_every_engine_starts_and_agrees(tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnx", "onnxscript", "openvino"):
        pytest.importorskip(package)
    assert startup.main(["--smoke", "--models", "mobilevitv2_050", "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "startup.json").read_text())
    engines = [row["engine"] for row in document["rows"]]
    assert engines == [OURS, EAGER, ONNXRUNTIME, OPENVINO, OPENVINO_IR]
