"""What a load did, or would have done."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """Outcome of ``load_checkpoint``; ``str()`` of it is readable.

    Attributes:
        source: path of the file, or "state_dict".
        container: entry of a training checkpoint that held the weights, such as "ema_state_dict"; else None.
        format: naming of the checkpoint: "timm", "cvnets" or "hf".
        family: "v1", "v2", "v3-v1" or "v3-v2"; None if it cannot be told.
        model_name: model the checkpoint is for; None if it fits none or several.
        loaded: names of the model's tensors that were (or could be) loaded.
        missing: names of the model's tensors that the checkpoint lacks.
        unexpected: names in the checkpoint that the model lacks.
        mismatched: (name, shape in the model, shape in the checkpoint) where these differ.
        dropped: tensors of the checkpoint left out on purpose: heads of other tasks, a classifier for a model
            without one.
    """

    source: str
    container: str | None
    format: str
    family: str | None
    model_name: str | None
    loaded: tuple[str, ...] = field(repr=False)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if every tensor of the model was loaded and none of the checkpoint was unexpected."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        container = f", its {self.container}" if self.container else ""
        name = self.model_name or "model unknown"
        title = f"{self.source}{container}: {name} ({self.format} names), {len(self.loaded)} tensors loaded"
        return "\n".join([title, *self.problems()])

    def problems(self, limit: int | None = None) -> list[str]:
        """Lines that name what did not fit, at most ``limit`` tensors of each kind (None: all)."""
        shapes = [
            f"{name}: model {list(ours)}, checkpoint {list(theirs)}" for name, ours, theirs in self.mismatched
        ]
        return [
            *_section("missing from the checkpoint", self.missing, limit),
            *_section("not in the model", self.unexpected, limit),
            *_section("of another shape", shapes, limit),
            *_section("left out", self.dropped, limit),
        ]


class CheckpointMismatch(RuntimeError):
    """A checkpoint does not fit the model; ``report`` lists everything."""

    def __init__(self, message: str, report: LoadReport):
        super().__init__(message)
        self.report = report


def _section(title: str, items: Sequence[str], limit: int | None) -> list[str]:
    if not items:
        return []
    lines = [f"  {title} ({len(items)}):", *(f"    {item}" for item in items[:limit])]
    if limit is not None and len(items) > limit:
        lines.append(f"    and {len(items) - limit} more")
    return lines
