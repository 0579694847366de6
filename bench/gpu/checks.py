"""Runs the tests that need a GPU, within a limit of time, and counts what they say."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS_NAME = "tests.txt"

# A verbose line, alone or from a worker of pytest-xdist; the summary at the end repeats some of them.
_OUTCOME = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (\w+) (tests/\S.*)|(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b.*)$"
)
_SUMMARY = "short test summary info"
_BAD = ("FAILED", "ERROR")
_WORKERS = 12


def run_tests(folder: Path, limit_s: float, device: str, selection: str) -> dict[str, Any]:
    """Runs tests/gpu and writes what pytest prints to a file.

    Args:
        folder: where the file goes.
        limit_s: pytest is stopped after this many seconds.
        device: "cuda", or "cpu" to run what of the tests runs there.
        selection: as pytest's ``-k``; empty for all.

    Returns:
        What the report says of the tests: counts by outcome, the failures, whether pytest ended by itself, seconds.
    """
    # What compiles whole models takes longest: it comes last.
    files = sorted(ROOT.glob("tests/gpu/test_*.py"), key=lambda path: ("compile" in path.name, path.name))
    tests = [str(path.relative_to(ROOT)) for path in files]
    command = [sys.executable, "-m", "pytest", *tests, "--verbose", "--tb=short", "-k", selection]
    command += ["-p", "no:cacheprovider", "--color=no"]
    if device == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(_WORKERS, len(os.sched_getaffinity(0))))]
    environment = os.environ | {"MOBILEVIT_GPU_TEST_DEVICE": device}
    start_s = time.monotonic()
    path = folder / TESTS_NAME
    with path.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = _wait(process, limit_s)
    text = path.read_text(errors="replace")
    return {**count_outcomes(text), "finished": status is not None, "status": status} | {
        "seconds": time.monotonic() - start_s
    }


def count_outcomes(text: str) -> dict[str, Any]:
    """Counts by outcome, and the tests that failed, from what ``pytest --verbose`` printed (perhaps not all of it)."""
    counts: Counter[str] = Counter()
    failures = []
    for line in text.partition(_SUMMARY)[0].splitlines():
        match = _OUTCOME.match(line)
        if match is None:
            continue
        outcome, test = (match[1], match[2]) if match[1] else (match[4], match[3])
        counts[outcome.lower()] += 1
        if outcome in _BAD:
            failures.append(f"{outcome} {test.strip()}")
    return {"counts": dict(counts), "failures": failures}


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit status, or None where the process and its workers had to be stopped."""
    try:
        return process.wait(timeout=max(limit_s, 0.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
