"""Compiles every Triton kernel in every configuration for every target; fails on a spill, an excess or an error."""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from bench.aot.compiling import Source, Usage, compile_source, source_of
from bench.aot.launches import DTYPES, Problem, launches, problems
from bench.aot.spills import add_spills
from mobilevit_kernels.triton_kernels.launch import TARGETS, Choice


@dataclass(frozen=True)
class Task:
    """One compilation, and the first problem that needs it."""

    target: str
    source: Source
    choice: Choice | None
    problem: Problem


@dataclass(frozen=True)
class Outcome:
    """What a compilation gave: what the kernel takes, or the compiler's error."""

    usage: Usage | None
    error: str | None = None

    def fault(self, target: str) -> str | None:
        """Why this fails the check; None where nothing is wrong."""
        if self.usage is None:
            return self.error
        if self.usage.spill_bytes:
            return f"spills {self.usage.spill_bytes} bytes"
        limit = TARGETS[target].shared_bytes
        if self.usage.shared_bytes > limit:
            return f"takes {self.usage.shared_bytes} bytes of shared memory, there are {limit}"
        return None


# What the worker processes, which are forked, compile: kernels cannot be sent to them.
_tasks: list[Task] = []


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a kernel failed to compile, spills, or does not fit, else 0; 0 with ``--record``."""
    options = _options(arguments)
    selected = [
        problem for problem in problems(options.quick, options.dtypes) if options.filter in str(problem)
    ]
    _tasks[:] = [task for target in options.targets for task in tasks(selected, target, options.record)]
    lines = []
    faulty = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:
        for task, outcome in zip(_tasks, pool.map(_compile, range(len(_tasks))), strict=True):
            lines.append(table_line(task, outcome))
            fault = outcome.fault(task.target)
            if fault is not None:
                faulty.append(task)
            if fault is not None or not options.faults_only:
                print(lines[-1], flush=True)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join([*TABLE_HEAD, *lines, ""]))
    print(f"{len(_tasks)} compilations for {', '.join(options.targets)}; {len(faulty)} at fault")
    if options.record:
        add_spills([(task.target, task.choice) for task in faulty if task.choice is not None])
        return 0
    return 1 if faulty else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--filter", default="", help="only problems whose description contains this")
    parser.add_argument("--quick", action="store_true", help="one model a generation, two of its stages")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--output", type=Path, help="write the table to this file")
    parser.add_argument("--faults-only", action="store_true", help="print only what is at fault")
    parser.add_argument(
        "--record",
        action="store_true",
        help="compile the candidates known to spill too, and add to spills.json what is at fault",
    )
    options = parser.parse_args(arguments)
    if not any(options.filter in str(problem) for problem in problems(options.quick, options.dtypes)):
        parser.error(f"--filter: no problem contains {options.filter!r}")
    return options


def tasks(selected: Sequence[Problem], target: str, spilling: bool) -> Iterator[Task]:
    """Everything to compile for a target, each source once."""
    seen = set()
    for problem in selected:
        for launch in launches(problem, TARGETS[target], spilling):
            source = source_of(launch)
            if source not in seen:
                seen.add(source)
                yield Task(target, source, launch.choice, problem)


def _compile(index: int) -> Outcome:
    task = _tasks[index]
    try:
        return Outcome(compile_source(task.source, TARGETS[task.target]))
    except Exception as error:  # whatever the compiler raises is a result: the other kernels still count
        return Outcome(None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


TABLE_HEAD = (
    "| target | kernel | first needed by | registers | spilled bytes | shared bytes | configuration | |",
    "|---|---|---|---|---|---|---|---|",
)


def table_line(task: Task, outcome: Outcome) -> str:
    """One row of the table."""
    usage = outcome.usage
    numbers = ("", "", "") if usage is None else (usage.registers, usage.spill_bytes, usage.shared_bytes)
    cells = (
        task.target,
        task.source.name,
        task.problem,
        *numbers,
        task.source.configuration,
        outcome.fault(task.target) or "",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
