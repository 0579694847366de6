"""Measures planned cases on one device, with the settings of a run."""

import torch

from bench.gpu.limits import copy_rate
from bench.gpu.measure import Record
from bench.gpu.meters import Meter
from bench.gpu.model_case import forget_compiled_code, measure_model
from bench.gpu.op_case import Rates, measure_op
from bench.gpu.plan import DTYPES, Planned
from bench.shapes import ALL_DTYPES
from mobilevit_kernels.benchmark.cases import IMAGE_SIDE, SMOKE_IMAGE_SIDE
from mobilevit_kernels.benchmark.timing import matrix_rate

_COPY_BYTES = 1 << 30
_MATRIX_SIZE = 8192
_SMOKE_COPY_BYTES = 1 << 24
_SMOKE_MATRIX_SIZE = 256


class Runner:
    """Measures cases.

    Args:
        device: where.
        compile_mode: mode of ``torch.compile``.
        smoke: a few rounds on small inputs, to see that everything runs.
    """

    def __init__(self, device: torch.device, compile_mode: str, smoke: bool):
        self._meter = Meter(device)
        self._compile_mode = compile_mode
        self._smoke = smoke
        self._rates = self._measure_rates()

    def _measure_rates(self) -> Rates:
        copy_bytes, size = (
            (_SMOKE_COPY_BYTES, _SMOKE_MATRIX_SIZE) if self._smoke else (_COPY_BYTES, _MATRIX_SIZE)
        )
        budget_s = 0.01 if self._smoke else 0.3
        device, sample = self._meter.device, self._meter.sampler(cold=False)
        threads = torch.get_num_threads()
        matrix = {
            name: matrix_rate(ALL_DTYPES[name], threads, budget_s, device, size, sample) for name in DTYPES
        }
        copy = copy_rate(device, copy_bytes, budget_s, sample)
        self._meter.release()
        return Rates(copy, matrix)

    def describe_rates(self) -> dict[str, str]:
        """The measured rates, for the report."""
        matrix = {
            f"matrix product, {name}, TFLOP/s": f"{rate / 1e12:.3g}"
            for name, rate in self._rates.matrix.items()
        }
        return {"copy, GB/s read and written": f"{self._rates.copy / 1e9:.4g}", **matrix}

    def measure(self, planned: Planned) -> Record:
        """Measures one case, and frees what it held."""
        mode = self._compile_mode if planned.compiled else None
        budget_s, min_rounds = (0.01, 2) if self._smoke else (0.2, 10)
        try:
            if planned.is_op:
                return measure_op(planned.case, self._meter, self._rates, budget_s, min_rounds, mode)
            side = SMOKE_IMAGE_SIDE if self._smoke else IMAGE_SIDE
            return measure_model(planned.case, self._meter, side, 10 * budget_s, min_rounds // 2, mode)
        finally:
            forget_compiled_code(self._meter)
