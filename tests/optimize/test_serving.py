"""An optimised model as a server calls it: from several threads, for long, and in forked children."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from foreign_models import randomize
from torch import Tensor, nn

from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model

pytestmark = pytest.mark.usefixtures("restored_threads")
SIZES = (64, 96, 128)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(
    model: nn.Module, images: list[Tensor], expected: list[Tensor], until: float, wrong: list[str]
) -> None:
    """Calls the model in turn on all images until a time; notes what is not as expected."""
    calls = 0
    with torch.inference_mode():
        while time.monotonic() < until:
            index = calls % len(images)
            out = model(images[index])
            if (out - expected[index]).abs().max() > 1e-5 * expected[index].abs().max():
                wrong.append(f"call {calls}, image {index}")
            calls += 1
    if calls == 0:
        wrong.append("no call came back")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident memory as Linux does")
@pytest.mark.parametrize(
    ("name", "callers"), [("mobilevit_xxs", 1), ("mobilevitv2_050", 2), ("mobilevit_xxs", 4)]
)
def test_a_minute_of_calls(name: str, callers: int) -> None:
    torch.set_num_threads(1)
    model = optimize_for_inference(randomize(create_model(name, num_classes=5)).eval())
    images = [torch.rand(1, 3, side, side) for side in SIZES]
    with torch.inference_mode():
        expected = [model(x) for x in images]
    wrong: list[str] = []

    def run(seconds: float) -> None:
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=serve, args=(model, images, expected, until, wrong))
            for _ in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=seconds + 60)
        assert not any(thread.is_alive() for thread in threads)

    run(5)
    before = resident_bytes()
    run(60)
    assert not wrong
    assert resident_bytes() - before < 16 << 20


FORK = """
import os, signal, sys
import torch
from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model

def build():
    torch.manual_seed(0)
    return optimize_for_inference(create_model("mobilevit_xxs", num_classes=5).eval())

when = sys.argv[1]
torch.set_num_threads(2)
images = lambda: torch.full((2, 3, 128, 128), 0.5)
with torch.inference_mode():
    model = None if when == "import" else build()
    expected = model(images()) if when == "call" else None
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        out = (model or build())(images())
        if expected is not None and (out - expected).abs().max() > 1e-5 * expected.abs().max():
            os._exit(2)
        os._exit(0 if torch.get_num_threads() == (2 if when == "import" else 1) else 3)
    status = os.waitpid(child, 0)[1]
    (model or build())(images())  # the parent goes on
    assert torch.get_num_threads() == 2
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("when", ["import", "optimize", "call"])
def test_a_forked_child_answers(when: str) -> None:
    """Forked after the import a child keeps its threads; after any work of several threads it goes on with one."""
    subprocess.run([sys.executable, "-c", FORK, when], check=True, timeout=120)
