"""Images per second of whole models against the batch size: a table and a picture of measured rows."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mobilevit_kernels.benchmark.candidate_plot import candidate_colour
from mobilevit_kernels.benchmark.candidates import is_ours
from mobilevit_kernels.benchmark.report import three_digits, what
from mobilevit_kernels.benchmark.rows import Row, candidate_names


def write_throughput(rows: Sequence[Row], processor: str, stem: Path) -> list[Path]:
    """Appends the table to ``stem``.md and draws ``stem``_images.png.

    Args:
        rows: what was measured, at least one row.
        processor: the title of the picture.
        stem: path of the report without suffix.

    Returns:
        What it wrote besides the report.
    """
    picture = stem.with_name(stem.name + "_images.png")
    with stem.with_name(stem.name + ".md").open("a") as report:
        report.write("\n".join(["", *throughput_table(rows)]) + "\n")
    plot_throughput(rows, processor, picture)
    return [picture]


def throughput_table(rows: Sequence[Row]) -> list[str]:
    """Markdown: a column for every candidate; empty where it did not run, or where a result of ours is wrong."""
    names = candidate_names(rows)
    head = ["what", "dtype", "threads", "batch", *names]
    lines = ["## Images per second", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        speeds = row.images_per_s
        cells = [what(row), row.case.dtype, str(row.threads), str(row.case.batch)]
        cells += [three_digits(speeds[name]) if name in speeds else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot_throughput(rows: Sequence[Row], processor: str, path: Path) -> None:
    """Draws images per second over the batch size: a column of panels per model, a row per dtype and thread count.

    Args:
        rows: what was measured, at least one row.
        processor: the title.
        path: where the picture goes; its suffix says the format.
    """
    models = list(dict.fromkeys(what(row) for row in rows))
    kinds = list(dict.fromkeys((row.case.dtype, row.threads) for row in rows))
    names = candidate_names(rows)
    batches = sorted({row.case.batch for row in rows})
    figure = Figure(figsize=(1 + 4 * len(models), 1 + 2.8 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(models), squeeze=False, sharex=True)
    for (dtype, threads), line in zip(kinds, panels, strict=True):
        for model, axes in zip(models, line, strict=True):
            chosen = [row for row in rows if (row.case.dtype, row.threads) == (dtype, threads)]
            _draw_panel(axes, [row for row in chosen if what(row) == model], names, batches)
            axes.set_title(f"{model}, {dtype}, {threads} thread(s)", fontsize=9)
    by_name = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(by_name.values()), list(by_name), loc="outside lower center", ncols=4 * len(models), fontsize=7
    )
    figure.suptitle(processor, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_panel(axes: Axes, rows: Sequence[Row], names: list[str], ticks: list[int]) -> None:
    for name in names:
        points = sorted((row.case.batch, row.images_per_s[name]) for row in rows if name in row.images_per_s)
        if points:
            places, speeds = zip(*points, strict=True)
            marker = "o" if is_ours(name) else "s"
            axes.plot(
                places, speeds, marker=marker, markersize=4, label=name, color=candidate_colour(name, names)
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch", fontsize=7)
    axes.set_ylabel("images / s", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(linewidth=0.3)
