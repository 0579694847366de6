"""The picture of every candidate of a comparison."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilevit_kernels.benchmark.candidates import is_ours
from mobilevit_kernels.benchmark.rows import Row, candidate_names

_OURS_COLOURS = ("#1b7f5c", "#7fc4a8")
_PEER_COLOURS = ("#d0d0d0", "#a0a0a0", "#1f5fa8", "#6a8fc0", "#c25a1a", "#6a3d9a")

# Inches.
_NARROWEST, _WIDEST = 8.0, 18.0

Panel = tuple[str, int]


def plot_candidates(rows: list[Row], processor: str, path: Path) -> None:
    """Draws how fast every candidate is over the slowest of its row, a panel per dtype and thread count.

    Args:
        rows: what was measured, at least one row.
        processor: the title.
        path: where the picture goes; its suffix says the format.
    """
    panels = list(dict.fromkeys((row.case.dtype, row.threads) for row in rows))
    names = candidate_names(rows)
    largest = max(sum(_panel(row) == panel for row in rows) for panel in panels)
    width = min(_WIDEST, max(_NARROWEST, 0.12 * largest * len(names)))
    figure = Figure(figsize=(width, 3.2 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(axes, [row for row in rows if _panel(row) == panel], names)
        axes.set_title(f"{panel[0]}, {panel[1]} thread(s)", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    figure.suptitle(processor, fontsize=9)
    figure.savefig(path, dpi=120)


def _panel(row: Row) -> Panel:
    return row.case.dtype, row.threads


def _draw_panel(axes: Axes, rows: list[Row], names: list[str]) -> None:
    width = 0.85 / len(names)
    for index, name in enumerate(names):
        places = [place for place, row in enumerate(rows) if name in row.timings]
        speeds = [_slowest_s(rows[place]) / rows[place].timings[name].median_s for place in places]
        offset = width * (index - (len(names) - 1) / 2)
        axes.bar(
            [place + offset for place in places],
            speeds,
            width=width,
            label=name,
            color=candidate_colour(name, names),
        )
    labels = [f"{row.case.subject} {row.case.shape}\nbatch {row.case.batch}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=30, ha="right", fontsize=6)
    axes.set_ylabel("times faster than the slowest", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)


def _slowest_s(row: Row) -> float:
    return max(timing.median_s for timing in row.timings.values())


def candidate_colour(name: str, names: list[str]) -> str:
    """The colour of one of these candidates: greens are ours."""
    kind = [other for other in names if is_ours(other) == is_ours(name)]
    colours = _OURS_COLOURS if is_ours(name) else _PEER_COLOURS
    return colours[kind.index(name) % len(colours)]
