"""Parser and dispatch of the ``mobilevit`` command; each command's code is imported when it runs."""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilevit_kernels.cli.errors import UserError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
COMMANDS = ("info", "demo", "classify", "convert", "bench")
FORMATS = ("timm", "cvnets", "hf")
# Named here and in mobilevit_kernels.benchmark, which only the command itself imports.
BENCH_DTYPES, BENCH_PEERS = ("fp32", "bf16"), ("compile", "onnxruntime", "openvino")
DEMO_MODELS = ("mobilevit_s", "mobilevitv2_100", "mobilevitv3_s")

# Packages that only some commands need, and the extra of this package that installs them.
_OPTIONAL = {"PIL": "cli", "matplotlib": "cli", "sklearn": "demo", "skimage": "demo"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; those of this process by default.

    Returns:
        Exit code: 0 done, 1 failed (one line on stderr says why), 130 interrupted.

    Raises:
        SystemExit: help or version was asked for (0), or the arguments are wrong (2), as argparse does.
    """
    args = build_parser().parse_args(argv)
    try:
        return importlib.import_module(f"mobilevit_kernels.cli.{args.command}").run(args)
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OPTIONAL:
            raise
        extra = f"mobilevit-kernels[{_OPTIONAL[package]}]"
        return _fail(
            f"'{args.command}' needs the package {package}, which is not installed: pip install '{extra}'"
        )
    except BrokenPipeError:
        # The reader (head, less) went away. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _fail(message: str) -> int:
    print(f"mobilevit: error: {message}", file=sys.stderr)
    return EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every command; ``args.command`` names the module that runs it."""
    from mobilevit_kernels import __version__

    parser = argparse.ArgumentParser(
        prog="mobilevit", description="MobileViT v1, v2 and v3 on fused kernels."
    )
    parser.add_argument("--version", action="version", version=f"mobilevit_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("info", help="versions, processor features, and which backend runs what and why")
    _add_demo(commands)
    _add_classify(commands)
    _add_convert(commands)
    _add_bench(commands)
    return parser


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text) if text.lstrip("+-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="fused and plain path on real photographs: differences, times, a picture",
        description="Runs the same weights through the fused kernels and through the plain PyTorch definition, on "
        "photographs that scikit-learn and scikit-image ship. Exit code 1 where their logits differ by more than "
        "1e-4 of the largest logit.",
    )
    subject = demo.add_mutually_exclusive_group()
    subject.add_argument(
        "--models", nargs="+", metavar="NAME", help=f"models (default: {' '.join(DEMO_MODELS)})"
    )
    subject.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="run the model of this checkpoint and print its top 5 classes",
    )
    demo.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names for --weights, as in 'classify'"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo_output"), metavar="DIR", help="folder of the picture"
    )
    demo.add_argument(
        "--threads", type=positive_int, metavar="N", help="threads of torch (default: torch's choice)"
    )
    demo.add_argument(
        "--size", type=positive_int, metavar="PX", help="side of the square input (default: 256)"
    )
    demo.add_argument(
        "--repeats", type=positive_int, default=20, metavar="N", help="timed runs of each path (20)"
    )


def _add_classify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    classify = commands.add_parser(
        "classify",
        help="top classes of images under a checkpoint",
        description="Prints the most probable classes of each image. Preprocessing follows the checkpoint's kind; a "
        "preprocessor_config.json (Hugging Face) or config.json (timm) beside the weights overrides it. An image "
        "that cannot be read is reported, the others are still classified, and the exit code is 1.",
    )
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    classify.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="timm, cvnets, HF or v3 checkpoint"
    )
    classify.add_argument("--model", metavar="NAME", help="model name (default: inferred from the weights)")
    classify.add_argument("--topk", type=positive_int, default=5, metavar="K")
    classify.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names: one a line, or a JSON list or {index: name}"
    )
    classify.add_argument(
        "--size", type=positive_int, metavar="PX", help="side of the square input (default: 256)"
    )
    classify.add_argument(
        "--channel-order", choices=("rgb", "bgr"), help="override the order the checkpoint's kind has"
    )


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = commands.add_parser(
        "convert",
        help="rewrite a checkpoint under the key names of another library",
        description="Reads a timm, cvnets, Hugging Face or official v3 checkpoint (.pt, .pth, .bin, .safetensors) and "
        "writes it under the key names of --to; OUT's suffix chooses the file type.",
    )
    convert.add_argument("input", type=Path, metavar="IN")
    convert.add_argument("output", type=Path, metavar="OUT")
    convert.add_argument("--to", required=True, choices=FORMATS)
    convert.add_argument("--force", action="store_true", help="overwrite OUT")
    convert.add_argument(
        "--flip-channels",
        action="store_true",
        help="reverse the stem's input channels (RGB weights <-> BGR weights)",
    )


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="speed of whole models here: ours, plain PyTorch, torch.compile, ONNX Runtime, OpenVINO",
        description="Times inference of whole models, every candidate in turn on the same weights and images, after a "
        "check against float64, and writes models.json, models.md and models.png. A peer that is not installed is "
        "reported as absent (pip install 'mobilevit-kernels[peers]'). Ctrl-C ends it and writes what is there. Exit "
        "code 1 where a result of ours is not right.",
    )
    bench.add_argument("--models", nargs="+", metavar="NAME", default=list(DEMO_MODELS))
    bench.add_argument("--dtypes", nargs="+", choices=BENCH_DTYPES, default=list(BENCH_DTYPES))
    bench.add_argument("--batches", nargs="+", type=positive_int, default=[1, 8], metavar="N")
    bench.add_argument(
        "--threads",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="each a row (default: 1 and torch's choice)",
    )
    bench.add_argument(
        "--peers",
        nargs="*",
        choices=BENCH_PEERS,
        default=list(BENCH_PEERS),
        help="peers besides eager PyTorch; torch.compile takes about a minute a row",
    )
    bench.add_argument(
        "--output", type=Path, default=Path("bench_output"), metavar="DIR", help="folder of the results"
    )
    bench.add_argument(
        "--budget", type=positive_float, default=4.0, metavar="S", help="seconds of timing a row (4)"
    )
    bench.add_argument("--smoke", action="store_true", help="one small case, to see that it runs")
