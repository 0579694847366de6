"""Ours against plain PyTorch and, with --peers, against compilers and other runtimes, in one run.

Each case passes a correctness gate first; then ours and the peers are timed in turn. Each level (ops, token mixers,
whole models, training steps) goes to a JSON file, a Markdown table and a plot. Ctrl-C ends it and writes what is there.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.case import Case
from bench.levels import LEVELS
from bench.shapes import DIRECTIONS
from bench.throughput import write_throughput
from mobilevit_kernels.benchmark.cases import DTYPES, IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.engines import COMPILE_MODES, PEERS, engines
from mobilevit_kernels.benchmark.rows import Row
from mobilevit_kernels.benchmark.session import EXIT_INTERRUPTED, Settings, compare
from mobilevit_kernels.benchmark.timing import seconds_per_call, settled_seconds_per_call

RESULTS = Path(__file__).parent / "results"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("levels", nargs="+", choices=tuple(LEVELS), metavar="LEVEL", help=", ".join(LEVELS))
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=[],
        help="peers besides eager PyTorch; one that is not installed is reported as absent",
    )
    parser.add_argument(
        "--compile-modes", nargs="+", choices=COMPILE_MODES, default=["default"], help="each a peer"
    )
    parser.add_argument("--filter", metavar="REGEX", default="", help="only cases whose name matches")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads, each a row")
    parser.add_argument(
        "--directions", nargs="+", choices=DIRECTIONS, help="of ops and, without peers, of models"
    )
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of timing a row (0.25 to 6)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--name", help="name of the result files, without suffix (default: by the level)")
    parser.add_argument(
        "--throughput", action="store_true", help="of models: images per second over --batches too"
    )
    parser.add_argument("--smoke", action="store_true", help="one small case of each kind, a few rounds")
    options = parser.parse_args(argv)
    if options.name and len(options.levels) > 1:
        parser.error("--name: expected one level, since each writes files of its own")
    if options.throughput and options.levels != ["models"]:
        parser.error(f"--throughput: expected the level models alone, got {' '.join(options.levels)}")
    return options


def select_cases(options: argparse.Namespace, level: str, peers: list[Engine]) -> list[Case]:
    """The cases of a level that the options ask for."""
    directions = options.directions if level == "ops" or (level == "models" and not peers) else None
    selected = LEVELS[level].cases(options.dtypes, options.batches, directions, peers, options.smoke)
    return [case for case in selected if re.search(options.filter, str(case))]


def settings(options: argparse.Namespace, level: str) -> Settings:
    """How long a level is measured, and at what size."""
    kind = bool(options.peers)
    budget_s, rounds = options.budget or LEVELS[level].budget_s[kind], LEVELS[level].min_rounds[kind]
    if options.smoke:
        budget_s, rounds = 0.02, 2
    return Settings(
        threads=options.threads,
        budget_s=budget_s,
        min_rounds=rounds,
        image_side=SMOKE_IMAGE_SIDE if options.smoke else IMAGE_SIDE,
        sample=settled_seconds_per_call if options.peers else seconds_per_call,
    )


def throughput_writer(stem: Path) -> Callable[[list[Row], dict[str, str]], list[Path]]:
    """What ``compare`` calls to add images per second to the report ``stem``."""
    return lambda rows, environment: write_throughput(rows, environment["processor"], stem)


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where a gate failed, 130 where it was interrupted."""
    options = parse_arguments(argv)
    peers = engines(options.peers, options.compile_modes)
    selected = {level: select_cases(options, level, peers) for level in options.levels}
    if not any(selected.values()):
        raise SystemExit(f"--filter: expected to match a case, nothing matches {options.filter!r}")
    command = " ".join(["python -m bench.compare", *argv])
    status = 0
    for level, chosen in selected.items():
        if not chosen:
            continue
        name = options.name or (f"peers_{level}" if peers else level)
        stem = options.output / name
        write_more = throughput_writer(stem) if options.throughput else None
        status = max(status, compare(chosen, settings(options, level), command, stem, write_more))
        if status == EXIT_INTERRUPTED:
            break
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
