"""The picture of a comparison: photographs and their agreement, attention maps, logits, times."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from mobilevit_kernels.cli.comparison import TOLERANCE, Comparison
from mobilevit_kernels.cli.scores import ScoreMaps

matplotlib.use("Agg")

from matplotlib import pyplot as plt

FUSED_COLOUR, PLAIN_COLOUR, MODEL_COLOURS = "#1b7f5c", "#b8b8b8", ("#1f5fa8", "#c25a1a", "#6a3d9a", "#b02a4c")
PANELS_PER_ROW = 4


class Page(NamedTuple):
    """What the picture says besides the comparisons.

    Args:
        title: first line.
        subtitle: second line: what was compared, where.
        maps_title: what the attention maps are, or None without them.
    """

    title: str
    subtitle: str
    maps_title: str | None


def save_picture(
    path: Path,
    page: Page,
    photos: dict[str, Image.Image],
    comparisons: Sequence[Comparison],
    maps: ScoreMaps | None,
) -> None:
    """Draws and writes a PNG.

    Args:
        path: the file; overwritten.
        page: the words.
        photos: name -> the square that the models see.
        comparisons: one per model, over the photographs in their order.
        maps: attention maps of the photographs, or None.

    Raises:
        OSError: the file cannot be written.
    """
    panel_rows = math.ceil(len(comparisons) / PANELS_PER_ROW)
    heights = [2.5 + 0.165 * len(comparisons), *([2.4] if maps is not None else []), 0.3 + 3.0 * panel_rows]
    figure = plt.figure(figsize=(14, sum(heights) + 1.5), layout="constrained")
    figure.suptitle(f"{_bold(page.title)}\n{page.subtitle}", fontsize=12)
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_photos(rows[0], photos, comparisons)
    if maps is not None:
        _draw_maps(rows[1], photos, maps, page.maps_title or "")
    left, right = rows[-1].subfigures(1, 2, width_ratios=[0.7 * min(len(comparisons), PANELS_PER_ROW), 1.3])
    _draw_logits(left, comparisons)
    _draw_times(right, comparisons)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _bold(words: str) -> str:
    return "$\\bf{" + words.replace(" ", "\\ ") + "}$"


def _draw_photos(figure: Any, photos: dict[str, Image.Image], comparisons: Sequence[Comparison]) -> None:
    figure.suptitle("Largest difference of the logits, relative to the largest logit", fontsize=10)
    for index, (axes, (name, photo)) in enumerate(
        zip(_axes(figure, len(photos)), photos.items(), strict=True)
    ):
        _show(axes, photo)
        axes.set_title(name, fontsize=10)
        lines = [f"{c.model_name}: {c.differences[index].item() / c.largest_logit:.0e}" for c in comparisons]
        axes.set_xlabel("\n".join(lines), fontsize=8)


def _draw_maps(figure: Any, photos: dict[str, Image.Image], maps: ScoreMaps, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    values = maps.maps.float().numpy()
    top = float(np.quantile(values, 0.99))
    all_axes = _axes(figure, len(photos))
    for axes, photo, scores in zip(all_axes, photos.values(), values, strict=True):
        _show(axes, photo.convert("L").point(lambda grey: 96 + grey * 0.6).convert("RGB"))
        extent = (0, photo.width, photo.height, 0)
        image = axes.imshow(
            scores, cmap="magma", alpha=0.6, vmin=0, vmax=top, extent=extent, interpolation="bilinear"
        )
    bar = figure.colorbar(image, ax=all_axes, shrink=0.9, pad=0.01, extend="max")
    bar.set_label("score × tokens\n(1 = average)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_logits(figure: Any, comparisons: Sequence[Comparison]) -> None:
    figure.suptitle(
        f"Every logit of every photograph (tolerance: {TOLERANCE:.0e} of the largest logit)", fontsize=10
    )
    for axes, comparison, colour in zip(
        _axes(figure, len(comparisons), PANELS_PER_ROW), comparisons, _cycle(comparisons), strict=True
    ):
        plain, difference = comparison.plain.flatten(), (comparison.fused - comparison.plain).flatten()
        unit = _power_of_ten(difference.abs().max().item())
        axes.axhline(0, color="black", linewidth=0.6)
        axes.scatter(
            plain.numpy(),
            difference.numpy() / unit,
            s=3,
            color=colour,
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        verdict = "PASS" if comparison.passed else "FAIL"
        axes.set_title(
            f"{comparison.model_name}\n{verdict} ({comparison.relative_difference:.0e})", fontsize=9
        )
        axes.set_xlabel("logit, plain PyTorch", fontsize=8)
        axes.set_ylabel(f"fused minus plain, in {unit:.0e}", fontsize=8)
        axes.tick_params(labelsize=8)


def _power_of_ten(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value)) if math.isfinite(value) and value > 0 else 1.0


def _draw_times(figure: Any, comparisons: Sequence[Comparison]) -> None:
    figure.suptitle("Time of the whole model, one photograph (median)", fontsize=10)
    axes = figure.subplots()
    positions = np.arange(len(comparisons))[::-1]
    for offset, label, colour in ((0.2, "fused", FUSED_COLOUR), (-0.2, "plain PyTorch", PLAIN_COLOUR)):
        times = [c.fused_ms if label == "fused" else c.plain_ms for c in comparisons]
        bars = axes.barh(positions + offset, times, height=0.38, color=colour, label=label)
        texts = [f"{t:.1f} ms" for t in times]
        if label == "fused":
            texts = [f"{text}  ({c.speedup:.2f}x)" for text, c in zip(texts, comparisons, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(positions, [c.model_name for c in comparisons], fontsize=9)
    axes.set_xlim(0, 1.45 * max(max(c.fused_ms, c.plain_ms) for c in comparisons))
    axes.set_xlabel("milliseconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _show(axes: Any, image: Image.Image) -> None:
    axes.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def _axes(figure: Any, count: int, per_row: int | None = None) -> list[Any]:
    """Axes for ``count`` panels in rows of at most ``per_row``; the last row's empty places are hidden."""
    columns = min(count, per_row or count)
    grid = list(figure.subplots(math.ceil(count / columns), columns, squeeze=False).flat)
    for empty in grid[count:]:
        empty.set_axis_off()
    return grid[:count]


def _cycle(comparisons: Sequence[Comparison]) -> list[str]:
    return [MODEL_COLOURS[index % len(MODEL_COLOURS)] for index in range(len(comparisons))]
