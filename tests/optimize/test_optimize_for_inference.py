"""``optimize_for_inference``: the same outputs from a copy, however it is called, saved or shared."""

import copy
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import timm
import torch
from capabilities import needs_avx512
from foreign_models import BUILDERS, build_model, logits_of, randomize
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.optimize import api
from mobilevit_kernels.models.optimize.transformer import FusedSeparableTransformer, FusedTransformer

OURS = ("mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050")
FUSED = (FusedTransformer, FusedSeparableTransformer)


def ours(name: str, **options: object) -> nn.Module:
    """A model of this package with telling weights."""
    return randomize(create_model(name, num_classes=5, **options)).eval()


def images(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    """Random images, float32."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def count_fused(model: nn.Module) -> int:
    """Transformers that are one op."""
    return sum(isinstance(module, FUSED) for module in model.modules())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Largest difference relative to the largest value."""
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(params=[*OURS, *BUILDERS])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Every kind of model."""
    return ours(request.param) if request.param in OURS else build_model(request.param)


def test_same_outputs_and_the_original_stays(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    optimized = optimize_for_inference(model)
    with torch.inference_mode():
        for x in (images(), images(96, 64, batch=1), images(160, 96)):
            assert_close(logits_of(optimized, x), logits_of(model, x))
    assert count_fused(optimized) == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", OURS)
def test_odd_sizes(name: str) -> None:
    model = ours(name)
    optimized = optimize_for_inference(model)
    with torch.inference_mode():
        assert_close(optimized(images(97, 131)), model(images(97, 131)))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_feature_extractors(name: str) -> None:
    for model in (
        randomize(create_model(name, features_only=True)).eval(),
        randomize(timm.create_model(name, features_only=True)).eval(),
    ):
        optimized = optimize_for_inference(model)
        with torch.inference_mode():
            actual, expected = optimized(images()), model(images())
        assert [one.shape for one in actual] == [one.shape for one in expected]
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other)
        assert optimized.feature_info.channels() == model.feature_info.channels()


def test_gradients_are_not_tracked(model: nn.Module) -> None:
    optimized = optimize_for_inference(model)
    assert not logits_of(optimized, images()).requires_grad


@pytest.mark.parametrize("name", OURS)
def test_saves_and_loads(name: str) -> None:
    optimized = optimize_for_inference(ours(name))
    state = io.BytesIO()
    torch.save(optimized.state_dict(), state)
    state.seek(0)
    other = optimize_for_inference(create_model(name, num_classes=5))
    other.load_state_dict(torch.load(state, weights_only=True))
    pickled = pickle.loads(pickle.dumps(optimized))
    with torch.inference_mode():
        expected = optimized(images())
        assert torch.equal(other(images()), expected)
        assert torch.equal(pickled(images()), expected)
        assert torch.equal(copy.deepcopy(optimized)(images()), expected)


def test_threads_at_once(model: nn.Module) -> None:
    optimized = optimize_for_inference(model)
    inputs = [images(64 + 32 * (index % 2), 64) + index / 10 for index in range(4)]
    with torch.inference_mode():
        expected = [logits_of(optimized, x) for x in inputs]
    results: dict[int, list[Tensor]] = {}

    def serve(index: int) -> None:
        with torch.inference_mode():
            results[index] = [logits_of(optimized, inputs[index]) for _ in range(5)]

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in results.items():
        for out in outputs:
            assert_close(out, expected[index], 1e-5)
    assert len(results) == len(inputs)


@pytest.mark.parametrize("name", OURS)
def test_exports(name: str) -> None:
    optimized = optimize_for_inference(ours(name))
    with torch.no_grad():
        program = torch.export.export(optimized, (images(),))
        assert_close(program.module()(images()), optimized(images()))


@pytest.mark.parametrize(
    "fast",
    [pytest.param(False, id="float32"), pytest.param(True, id="bfloat16", marks=needs_avx512)],
)
def test_bfloat16_is_at_most_twice_as_far_off_as_autocast(
    model: nn.Module, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "has_fast_bfloat16", lambda: fast)
    optimized = optimize_for_inference(model, torch.bfloat16)
    x = images(batch=8)
    with torch.inference_mode():
        expected, actual = logits_of(model, x), logits_of(optimized, x)
        with torch.autocast("cpu", torch.bfloat16):
            plain = logits_of(model, x).float()
    assert actual.dtype == torch.float32
    # The mean: the largest of a few rounding errors is luck.
    assert (actual - expected).square().mean().sqrt() <= 2 * (plain - expected).square().mean().sqrt()
    assert any(p.dtype == torch.bfloat16 for p in optimized.parameters()) == fast


def test_another_attention_stays_as_it_is() -> None:
    model = ours("mobilevit_xxs", attention="linformer", img_size=64)
    optimized = optimize_for_inference(model)
    assert count_fused(optimized) == 0
    with torch.inference_mode():
        assert_close(optimized(images()), model(images()))


def use_another_activation(block: nn.Module) -> None:
    block.transformer[0].mlp.act = nn.GELU()


def use_another_epsilon(block: nn.Module) -> None:
    block.transformer[1].norm2.eps = 1e-2


def add_a_layer(block: nn.Module) -> None:
    block.transformer[0].mlp.drop = nn.Hardtanh(-0.1, 0.1)


def add_a_hook(block: nn.Module) -> None:
    block.transformer[1].attn.register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize(
    "change",
    [use_another_activation, use_another_epsilon, add_a_layer, add_a_hook],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_what_the_op_does_not_compute_stays_as_it_is(name: str, change: Callable[[nn.Module], None]) -> None:
    model = ours(name)
    change(model.stages[3][1])
    optimized = optimize_for_inference(model)
    assert count_fused(optimized) == 2
    with torch.inference_mode():
        assert_close(optimized(images()), model(images()))


def test_bad_input() -> None:
    model = ours("mobilevit_xxs")
    with pytest.raises(
        TypeError, match=r"optimize_for_inference\(model\): expected a torch.nn.Module, got str"
    ):
        optimize_for_inference("mobilevit_xxs")  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"optimize_for_inference\(dtype\): expected torch.float32 or torch.bfloat16"
    ):
        optimize_for_inference(model, torch.float16)
    with pytest.raises(
        ValueError, match="expected float32 on the CPU, got torch.float64 on cpu in stem.conv.weight"
    ):
        optimize_for_inference(model.double())
    with pytest.raises(ValueError, match="expected float32 on the CPU, got torch.float32 on meta in"):
        optimize_for_inference(ours("mobilevit_xxs").to("meta"))
    with pytest.raises(ValueError, match="no MobileViT block"):
        optimize_for_inference(nn.Linear(2, 2))


def test_backends_do_not_matter() -> None:
    optimized = optimize_for_inference(ours("mobilevit_xxs"))
    with torch.inference_mode():
        expected = optimized(images())
        with mobilevit_kernels.use_backend("reference"):
            assert torch.equal(optimized(images()), expected)
