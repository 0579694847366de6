"""Ours against plain PyTorch, in one run: ``python -m bench.compare ops`` or ``models``.

Each case passes a correctness gate first; then ours and the peers are timed in turn. Results go to a JSON file, a
Markdown table and a plot.
"""

import argparse
import re
import sys
import time
from itertools import product
from pathlib import Path

from bench.case import Case, cases
from bench.environment import describe_environment
from bench.problems import OURS
from bench.report import milliseconds, speedup_text, write_report
from bench.rows import Row, measure
from bench.shapes import (
    ATTENTION_SHAPES,
    DIRECTIONS,
    DTYPES,
    IMAGE_SIDE,
    MODELS,
    SEPARABLE_SHAPES,
    SMOKE_IMAGE_SIDE,
    STAGE_SHAPES,
    StageShape,
    smoke_shapes,
)
from bench.timing import matrix_rate

RESULTS = Path(__file__).parent / "results"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("what", choices=("ops", "models"))
    parser.add_argument("--filter", metavar="REGEX", default="", help="only cases whose name matches")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="torch threads, each a row")
    parser.add_argument(
        "--directions", nargs="+", choices=DIRECTIONS, help="both for ops, forward for models"
    )
    parser.add_argument(
        "--budget", type=float, metavar="S", help="seconds of timing a row (0.25; models 1.2)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--name", help="name of the result files, without suffix (default: ops or models)")
    parser.add_argument("--smoke", action="store_true", help="one small case of each kind, a few rounds")
    return parser.parse_args(argv)


def select_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    if options.what == "ops":
        targets: tuple[StageShape | str, ...] = STAGE_SHAPES
        if options.smoke:
            targets = smoke_shapes(ATTENTION_SHAPES) + smoke_shapes(SEPARABLE_SHAPES)
        directions = options.directions or list(DIRECTIONS)
    else:
        targets = (MODELS[0], MODELS[-1]) if options.smoke else MODELS
        directions = options.directions or ["forward"]
    batches = options.batches[:1] if options.smoke else options.batches
    selected = cases(targets, options.dtypes, batches, directions)
    return [case for case in selected if re.search(options.filter, str(case))]


def measure_matrix_rates(options: argparse.Namespace, budget_s: float) -> dict[tuple[str, int], float]:
    """The rate of a large matrix product, by (dtype, threads)."""
    rates = {}
    for dtype, count in product(options.dtypes, options.threads):
        rates[dtype, count] = matrix_rate(DTYPES[dtype], count, budget_s)
        print(
            f"matrix product {dtype}, {count} thread(s): {rates[dtype, count] / 1e9:.0f} GFLOP/s", flush=True
        )
    return rates


def run(options: argparse.Namespace, selected: list[Case]) -> tuple[list[Row], dict[tuple[str, int], float]]:
    """Measures the cases, a line of progress for each row; returns the rows and the matrix rates."""
    budget_s, min_rounds = (0.25, 5) if options.what == "ops" else (1.2, 3)
    budget_s = options.budget or budget_s
    if options.smoke:
        budget_s, min_rounds = 0.02, 2
    rates = measure_matrix_rates(options, budget_s)
    image_side = SMOKE_IMAGE_SIDE if options.smoke else IMAGE_SIDE
    rows: list[Row] = []
    for case in selected:
        for row in measure(case, options.threads, image_side, rates, budget_s, min_rounds):
            rows.append(row)
            ours, peer = (milliseconds(row.timings[name]) for name in (OURS, row.best_peer))
            progress = f"[{len(rows)}/{len(selected) * len(options.threads)}] {case}, {row.threads} thread(s)"
            print(
                f"{progress}: {ours} ms, {row.best_peer} {peer} ms, speed-up {speedup_text(row)}", flush=True
            )
    return rows, rates


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where a gate failed."""
    options = parse_arguments(argv)
    start = time.perf_counter()
    environment = describe_environment()
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))
    selected = select_cases(options)
    if not selected:
        raise SystemExit(f"--filter: expected to match a case, nothing matches {options.filter!r}")
    rows, rates = run(options, selected)
    command = " ".join(["python -m bench.compare", *argv])
    paths = write_report(rows, environment, rates, command, options.output / (options.name or options.what))
    failed = [row for row in rows if not row.gate.passed]
    for row in failed:
        print(f"FAILED {row.case}, {row.threads} thread(s): {speedup_text(row)}")
    slower = sum(row.speedup is not None and row.speedup < 1 for row in rows)
    print(
        f"{len(rows)} rows in {time.perf_counter() - start:.0f} s: {len(failed)} failed the gate, {slower} slower "
        f"than the best peer; wrote {', '.join(map(str, paths))}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
