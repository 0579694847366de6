"""Finds the weights inside what training scripts save, and strips the names that wrappers add."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

_EMA_CONTAINERS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
_CONTAINERS = ("model_state_dict", "state_dict", "model")
_MAX_NESTING = 4
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NOT_WEIGHTS = ("n_averaged",)


class Weights(NamedTuple):
    """Weights found in a checkpoint; ``container`` is the entry that held them, None for a bare state dict."""

    state_dict: dict[str, Tensor]
    container: str | None


def unwrap(content: Any, source: str, use_ema: bool = True) -> Weights:
    """Returns the state dict inside ``content``, by names without the prefixes of wrappers.

    Takes a bare state dict, or a training form as timm ({state_dict, state_dict_ema}), cvnets ({model_state_dict,
    ema_state_dict}) and others ({model: ...}) save it. "module." (DataParallel, averaged models), "_orig_mod."
    (torch.compile) and "model." (training frameworks) are taken off the names.

    Args:
        content: what the file held.
        source: name of the file (or "state_dict") for messages.
        use_ema: take the exponential moving average of the weights where there is one.

    Raises:
        ValueError: there is no state dict in it; the message says what there is.
    """
    state_dict, container = _find(content, source, use_ema)
    weights: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = strip_wrappers(key)
        if name in _NOT_WEIGHTS:
            continue
        if name in weights:
            raise ValueError(
                f"{source}: two tensors are named {name!r} once prefixes of wrappers are removed"
            )
        weights[name] = tensor
    if not weights:
        raise ValueError(f"{source}: holds no tensors")
    return Weights(weights, container)


def strip_wrappers(key: str) -> str:
    """Takes the prefixes that wrapping modules add off a key."""
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def _find(content: Any, source: str, use_ema: bool) -> tuple[Mapping[str, Tensor], str | None]:
    path: list[str] = []
    while True:
        if not isinstance(content, Mapping):
            where = f"entry {'.'.join(path)!r}" if path else "it"
            raise ValueError(
                f"{source}: expected a state dict (name -> tensor), {where} is a {_kind(content)}"
            )
        containers = (*_EMA_CONTAINERS, *_CONTAINERS) if use_ema else _CONTAINERS
        name = next(
            (name for name in containers if isinstance(content.get(name), Mapping) and content[name]), None
        )
        if name is None or len(path) == _MAX_NESTING:
            _check_tensors(content, source)
            return content, ".".join(path) or None
        path.append(name)
        content = content[name]


def _check_tensors(content: Mapping[Any, Any], source: str) -> None:
    if not content:
        raise ValueError(f"{source}: the state dict is empty")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{source}: expected names of tensors as keys, got {key!r} of type {_kind(key)}")
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{source}: expected only tensors in the state dict, {key!r} is a {_kind(value)}"
            )


def _kind(value: Any) -> str:
    return type(value).__name__
