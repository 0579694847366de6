"""A run of a comparison from the first case to the files, on problems of a few numbers."""

import json
from dataclasses import dataclass

import pytest
import torch

from mobilevit_kernels.benchmark import session
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.session import EXIT_INTERRUPTED, Settings

SETTINGS = Settings(threads=[1], budget_s=0.0, min_rounds=2)
TRUTH = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)


def candidate(name, call):
    return Candidate(name, call, (), torch.empty(0))


@dataclass(frozen=True)
class SmallCase:
    """Logits of one image; ``calls`` replaces candidates by name."""

    calls: tuple = ()
    subject: str = "a network"
    shape: str = ""
    model: str = "a network"
    dtype: str = "fp32"
    batch: int = 1
    direction: str = "inference"

    def problem(self, image_side):
        calls = {OURS: TRUTH.float, "eager": TRUTH.float, "other": TRUTH.float, **dict(self.calls)}
        ours, eager, other = (candidate(name, call) for name, call in calls.items())
        return Problem(
            quantities=("logits",),
            ours=ours,
            peers=(eager,),
            truth=candidate("truth", lambda: TRUTH),
            runtimes=(other,),
            absent={"OpenVINO": "not installed"},
        )


@pytest.fixture
def compare(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "matrix_rate", lambda *args: 1e9)

    def run(*cases):
        status = session.compare(cases, SETTINGS, "a command", tmp_path / "files" / "result")
        path = tmp_path / "files" / "result.json"
        return status, json.loads(path.read_text())["rows"] if path.is_file() else None

    return run


def raising(error):
    def call():
        raise error

    return call


def test_absent_peers_are_in_the_row(compare, capsys):
    status, (row,) = compare(SmallCase())
    assert status == 0
    assert row["absent"] == {"OpenVINO": "not installed"}
    assert set(row["timings"]) == {OURS, "eager", "other"}
    assert row["same_top1"] == 1.0
    assert "absent: OpenVINO" in capsys.readouterr().out


def test_what_a_runtime_raises_is_its_reason(compare):
    status, (row,) = compare(SmallCase((("other", raising(RuntimeError("no such operator\nmore"))),)))
    assert status == 0
    assert row["absent"]["other"] == "RuntimeError: no such operator"
    assert set(row["timings"]) == {OURS, "eager"}


@pytest.mark.parametrize("name", [OURS, "eager"])
def test_ours_and_plain_pytorch_may_not_fail(compare, name):
    with pytest.raises(RuntimeError, match="broken"):
        compare(SmallCase(((name, raising(RuntimeError("broken"))),)))


def test_a_runtime_without_numbers_is_no_peer(compare):
    status, (row,) = compare(SmallCase((("other", lambda: TRUTH.float() * float("nan")),)))
    assert status == 0
    assert row["absent"]["other"] == "its logits is not finite"


def test_a_runtime_that_is_off_still_counts(compare):
    _, (row,) = compare(SmallCase((("other", lambda: TRUTH.float() * 1.01),)))
    assert not row["other_gates"]["other"]["passed"]
    assert "other" in row["timings"]


def test_a_wrong_result_of_ours_fails_the_run(compare):
    status, (row,) = compare(SmallCase(((OURS, lambda: TRUTH.float().flip(1)),)))
    assert status == 1
    assert row["speedup"] is None
    assert row["same_top1"] == 0.0


def test_an_interrupt_writes_what_is_there(compare, capsys):
    interrupted = SmallCase((("other", raising(KeyboardInterrupt())),))
    status, rows = compare(SmallCase(), interrupted, SmallCase())
    assert status == EXIT_INTERRUPTED
    assert len(rows) == 1
    assert "interrupted after 1 of 3 rows" in capsys.readouterr().out


def test_an_interrupt_before_the_first_row_writes_nothing(compare):
    status, rows = compare(SmallCase((("other", raising(KeyboardInterrupt())),)))
    assert status == EXIT_INTERRUPTED
    assert rows is None
