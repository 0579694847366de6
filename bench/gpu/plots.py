"""The pictures of a GPU report: speed-ups, fractions of the limits, and the throughput of models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Case = Mapping[str, Any]
_SHORT_NAMES = {"unfold_attn_fold": "v1", "separable_attn": "v2"}
_MARKERS = "os^Dv<>P"
# The mode that says most where a case has it: launch cost and a warm cache left out.
_MODES = ("cold", "graph", "eager")


def draw(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws what there is to draw.

    Args:
        data: a report's data.
        folder: where ops.png, limits.png and models.png go.

    Returns:
        The pictures written.
    """
    device = data["facts"].get("device", "")
    ops = [case for case in data["cases"] if case["shape"]]
    models = [case for case in data["cases"] if not case["shape"]]
    paths = []
    speedups = list(_points(ops, lambda record: record["speedup"]))
    if speedups:
        paths.append(_scatter(speedups, "speed-up over the best peer", device, folder / "ops.png", 1.0, 2))
    limits = list(_points(ops, lambda record: record.get("limit_fractions", {}).get("nearer")))
    if limits:
        paths.append(_scatter(limits, "part of the nearer limit", device, folder / "limits.png", 1.0, 10))
    if models:
        paths.append(_bars(models, device, folder / "models.png"))
    return paths


Point = tuple[str, str, float]


def _points(cases: list[Case], value: Any) -> Iterator[Point]:
    """(stage and direction, series, value) of every case that has a value."""
    for case in cases:
        mode = next((mode for mode in _MODES if mode in case["modes"]), None)
        number = None if mode is None else value(case["modes"][mode])
        if number is not None:
            direction = "" if case["direction"] == "forward" else " +bwd"
            label = f"{_SHORT_NAMES[case['subject']]} {case['shape']}{direction}"
            yield label, f"{case['dtype']}, batch {case['batch']}, {mode}", number


def _scatter(points: list[Point], title: str, device: str, path: Path, line: float, base: int) -> Path:
    labels = list(dict.fromkeys(label for label, _, _ in points))
    series = list(dict.fromkeys(name for _, name, _ in points))
    figure = Figure(figsize=(max(8.0, 2 + 0.28 * len(labels)), 5.2), layout="constrained")
    panel = figure.subplots()
    for index, name in enumerate(series):
        offset = 0.6 * ((index + 0.5) / len(series) - 0.5)
        chosen = [(labels.index(label) + offset, value) for label, one, value in points if one == name]
        panel.plot(
            *zip(*chosen, strict=True),
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="none",
            markersize=4,
            label=name,
        )
    panel.axhline(line, color="black", linewidth=0.8)
    panel.set_yscale("log", base=base)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_ylabel(title)
    panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    panel.grid(axis="y", linewidth=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    figure.suptitle(device, fontsize=9)
    figure.savefig(path, dpi=110)
    return path


def _bars(cases: list[Case], device: str, path: Path) -> Path:
    """Images per second of every candidate, a group of bars per case."""
    bars = [
        (case["name"], name, case["batch"] / timing["median_s"])
        for case in cases
        for record in case["modes"].values()
        for name, timing in record["timings"].items()
    ]
    figure = Figure(figsize=(9, max(3.0, 1 + 0.2 * len(bars))), layout="constrained")
    panel = figure.subplots()
    colors = {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(name for _, name, _ in bars))}
    panel.barh(range(len(bars)), [value for _, _, value in bars], color=[colors[name] for _, name, _ in bars])
    labels = [f"{case}: {name}" for case, name, _ in bars]
    panel.set_yticks(range(len(bars)), labels, fontsize=6)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("images per second")
    panel.set_title(device, fontsize=9)
    figure.savefig(path, dpi=110)
    return path
