"""The device of these tests, problems on it, and a clear reason where it cannot be used.

MOBILEVIT_GPU_TEST_DEVICE=cpu runs what does not need CUDA itself on the kernels of the CPU: the compiled ones or, with
TRITON_INTERPRET=1, Triton's. Shapes are smaller there.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from error_rule import check_backward, check_forward
from op_checks import readable
from op_problems import BUILDERS, LAYOUTS, Problem
from torch import nn

import mobilevit_kernels
from mobilevit_kernels.benchmark.networks import randomize_batch_norms

DEVICE = torch.device(os.environ.get("MOBILEVIT_GPU_TEST_DEVICE", "cuda"))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def reason_to_skip() -> str | None:
    """Why the device cannot be used; None where it can."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        return f"needs a CUDA device: torch {torch.__version__} finds none"
    try:
        torch.zeros(1, device=DEVICE)
    except RuntimeError as error:
        return f"needs a usable {DEVICE}: {str(error).splitlines()[0]}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder, and skips it where there is no device."""
    folder = Path(__file__).parent
    ours = [item for item in items if folder in item.path.parents]
    reason = reason_to_skip() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """Where the tests run."""
    return DEVICE


@pytest.fixture
def cuda() -> None:
    """Skips what only CUDA has: graphs, streams, TF32."""
    if DEVICE.type != "cuda":
        pytest.skip(f"needs CUDA itself, MOBILEVIT_GPU_TEST_DEVICE is {DEVICE}")


@pytest.fixture
def small() -> bool:
    """Whether shapes must be small: off the GPU."""
    return DEVICE.type != "cuda"


@pytest.fixture
def gpu_kernels(kernels: str) -> Iterator[str]:
    """Chooses the kernels of the device by name, so that a test of them can never pass on another backend."""
    name = "triton" if DEVICE.type == "cuda" else kernels
    with mobilevit_kernels.use_backend(name):
        yield name


@pytest.fixture(params=list(BUILDERS))
def op(request: pytest.FixtureRequest) -> str:
    """Runs the test once per op."""
    return request.param


@pytest.fixture(params=DTYPES, ids=readable)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of the GPU's kernels."""
    return request.param


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Builds a problem of the named op on the device; keywords as the op's own builder takes them."""

    def build(op: str, **options: Any) -> Problem:
        with torch.device(DEVICE):
            return BUILDERS[op](**options)

    return build


@pytest.fixture(params=["forward", "backward"])
def rule(request: pytest.FixtureRequest) -> Callable[[Problem], None]:
    """The error rule of the output and that of the gradients."""
    return {"forward": check_forward, "backward": check_backward}[request.param]


@pytest.fixture(
    params=["nchw", "dense_cwbh", "channel_slice", "column_slice_nchw", "channel_step", "same_rows"]
)
def layout(request: pytest.FixtureRequest) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gives a map other strides."""
    return LAYOUTS[request.param]


@pytest.fixture
def random_model() -> Callable[[str], nn.Module]:
    """A model on the device with random weights, and BatchNorm statistics that are not 0 and 1."""

    def build(name: str) -> nn.Module:
        model = mobilevit_kernels.create_model(name, num_classes=10)
        randomize_batch_norms(model)
        return model.to(DEVICE)

    return build


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Random images on the device: (batch, side = 64) -> ``[batch, 3, side, side]``."""
    return lambda batch, side=64: torch.rand(batch, 3, side, side, device=DEVICE)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from, or for, another test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def restored_tf32() -> Iterator[None]:
    """Lets a test change whether float32 products may use TF32."""
    previous = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(previous)


@pytest.fixture(autouse=True)
def full_precision_convolutions() -> Iterator[None]:
    """Plain PyTorch's 1x1 convolutions in true float32: by default cuDNN rounds to TF32, too weak a peer."""
    previous = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = previous


@pytest.fixture(autouse=True)
def first_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of Triton's configurations, unmeasured: hundreds of shapes would each be tuned."""
    monkeypatch.setenv("MOBILEVIT_TRITON_AUTOTUNE", "0")
