"""What `python -m bench.suite check` decides, with the measuring replaced by synthetic runs."""

import json

import pytest

from bench import suite
from bench.ratios import read_ratios


@pytest.fixture
def measured(monkeypatch, synthetic_run):
    """Gives a group's ratio in the first run and, where it is measured again, in the repeat."""

    def install(first: float, repeat: float) -> list[list[str]]:
        runs = [first, repeat]
        calls: list[list[str]] = []

        def fake_run(tests, output, options):
            calls.append(list(tests))
            run = type(synthetic_run)().add("op/t1", ours=1.0, eager=runs.pop(0))
            return read_ratios(run.add("op/t2", ours=1.0, eager=2.0).json)

        monkeypatch.setattr(suite, "run_benchmarks", fake_run)
        return calls

    return install


@pytest.fixture
def baseline(monkeypatch, tmp_path):
    path = tmp_path / "results" / "baseline.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"ratios": {"op/t1": 2.0, "op/t2": 2.0}}))
    monkeypatch.setattr(suite, "BASELINE", path)
    return path


def test_check_passes_without_a_repeat(measured, baseline, capsys):
    calls = measured(first=1.8, repeat=0.0)
    assert suite.main(["check"]) == 0
    assert len(calls) == 1
    assert "no ratio is worse" in capsys.readouterr().out


def test_check_repeats_only_the_suspects_and_takes_the_better_ratio(measured, baseline):
    calls = measured(first=1.0, repeat=1.9)
    assert suite.main(["check"]) == 0
    assert calls[1] == ["bench/bench_x.py::test_x[op/t1/ours]", "bench/bench_x.py::test_x[op/t1/eager]"]


def test_check_fails_where_the_repeat_is_slow_too(measured, baseline, capsys):
    measured(first=1.0, repeat=1.6)
    assert suite.main(["check"]) == 1
    assert "REGRESSION op/t1: ratio 1.60, baseline 2.00" in capsys.readouterr().out


def test_check_without_a_baseline_fails(measured, baseline, capsys):
    baseline.unlink()
    measured(first=2.0, repeat=2.0)
    assert suite.main(["check"]) == 1
    assert "make bench-record" in capsys.readouterr().out


def test_record_then_check(measured, baseline, monkeypatch):
    measured(first=3.0, repeat=0.0)
    monkeypatch.setattr(suite, "BENCH", baseline.parent.parent / "bench")
    assert suite.main(["record"]) == 0
    assert suite.read_baseline() == {"op/t1": 3.0, "op/t2": 2.0}
    measured(first=2.0, repeat=2.0)
    assert suite.main(["check"]) == 1


@pytest.mark.parametrize(
    "arguments", [["record", "--filter", "t1"], ["check", "--smoke"], ["record", "--smoke"]]
)
def test_partial_runs_are_no_basis(arguments):
    with pytest.raises(SystemExit):
        suite.parse_arguments(arguments)
