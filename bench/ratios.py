"""Speed as a ratio, plain PyTorch / ours, taken from one pytest-benchmark run and compared with a committed baseline.

A ratio of two times from one run says the same on a fast machine and a slow one with the same instruction set, so a
baseline holds elsewhere.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A ratio that is worse than the baseline's by more than this part is a regression.
TOLERANCE = 0.15


@dataclass(frozen=True)
class Ratio:
    """One group of a run.

    Attributes:
        ours_s: our median in seconds.
        peer_s: the fastest peer's.
        peer: the fastest peer's name.
        tests: pytest ids of the group's benchmarks, to run them again.
    """

    ours_s: float
    peer_s: float
    peer: str
    tests: tuple[str, ...]

    @property
    def value(self) -> float:
        """How many times faster ours is."""
        return self.peer_s / self.ours_s


@dataclass(frozen=True)
class Comparison:
    """What differs from a baseline.

    Attributes:
        regressed: group -> (ratio of the baseline, ratio of this run).
        missing: groups of the baseline that this run lacks.
        added: groups of this run that the baseline lacks.
    """

    regressed: dict[str, tuple[float, float]]
    missing: list[str]
    added: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing got slower and nothing went unmeasured."""
        return not self.regressed and not self.missing


def read_ratios(run: Mapping[str, Any]) -> dict[str, Ratio]:
    """Takes the ratio of every group from pytest-benchmark's JSON.

    Every benchmark says in ``extra_info["candidate"]`` whose time it is: "ours" or a peer's name.

    Args:
        run: the parsed JSON.

    Returns:
        Group -> ratio.

    Raises:
        ValueError: a group lacks our time or a peer's, or the run has no group at all.
    """
    groups: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for benchmark in run["benchmarks"]:
        groups[benchmark["group"]][benchmark["extra_info"]["candidate"]] = benchmark
    if not groups:
        raise ValueError("benchmarks: expected at least one, got none")
    return {group: _ratio(group, candidates) for group, candidates in groups.items()}


def _ratio(group: str, candidates: Mapping[str, Mapping[str, Any]]) -> Ratio:
    medians = {name: benchmark["stats"]["median"] for name, benchmark in candidates.items()}
    peers = [name for name in medians if name != "ours"]
    if "ours" not in medians or not peers:
        raise ValueError(f"{group}: expected ours and at least one peer, got {', '.join(medians)}")
    peer = min(peers, key=medians.__getitem__)
    tests = tuple(benchmark["fullname"] for benchmark in candidates.values())
    return Ratio(medians["ours"], medians[peer], peer, tests)


def compare(
    ratios: Mapping[str, float], baseline: Mapping[str, float], tolerance: float = TOLERANCE
) -> Comparison:
    """Compares the ratios of a run with those of a baseline.

    Args:
        ratios: group -> ratio of the run.
        baseline: group -> ratio of the baseline.
        tolerance: the part of a baseline's ratio that may be lost.
    """
    regressed = {
        group: (expected, ratios[group])
        for group, expected in baseline.items()
        if group in ratios and ratios[group] < expected * (1 - tolerance)
    }
    missing = [group for group in baseline if group not in ratios]
    added = [group for group in ratios if group not in baseline]
    return Comparison(regressed, missing, added)


def format_table(ratios: Mapping[str, Ratio], baseline: Mapping[str, float]) -> str:
    """A line per group: both medians, their ratio and, where there is one, the baseline's."""
    width = max(map(len, ratios))
    lines = [f"{'group':{width}}  {'ours ms':>9}  {'peer ms':>9}  {'ratio':>6}  {'baseline':>8}  peer"]
    for group, ratio in sorted(ratios.items()):
        known = f"{baseline[group]:8.2f}" if group in baseline else f"{'-':>8}"
        times = f"{ratio.ours_s * 1e3:9.4f}  {ratio.peer_s * 1e3:9.4f}"
        lines.append(f"{group:{width}}  {times}  {ratio.value:6.2f}  {known}  {ratio.peer}")
    return "\n".join(lines)


def format_comparison(comparison: Comparison) -> str:
    """A line per finding, or one line that says there is none."""
    lines = [
        f"REGRESSION {group}: ratio {now:.2f}, baseline {before:.2f} ({now / before - 1:+.0%})"
        for group, (before, now) in comparison.regressed.items()
    ]
    lines += [f"MISSING {group}: in the baseline, not in this run" for group in comparison.missing]
    lines += [f"new {group}: not in the baseline" for group in comparison.added]
    return "\n".join(lines) or "no ratio is worse than the baseline allows"
