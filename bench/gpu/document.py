"""The report's data: a dictionary that is written after every case, so that a killed run leaves what it measured."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.gpu.measure import Record

JSON_NAME, MARKDOWN_NAME = "report.json", "report.md"


class Document:
    """What a run measured, and what it left out.

    Args:
        folder: where the files go; made where it is missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.data: dict[str, Any] = {"commands": [], "facts": {}, "rates": {}, "tests": {}}
        self.data |= {"cases": [], "failed": {}, "left_out": {}}
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        """Continues the report in the folder, where there is one."""
        path = self.folder / JSON_NAME
        if path.is_file():
            self.data |= json.loads(path.read_text())

    def plan(self, names: Iterable[str]) -> None:
        """Notes what is to be measured: all of it is left out until it is done."""
        self.data["left_out"] = dict.fromkeys(names, "not reached")

    def is_done(self, name: str) -> bool:
        """Whether a planned case was measured, or failed, in this run or the one it continues."""
        return name in self.data["failed"] or any(case["planned"] == name for case in self.data["cases"])

    def add(self, name: str, record: Record) -> None:
        """Adds a measured case; it replaces one of the same case with fewer candidates."""
        kept = [case for case in self.data["cases"] if case["name"] != record["name"]]
        self.data["cases"] = [*kept, {**record, "planned": name}]
        self.data["left_out"].pop(name, None)

    def fail(self, name: str, reason: str) -> None:
        """Notes that a case could not be measured."""
        self.data["failed"][name] = reason
        self.data["left_out"].pop(name, None)

    def leave_out(self, name: str, reason: str) -> None:
        """Notes why a case was not started."""
        self.data["left_out"][name] = reason

    def save(self, markdown: str) -> None:
        """Writes both files; a reader never sees half a file."""
        write_atomically(self.folder / JSON_NAME, json.dumps(self.data, indent=1) + "\n")
        write_atomically(self.folder / MARKDOWN_NAME, markdown)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def failed_gates(case: Mapping[str, Any]) -> dict[str, str]:
    """Candidate of ours -> what its gate says, for the gates of a case that did not pass."""
    return {
        name: f"{gate['quantity']}: error {gate['error']:.1e} > {gate['limit']:.1e}"
        for name, gate in case["gates"].items()
        if not gate["passed"]
    }
