"""The picture of training curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.training_runs import FUSED, REFERENCE, TrainingRun

# The reference is drawn last and dashed: where both agree, each is seen.
_STYLES = {FUSED: ("-", "#1b7f5c"), REFERENCE: ("--", "#c25a1a")}


def plot_curves(runs: Sequence[TrainingRun], processor: str, path: Path) -> None:
    """Draws a column per model: the loss of every update, and the held-out accuracy after every epoch.

    Args:
        runs: of both paths of each model, at least of one.
        processor: the title.
        path: where the picture goes; its suffix says the format.
    """
    models = list(dict.fromkeys(run.model for run in runs))
    figure = Figure(figsize=(4.6 * len(models), 6.5), layout="constrained")
    panels = figure.subplots(2, len(models), squeeze=False, sharey="row")
    for (losses, accuracies), model in zip(panels.T, models, strict=True):
        _draw_model(losses, accuracies, [run for run in runs if run.model == model])
        losses.set_title(model, fontsize=10)
    panels[0, 0].set_ylabel("loss (label smoothing 0.1)")
    panels[1, 0].set_ylabel("held-out accuracy, %")
    panels[1, 0].legend(fontsize=7, loc="lower right")
    figure.suptitle(processor, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_model(losses: Axes, accuracies: Axes, runs: Sequence[TrainingRun]) -> None:
    for run in runs:
        line, colour = _STYLES[run.path]
        losses.plot(run.losses, line, color=colour, linewidth=0.8)
        kinds = (("weights", run.accuracies, 0.45), ("averaged weights", run.averaged, 1.0))
        for kind, values, opacity in kinds:
            epochs = range(1, len(values) + 1)
            percent = [100 * value for value in values]
            label = f"{run.path}, {kind}"
            accuracies.plot(epochs, percent, line, color=colour, alpha=opacity, linewidth=1.2, label=label)
    losses.set_xlabel("updates")
    accuracies.set_xlabel("epochs")
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (losses, accuracies):
        panel.grid(linewidth=0.3)
