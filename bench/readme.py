"""The README's table of whole models, made from the results of `make bench-peers`.

Prints it; --write puts it between the two markers in README.md, --check fails where something else stands there.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "peers_models.json"
BEGIN, END = "<!-- python -m bench.readme --write -->", "<!-- end of the table -->"
_ABSENT = "–"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="fail where the README has another table")
    what.add_argument("--write", action="store_true", help="replace the README's table")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="JSON", help="measured models")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    return parser.parse_args(argv)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Speed-up over the fastest peer in Markdown: a line per model, a column per dtype, a number per thread count.

    Args:
        rows: of the JSON file of a comparison of models.

    Returns:
        The table without a line break at its end. A number is the geometric mean over the batch sizes; a cell says so
        where a result of ours failed the gate, and what was not measured is a dash.
    """
    rows = [row for row in rows if row["direction"] == "inference"]
    models, dtypes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "dtype"))
    threads, batches = (sorted({row[key] for row in rows}) for key in ("threads", "batch"))
    head = f"batch {', '.join(map(str, batches))}; {' / '.join(map(str, threads))} thread(s)"
    lines = ["| " + " | ".join([head, *dtypes]) + " |", "|---" * (1 + len(dtypes)) + "|"]
    for model in models:
        cells = [
            " / ".join(_mean(rows, {"model": model, "dtype": dtype, "threads": count}) for count in threads)
            for dtype in dtypes
        ]
        lines.append("| " + " | ".join([f"`{model}`", *cells]) + " |")
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> str:
    speedups = [row["speedup"] for row in rows if wanted.items() <= row.items()]
    if not speedups:
        return _ABSENT
    return "gate failed" if None in speedups else f"{statistics.geometric_mean(speedups):.2f}"


def split(text: str) -> tuple[str, str, str]:
    """What is before, between and after the markers, which belong to the first and the last part.

    Raises:
        ValueError: there is not one of each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"expected one {BEGIN} and after it one {END}")
    return before + begin, between, end + after


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where the README is not as it should be."""
    options = parse_arguments(argv)
    made = table(json.loads(options.results.read_text())["rows"])
    if not (options.check or options.write):
        print(made)
        return 0
    try:
        before, between, after = split(options.readme.read_text())
    except ValueError as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 1
    # Blank lines: Markdown takes no table right after a line of HTML.
    wanted = f"\n\n{made}\n\n"
    if options.write:
        options.readme.write_text(before + wanted + after)
    elif between != wanted:
        message = f"is not that of {options.results.name}; python -m bench.readme --write makes it so:"
        print(f"{options.readme}: its table of models {message}\n{made}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
