"""The GPU report: what a run keeps, leaves out and prints; one run of the whole command on the CPU."""

import json
import sys
import time

import pytest
import torch

from bench.case import Case
from bench.gpu import report
from bench.gpu.budget import Budget
from bench.gpu.document import Document
from bench.gpu.markdown import render
from bench.gpu.measure import DeviceLost, case_record
from bench.gpu.plan import Planned, smoke_plan
from bench.shapes import StageShape
from mobilevit_kernels.benchmark.gate import GateResult
from mobilevit_kernels.benchmark.timing import Timing

ATTENTION = StageShape("unfold_attn_fold", "mobilevit_s", channels=144, side=32, num_heads=4)
CASE = Case(ATTENTION, "fp16", 256, "forward")


def timing(median_s: float) -> Timing:
    return Timing(median_s, median_s * 0.9, median_s * 1.1, 9, 1)


def gate(passed: bool = True) -> GateResult:
    return GateResult(passed, "out", error=1e-3 if passed else 0.5, peer_error=1e-3, limit=2e-3)


def op_record(passed: bool = True, case: Case = CASE) -> dict:
    timings = {"ours": timing(1e-3), "slow peer": timing(9e-3), "fast peer": timing(3e-3)}
    return case_record(
        case, {"ours": gate(passed)}, {"cold": timings}, {"cudnn": "head_dim 36"}, {"ours": 2**20}
    )


class TestRecords:
    def test_best_peer_and_speedup(self):
        mode = op_record()["modes"]["cold"]
        assert (mode["best_ours"], mode["best_peer"]) == ("ours", "fast peer")
        assert mode["speedup"] == pytest.approx(3.0)

    def test_no_speedup_without_a_passed_gate(self):
        mode = op_record(passed=False)["modes"]["cold"]
        assert mode["best_ours"] is None
        assert mode["speedup"] is None

    def test_a_variant_that_failed_its_gate_is_not_the_best(self):
        case = Case("mobilevit_s", "fp16", 1, "inference")
        timings = {"ours graph NHWC": timing(1e-3), "ours eager NHWC": timing(2e-3), "timm": timing(6e-3)}
        gates = {"ours graph NHWC": gate(False), "ours eager NHWC": gate()}
        mode = case_record(case, gates, {"step": timings}, {}, {})["modes"]["step"]
        assert mode["best_ours"] == "ours eager NHWC"
        assert mode["speedup"] == pytest.approx(3.0)


class TestDocument:
    def test_a_report_is_whole_after_every_case(self, tmp_path):
        document = Document(tmp_path / "new")
        document.plan(["one", "two"])
        document.add("one", op_record())
        document.save(render(document.data))
        data = json.loads((tmp_path / "new" / "report.json").read_text())
        assert [case["planned"] for case in data["cases"]] == ["one"]
        assert data["left_out"] == {"two": "not reached"}
        page = (tmp_path / "new" / "report.md").read_text()
        for expected in ("| two | not reached |", "fast peer | 3.00", "cudnn | head_dim 36", "1 (0.9–1.1)"):
            assert expected in page

    def test_a_case_with_more_candidates_replaces_its_first_measurement(self, tmp_path):
        document = Document(tmp_path)
        document.add("case", op_record())
        document.add("case with compile", op_record())
        assert [case["planned"] for case in document.data["cases"]] == ["case with compile"]
        assert not document.is_done("another")

    def test_resume_keeps_what_was_measured(self, tmp_path):
        first = Document(tmp_path)
        first.add("one", op_record())
        first.fail("two", "CUDA error")
        first.save("")
        second = Document(tmp_path)
        second.resume()
        assert second.is_done("one")
        assert second.is_done("two")

    def test_page_names_failed_gates_tests_and_cases(self, tmp_path):
        document = Document(tmp_path)
        document.add("one", op_record(passed=False))
        document.fail("two", "CUDA error: misaligned | address")
        document.data["tests"] = {
            "counts": {"passed": 3, "failed": 1},
            "failures": ["FAILED tests/gpu/test_x.py::test_y"],
            "finished": False,
            "seconds": 12.0,
        }
        page = render(document.data)
        for expected in (
            "out: error 5.0e-01 > 2.0e-03",
            "CUDA error: misaligned / address",
            "3 passed, 1 failed in 12 s",
            "out of time",
            "- FAILED tests/gpu/test_x.py::test_y",
        ):
            assert expected in page
        assert "3.00" not in page


