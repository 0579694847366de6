"""The comparison of attention units of arXiv 2206.02680 (figure 1, table 1) on this machine.

Multi-head attention, Linformer (256 projected tokens) and separable attention as one layer of 512 channels and 8 heads,
latency against the number of tokens; and MobileViT-S with each unit in place. Ours and plain PyTorch.
"""

import argparse
import sys
from pathlib import Path

from bench.unit_plot import plot_units
from bench.unit_problems import UNITS, UnitCase, UnitModelCase, unit_model
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.cases import DTYPES, IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.report import milliseconds
from mobilevit_kernels.benchmark.rows import Row
from mobilevit_kernels.benchmark.session import Settings, compare

RESULTS = Path(__file__).parent / "results"
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)
# arXiv 2206.02680, table 1: MobileViT with each unit on an iPhone 12, in ms.
PUBLISHED_MS = {"mha": 9.9, "linformer": 10.2, "separable": 3.4}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention_units", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="threads, each a row (1)")
    parser.add_argument("--budget", type=float, default=2.0, metavar="S", help="seconds of timing a row (2)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="few tokens, a small image, a few rounds")
    return parser.parse_args(argv)


def select_cases(options: argparse.Namespace) -> list[UnitCase | UnitModelCase]:
    """Every layer at every number of tokens, then the models."""
    tokens = TOKENS[:2] if options.smoke else TOKENS
    layers = [UnitCase(unit, count, dtype) for dtype in options.dtypes for unit in UNITS for count in tokens]
    return [*layers, *(UnitModelCase(unit, dtype) for dtype in options.dtypes for unit in UNITS)]


def model_table(rows: list[Row], image_side: int) -> list[str]:
    """MobileViT-S with each unit: parameters, latency here, latency as published."""
    lines = [
        "",
        "## MobileViT-S with each unit",
        "",
        f"Here: one image of {image_side} x {image_side} pixels on the processor above. Published (arXiv 2206.02680,",
        "table 1): an iPhone 12; only the order and the ratios can be compared.",
        "",
        "| unit | dtype | threads | parameters | ours, ms (quartiles) | plain PyTorch, ms (quartiles) | phone, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if isinstance(row.case, UnitModelCase):
            unit = row.case.unit
            count = sum(parameter.numel() for parameter in unit_model(unit, image_side).parameters())
            ours, plain = (milliseconds(row.timings[name]) for name in (OURS, row.best_peer))
            cells = [
                unit,
                row.case.dtype,
                str(row.threads),
                f"{count:,}",
                ours,
                plain,
                str(PUBLISHED_MS[unit]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where a gate failed, 130 where it was interrupted."""
    options = parse_arguments(argv)
    image_side = SMOKE_IMAGE_SIDE if options.smoke else IMAGE_SIDE
    settings = Settings(
        threads=options.threads,
        budget_s=0.02 if options.smoke else options.budget,
        min_rounds=2 if options.smoke else 5,
        image_side=image_side,
    )
    stem = options.output / "attention_units"

    def write_more(rows: list[Row], environment: dict[str, str]) -> list[Path]:
        with stem.with_suffix(".md").open("a") as table:
            table.write("\n".join(model_table(rows, image_side)) + "\n")
        picture = options.output / "attention_units_tokens.png"
        plot_units(rows, PUBLISHED_MS, environment["processor"], picture)
        return [picture]

    command = " ".join(["python -m bench.attention_units", *argv])
    return compare(select_cases(options), settings, command, stem, write_more)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
