"""Runs the pytest-benchmark suites and judges their ratios: ``python -m bench.suite run``, ``check`` or ``record``."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.ratios import Ratio, compare, format_comparison, format_table, read_ratios
from mobilevit_kernels import _C
from mobilevit_kernels.benchmark.environment import describe_environment

BENCH = Path(__file__).resolve().parent
# One for each instruction set: what kernels gain depends on it.
BASELINE = BENCH / "results" / f"baseline_{_C.cpu_capability()}.json"
OUTPUT = BENCH.parent / "build" / "bench"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.suite", description=__doc__)
    parser.add_argument(
        "action",
        choices=("run", "check", "record"),
        help="run: print the ratios; check: fail where one is worse than the baseline; record: write the baseline",
    )
    parser.add_argument(
        "--filter", metavar="EXPR", default="", help="only benchmarks that match, as in pytest -k"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="one small case of each kind, two rounds; run only"
    )
    parser.add_argument(
        "--max-time", type=float, default=0.2, metavar="S", help="seconds of rounds a benchmark (0.2)"
    )
    options = parser.parse_args(argv)
    if options.action != "run" and (options.smoke or (options.action == "record" and options.filter)):
        parser.error(f"{options.action}: a partial run is no basis; leave out --smoke and --filter")
    return options


def run_benchmarks(tests: Sequence[str], output: Path, options: argparse.Namespace) -> dict[str, Ratio]:
    """Runs benchmarks under pytest and returns group -> ratio.

    Args:
        tests: files, folders or pytest ids.
        output: where pytest-benchmark writes its JSON.
        options: the command line.

    Raises:
        SystemExit: pytest failed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    max_time, min_rounds = (0.01, 2) if options.smoke else (options.max_time, 5)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *tests,
        "-k",
        options.filter,
        "--benchmark-quiet",
        "--benchmark-disable-gc",
        f"--benchmark-max-time={max_time}",
        f"--benchmark-min-rounds={min_rounds}",
        f"--benchmark-json={output}",
    ]
    environment = os.environ | {"MOBILEVIT_BENCH_SMOKE": str(int(options.smoke))}
    status = subprocess.run(command, cwd=BENCH.parent, env=environment, check=False).returncode
    if status != 0:
        raise SystemExit(status)
    return read_ratios(json.loads(output.read_text()))


def better_of(first: dict[str, Ratio], second: dict[str, Ratio]) -> dict[str, Ratio]:
    """For every group of ``first``, the better of its ratios: noise only ever makes one of them worse."""
    return {
        group: max((ratio, second.get(group, ratio)), key=lambda candidate: candidate.value)
        for group, ratio in first.items()
    }


def read_baseline() -> dict[str, float]:
    """Group -> ratio of the committed baseline; empty where there is none yet."""
    return json.loads(BASELINE.read_text())["ratios"] if BASELINE.is_file() else {}


def write_baseline(ratios: dict[str, Ratio]) -> None:
    """Writes the ratios with what they were measured on."""
    document = {
        "command": "python -m bench.suite record",
        "environment": describe_environment(),
        "ratios": {group: round(ratio.value, 4) for group, ratio in sorted(ratios.items())},
    }
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text(json.dumps(document, indent=1) + "\n")


def check(ratios: dict[str, Ratio], baseline: dict[str, float], options: argparse.Namespace) -> int:
    """Compares with the baseline; groups that look slower run once more before they count. Returns the exit status."""
    if options.filter:
        baseline = {group: ratio for group, ratio in baseline.items() if group in ratios}
    if not baseline:
        print(
            f"check: expected ratios in {BASELINE.name} to compare with, got none; `make bench-record` writes it"
        )
        return 1
    suspects = compare(_values(ratios), baseline).regressed
    if suspects:
        print(f"\n{len(suspects)} group(s) look slower than the baseline; measuring them again", flush=True)
        tests = [test for group in suspects for test in ratios[group].tests]
        ratios = better_of(ratios, run_benchmarks(tests, OUTPUT / "repeat.json", options))
    comparison = compare(_values(ratios), baseline)
    print(format_comparison(comparison))
    return 0 if comparison.passed else 1


def _values(ratios: dict[str, Ratio]) -> dict[str, float]:
    return {group: ratio.value for group, ratio in ratios.items()}


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    options = parse_arguments(argv)
    baseline = read_baseline()
    ratios = run_benchmarks([str(BENCH)], OUTPUT / "run.json", options)
    print(format_table(ratios, baseline))
    if options.action == "record":
        write_baseline(ratios)
        print(f"wrote {BASELINE.relative_to(BENCH.parent)}")
    return check(ratios, baseline, options) if options.action == "check" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
