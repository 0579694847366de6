"""``mobilevit bench``: whole models here, ours against plain PyTorch, torch.compile, ONNX Runtime and OpenVINO."""

import argparse
from collections.abc import Sequence

import torch

from mobilevit_kernels.benchmark.cases import IMAGE_SIDE, SMOKE_IMAGE_SIDE, ModelCase
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.engines import engines
from mobilevit_kernels.benchmark.session import Settings, compare
from mobilevit_kernels.benchmark.timing import settled_seconds_per_call
from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.weights import check_model_name

FILES_NAME = "models"
_SMOKE_BUDGET_S, _SMOKE_ROUNDS = 0.02, 2
_ROUNDS = 7


def run(args: argparse.Namespace) -> int:
    """Measures, prints and writes; returns 1 where a result of ours is not right, 130 where it was interrupted."""
    for name in args.models:
        check_model_name(name)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output: expected a folder that can be made, got {args.output}: {error}"
        ) from error
    threads = args.threads or sorted({1, torch.get_num_threads()})
    settings = Settings(
        threads=threads,
        budget_s=_SMOKE_BUDGET_S if args.smoke else args.budget,
        min_rounds=_SMOKE_ROUNDS if args.smoke else _ROUNDS,
        image_side=SMOKE_IMAGE_SIDE if args.smoke else IMAGE_SIDE,
        sample=settled_seconds_per_call,
    )
    return compare(
        select_cases(args, engines(args.peers)),
        settings,
        command_line(args, threads),
        args.output / FILES_NAME,
    )


def select_cases(args: argparse.Namespace, peers: Sequence[Engine]) -> list[ModelCase]:
    """Every combination of models, dtypes and batches; the first of each with ``--smoke``."""
    kept = slice(1 if args.smoke else None)
    return [
        ModelCase(model, dtype, batch, tuple(peers))
        for model in args.models[kept]
        for dtype in args.dtypes[kept]
        for batch in args.batches[kept]
    ]


def command_line(args: argparse.Namespace, threads: Sequence[int]) -> str:
    """The command that repeats this run, defaults spelled out."""
    options: dict[str, Sequence[object]] = {
        "--models": args.models,
        "--dtypes": args.dtypes,
        "--batches": args.batches,
        "--threads": threads,
        "--peers": args.peers,
    }
    words = ["mobilevit", "bench"]
    for option, values in options.items():
        words += [option, *map(str, values)]
    return " ".join([*words, "--smoke"] if args.smoke else words)
