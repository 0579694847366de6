"""What a run of train.py keeps on disk and shows: logs, checkpoints, progress; and its place among other processes."""

import csv
import gc
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mobilevit_kernels.models.checkpoints import replaced_file

SCALARS = ("lr", "loss", "accuracy", "averaged")


class CsvLog:
    """A table that a killed run leaves whole.

    Args:
        path: the file.
        fields: column names; the first column counts up from 0.
        keep: rows to keep of an older file: those that count below it. The others are dropped: a resumed run writes
            them again.
    """

    def __init__(self, path: Path, fields: Sequence[str], keep: int) -> None:
        rows = []
        if keep > 0 and path.exists():
            with path.open(newline="") as old:
                rows = [
                    row for row in list(csv.reader(old))[1:] if len(row) == len(fields) and int(row[0]) < keep
                ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([list(fields), *rows])
        with replaced_file(path) as new:
            new.write(text.getvalue().encode())
        self._stream = path.open("a", newline="", buffering=1)

    def add(self, *values: object) -> None:
        """Appends a row, which reaches the file at once."""
        self._stream.write(",".join(str(value) for value in values) + "\n")


class EventLog:
    """Scalars for TensorBoard: those of ``SCALARS`` among the columns of a table, over its first column.

    Args:
        folder: of the event files.
        fields: column names of the table.
        keep: as that of :class:`CsvLog`; TensorBoard then shows nothing later of older files in the folder.
    """

    def __init__(self, folder: Path, fields: Sequence[str], keep: int) -> None:
        self._fields = fields
        self._writer = import_summary_writer()(folder, purge_step=keep)

    def add(self, *values: Any) -> None:
        """Appends a row, which reaches the file at once."""
        for name, value in zip(self._fields, values, strict=True):
            if name in SCALARS:
                self._writer.add_scalar(name, float(value), values[0])
        self._writer.flush()


def import_summary_writer() -> Any:
    """torch's SummaryWriter, or the reason why there is none."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit(f"--tensorboard needs tensorboard: pip install tensorboard ({error})") from error
    return SummaryWriter


class Log:
    """A table in FOLDER/NAME.csv, and where asked for in FOLDER/tensorboard/NAME too.

    Args:
        folder: of the run.
        name: of the table.
        fields: as that of :class:`CsvLog`.
        keep: as that of :class:`CsvLog`.
        tensorboard: whether TensorBoard gets its scalars.
    """

    def __init__(self, folder: Path, name: str, fields: Sequence[str], keep: int, tensorboard: bool) -> None:
        self._logs: list[CsvLog | EventLog] = [CsvLog(folder / f"{name}.csv", fields, keep)]
        if tensorboard:
            self._logs.append(EventLog(folder / "tensorboard" / name, fields, keep))

    def add(self, *values: object) -> None:
        """Appends a row, which reaches the files at once."""
        for log in self._logs:
            log.add(*values)


class Progress:
    """One line on a terminal, rewritten with each update; nothing elsewhere."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._last = time.perf_counter()

    def show(self, epoch: int, done: int, total: int, images: int, loss: float, lr: float) -> None:
        """Draws the bar of an epoch; ``images`` is the size of the update, over all processes."""
        now, before = time.perf_counter(), self._last
        self._last = now
        if not self._shown:
            return
        bar = "#" * (30 * done // total)
        rate = images / (now - before)
        text = f"epoch {epoch} [{bar:<30}] {done}/{total}  loss {loss:.3f}  lr {lr:.1e}  {rate:.0f} images/s"
        sys.stderr.write(f"\r{text:<110}" + ("\n" if done == total else ""))
        sys.stderr.flush()


def join_processes() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this one; under torchrun it joins the others: NCCL, or gloo on CPUs."""
    on_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        return 0, 1, torch.device("cuda" if on_gpu else "cpu")
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def leave_processes() -> None:
    """Ends the process group, all processes together."""
    if dist.is_initialized():
        # DistributedDataParallel must be gone before: it would end gloo's threads while it holds the interpreter's
        # lock, for which they may be waiting.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def share_buffers(*modules: nn.Module) -> None:
    """Gives all processes the BatchNorm statistics of the first, as DistributedDataParallel does before a step."""
    if dist.is_initialized():
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint that replaces the older one only when it is whole."""
    with replaced_file(path) as stream:
        torch.save(state, stream)


def load_state(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint on the CPU, without running code from it.

    Raises:
        SystemExit: it is of a run with other arguments.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in arguments.items():
        if state["arguments"].get(name) != value:
            came = state["arguments"].get(name)
            raise SystemExit(
                f"--resume: {path} was written with {name} {came!r}; expected the same, got {value!r}"
            )
    return state
