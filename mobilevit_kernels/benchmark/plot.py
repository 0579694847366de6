"""The picture of what was measured."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilevit_kernels.benchmark.rows import Row

_SHORT_NAMES = {"unfold_attn_fold": "v1", "separable_attn": "v2"}
_MARKERS = "os^Dv<>P"

Series = tuple[str, int, int]


def plot_speedups(rows: list[Row], processor: str, path: Path) -> None:
    """Draws the speed-up of every row that passed the gate, a panel per direction.

    Args:
        rows: what was measured, at least one row.
        processor: the title.
        path: where the picture goes; its suffix says the format.
    """
    directions = list(dict.fromkeys(row.case.direction for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    series = list(dict.fromkeys(_series(row) for row in rows))
    figure = Figure(
        figsize=(max(8.0, 2 + 0.35 * len(labels)), 3.4 * len(directions) + 1.4), layout="constrained"
    )
    panels = figure.subplots(len(directions), 1, squeeze=False, sharex=True)[:, 0]
    for panel, direction in zip(panels, directions, strict=True):
        _draw_panel(panel, [row for row in rows if row.case.direction == direction], labels, series)
        panel.set_title(direction)
    panels[-1].set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=7)
    figure.suptitle(processor, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_panel(panel: Axes, rows: list[Row], labels: list[str], series: list[Series]) -> None:
    for index, key in enumerate(series):
        offset = 0.6 * ((index + 0.5) / len(series) - 0.5)
        points = [
            (labels.index(_label(row)) + offset, row.speedup)
            for row in rows
            if _series(row) == key and row.speedup is not None
        ]
        dtype, batch, threads = key
        panel.plot(
            [position for position, _ in points],
            [speedup for _, speedup in points],
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle="none",
            markersize=4,
            label=f"{dtype}, batch {batch}, {threads} thread(s)",
        )
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_ylabel("speed-up over the best peer")
    panel.grid(axis="y", linewidth=0.3)


def _series(row: Row) -> Series:
    return row.case.dtype, row.case.batch, row.threads


def _label(row: Row) -> str:
    return f"{_SHORT_NAMES.get(row.case.subject, row.case.subject)} {row.case.shape}".strip()
