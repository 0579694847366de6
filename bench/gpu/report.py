"""GPU tests and benchmarks in one run, within a limit of time, into one folder: ``python -m bench.gpu.report``.

Cases run in order of priority. The report is written after every one, and lists what was left out.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import torch

from bench.compare import RESULTS
from bench.gpu.budget import Budget, OutOfTime, time_limit
from bench.gpu.checks import run_tests
from bench.gpu.document import Document, failed_gates
from bench.gpu.facts import device_facts
from bench.gpu.markdown import render, speedup_text
from bench.gpu.measure import DeviceLost, Record
from bench.gpu.plan import Planned, full_plan, select, smoke_plan
from bench.gpu.plots import draw
from bench.gpu.runner import Runner

_PARTS = ("tests", "ops", "models")
# Kept back at the end for the pictures.
_RESERVE_S = 10.0
# The part of the time that the tests may take where benchmarks follow.
_TESTS_PART = 0.4
_SMOKE_TESTS = "test_patches and 1x1"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (9)")
    parser.add_argument(
        "--started", type=float, metavar="EPOCH", help="when those minutes began, in seconds since 1970 (now)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="bench/results/gpu-<name of the GPU>")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="parts to run (all)")
    parser.add_argument("--filter", metavar="REGEX", default="", help="only cases whose name matches")
    parser.add_argument("--tests", metavar="EXPR", default="", help="only these tests, as in pytest -k")
    parser.add_argument("--compile-mode", default="max-autotune", help="of torch.compile (max-autotune)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled candidates")
    parser.add_argument("--resume", action="store_true", help="continue the report in the folder")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the command out")
    parser.add_argument("--smoke", action="store_true", help="one small case of each kind, two rounds")
    return parser.parse_args(argv)


def output_folder(options: argparse.Namespace, device_name: str) -> Path:
    """Where the files go."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return options.output or RESULTS / f"gpu-{name}"


def planned_cases(options: argparse.Namespace) -> list[Planned]:
    """The cases that the options ask for, by priority."""
    planned = smoke_plan() if options.smoke else full_plan()
    return select(planned, options.filter, options.only, with_compile=not options.no_compile)


def run_cases(document: Document, planned: list[Planned], runner: Runner, budget: Budget) -> None:
    """Measures what fits, in order, a line of progress each.

    Raises:
        DeviceLost: the device cannot be used any more in this process.
    """
    for index, one in enumerate(planned, start=1):
        name = str(one)
        if document.is_done(name):
            continue
        if not budget.fits(one.kind, one.guess_s):
            reason = f"{max(budget.left_s, 0):.0f} s were left, it needs {budget.predict(one.kind, one.guess_s):.0f} s"
            document.leave_out(name, reason)
            continue
        start_s = time.monotonic()
        try:
            with time_limit(budget.left_s):
                record = runner.measure(one)
        except OutOfTime:
            document.leave_out(name, "the time ran out while it was measured")
            continue
        except (DeviceLost, RuntimeError) as error:
            document.fail(name, str(error).splitlines()[0])
            document.save(render(document.data))
            if isinstance(error, DeviceLost):
                raise
            continue
        seconds = time.monotonic() - start_s
        budget.observe(one.kind, seconds)
        document.add(name, record)
        document.save(render(document.data))
        print(f"[{index}/{len(planned)}] {name}: {outcome(record)} ({seconds:.1f} s)", flush=True)


def outcome(record: Record) -> str:
    """A case in one line: the speed-up in every mode, or what failed."""
    failed = failed_gates(record)
    if failed:
        return "; ".join(f"GATE FAILED, {name}, {text}" for name, text in failed.items())
    modes = record["modes"]
    assert isinstance(modes, dict)
    if not modes:
        return f"not measured: {record['refused']}"
    return ", ".join(
        f"{mode} {speedup_text(one['speedup'])} x {one['best_peer']}" for mode, one in modes.items()
    )


def run_parts(document: Document, options: argparse.Namespace, budget: Budget) -> None:
    """Tests first, then the cases."""
    planned = planned_cases(options)
    document.plan(str(one) for one in planned if not document.is_done(str(one)))
    document.save(render(document.data))
    if "tests" in options.only and not document.data["tests"]:
        part = _TESTS_PART if planned else 1.0
        print(f"== tests, at most {part * budget.left_s:.0f} s", flush=True)
        selection = options.tests or (_SMOKE_TESTS if options.smoke else "")
        device = torch.device(options.device).type
        tests = run_tests(document.folder, part * budget.left_s, device, selection)
        document.data["tests"] = tests
        document.save(render(document.data))
        print(f"tests: {tests['counts']}, {len(tests['failures'])} failed", flush=True)
    if planned:
        print(f"== {len(planned)} cases, {budget.left_s:.0f} s left", flush=True)
        runner = Runner(torch.device(options.device), options.compile_mode, options.smoke)
        document.data["rates"] = runner.describe_rates()
        run_cases(document, planned, runner, budget)


def status(document: Document) -> int:
    """1 where a test, a gate or a case failed, or pytest itself; else 0."""
    tests = document.data["tests"]
    pytest_failed = bool(tests) and (bool(tests["failures"]) or tests["status"] not in (0, None))
    gates = any(failed_gates(case) for case in document.data["cases"])
    return int(pytest_failed or gates or bool(document.data["failed"]))


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where a test, a gate or a case failed."""
    options = parse_arguments(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device: expected a usable {options.device}, torch {torch.__version__} finds none; "
            "--device cpu --smoke tries the command out"
        )
    if device.index is not None:
        torch.cuda.set_device(device)
    started = options.started or time.time()
    budget = Budget(started + 60 * options.minutes - time.time() - _RESERVE_S)
    facts = device_facts(device)
    document = Document(output_folder(options, facts["device"]))
    if options.resume:
        document.resume()
    document.data["facts"] = facts
    document.data["commands"].append(" ".join(["python -m bench.gpu.report", *argv]))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    try:
        run_parts(document, options, budget)
    except DeviceLost as error:
        print(f"the device is lost ({error}): going on in a new process", flush=True)
        again = [*argv, "--resume", "--started", str(started), "--output", str(document.folder)]
        os.execv(sys.executable, [sys.executable, "-m", "bench.gpu.report", *again])
    document.save(render(document.data))
    pictures = draw(document.data, document.folder)
    done, left = len(document.data["cases"]), len(document.data["left_out"])
    print(f"{done} cases measured, {left} left out; wrote {document.folder} with {len(pictures)} pictures")
    return status(document)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
