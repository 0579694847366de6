"""Repeats the ops of a model's last run without its Python: for a small model a tenth of the time and more."""

import inspect
import itertools
import types
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import mobilevit_kernels._C as native
from mobilevit_kernels.backends import current_backend

MAX_PLANS = 32
_MAX_RECORDINGS = 4 * MAX_PLANS  # a model that changes with every call is not worth them
_PLAIN = (bool, int, float, str, type(None))
_CALLED, _IMPOSSIBLE = object(), object()
_DROPOUTS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_")
)
# Whose modules compute what they compute from their inputs, attributes and tensors, and do nothing else.
_PACKAGES = frozenset({"torch", "timm", "transformers", "mobilevit_kernels"})


def replay_forward(module: nn.Module) -> None:
    """Lets a :class:`Replay` stand for the module's ``forward``; leaves one with modules of other packages as it is.

    Args:
        module: only infers.
    """
    known = all(type(part).__module__.partition(".")[0] in _PACKAGES for part in module.modules())
    if known and not any("forward" in vars(part) for part in module.modules()):
        module.forward = Replay(module)


class Replay:
    """The ``forward`` of a module that only infers, called through the ops that it ran last.

    The second call with inputs of the same shapes, strides and dtypes is recorded; from then on the recorded ops run
    one after another. The module's own ``forward`` runs instead wherever that could make a difference: while somebody
    watches its ops (torch.compile, export, tracing, dispatch modes, autocast), for inputs that want gradients, after
    hooks were added, and after any submodule, tensor or attribute of the module was replaced.

    Args:
        module: whose class defines ``forward``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._plans: dict[Any, Any] = {}
        self._recordings = 0
        self.__signature__ = inspect.signature(types.MethodType(type(module).forward, module))
        self.__doc__ = type(module).forward.__doc__
        self.__code__ = type(module).forward.__code__  # where torch.export says that the model is

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Replay.__init__(self, state["module"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's ``forward`` returns."""
        if torch.compiler.is_compiling() or _is_watched():
            return self._own_forward(*args, **kwargs)
        key, inputs = _signature(args, kwargs)
        if key is None:
            return self._own_forward(*args, **kwargs)
        plan = self._plans.get(key)
        if isinstance(plan, _Recording):
            if plan.still_holds():
                return plan.run(inputs)
            self._plans.clear()  # others hold no longer either
            plan = None
        if plan is _CALLED and self._recordings < _MAX_RECORDINGS:
            return self._record(key, inputs, args, kwargs)
        if plan is None and len(self._plans) < MAX_PLANS:
            self._plans[key] = _CALLED
        return self._own_forward(*args, **kwargs)

    def _record(self, key: Any, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._recordings += 1
        with _Recorder(self._module, inputs) as recorder:
            result = self._own_forward(*args, **kwargs)
        self._plans[key] = recorder.finish(result) or _IMPOSSIBLE
        return result

    def _own_forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._module).forward(self._module, *args, **kwargs)


def _is_watched() -> bool:
    """Whether ops called here mean something else than their results."""
    return bool(
        torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """What a plan depends on, and the tensors among the arguments; (None, []) where it may depend on more."""
    inputs: list[Tensor] = []
    key: list[Any] = [current_backend(), len(args), *kwargs]
    for value in itertools.chain(args, kwargs.values()):
        if type(value) is Tensor:
            if value.requires_grad or value.layout != torch.strided or value.device.type != "cpu":
                return None, []
            inputs.append(value)
            key.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, _PLAIN):
            key.append((type(value), value))
        else:
            return None, []
    return tuple(key), inputs


class _Recording(NamedTuple):
    """A plan, what it takes for granted, and how its outputs are arranged."""

    plan: Any
    watched: tuple[dict[Any, Any], ...]
    entries: tuple[tuple[Any, ...], ...]
    leaves: tuple[Any, ...]  # of the result; those that are tensors are filled in
    tensors: tuple[int, ...]  # which are
    spec: Any  # None: the only output itself

    def still_holds(self) -> bool:
        return bool(native.same_entries(self.watched, self.entries))

    def run(self, inputs: list[Tensor]) -> Any:
        outputs = self.plan.run(inputs)
        if self.spec is None:
            return outputs[0]
        leaves = list(self.leaves)
        for index, output in zip(self.tensors, outputs, strict=True):
            leaves[index] = output
        return _pytree.tree_unflatten(leaves, self.spec)


class _Recorder(TorchDispatchMode):
    """Notes the ops that a module runs, as long as a plan can repeat them.

    Args:
        module: whose parameters and buffers the ops may read.
        inputs: the tensors among the arguments.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._module = module
        self._constants = {id(tensor) for tensor in itertools.chain(module.parameters(), module.buffers())}
        self._slots = {id(tensor): index for index, tensor in enumerate(inputs)}
        self._kept = list(inputs)  # an identity is unique as long as its object lives
        self._plan = native.Plan(len(inputs))
        self._possible = len(self._slots) == len(inputs)

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the op and notes it."""
        result = func(*args, **(kwargs or {}))
        self._possible = self._possible and self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
        if func in _DROPOUTS and not args[2] and id(args[0]) in self._slots:
            self._keep(result, self._slots[id(args[0])])
            return True
        if type(result) is not Tensor or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        schema = func._schema
        values, slots = [], []
        for index, argument in enumerate(schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
            found = self._slots_of(value)
            if found is None:
                return False
            values.append(None if found else value)
            slots.append(found)
        self._keep(result, self._plan.add(schema.name, schema.overload_name, values, slots))
        return True

    def _slots_of(self, value: Any) -> list[int] | None:
        """The slots of a tensor or a list of tensors; none of a constant; None of what is neither."""
        parts = value if isinstance(value, (list, tuple)) else [value]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        slots = [self._slots[id(tensor)] for tensor in tensors if id(tensor) in self._slots]
        if slots:
            return slots if len(slots) == len(parts) else None
        return [] if all(id(tensor) in self._constants for tensor in tensors) else None

    def _keep(self, result: Tensor, slot: int) -> None:
        self._slots[id(result)] = slot
        self._kept.append(result)

    def finish(self, result: Any) -> _Recording | None:
        """The plan that leads to this result, or None where there is none."""
        leaves, spec = _pytree.tree_flatten(result)
        tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        outputs = [self._slots.get(id(leaves[index]), -1) for index in tensors]
        plain = all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves)
        if not (self._possible and plain and outputs and min(outputs) >= 0):
            return None
        self._plan.finish(outputs)
        watched = tuple(_watched(self._module))
        entries = tuple(
            tuple(itertools.chain.from_iterable(watched_dict.items())) for watched_dict in watched
        )
        kept = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return _Recording(
            self._plan, watched, entries, kept, tuple(tensors), None if isinstance(result, Tensor) else spec
        )


def _watched(module: nn.Module) -> Iterable[dict[Any, Any]]:
    """The dicts whose entries a run depends on: hooks of all modules, attributes, and theirs."""
    yield nn.modules.module._global_forward_hooks
    yield nn.modules.module._global_forward_pre_hooks
    for part in module.modules():
        attributes = vars(part)
        yield attributes
        for value in attributes.values():
            if isinstance(value, dict):
                yield value
            elif not isinstance(value, (Tensor, nn.Module, type, Replay, types.FunctionType)):
                details = getattr(value, "__dict__", None)
                if isinstance(details, dict):
                    yield details
