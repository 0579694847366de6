"""``accelerate``: finds the MobileViT blocks of a model, checks all of them, then changes all of them."""

import importlib
import logging
import sys
from types import ModuleType

from torch import nn

from mobilevit_kernels.models.accelerate.replacement import AcceleratedBlock, Replacement, require

_LOGGER = logging.getLogger("mobilevit_kernels")
_PACKAGE = "mobilevit_kernels.models"
# Modules of other libraries that define MobileViT blocks -> our module that knows them.
_ADAPTERS = {
    "timm.models.mobilevit": f"{_PACKAGE}.accelerate.timm",
    "transformers.models.mobilevit.modeling_mobilevit": f"{_PACKAGE}.accelerate.huggingface",
    "transformers.models.mobilevitv2.modeling_mobilevitv2": f"{_PACKAGE}.accelerate.huggingface",
}


def accelerate(model: nn.Module) -> nn.Module:
    """Makes the MobileViT blocks of a timm or transformers model run on this package's ops, in place.

    On the CPU the model also trains on this package's convolutions and BatchNorm (docs/behaviour.md).

    Every block and layer keeps its parameters, buffers, hooks and names, and computes the same function:
    ``state_dict``, training, ``copy.deepcopy``, ``pickle``, gradient checkpointing and ``torch.compile`` work as
    before. Only the classes of blocks, of the attention in them and of convolutional layers change, to subclasses of
    what they are.

    What differs: feature maps leave a block, and in training on the CPU every layer, in channels_last memory; the
    modules (and their hooks) inside a block see maps, ``[B, H, W, C]`` in v1 and ``[B, C, H, W]`` in v2, in place of
    unfolded tokens; dropout draws its random numbers in another order; a second derivative raises. Attention dropout
    above 0 is refused in training.

    The blocks may sit anywhere: in a timm model (``features_only`` too), in any transformers MobileViT or MobileViTV2
    (bare, classification, segmentation), in a network that uses one as its backbone, or under DataParallel or
    DistributedDataParallel. Accelerate before ``torch.compile``, sharding and device placement hooks.
    A model in channels_last memory (``model.to(memory_format=torch.channels_last)``) is the fastest on the CPU: in it
    no block copies its map.

    Args:
        model: the model; one that is accelerated already, or that comes from this package, is returned as it is.

    Returns:
        ``model`` itself. What was replaced is logged (logger "mobilevit_kernels", level INFO) and listed by
        :func:`accelerated_modules`.

    Raises:
        TypeError: not a ``torch.nn.Module``.
        ValueError: no MobileViT block, a block of an unsupported configuration, or a compiled model. The model is
            then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate(model): expected a torch.nn.Module, got {type(model).__name__}")
    _check_not_compiled(model)
    replacements = [item for adapter in _loaded_adapters() for item in adapter.plan(model)]
    if not replacements and not _explain_nothing_to_do(model):
        raise ValueError(
            f"accelerate(model): no MobileViT block of timm or transformers in {type(model).__name__}; expected a "
            "MobileViT v1 or v2 model that is not scripted, exported or traced"
        )
    for replacement in replacements:
        replacement.apply()
    if replacements:
        _log_replaced(model, replacements)
    return model


def accelerated_modules(model: nn.Module) -> list[str]:
    """Returns the names of the MobileViT blocks that :func:`accelerate` replaced, in the order of the model.

    Args:
        model: any module.
    """
    return [name for name, module in model.named_modules() if isinstance(module, AcceleratedBlock)]


def _loaded_adapters() -> list[ModuleType]:
    """Imports our adapters of the libraries in use: where a library is not loaded, no model has its blocks."""
    names = dict.fromkeys(adapter for library, adapter in _ADAPTERS.items() if library in sys.modules)
    return [importlib.import_module(name) for name in names]


def _check_not_compiled(model: nn.Module) -> None:
    dynamo = sys.modules.get("torch._dynamo")
    for name, module in model.named_modules():
        compiled = module._compiled_call_impl is not None
        compiled |= dynamo is not None and isinstance(module, dynamo.OptimizedModule)
        require(
            not compiled,
            name or "model",
            "a model that is not compiled; accelerate first",
            "a compiled module",
        )


def _explain_nothing_to_do(model: nn.Module) -> bool:
    """Logs why a model without blocks to replace is fine as it is; False where it is not."""
    if accelerated_modules(model):
        _LOGGER.info("accelerate: %s is accelerated already", type(model).__name__)
        return True
    if any(type(module).__module__.startswith(f"{_PACKAGE}.") for module in model.modules()):
        _LOGGER.info("accelerate: %s is a model of this package and runs on the ops", type(model).__name__)
        return True
    return False


def _log_replaced(model: nn.Module, replacements: list[Replacement]) -> None:
    blocks = [item.name for item in replacements if issubclass(item.cls, AcceleratedBlock)]
    _LOGGER.info(
        "accelerate: %s runs on the mobilevit ops in %d MobileViT blocks (%d modules replaced): %s",
        type(model).__name__,
        len(blocks),
        len(replacements),
        ", ".join(blocks),
    )
