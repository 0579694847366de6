"""Start of a process: time from a file to the first result, and memory, ours and other runtimes.

Every engine runs in fresh processes, in turn with the others. Import: of the framework and of the package on top of it.
Cold start, after that: load the weights or the program from a file that is in the page cache, make it ready, and run
the first image. Memory: the most that is resident until ten images later, above what is resident after the import of
the framework; for ours that is torch, so that this package's own code and weights count. Ours reads a safetensors file
(`create_model`, then `optimize_for_inference`), eager PyTorch the same (timm's model, where timm has it), ONNX Runtime
an .onnx file, OpenVINO that or its own format. Times are medians with quartiles in brackets, memory is a median.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.document import write_document
from bench.startup_files import StartFiles, write_files
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.cases import IMAGE_SIDE
from mobilevit_kernels.benchmark.environment import describe_environment
from mobilevit_kernels.benchmark.gate import relative_error
from mobilevit_kernels.benchmark.report import milliseconds
from mobilevit_kernels.benchmark.timing import summarize

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MODELS = ("mobilevit_s", "mobilevitv2_100")
LARGEST_ERROR = 1e-3
_TABLE_HEAD = (
    "| model | engine | import, ms | cold start, ms | over ours | memory, MiB | over ours |",
    "|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Row:
    """One engine with one model, a number for each start.

    Attributes:
        model: a name of ``list_models()``.
        engine: as tables call it.
        error: largest error of the first logits against float64, relative to the largest true one.
        import_s: seconds of the imports.
        cold_s: seconds from the file to the first logits.
        peak_bytes: most resident memory above that after the import of the framework.
    """

    model: str
    engine: str
    error: float
    import_s: list[float]
    cold_s: list[float]
    peak_bytes: list[int]

    @property
    def passed(self) -> bool:
        """Whether the logits are right; without that no number is printed."""
        return self.error <= LARGEST_ERROR


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=1, help="of every engine (1)")
    parser.add_argument("--repeats", type=int, default=7, help="starts of every engine (7)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="the first model, one start of each engine")
    options = parser.parse_args(argv)
    for name in ("threads", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive number, got {getattr(options, name)}")
    return options


def start(engine: str, model: str, file: Path, image: Path, threads: int) -> dict[str, Any]:
    """Runs bench.startup_process with these arguments and returns what it prints.

    Raises:
        RuntimeError: it failed; the message is the last line of its output.
    """
    arguments = [engine, model, str(file), str(image), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.startup_process", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, files: StartFiles, threads: int, repeats: int) -> tuple[list[Row], dict[str, str]]:
    """Starts every engine ``repeats`` times, in turn.

    Returns:
        The rows, and engine -> why it is absent. Ours must start.
    """
    starts: dict[str, list[dict[str, Any]]] = {engine: [] for engine in files.starts}
    absent = dict(files.absent)
    for _ in range(repeats):
        for engine in list(starts):
            name, file = files.starts[engine]
            try:
                starts[engine].append(start(name, model, file, files.image, threads))
            except RuntimeError as error:
                if engine == OURS:
                    raise
                absent[engine] = str(error)
                del starts[engine]
    return [_row(model, engine, started, files.truth) for engine, started in starts.items()], absent


def _row(model: str, engine: str, starts: list[dict[str, Any]], truth: torch.Tensor) -> Row:
    logits = torch.tensor([each["logits"] for each in starts], dtype=torch.float64)
    numbers = ([each[key] for each in starts] for key in ("import_s", "cold_s", "peak_bytes"))
    return Row(model, engine, relative_error(logits, truth), *numbers)


def table_lines(rows: list[Row]) -> Iterator[str]:
    """The rows of one model in Markdown; only the errors where a result is wrong."""
    if not all(row.passed for row in rows):
        for row in rows:
            verdict = "right" if row.passed else f"gate failed: error {row.error:.1e} > {LARGEST_ERROR:.0e}"
            yield f"| {row.model} | {row.engine} | {verdict} | | | | |"
        return
    (ours,) = (row for row in rows if row.engine == OURS)
    for row in rows:
        memory = statistics.median(row.peak_bytes)
        cells = [
            row.model,
            row.engine,
            milliseconds(summarize(row.import_s)),
            milliseconds(summarize(row.cold_s)),
            f"{statistics.median(row.cold_s) / statistics.median(ours.cold_s):.2f}",
            f"{memory / (1 << 20):.1f}",
            f"{memory / statistics.median(ours.peak_bytes):.2f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def write(rows: list[Row], table: list[str], facts: dict[str, str], output: Path) -> None:
    """Writes startup.json and startup.md.

    Args:
        rows: what was measured.
        table: the same in Markdown.
        facts: environment, command and settings, by name.
        output: the folder; made where it is missing.
    """
    write_document(output / "startup.md", "Start of a process", facts, __doc__, table)
    document = {**facts, "rows": [asdict(row) for row in rows]}
    (output / "startup.json").write_text(json.dumps(document, indent=1) + "\n")


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where the logits of an engine are wrong."""
    options = parse_arguments(argv)
    models, repeats = (options.models[:1], 1) if options.smoke else (options.models, options.repeats)
    rows: list[Row] = []
    table = list(_TABLE_HEAD)
    absent: dict[str, str] = {}
    print("\n".join(table), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            files = write_files(model, IMAGE_SIDE, Path(folder))
            measured, reasons = measure(model, files, options.threads, repeats)
            table += (lines := list(table_lines(measured)))
            print("\n".join(lines), flush=True)
            rows += measured
            absent |= reasons
    facts = {
        **describe_environment(),
        "threads": str(options.threads),
        "image": f"1 x 3 x {IMAGE_SIDE} x {IMAGE_SIDE}, float32",
        "starts of each engine": str(repeats),
        **{f"absent: {engine}": reason for engine, reason in absent.items()},
        "command": " ".join(["python -m bench.startup", *argv]),
    }
    write(rows, table, facts, options.output)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