class FakeRunner:
    def __init__(self, *results):
        self.results = list(results)
        self.measured = []

    def measure(self, planned):
        self.measured.append(str(planned))
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


class TestRunCases:
    def planned(self, *batches):
        return [Planned(Case(ATTENTION, "fp16", batch, "forward")) for batch in batches]

    def test_a_failing_case_does_not_end_the_run(self, tmp_path):
        runner = FakeRunner(RuntimeError("shapes differ\nmore"), op_record())
        document, planned = Document(tmp_path), self.planned(1, 2)
        report.run_cases(document, planned, runner, Budget(60))
        assert document.data["failed"] == {str(planned[0]): "shapes differ"}
        assert len(document.data["cases"]) == 1
        assert report.status(document) == 1

    def test_a_lost_device_is_noted_before_the_process_ends(self, tmp_path):
        document, planned = Document(tmp_path), self.planned(1, 2)
        with pytest.raises(DeviceLost):
            report.run_cases(document, planned, FakeRunner(DeviceLost("ours: gone")), Budget(60))
        assert json.loads((tmp_path / "report.json").read_text())["failed"] == {str(planned[0]): "ours: gone"}

    def test_a_case_that_does_not_fit_is_left_out_and_smaller_ones_still_run(self, tmp_path):
        compiled = Planned(CASE, compiled=True)
        runner = FakeRunner(op_record())
        document = Document(tmp_path)
        report.run_cases(document, [compiled, *self.planned(1)], runner, Budget(compiled.guess_s - 1))
        assert "it needs 60 s" in document.data["left_out"][str(compiled)]
        assert runner.measured == [str(one) for one in self.planned(1)]

    def test_what_is_done_is_not_measured_again(self, tmp_path):
        document, planned = Document(tmp_path), self.planned(1)
        document.add(str(planned[0]), op_record())
        runner = FakeRunner()
        report.run_cases(document, planned, runner, Budget(60))
        assert runner.measured == []

    def test_the_deadline_stops_a_running_case(self, tmp_path):
        class Slow(FakeRunner):
            def measure(self, planned):
                time.sleep(10)

        document, planned = Document(tmp_path), self.planned(1)
        budget = Budget(0.1)
        budget.observe("op", 0.0)
        report.run_cases(document, planned, Slow(), budget)
        assert document.data["left_out"][str(planned[0])] == "the time ran out while it was measured"


def test_command_needs_a_device(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device: expected a usable cuda"):
        report.main(["--output", str(tmp_path)])


def test_a_lost_device_continues_in_a_new_process(monkeypatch, tmp_path):
    started = []

    def lost(*arguments):
        raise DeviceLost("gone")

    monkeypatch.setattr(report, "run_parts", lost)
    monkeypatch.setattr(report.os, "execv", lambda path, command: started.append(command) or sys.exit(7))
    with pytest.raises(SystemExit, match="7"):
        report.main(["--device", "cpu", "--smoke", "--output", str(tmp_path), "--started", "1000"])
    (command,) = started
    assert command[1:3] == ["-m", "bench.gpu.report"]
    assert "--resume" in command
    assert command[command.index("--started") + 1] == "1000"


@pytest.mark.slow
def test_the_whole_command_on_the_cpu(tmp_path):
    assert report.main(["--device", "cpu", "--smoke", "--output", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "report.json").read_text())
    assert {case["planned"] for case in data["cases"]} == set(map(str, smoke_plan()))
    assert data["tests"]["counts"]["passed"] > 0
    assert not data["tests"]["failures"]
    assert not data["left_out"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.json", "report.md", "tests.txt", "ops.png", "limits.png", "models.png"}
    refused = {reason for case in data["cases"] for reason in case["refused"].values()}
    assert "CUDA graphs need a CUDA device" in refused
