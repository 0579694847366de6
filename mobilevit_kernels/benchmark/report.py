"""Writes what was measured: JSON with everything, a Markdown table, and a plot of the speed-ups."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from mobilevit_kernels.benchmark.candidate_plot import plot_candidates
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.plot import plot_speedups
from mobilevit_kernels.benchmark.rows import Row, candidate_names
from mobilevit_kernels.benchmark.timing import Timing

INEXACT = "†"
_PROCESSOR_TOLERANCE = 0.3
# Ours and plain PyTorch in its forms: the speed-up says it all.
_FEW_CANDIDATES = 4
_TABLE_HEAD = (
    "| what | dtype | batch | threads | direction | ours, ms (quartiles) | best peer, ms (quartiles) | peer "
    "| speed-up | GFLOP/s | of matrix rate |"
)


def write_report(
    rows: list[Row],
    environment: dict[str, str],
    rates: dict[tuple[str, int], float],
    command: str,
    stem: Path,
) -> list[Path]:
    """Writes ``stem``.json, .md and .png, and with more candidates than plain PyTorch has ``stem``_candidates.png.

    Args:
        rows: what was measured, at least one row.
        environment: facts of the machine, by name.
        rates: (dtype, threads) -> measured matrix rate in operations per second.
        command: what made the rows.
        stem: path without suffix; its folder is made where it is missing.

    Returns:
        The paths.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: the stem may hold a dot.
    paths = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md", ".png")]
    document = {
        "command": command,
        "environment": environment,
        "matrix_flops_per_s": {f"{dtype}, {count} threads": rate for (dtype, count), rate in rates.items()},
        "rows": [row.record() for row in rows],
    }
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(_markdown(rows, environment, rates, command))
    plot_speedups(rows, environment["processor"], paths[2])
    if any(len(row.timings) > _FEW_CANDIDATES for row in rows):
        paths.append(stem.with_name(stem.name + "_candidates.png"))
        plot_candidates(rows, environment["processor"], paths[3])
    return paths


def _markdown(
    rows: list[Row], environment: dict[str, str], rates: dict[tuple[str, int], float], command: str
) -> str:
    matrix = ", ".join(
        f"{dtype} on {count} thread(s) {rate / 1e9:.0f}" for (dtype, count), rate in rates.items()
    )
    lines = [
        f"Made by `{command}`.",
        "",
        "Ours and the peers ran in turn on the same inputs; times are medians. A speed-up is the fastest peer's median",
        "over ours, and is printed only where our error against float64 keeps to the limit (2 times plain PyTorch's",
        "error, 3 times for gradients). docs/benchmarks.md explains the columns.",
        "",
        *(f"- {name}: {value}" for name, value in environment.items()),
        f"- matrix rate, GFLOP/s of the faster of a large matrix product and a large convolution in torch, measured in "
        f"this run: {matrix}. Small products that stay in cache can be faster.",
        "",
        "## Summary",
        "",
        "| what | direction | dtype | threads | rows | slowest | geometric mean | fastest | failed gate |",
        "|---|---|---|---|---|---|---|---|---|",
        *_summary(rows),
        "",
        "## All rows",
        "",
        _TABLE_HEAD,
        "|---" * _TABLE_HEAD.count(" | ") + "|---|",
        *(_table_line(row) for row in rows),
        *_candidate_lines(rows),
        *_absence_lines(rows),
    ]
    return "\n".join(lines) + "\n"


def _summary(rows: list[Row]) -> list[str]:
    groups: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.case.subject, row.case.direction, row.case.dtype, row.threads].append(row)
    lines = []
    for (subject, direction, dtype, threads), members in groups.items():
        speedups = [row.speedup for row in members if row.speedup is not None]
        spread = "– | – | –"
        if speedups:
            mean = statistics.geometric_mean(speedups)
            spread = f"{min(speedups):.2f} | {mean:.2f} | {max(speedups):.2f}"
        failed = len(members) - len(speedups)
        lines.append(
            f"| {subject} | {direction} | {dtype} | {threads} | {len(members)} | {spread} | {failed} |"
        )
    return lines


def milliseconds(timing: Timing) -> str:
    """Median and quartiles, as "1.23 (1.20–1.31)"."""
    median, q1, q3 = (three_digits(1e3 * value) for value in (timing.median_s, timing.q1_s, timing.q3_s))
    return f"{median} ({q1}–{q3})"


def three_digits(value: float) -> str:
    """Three significant digits, and more rather than an exponent above 1000."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def speedup_text(row: Row) -> str:
    """The speed-up, or the quantity that the gate failed on."""
    if row.speedup is None:
        return f"gate failed: {row.gate.quantity}, error {row.gate.error:.1e} > {row.gate.limit:.1e}"
    return f"{row.speedup:.2f}"


def what(row: Row) -> str:
    """The case without dtype, batch and direction: the first column of the tables."""
    case = row.case
    return f"{case.subject} {case.shape} ({case.model})" if case.shape else case.subject


def _table_line(row: Row) -> str:
    case = row.case
    rate = ("", "") if row.rate is None else (f"{row.rate / 1e9:.3g}", f"{row.rate / row.matrix_rate:.0%}")
    cells = [
        what(row),
        case.dtype,
        str(case.batch),
        str(row.threads),
        case.direction,
        milliseconds(row.timings[OURS]),
        milliseconds(row.timings[row.best_peer]),
        row.best_peer,
        speedup_text(row),
        *rate,
    ]
    return "| " + " | ".join(cells) + " |"


def _candidate_lines(rows: list[Row]) -> list[str]:
    """The medians of every candidate, a column each."""
    names = candidate_names(rows)
    has_classes = any(row.same_top1 is not None for row in rows)
    head = [
        "what",
        "dtype",
        "batch",
        "threads",
        "direction",
        *names,
        *(["same top 1"] if has_classes else []),
    ]
    lines = [
        "",
        "## Every candidate, median in ms",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        case = row.case
        cells = [what(row), case.dtype, str(case.batch), str(row.threads), case.direction]
        cells += [_median_cell(row, name) for name in names]
        if has_classes:
            cells.append("" if row.same_top1 is None else f"{row.same_top1:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{INEXACT}: its error is above the limit that ours has to keep; it counts as a peer all the same.",
    ]
    return lines


def _median_cell(row: Row, name: str) -> str:
    if name not in row.timings:
        return "absent" if name in row.absent else ""
    gate = row.other_gates.get(name)
    mark = "" if gate is None or gate.passed else f" {INEXACT}"
    return f"{three_digits(1e3 * row.timings[name].median_s)}{mark}"


def _absence_lines(rows: list[Row]) -> list[str]:
    """Who did not run, and who ran on more processors than the row says."""
    absences: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for name, reason in row.absent.items():
            absences[name, reason].append(row)
        for name, processors in row.processors.items():
            if processors > row.threads + _PROCESSOR_TOLERANCE:
                reason = f"kept more processors busy than the row has threads, up to {processors:.1f}"
                absences[name, reason].append(row)
    if not absences:
        return []
    lines = ["", "## Absent, or not as asked", ""]
    for (name, reason), members in absences.items():
        where = "every row" if len(members) == len(rows) else f"{len(members)} of {len(rows)} rows"
        dtypes = ", ".join(dict.fromkeys(row.case.dtype for row in members))
        lines.append(f"- {name} ({where}, {dtypes}): {reason}")
    return lines
