"""What the command line's tests share: photographs, and running a command in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_kernels.cli import main
from mobilevit_kernels.cli.comparison import randomize
from mobilevit_kernels.models import create_model


class Outcome(NamedTuple):
    """Exit code and captured text of one command."""

    code: int
    out: str
    err: str


@pytest.fixture
def mobilevit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``mobilevit ARGS...`` in this process."""

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A colour photograph, wider than high: 451 x 300."""
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.chelsea())


@pytest.fixture
def photo_file(photo: Image.Image, tmp_path: Path) -> Path:
    """The photograph as a lossless file."""
    path = tmp_path / "cat.png"
    photo.save(path)
    return path


@pytest.fixture(scope="session")
def timm_state(photo: Image.Image) -> dict[str, torch.Tensor]:
    """A small v1 classifier of 12 classes in timm's names: random weights, BatchNorm statistics of real images."""
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    images = torch.stack([pixels[:, :96, left : left + 96] for left in (0, 100, 200, 300)])
    model = create_model("mobilevit_xxs", num_classes=12)
    randomize(model, images)
    return model.state_dict()


@pytest.fixture(scope="session")
def gradient() -> np.ndarray:
    """``[40, 60, 3]`` uint8, every channel and direction distinct, so that any swap or flip shows."""
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)
