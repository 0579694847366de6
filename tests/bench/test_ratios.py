"""The judgement of benchmark runs, on synthetic runs."""

import pytest

from bench.ratios import compare, format_comparison, format_table, read_ratios


def test_ratio_is_fastest_peer_median_over_ours(synthetic_run):
    run = synthetic_run.add("op/t1", ours=2.0, eager=6.0, timm=5.0)
    ratio = read_ratios(run.json)["op/t1"]
    assert ratio.value == pytest.approx(2.5)
    assert ratio.peer == "timm"
    assert set(ratio.tests) == {
        f"bench/bench_x.py::test_x[op/t1/{name}]" for name in ("ours", "eager", "timm")
    }


@pytest.mark.parametrize(
    ("loss", "regressed"), [(0.20, True), (0.16, True), (0.14, False), (0.10, False), (-0.5, False)]
)
def test_regression_is_a_loss_of_more_than_15_percent(synthetic_run, loss, regressed):
    baseline = {"op/t1": 2.0}
    run = synthetic_run.add("op/t1", ours=1.0, eager=2.0 * (1 - loss))
    comparison = compare({group: ratio.value for group, ratio in read_ratios(run.json).items()}, baseline)
    assert comparison.passed is not regressed
    assert list(comparison.regressed) == (["op/t1"] if regressed else [])


def test_ratio_does_not_depend_on_the_speed_of_the_machine(synthetic_run):
    run = synthetic_run.add("op/t1", ours=1.0, eager=3.0).add("op/t2", ours=10.0, eager=30.0)
    ratios = read_ratios(run.json)
    assert ratios["op/t1"].value == pytest.approx(ratios["op/t2"].value)


def test_only_the_slower_group_is_named():
    comparison = compare({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.0})
    assert comparison.regressed == {"a": (2.0, 1.0)}
    text = format_comparison(comparison)
    assert "REGRESSION a" in text
    assert "-50%" in text
    assert "b" not in text.replace("baseline", "")


def test_missing_group_fails_and_new_group_does_not():
    missing = compare({"a": 2.0}, {"a": 2.0, "gone": 2.0})
    assert missing.missing == ["gone"]
    assert not missing.passed
    assert "MISSING gone" in format_comparison(missing)
    added = compare({"a": 2.0, "fresh": 0.1}, {"a": 2.0})
    assert added.added == ["fresh"]
    assert added.passed
    assert "new fresh" in format_comparison(added)


def test_no_finding_is_said():
    assert format_comparison(compare({"a": 2.0}, {"a": 2.0})) == "no ratio is worse than the baseline allows"


@pytest.mark.parametrize("candidates", [{"ours": 1.0}, {"eager": 1.0, "timm": 2.0}])
def test_group_without_a_pair_is_an_error(synthetic_run, candidates):
    with pytest.raises(ValueError, match="op/t1: expected ours and at least one peer, got"):
        read_ratios(synthetic_run.add("op/t1", **candidates).json)


def test_empty_run_is_an_error(synthetic_run):
    with pytest.raises(ValueError, match="expected at least one, got none"):
        read_ratios(synthetic_run.json)


def test_table_shows_both_times_the_ratio_and_the_baseline(synthetic_run):
    run = synthetic_run.add("op/t1", ours=0.002, eager=0.005).add("op/t2", ours=0.001, eager=0.001)
    header, first, second = format_table(read_ratios(run.json), {"op/t1": 2.4}).splitlines()
    assert header.split() == ["group", "ours", "ms", "peer", "ms", "ratio", "baseline", "peer"]
    assert first.split() == ["op/t1", "2.0000", "5.0000", "2.50", "2.40", "eager"]
    assert second.split() == ["op/t2", "1.0000", "1.0000", "1.00", "-", "eager"]
