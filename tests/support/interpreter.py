"""Which tests run with TRITON_INTERPRET=1, where Triton kernels run on the CPU and each case takes about a second."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from mobilevit_kernels.triton_kernels import support

# This many cases of each test are enough for every change; the others are slow.
CASES = 3
FLOAT64 = "its float64 tensors are beyond the Triton kernels"
HALF = "relu(value) * context is rounded to float16 for the second product, as plain PyTorch does"
THREADS = "the interpreter is not thread-safe"
NOT_INTERPRETED = {
    "test_beside.py": "it is about the compiled kernels",
    "test_convolution.py": "it is about the compiled kernels",
    "test_depthwise_convolution.py": "it is about the compiled kernels",
    "test_cpu_capability.py": "it is about the compiled kernels",
    "test_inverted_residual.py": "it is about the compiled kernels",
    "test_pooled_linear.py": "it is about the compiled kernels",
    "test_sweeps.py": "it is about the compiled kernels",
    "test_transformers.py": "it is about the compiled kernels",
    "test_winograd_convolution.py": "it is about the compiled kernels",
    "test_gradcheck": FLOAT64,
    "test_gradcheck_without_biases": FLOAT64,
    "test_float64_stays": FLOAT64,
    "test_a_float64_weight_beside_a_float32_map_is_reported": FLOAT64,
    "test_gradients_have_the_shape_and_dtype_of_their_tensors": FLOAT64,
    "TestDoubleBackward": FLOAT64,
    "TestClosedForms": FLOAT64,
    "test_every_choice_of_inputs_that_want_a_gradient": FLOAT64,
    "test_the_querys_bias_has_no_gradient": FLOAT64,
    "test_statistics_are_the_documented_ones": FLOAT64,
    "test_autocast_reaches_the_operator_itself": "autocast on the CPU is bfloat16 here, which is not interpreted",
    "test_compiled_under_autocast": "autocast on the CPU is bfloat16 here, which is not interpreted",
    "test_training_step_beside_layers_of_torch": "autocast on the CPU is bfloat16 here, which is not interpreted",
    "test_context_beyond_the_range_of_float16_is_infinite_or_finite_like_the_reference": HALF,
    "test_thread_counts_agree_to_rounding": THREADS,
    "test_concurrent_calls_do_not_share_scratch": THREADS,
    "test_backward_on_another_thread": THREADS,
}
SLOW = (
    "test_a_thousand_tokens",
    "test_thousands_of_tokens",
    "test_offsets_beyond_32_bits",
    "(20, 20)",
    "test_compiled_training_step_with_inductor",
)


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what cannot be interpreted, and marks all but a few cases of each test as slow."""
    dropped = {item for item in items if _cannot_run(item)}
    config.hook.pytest_deselected(items=list(dropped))
    items[:] = [item for item in items if item not in dropped]
    for members in _by_test(items):
        for index, item in enumerate(members):
            kept = index in {len(members) * number // CASES for number in range(CASES)}
            if not kept or any(name in item.nodeid for name in SLOW):
                item.add_marker(pytest.mark.slow)


def _cannot_run(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    lacks_dtype = any(
        isinstance(value, torch.dtype) and support.reason("cpu", value) is not None for value in values
    )
    parts = item.nodeid.replace("[", "::").replace("/", "::").split("::")
    return lacks_dtype or any(part in NOT_INTERPRETED for part in parts)


def _by_test(items: Sequence[pytest.Item]) -> Iterator[list[pytest.Item]]:
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    yield from cases.values()
