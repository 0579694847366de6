"""Real photographs that come inside scikit-learn and scikit-image: nothing is downloaded."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

_SOURCES: dict[str, Callable[[], np.ndarray]] = {
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
    "astronaut": data.astronaut,
    "coffee": data.coffee,
    "chelsea": data.chelsea,
    "rocket": data.rocket,
}


def sample_photos() -> dict[str, Image.Image]:
    """Returns name -> photograph, mode RGB, in the order they are shown."""
    return {name: Image.fromarray(load()) for name, load in _SOURCES.items()}
