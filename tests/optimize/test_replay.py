"""Calls of an optimised model without its Python: the same outputs, and none where somebody would see a difference."""

import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
from foreign_models import BUILDERS, build_model, randomize
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import mobilevit_kernels._C as native
from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.optimize import replay
from mobilevit_kernels.models.optimize.inverted_residual import FusedInvertedResidual
from mobilevit_kernels.models.optimize.replay import Replay

OURS = ("mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs")
pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture
def inference_mode() -> object:
    """Of every test here."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model() -> nn.Module:
    """An optimised model that was not called yet."""
    return optimized("mobilevit_xxs")


def optimized(name: str) -> nn.Module:
    """An optimised model with telling weights: ours or another library's."""
    with torch.inference_mode(False):
        if name == "features":
            plain = timm.create_model("mobilevit_xxs", features_only=True)
            return optimize_for_inference(randomize(plain).eval())
        if name in BUILDERS:
            return optimize_for_inference(build_model(name))
        return optimize_for_inference(randomize(create_model(name, num_classes=5)).eval())


def images(side: int = 64, seed: int = 0, batch: int = 1) -> Tensor:
    """Random images, float32."""
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def silent_python(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, an inverted residual block's Python is an error."""

    def forbid() -> None:
        def fail(*_: object) -> Tensor:
            raise AssertionError("the model's own forward ran")

        monkeypatch.setattr(FusedInvertedResidual, "forward", fail)

    return forbid


def tensors_of(output: object) -> list[Tensor]:
    """All tensors of an output, however they are arranged."""
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def assert_same(actual: object, expected: object) -> None:
    """Bit for bit, in the same arrangement."""
    assert type(actual) is type(expected)
    pairs = zip(tensors_of(actual), tensors_of(expected), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", [*OURS, *BUILDERS, "features"])
def test_third_call_runs_no_python_and_returns_the_same(name: str, silent_python: Callable[[], None]) -> None:
    model = optimized(name)
    first = model(images())
    other = model(images(seed=1))
    assert tensors_of(first)
    assert not torch.equal(tensors_of(first)[-1], tensors_of(other)[-1])
    silent_python()
    assert_same(model(images()), first)
    assert_same(model(images(seed=1)), other)


def test_outputs_are_not_shared_between_calls(model: nn.Module) -> None:
    outputs = [model(images()) for _ in range(4)]
    outputs[2].zero_()
    assert outputs[3].abs().sum() > 0
    assert torch.equal(outputs[3], outputs[0])


def test_every_shape_layout_and_dtype_has_calls_of_its_own(model: nn.Module) -> None:
    inputs = [
        images(),
        images(96),
        images(batch=3),
        images().contiguous(memory_format=torch.channels_last),
        images(72)[:, :, 4:68, 4:68],
        images().bfloat16(),
    ]
    expected = [model(x) for x in inputs]
    for _ in range(3):
        for x, out in zip(inputs, expected, strict=True):
            assert_same(model(x), out)


def test_arguments_that_are_no_tensors_are_part_of_the_call() -> None:
    model = optimized(next(name for name in BUILDERS if name.startswith("hf")))
    for _ in range(4):
        with_states = model(images(), output_hidden_states=True)
        assert model(images(), output_hidden_states=False).hidden_states is None
        assert len(with_states.hidden_states) > 1
    as_tuple = [model(images(), return_dict=False) for _ in range(4)]
    assert all(isinstance(output, tuple) for output in as_tuple)


def test_sizes_beyond_the_largest_number_of_plans(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_PLANS", 2)
    inputs = [images(side) for side in (32, 64, 96, 128)]
    expected = [model(x) for x in inputs]
    for _ in range(3):
        for x, out in zip(inputs, expected, strict=True):
            assert_same(model(x), out)


def call_thrice(model: nn.Module) -> Tensor:
    """The output of a call that repeats recorded ops."""
    return [model(images()) for _ in range(3)][-1]


def test_a_hook_added_later_runs(model: nn.Module) -> None:
    before, seen = call_thrice(model), []
    handle = model.stages[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert_same(model(images()), before)
    assert len(seen) == 1
    handle.remove()
    assert_same(call_thrice(model), before)
    assert len(seen) == 1


def test_a_hook_of_all_modules_runs(model: nn.Module) -> None:
    call_thrice(model)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(images())
    finally:
        handle.remove()
    assert len(seen) > 20


def test_weights_written_in_place_are_read(model: nn.Module) -> None:
    before = call_thrice(model)
    model.stem.packed.mul_(0.5)
    after = model(images())
    assert not torch.equal(after, before)
    assert_same(copy.deepcopy(model)(images()), after)


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_read(model: nn.Module, assign: bool) -> None:
    before = call_thrice(model)
    state = {name: tensor * 0.5 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    after = model(images())
    assert not torch.equal(after, before)
    assert_same(copy.deepcopy(model)(images()), after)


def test_a_replaced_layer_and_attribute_count(model: nn.Module) -> None:
    before = call_thrice(model)
    model.stem = nn.Sequential(model.stem, nn.ReLU())
    assert not torch.equal(model(images()), before)
    with torch.inference_mode(False):
        model = optimized("mobilevit_xxs")
    assert_same(call_thrice(model), before)
    model.stem.out_dtype = torch.bfloat16
    assert not torch.equal(model(images()), before)


def test_a_changed_configuration_counts() -> None:
    model = optimized(next(name for name in BUILDERS if name.startswith("hf")))
    for _ in range(3):
        assert not isinstance(model(images()), tuple)
    model.config.return_dict = False
    assert isinstance(model(images()), tuple)


def test_copies_and_pickles_record_their_own(model: nn.Module, silent_python: Callable[[], None]) -> None:
    before = call_thrice(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in copies:
        twin.head.fc.packed.data.zero_()
        assert call_thrice(twin).abs().max() == 0
    silent_python()
    assert_same(model(images()), before)
    assert all(twin(images()).abs().max() == 0 for twin in copies)


def test_a_dispatch_mode_sees_every_op(model: nn.Module) -> None:
    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    call_thrice(model)
    with Names() as mode:
        model(images())
    assert sum("inverted_residual" in name for name in mode.names) == 7


def test_autocast_and_gradients_are_left_to_the_model(model: nn.Module) -> None:
    before = call_thrice(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).dtype in (torch.bfloat16, torch.float32)
    assert_same(model(images()), before)
    with torch.inference_mode(False), torch.enable_grad():
        with pytest.raises(RuntimeError, match="gradient"):
            model(images().requires_grad_())
        assert_same(model(images()), before)


def test_wrong_images_are_reported_as_ever(model: nn.Module) -> None:
    call_thrice(model)
    for _ in range(3):
        with pytest.raises(ValueError, match="3"):
            model(torch.rand(1, 4, 64, 64))


def test_forward_looks_like_that_of_the_class(model: nn.Module) -> None:
    assert str(inspect.signature(model.forward)) == "(x: torch.Tensor) -> torch.Tensor"
    assert model.forward.__doc__ == type(model).forward.__doc__


def test_exports_after_calls(model: nn.Module) -> None:
    before = call_thrice(model)
    with torch.inference_mode(False), torch.no_grad():
        dynamic = {"x": {0: torch.export.Dim("batch")}}
        program = torch.export.export(model, (images(batch=2),), dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(images()), before.clone())


def test_torch_compile_traces_the_model(model: nn.Module) -> None:
    before = call_thrice(model)
    with torch.inference_mode(False), torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_same(compiled(images()), before)


def test_threads_that_begin_together(model: nn.Module) -> None:
    inputs = [images(64 + 32 * (index % 2), seed=index) for index in range(4)]
    expected = [copy.deepcopy(model)(x) for x in inputs]
    wrong: list[int] = []

    def call(index: int) -> None:
        with torch.inference_mode():
            for _ in range(6):
                out = model(inputs[index])
                if (out - expected[index]).abs().max() > 1e-5 * expected[index].abs().max():
                    wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_discarded_model_is_freed() -> None:
    model = optimized("mobilevit_xxs")
    call_thrice(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Counting(nn.Module):
    """Does more than it returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Counts."""
        self.calls += 1
        return self.inner(x)


def test_modules_of_other_packages_run_themselves() -> None:
    with torch.inference_mode(False):
        plain = randomize(create_model("mobilevit_xxs", num_classes=5)).eval()
        model = optimize_for_inference(Counting(plain))
    for _ in range(5):
        model(images())
    assert model.calls == 5


class Branching(nn.Module):
    """Reads a number, so that its ops depend on the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Either of two results."""
        return x + 1 if x.sum().item() > 0 else x - 1


class Drawing(nn.Module):
    """Draws anew with every call."""

    def forward(self, x: Tensor) -> Tensor:
        """Noise."""
        return x + torch.rand_like(x)


class Holding(nn.Module):
    """Reads a tensor that is no parameter or buffer."""

    offset = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        """Its sum with the offset."""
        return x + self.offset[0]


def test_what_cannot_be_repeated_is_not() -> None:
    branching, drawing, holding = (Replay(kind()) for kind in (Branching, Drawing, Holding))
    x = torch.ones(4)
    for _ in range(4):
        assert torch.equal(branching(x), x + 1)
        assert torch.equal(branching(-x), -x - 1)
    draws = [drawing(x) for _ in range(4)]
    assert not torch.equal(draws[2], draws[3])
    for value in range(4):
        Holding.offset = [torch.full((1,), float(value))]
        assert torch.equal(holding(x), x + value)


class Sums(nn.Module):
    """Several outputs, one of them twice, one no tensor."""

    def forward(self, x: Tensor, y: Tensor, factor: int = 2) -> dict[str, object]:
        """A nested output."""
        total = torch.add(x, y, alpha=factor)
        return {"sum": total, "parts": (total.mean(), total), "factor": factor}


def test_outputs_of_any_arrangement() -> None:
    sums = Replay(Sums())
    for value in range(5):
        x, y = torch.full((3,), float(value)), torch.ones(3)
        out = sums(x, y, factor=3)
        assert out["factor"] == 3
        assert torch.equal(out["sum"], x + 3)
        assert torch.equal(out["parts"][0], torch.tensor(value + 3.0))
        assert out["parts"][1] is not x
        assert torch.equal(sums(y, x)["sum"], 1 + 2 * x)


class Converting(nn.Module):
    """Passes dtypes, memory formats, lists of ints and numbers to ops."""

    def forward(self, x: Tensor) -> Tensor:
        """A permuted, converted and padded map."""
        y = x.to(torch.float64).contiguous(memory_format=torch.channels_last)
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat((y.permute(0, 1, 3, 2), torch.full_like(y, 0.5)), 1).to(torch.bfloat16).mean((2, 3))


def test_arguments_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    converting = Replay(Converting())
    inputs = [images(8, seed) for seed in range(4)]
    expected = [Converting()(x) for x in inputs]
    assert_same(converting(inputs[0]), expected[0])
    assert_same(converting(inputs[1]), expected[1])
    monkeypatch.delattr(Converting, "forward")
    assert_same(converting(inputs[2]), expected[2])
    assert_same(converting(inputs[3]), expected[3])


def test_plan_reports_what_it_cannot_take() -> None:
    plan = native.Plan(1)
    with pytest.raises(ValueError, match="expected 2 arguments and slots, got 1 and 1"):
        plan.add("aten::mul", "Tensor", [None], [[0]])
    with pytest.raises(ValueError, match="slots: expected numbers from 0 to below 1, got 3"):
        plan.add("aten::mul", "Tensor", [None, None], [[0], [3]])
    with pytest.raises(ValueError, match="slots: expected one of argument 1 of aten::mul"):
        plan.add("aten::mul", "Tensor", [None, None], [[0], [0, 0]])
    with pytest.raises(ValueError, match="an op that returns one tensor"):
        plan.add("aten::max", "dim", [None, 0, False], [[0], [], []])
    with pytest.raises(ValueError, match="outputs: expected numbers from 0 to below 1, got 1"):
        plan.finish([1])


def test_plan_runs_calls_in_turn() -> None:
    plan = native.Plan(1)
    assert plan.add("aten::mul", "Tensor", [None, None], [[0], [0]]) == 1
    assert plan.add("aten::cat", "", [None, 0], [[0, 1, 0], []]) == 2
    plan.finish([2, 1])
    for _ in range(2):
        joined, square = plan.run([torch.tensor([3.0])])
        assert joined.tolist() == [3.0, 9.0, 3.0]
        assert square.tolist() == [9.0]
    with pytest.raises(ValueError, match="inputs: expected 1 tensors, got 2"):
        plan.run([torch.ones(1)] * 2)
