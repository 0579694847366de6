"""The picture of the comparison of attention units."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.unit_problems import UNITS, UnitCase, UnitModelCase
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.rows import Row

_COLOURS = {"mha": "#1f5fa8", "linformer": "#c25a1a", "separable": "#1b7f5c"}
_NAMES = {"mha": "multi-head", "linformer": "Linformer", "separable": "separable"}
# Complexity in the number of tokens N as the paper states it (arXiv 2206.02680, figure 1).
_CLAIMS = {"mha": 2, "separable": 1}


def plot_units(rows: Sequence[Row], published_ms: Mapping[str, float], processor: str, path: Path) -> None:
    """Draws latency against tokens, and the models beside the published latencies; of the first dtype and threads.

    Args:
        rows: what was measured.
        published_ms: unit -> milliseconds on a phone.
        processor: the title.
        path: where the picture goes.
    """
    first = rows[0]
    chosen = [row for row in rows if row.case.dtype == first.case.dtype and row.threads == first.threads]
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _draw_layers(left, [row for row in chosen if isinstance(row.case, UnitCase)])
    _draw_models(right, [row for row in chosen if isinstance(row.case, UnitModelCase)], published_ms)
    figure.suptitle(f"{processor}, {first.threads} thread(s), {first.case.dtype}", fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_layers(axes: Axes, rows: Sequence[Row]) -> None:
    for unit in UNITS:
        points = [row for row in rows if isinstance(row.case, UnitCase) and row.case.unit == unit]
        if not points:
            continue
        tokens = [row.case.tokens for row in points if isinstance(row.case, UnitCase)]
        ours = [row.timings[OURS].median_s * 1e3 for row in points]
        plain = [row.timings[row.best_peer].median_s * 1e3 for row in points]
        axes.plot(tokens, ours, "o-", color=_COLOURS[unit], markersize=4, label=f"{_NAMES[unit]}, ours")
        axes.plot(
            tokens, plain, "s--", color=_COLOURS[unit], markersize=4, label=f"{_NAMES[unit]}, plain PyTorch"
        )
        if unit in _CLAIMS:
            # Through the last point of plain PyTorch, where the leading term shows most.
            power = _CLAIMS[unit]
            claim = [plain[-1] * (count / tokens[-1]) ** power for count in tokens]
            label = "claim: N²" if power == 2 else "claim: N"
            axes.plot(tokens, claim, ":", color=_COLOURS[unit], linewidth=0.9, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens N")
    axes.set_ylabel("ms")
    axes.set_title("One layer, 512 channels, 8 heads, 256 projected tokens", fontsize=10)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=7)


def _draw_models(axes: Axes, rows: Sequence[Row], published_ms: Mapping[str, float]) -> None:
    bars: dict[str, list[float]] = {"ours": [], "plain PyTorch": [], "published: iPhone 12": []}
    names = []
    for row in rows:
        if isinstance(row.case, UnitModelCase):
            names.append(_NAMES[row.case.unit])
            bars["ours"].append(row.timings[OURS].median_s * 1e3)
            bars["plain PyTorch"].append(row.timings[row.best_peer].median_s * 1e3)
            bars["published: iPhone 12"].append(published_ms[row.case.unit])
    colours = ("#1b7f5c", "#b8b8b8", "white")
    for index, ((label, heights), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        positions = [position + 0.27 * (index - 1) for position in range(len(names))]
        drawn = axes.bar(
            positions, heights, width=0.25, label=label, color=colour, edgecolor="black", linewidth=0.5
        )
        axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("ms")
    axes.set_title("MobileViT-S with each unit, one image", fontsize=10)
    axes.legend(fontsize=7)
