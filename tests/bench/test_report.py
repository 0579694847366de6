"""What bench.compare writes: a number only for a right result, beside everything a reader needs to judge it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from bench import compare
from bench.case import Case
from bench.shapes import ATTENTION_SHAPES
from mobilevit_kernels.benchmark import session
from mobilevit_kernels.benchmark.gate import GateResult
from mobilevit_kernels.benchmark.report import three_digits, write_report
from mobilevit_kernels.benchmark.rows import Row, candidate_names
from mobilevit_kernels.benchmark.timing import Timing


def make_row(passed: bool = True, ours_s: float = 0.001, threads: int = 1, **fields: Any) -> Row:
    timings = {
        "ours": Timing(ours_s, ours_s * 0.9, ours_s * 1.1, 9, 1),
        "slow peer": Timing(0.009, 0.008, 0.010, 9, 1),
        "fast peer": Timing(0.003, 0.002, 0.004, 9, 1),
    }
    gate = GateResult(passed, "out", error=1e-6 if passed else 0.5, peer_error=1e-6, limit=2e-6)
    case = Case(ATTENTION_SHAPES[0], "fp32", 1, "forward")
    return Row(case, threads, gate, timings, flops=1e8, matrix_rate=2e11, **fields)


def report(rows, folder):
    rates = {("fp32", 1): 2e11}
    return write_report(rows, {"processor": "A Processor"}, rates, "a command", folder / "new" / "ops")


def test_report_has_ratio_rate_and_environment(tmp_path):
    json_path, markdown_path, picture = report([make_row()], tmp_path)
    document = json.loads(json_path.read_text())
    (row,) = document["rows"]
    assert row["speedup"] == pytest.approx(3.0)
    assert row["best_peer"] == "fast peer"
    assert row["flops_per_s"] == pytest.approx(1e11)
    assert row["matrix_fraction"] == pytest.approx(0.5)
    assert document["command"] == "a command"
    assert document["environment"] == {"processor": "A Processor"}
    text = markdown_path.read_text()
    for expected in (
        "`a command`",
        "processor: A Processor",
        "1 (0.9–1.1)",
        "3 (2–4)",
        "fast peer | 3.00 | 100 | 50%",
    ):
        assert expected in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_numbers_have_three_digits_and_no_exponent():
    assert [three_digits(value) for value in (0.012345, 1.0, 999.4, 12345.6)] == [
        "0.0123",
        "1",
        "999",
        "12346",
    ]


def test_failed_gate_prints_no_speed_up(tmp_path):
    json_path, markdown_path, _ = report([make_row(passed=False)], tmp_path)
    assert json.loads(json_path.read_text())["rows"][0]["speedup"] is None
    text = markdown_path.read_text()
    assert "gate failed: out, error 5.0e-01 > 2.0e-06" in text
    assert "3.00" not in text


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_command_fails_where_a_gate_failed(passed, status, monkeypatch, tmp_path, capsys):
    measured = session.Measured([make_row(passed)], {("fp32", 1): 2e11})
    monkeypatch.setattr(session, "run", lambda cases, settings: measured)
    assert compare.main(["ops", "--output", str(tmp_path), "--name", "mine"]) == status
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine.md", "mine.png"}
    assert ("FAILED" in capsys.readouterr().out) is not passed


def test_filter_selects_cases_and_an_empty_choice_is_an_error(tmp_path):
    options = compare.parse_arguments(["ops", "--filter", "C144-32x32 fp32 batch 8"])
    assert [str(case) for case in compare.select_cases(options, "ops", [])] == [
        "unfold_attn_fold C144-32x32 fp32 batch 8 forward",
        "unfold_attn_fold C144-32x32 fp32 batch 8 forward+backward",
    ]
    with pytest.raises(SystemExit, match="nothing matches 'no such case'"):
        compare.main(["models", "--filter", "no such case", "--output", str(tmp_path)])


def test_absent_and_inexact_peers_are_marked_and_explained(tmp_path):
    inexact = GateResult(False, "out", error=1e-3, peer_error=1e-6, limit=2e-6)
    row = make_row(
        absent={"OpenVINO": "not installed"},
        other_gates={"fast peer": inexact},
        processors={"ours": 1.0, "slow peer": 2.0},
        same_top1=0.5,
    )
    json_path, markdown_path, _ = report([row], tmp_path)
    record = json.loads(json_path.read_text())["rows"][0]
    assert record["absent"] == {"OpenVINO": "not installed"}
    assert record["best_peer"] == "fast peer"
    text = markdown_path.read_text()
    assert "| 1 | 9 | 3 † | 50% |" in text
    assert "- OpenVINO (every row, fp32): not installed" in text
    assert (
        "- slow peer (every row, fp32): kept more processors busy than the row has threads, up to 2.0" in text
    )


def test_a_peer_absent_in_one_row_says_so_in_its_cell(tmp_path):
    present, absent = make_row(), make_row(absent={"fast peer": "RuntimeError: no"})
    del absent.timings["fast peer"]
    text = report([present, absent], tmp_path)[1].read_text()
    assert "| 1 | 9 | 3 |\n" in text
    assert "| 1 | 9 | absent |\n" in text
    assert "- fast peer (1 of 2 rows, fp32): RuntimeError: no" in text


def test_another_way_to_run_ours_is_no_peer():
    row = make_row()
    row.timings["ours eager"] = Timing(1e-6, 1e-6, 1e-6, 9, 1)
    assert row.best_peer == "fast peer"


def test_images_per_second_are_those_of_the_batch_but_not_of_a_wrong_result_of_ours():
    row = replace(make_row(), case=Case("mobilevit_s", "fp32", 8, "inference"))
    row.timings["ours eager"] = Timing(0.002, 0.002, 0.002, 9, 1)
    speeds = {"ours": 8000.0, "slow peer": 8 / 0.009, "fast peer": 8 / 0.003, "ours eager": 4000.0}
    assert row.images_per_s == pytest.approx(speeds)
    assert row.record()["images_per_s"] == pytest.approx(speeds)
    wrong = GateResult(False, "out", error=0.5, peer_error=1e-6, limit=2e-6)
    assert set(replace(row, gate=wrong).images_per_s) == {"slow peer", "fast peer", "ours eager"}
    others = {"fast peer": wrong, "ours eager": wrong}
    assert set(replace(row, other_gates=others).images_per_s) == {"ours", "slow peer", "fast peer"}


def test_many_candidates_are_drawn_in_a_picture_of_their_own(tmp_path):
    row = make_row(absent={"ONNX Runtime": "absent"})
    for name in ("eager NCHW", "OpenVINO"):
        row.timings[name] = Timing(0.002, 0.002, 0.002, 9, 1)
    *_, picture = report([row, make_row()], tmp_path)
    assert picture.name == "ops_candidates.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(report([make_row()], tmp_path)) == 3


def test_candidates_keep_their_order_where_a_row_lacks_one():
    few, all_of_them = make_row(), make_row()
    del few.timings["slow peer"]
    assert candidate_names([few, all_of_them]) == ["ours", "slow peer", "fast peer"]
