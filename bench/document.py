"""The Markdown document that a tool writes of its results."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def write_document(
    path: Path, title: str, facts: Mapping[str, str], about: str | None, body: Iterable[str]
) -> None:
    """Writes title, facts, description and body, with an empty line between.

    Args:
        path: of the file; its folder is made where it is missing.
        title: the heading.
        facts: environment, command and settings, by name: a list.
        about: the tool's docstring, whose first line the title stands for.
        body: lines of Markdown.
    """
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", *(about or "").splitlines()[2:], "", *body]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def printed(lines: Iterable[str]) -> list[str]:
    """The lines, each printed as soon as it is there."""
    result = []
    for line in lines:
        print(line, flush=True)
        result.append(line)
    return result
