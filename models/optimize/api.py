"""``optimize_for_inference``: a copy of a model that only infers, on the CPU."""

import copy
import itertools
import logging
from typing import Any

import torch
from torch import Tensor, nn

import mobilevit_kernels._C as native
from mobilevit_kernels.models.accelerate import accelerate
from mobilevit_kernels.models.optimize.convolution import FusedConvolution, fuse_convolutions
from mobilevit_kernels.models.optimize.folding import fold_batch_norms
from mobilevit_kernels.models.optimize.head import fuse_heads
from mobilevit_kernels.models.optimize.inverted_residual import fuse_inverted_residuals
from mobilevit_kernels.models.optimize.layers import fuse_transformers
from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.optimize.replay import replay_forward

_LOGGER = logging.getLogger("mobilevit_kernels")
DTYPES = (torch.float32, torch.bfloat16)


def optimize_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Returns a copy of a model that infers faster on the CPU; the model itself stays as it is.

    In the copy BatchNorm is part of the convolutions, memory is channels_last, no parameter wants a gradient, and one
    op on packed weights runs the transformer of a MobileViT block (:func:`mobilevit_kernels.ops.transformer`,
    :func:`mobilevit_kernels.ops.separable_transformer`), an inverted residual block
    (:func:`mobilevit_kernels.ops.inverted_residual`), any other convolution with its activation
    (:func:`mobilevit_kernels.ops.convolution`, :func:`mobilevit_kernels.ops.depthwise_convolution`), or the classifier
    (:func:`mobilevit_kernels.ops.pooled_linear`). It has the class, the attributes and the outputs of the model, takes
    any image size, batch and memory format, may be called from several threads at once, and can be pickled. Its
    ``state_dict`` fits a copy that was optimised from the same architecture. From the third call on with inputs of one
    kind, its ops run without the Python between them, unless somebody watches them or the copy was changed.

    Args:
        model: a MobileViT of this package, of timm or of transformers (accelerated or not), on the CPU in float32;
            also a network around one, or its feature extractor.
        dtype: ``torch.float32``; or ``torch.bfloat16`` to allow products in bfloat16 where the processor is faster
            with them: Intel's with AMX, AMD's with AVX-512 (Zen 4 and later). On other processors float32 is the
            faster of the two, and is used. Inputs and outputs are float32 in either case.

    Raises:
        TypeError: not a module, or another dtype.
        ValueError: parameters that are not float32 on the CPU, or no MobileViT block in the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"optimize_for_inference(model): expected a torch.nn.Module, got {type(model).__name__}"
        )
    if dtype not in DTYPES:
        raise TypeError(
            f"optimize_for_inference(dtype): expected torch.float32 or torch.bfloat16, got {dtype}"
        )
    _check_parameters(model)
    native.note_threads()
    optimized = accelerate(_copy_on_the_same_tensors(model).eval())
    fold_batch_norms(optimized)
    in_bfloat16 = dtype == torch.bfloat16 and has_fast_bfloat16()
    products = torch.bfloat16 if in_bfloat16 else torch.float32
    searches = (fuse_transformers, fuse_inverted_residuals, fuse_convolutions, fuse_heads)
    counts = [fuse(optimized, products) for fuse in searches]
    _LOGGER.info(
        "optimize_for_inference: one op for each of %d transformers, %d inverted residual blocks, %d convolutions, "
        "%d classifiers",
        *counts,
    )
    _take_tensors_of_its_own(optimized, model)
    optimized.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if in_bfloat16:
        _convert_to_bfloat16(optimized)
    replay_forward(optimized)
    return optimized


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: AMX, or AMD's AVX-512."""
    return bool(native.has_fast_bfloat16())


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ValueError(
                f"optimize_for_inference(model): expected float32 on the CPU, got {tensor.dtype} on {tensor.device} "
                f"in {name}"
            )


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _tensors_of(model: nn.Module) -> dict[int, Tensor]:
    """Parameters and buffers by identity."""
    return {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}


def _copy_on_the_same_tensors(model: nn.Module) -> nn.Module:
    """A deep copy but for parameters and buffers: most of them are about to be packed."""
    shared: dict[int, Any] = dict(_tensors_of(model))
    return copy.deepcopy(model, shared)


def _take_tensors_of_its_own(optimized: nn.Module, model: nn.Module) -> None:
    """Copies what ``optimized`` still has of the tensors of ``model``; what it has twice stays one tensor."""
    shared = _tensors_of(model)
    copies: dict[int, Any] = {}
    for module in optimized.modules():
        held: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in held:
            for name, tensor in tensors.items():
                if id(tensor) in shared:
                    tensors[name] = copy.deepcopy(tensor, copies)


def _convert_to_bfloat16(model: nn.Module) -> None:
    """Converts the parameters of single layers; packed ones are in their dtype already."""
    stem = next(module for module in model.modules() if next(module.children(), None) is None)
    packed = all(isinstance(module, PackedOp) for module in model.modules() if _parameters_of(module))
    if isinstance(stem, FusedConvolution) and packed:
        stem.out_dtype = torch.bfloat16  # of images as they are: no other layer minds their dtype
    else:
        model.register_forward_pre_hook(_to_bfloat16, with_kwargs=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.register_forward_hook(_to_float32)


def _to_bfloat16(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    def convert(value: Any) -> Any:
        return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(convert(arg) for arg in args), {key: convert(value) for key, value in kwargs.items()}


def _to_float32(_: nn.Module, args: Any, output: Any) -> Any:
    def convert(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return convert(output) if isinstance(output, Tensor) else torch.utils._pytree.tree_map(convert, output)
