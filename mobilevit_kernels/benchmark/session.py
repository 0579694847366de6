"""A run of a comparison: measure case by case with a line of progress for each row, then write what there is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.cases import DTYPES, IMAGE_SIDE, Case
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.benchmark.report import milliseconds, speedup_text, write_report
from mobilevit_kernels.benchmark.rows import Row, measure
from mobilevit_kernels.benchmark.timing import Sampler, matrix_rate, seconds_per_call

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        threads: thread counts, each a row.
        budget_s: seconds of timing a row.
        min_rounds: fewest rounds a row.
        image_side: image size of models in pixels.
        sample: as in :func:`time_in_turn`.
    """

    threads: Sequence[int]
    budget_s: float
    min_rounds: int
    image_side: int = IMAGE_SIDE
    sample: Sampler = seconds_per_call


@dataclass(frozen=True)
class Measured:
    """What a run measured: rows, the matrix rate by (dtype, threads), and whether it was interrupted."""

    rows: list[Row]
    rates: dict[tuple[str, int], float]
    interrupted: bool = False


def run(cases: Sequence[Case], settings: Settings) -> Measured:
    """Measures the cases, a line of progress for each row. An interrupt (Ctrl-C) ends it with the rows so far."""
    rows: list[Row] = []
    rates: dict[tuple[str, int], float] = {}
    total = len(cases) * len(settings.threads)
    try:
        dtypes = list(dict.fromkeys(case.dtype for case in cases))
        rates |= _matrix_rates(dtypes, settings)
        for case in cases:
            for row in measure(
                case,
                settings.threads,
                settings.image_side,
                rates,
                settings.budget_s,
                settings.min_rounds,
                settings.sample,
            ):
                rows.append(row)
                print(f"[{len(rows)}/{total}] {progress(row)}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {len(rows)} of {total} rows", flush=True)
        return Measured(rows, rates, interrupted=True)
    return Measured(rows, rates)


def _matrix_rates(dtypes: Sequence[str], settings: Settings) -> dict[tuple[str, int], float]:
    rates = {}
    for dtype, count in product(dtypes, settings.threads):
        rates[dtype, count] = matrix_rate(DTYPES[dtype], count, settings.budget_s)
        rate = f"{rates[dtype, count] / 1e9:.0f} GFLOP/s"
        print(f"matrix rate {dtype}, {count} thread(s): {rate}", flush=True)
    return rates


def progress(row: Row) -> str:
    """A row in one line."""
    ours, peer = (milliseconds(row.timings[name]) for name in (OURS, row.best_peer))
    times = f"{ours} ms, {row.best_peer} {peer} ms, speed-up {speedup_text(row)}"
    absent = f"; absent: {', '.join(row.absent)}" if row.absent else ""
    return f"{row.case}, {row.threads} thread(s): {times}{absent}"


def compare(
    cases: Sequence[Case],
    settings: Settings,
    command: str,
    stem: Path,
    write_more: Callable[[list[Row], dict[str, str]], list[Path]] | None = None,
) -> int:
    """Runs the cases and writes ``stem``.json, .md and .png.

    Args:
        cases: what is measured.
        settings: how.
        command: what the files say made them.
        stem: path of the files without suffix.
        write_more: called with the rows and the environment after that; returns what else it wrote.

    Returns:
        Exit status: 0 done, 1 a gate failed, 130 interrupted, with what was measured until then written.
    """
    start = time.perf_counter()
    environment = describe_environment()
    print("\n".join(f"{name}: {value}" for name, value in environment.items()), flush=True)
    measured = run(cases, settings)
    if not measured.rows:
        return EXIT_INTERRUPTED
    paths = write_report(measured.rows, environment, measured.rates, command, stem)
    if write_more is not None:
        paths += write_more(measured.rows, environment)
    failed = [row for row in measured.rows if not row.gate.passed]
    for row in failed:
        print(f"FAILED {row.case}, {row.threads} thread(s): {speedup_text(row)}")
    slower = sum(row.speedup is not None and row.speedup < 1 for row in measured.rows)
    print(
        f"{len(measured.rows)} rows in {time.perf_counter() - start:.0f} s: {len(failed)} failed the gate, {slower} "
        f"slower than the best peer; wrote {', '.join(map(str, paths))}"
    )
    if measured.interrupted:
        return EXIT_INTERRUPTED
    return 1 if failed else 0
