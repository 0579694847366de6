"""The report as a page: what ran where, summaries, every case, and what is missing."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from bench.gpu.document import failed_gates
from mobilevit_kernels.benchmark.report import milliseconds
from mobilevit_kernels.benchmark.timing import Timing

Case = Mapping[str, Any]

_HOW_TO_READ = """\
Candidates of a case ran in turn on the same inputs, after a correctness gate: against float64, our error is at most
2 times that of plain PyTorch in the same dtype, 3 times for gradients; nothing is called faster that failed it. Times
are medians in ms with quartiles. **eager**: back-to-back calls, launches included. **graph**: replays of a CUDA graph
of one call. **cold**: the same after a flush of the level-2 cache (the call itself where it cannot be captured).
**step**: one inference or training step of a model under autocast; torch.compile brings CUDA graphs of its own.

A fraction of a limit is the time that the needs of a case take at the measured rate, over our time. *copy* counts every
input read once and every result written once; *2nd pass* counts a tensor again that must be read twice unless it stays
on chip; *matrix* counts the multiply-adds of the products, two operations each; *nearer* is the larger of copy and
matrix. Memory is what torch reserved at most during a call, above what it held before the candidate was made."""


def render(data: Mapping[str, Any]) -> str:
    """The page of a report's data."""
    cases = data["cases"]
    ops = [case for case in cases if case["shape"]]
    models = [case for case in cases if not case["shape"]]
    commands = "".join(f"Made by `{command}`.\n" for command in data["commands"])
    sections = [
        f"# GPU report: {data['facts'].get('device', 'unknown device')}\n\n{commands}\n{_HOW_TO_READ}",
        "\n".join(f"- {name}: {value}" for name, value in {**data["facts"], **data["rates"]}.items()),
        _tests(data["tests"]),
        _section("Summary", _summary(cases)),
        _section("Ops", _ops(ops)),
        _section("Models", _models(models)),
        _section("Gates that failed", _gates(cases)),
        _section("Cases that failed", _pairs("case", data["failed"])),
        _section("Refused", _refused(cases)),
        _section("Left out", _pairs("case", data["left_out"])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def table(head: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table; ``head`` names the columns, separated by "|". Empty where there is no row."""
    if not rows:
        return []
    cells = [cell.strip() for cell in head.split("|")]
    lines = ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _tests(tests: Mapping[str, Any]) -> str:
    if not tests:
        return "## Tests\n\nnot run"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in tests["counts"].items()) or "none ran"
    end = "" if tests["finished"] else "; **stopped before the end: out of time**"
    lines = [f"{counts} in {tests['seconds']:.0f} s{end} (all of it in tests.txt)"]
    lines += [f"- {test}" for test in tests["failures"]]
    return _section("Tests", lines)


def _summary(cases: list[Case]) -> list[str]:
    groups: dict[tuple[str, ...], list[tuple[Case, Any]]] = defaultdict(list)
    for case in cases:
        for mode, record in case["modes"].items():
            what = (case["subject"], case["dtype"], str(case["batch"]), case["direction"], mode)
            groups[what].append((case, record))
    rows = []
    for key, members in groups.items():
        speedups = [record["speedup"] for _, record in members if record["speedup"] is not None]
        nearer = [record["limit_fractions"]["nearer"] for _, record in members if "limit_fractions" in record]
        failed = sum(bool(failed_gates(case)) for case, _ in members)
        spread = ["–"] * 3
        if speedups:
            mean = statistics.geometric_mean(speedups)
            spread = [f"{value:.2f}" for value in (min(speedups), mean, max(speedups))]
        limit = f"{statistics.geometric_mean(nearer):.0%}" if nearer else ""
        rows.append([*key, str(len(members)), *spread, limit, str(failed)])
    head = "what | dtype | batch | direction | mode | cases | slowest | geometric mean | fastest"
    return table(f"{head} | of the nearer limit | failed gate", rows)


def _ops(cases: list[Case]) -> list[str]:
    rows = []
    for case in cases:
        what = f"{case['subject']} {case['shape']} ({case['model']})"
        for mode, record in case["modes"].items():
            fractions = record.get("limit_fractions", {})
            limits = [
                f"{fractions[name]:.0%}" if fractions else ""
                for name in ("copy", "copy, second pass", "matrix", "nearer")
            ]
            times = [_time(record, record["best_ours"]), _time(record, record["best_peer"])]
            rows.append(
                [what, case["dtype"], str(case["batch"]), case["direction"], mode, *times]
                + [record["best_peer"] or "–", speedup_text(record["speedup"]), *limits]
            )
    head = "what | dtype | batch | direction | mode | ours, ms | best peer, ms | peer | speed-up"
    return table(f"{head} | copy | 2nd pass | matrix | nearer", rows)


def _models(cases: list[Case]) -> list[str]:
    rows = []
    for case in cases:
        for record in case["modes"].values():
            best_peer = record["best_peer"]
            for name, timing in record["timings"].items():
                ratio = record["timings"][best_peer]["median_s"] / timing["median_s"] if best_peer else None
                mark = f"**{name}**" if name in (record["best_ours"], best_peer) else name
                memory = case["memory_bytes"].get(name)
                rows.append(
                    [case["model"], case["dtype"], str(case["batch"]), case["direction"], mark]
                    + [_time(record, name), f"{case['batch'] / timing['median_s']:.0f}"]
                    + [speedup_text(ratio), "" if memory is None else f"{memory / 2**20:.0f}"]
                )
    head = "model | AMP dtype | batch | what | candidate (best in bold) | ms | images/s"
    return table(f"{head} | best peer / this | memory, MiB", rows)


def _gates(cases: list[Case]) -> list[str]:
    rows = [[case["name"], name, text] for case in cases for name, text in failed_gates(case).items()]
    return table("case | candidate | gate", rows)


def _refused(cases: list[Case]) -> list[str]:
    """One row per candidate and reason, with the number of cases: a backend refuses the same everywhere."""
    counts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        for name, reason in case["refused"].items():
            counts[name, reason].append(case["name"])
    rows = [
        [name, reason.replace("|", "/"), str(len(names)), names[0]]
        for (name, reason), names in counts.items()
    ]
    return table("candidate | reason | cases | for example", rows)


def _pairs(first: str, pairs: Mapping[str, str]) -> list[str]:
    return table(f"{first} | reason", [[name, reason.replace("|", "/")] for name, reason in pairs.items()])


def _time(record: Mapping[str, Any], name: str | None) -> str:
    return "–" if name is None else milliseconds(Timing(**record["timings"][name]))


def speedup_text(speedup: float | None) -> str:
    """A ratio, or a dash where a gate failed or nobody else ran."""
    return "–" if speedup is None else f"{speedup:.2f}"
