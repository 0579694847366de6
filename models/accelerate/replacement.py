"""What a library's adapter asks for: modules, the class each takes, and the checks that come first."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn


class AcceleratedBlock:
    """Marks the classes that a MobileViT block takes when it runs on the ops."""


class Replacement(NamedTuple):
    """One module that changes its class; its parameters, buffers, hooks and children stay.

    Attributes:
        name: name of the module in the model.
        module: the module itself.
        cls: the class it takes, a subclass of its present one.
        attributes: plain attributes that the new class reads.
    """

    name: str
    module: nn.Module
    cls: type[nn.Module]
    attributes: dict[str, Any]

    def apply(self) -> None:
        """Changes the module in place."""
        self.module.__class__ = self.cls
        for key, value in self.attributes.items():
            setattr(self.module, key, value)


def pending_blocks(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yields name and module of the blocks of a library that are not accelerated yet, in the order of the model."""
    for name, module in model.named_modules():
        if isinstance(module, classes) and not isinstance(module, AcceleratedBlock):
            yield name or type(module).__name__, module


def layer_replacements(
    model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]
) -> list[Replacement]:
    """Lists the modules that are exactly of a class and run its forward; what differs stays as it is.

    Args:
        model: any module.
        classes: the class that each of them takes.
    """
    return [
        Replacement(name, module, classes[type(module)], {})
        for name, module in model.named_modules()
        if type(module) in classes and "forward" not in vars(module)
    ]


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raises ValueError, naming the module, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"accelerate: {name}: expected {expected}, got {got}")


def require_type(name: str, module: object, cls: type) -> None:
    """Raises ValueError unless ``module`` is of exactly this class and runs its class's forward.

    A subclass may compute something else, and a ``forward`` set on the instance (as device placement hooks do) would
    hide the forward of the class that the module takes.
    """
    require(type(module) is cls, name, f"{cls.__module__}.{cls.__qualname__}", _qualified(module))
    overridden = "forward" in vars(module)
    require(
        not overridden, name, "the forward of its class", "a forward set on the instance; accelerate first"
    )


def require_patch_size(name: str, patch_size: object) -> None:
    """Raises ValueError unless ``patch_size`` is a pair of positive ints."""
    valid = isinstance(patch_size, tuple) and len(patch_size) == 2
    valid = valid and all(isinstance(size, int) and size > 0 for size in patch_size)  # type: ignore[attr-defined]
    require(valid, name, "patch_size of two positive ints", patch_size)


def require_no_active_dropout(name: str, attention: nn.Module, dropout: nn.Module) -> None:
    """Raises ValueError where attention dropout acts: the ops never form the scores that it would drop."""
    active = dropout_acts(attention, dropout)
    require(
        not active, name, "no attention dropout in training", f"p={getattr(dropout, 'p', None)}; set p to 0"
    )


def dropout_acts(attention: nn.Module, dropout: nn.Module) -> bool:
    """Whether the dropout of an attention layer changes anything in the present mode of the layer."""
    return getattr(dropout, "p", 0.0) > 0 and (attention.training or dropout.training)


def _qualified(module: object) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"
