# From a fresh clone, each target sets up what it needs: Python 3.10 or newer and a C++ compiler are enough.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-slow test-triton test-asan test-all aot lint typecheck format \
	bench bench-check bench-record bench-compare bench-models bench-peers bench-units bench-memory bench-multi-scale \
	bench-training-memory bench-training-profile bench-curves bench-profile bench-startup bench-throughput bench-smoke \
	gpu-report wheel clean

PYTHON ?= python3
VENV ?= .venv
VENV_ARGS ?=
TORCH ?= torch==2.13.0
# For a torch without its own Triton: the oldest that the kernels support, and a NumPy that its interpreter takes.
TRITON ?= triton==3.6.0 'numpy<2.4'
ARGS ?=
TIMM = timm>=1.0.20,<1.1

# The build finds cmake and ninja here.
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
PIP := $(BIN)/python -m pip
PYTEST := $(BIN)/python -m pytest
# One thread: the interpreter computes small NumPy arrays.
INTERPRETED := TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST)
TRITON_TESTS := tests/ops tests/triton

CXX_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h')
NATIVE_SOURCES = $(CXX_SOURCES) CMakeLists.txt setup.py

help: ## list the targets
	@printf 'make TARGET [ARGS="..."], in an environment of its own (%s):\n' "$(VENV)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf 'Variables: PYTHON=%s VENV=%s VENV_ARGS=%s TORCH=%s\n' "$(PYTHON)" "$(VENV)" "$(VENV_ARGS)" "$(TORCH)"

venv: $(VENV)/.stamp-native $(VENV)/.stamp-extras ## the environment: torch, the package (editable, compiled), all tools

# A torch that the environment has already (VENV_ARGS=--system-site-packages) stays, and nothing later replaces it.
# Its pip does too, since the bundled setuptools of some Pythons would hide a newer one.
$(VENV)/.stamp-torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python 3.10 or newer is needed, this is {v[0]}.{v[1]}: set PYTHON=")'
	@command -v "$${CXX:-c++}" >/dev/null || { echo "A C++ compiler is needed: install one or set CXX." >&2; exit 1; }
	@echo "== $(VENV): environment and $(TORCH)"
ifneq (,$(findstring --system-site-packages,$(VENV_ARGS)))
	$(PYTHON) -m venv --without-pip $(VENV_ARGS) $(VENV)
	$(BIN)/python .ci/use_parent_packages.py "$$(command -v $(PYTHON))"
else
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
endif
	$(BIN)/python -W ignore -c 'import torch' 2>/dev/null || $(PIP) install "$(TORCH)"
	$(BIN)/python -W ignore -c 'import torch; print("torch==" + torch.__version__)' > $(VENV)/constraints.txt
	$(PIP) install 'setuptools>=77' wheel 'cmake>=3.25' ninja numpy
	@touch $@

$(VENV)/.stamp-native: $(VENV)/.stamp-torch $(NATIVE_SOURCES) pyproject.toml
	@echo "== $(VENV): compiling the extension"
	$(PIP) install --verbose --no-build-isolation --check-build-dependencies --no-deps --editable .
	@touch $@

$(VENV)/.stamp-extras: $(VENV)/.stamp-torch pyproject.toml | $(VENV)/.stamp-native
	@echo "== $(VENV): packages of the demo, the tests and the tools"
	$(PIP) install --constraint $(VENV)/constraints.txt 'mobilevit-kernels[demo,test,dev]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install $(TRITON)
	@touch $@

demo: venv ## show the product on photographs: fused against plain PyTorch (ARGS="--weights FILE")
	$(BIN)/mobilevit demo $(ARGS)

# The interpreter keeps one core busy: it runs beside the other tests, whose threads give up theirs when they wait, and
# is printed after them.
INTERPRETED_LOG := build/test-triton.log
test: venv ## the tests, without those marked slow; the Triton kernels run interpreted
ifeq ($(ARGS),)
	@mkdir -p $(dir $(INTERPRETED_LOG))
	$(INTERPRETED) -m "not slow" $(TRITON_TESTS) > $(INTERPRETED_LOG) 2>&1 & interpreted=$$!; \
	trap 'kill $$interpreted 2> /dev/null' EXIT; \
	status=0; OMP_WAIT_POLICY=PASSIVE $(PYTEST) -m "not slow" || status=$$?; \
	wait $$interpreted || status=$$?; trap - EXIT; \
	echo "== the Triton kernels, interpreted"; cat $(INTERPRETED_LOG); exit $$status
else
	$(PYTEST) -m "not slow" $(ARGS)
endif

test-slow: venv ## the tests marked slow: long sweeps, install
	$(PYTEST) -m slow $(ARGS)

test-triton: venv ## the Triton kernels on the CPU, in Triton's interpreter (ARGS="tests/ops tests/triton": all cases, an hour)
	$(INTERPRETED) $(if $(ARGS),$(ARGS),-m "not slow" $(TRITON_TESTS))

# A build beside the installed one. Under the sanitizers torch.compile's own C++ builds are left out, and leaks, for
# Python frees nothing at its end. The C++ library is loaded with them: they look for its functions when they start.
ASAN_BUILD := build/asan
SANITIZED = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 MOBILEVIT_TESTED_PACKAGE=$(ASAN_BUILD)/package \
	$(PYTEST) -o pythonpath="$(ASAN_BUILD)/package . tests/support" -m "not slow" --ignore tests/ops/test_compile_export.py
# Of kernels that this processor cannot run, sanitizers would see nothing.
CAPABILITY = $(shell $(BIN)/python -c 'from mobilevit_kernels import _C; print(_C.cpu_capability())')
LOWER_CAPABILITIES = $(if $(filter x86_64,$(shell uname -m)),$(filter-out $(CAPABILITY),avx2 default))
CAPABILITY_TESTS := tests/ops/accuracy $(addprefix tests/ops/test_,batch_norm.py convolution.py depthwise_conv2d.py \
	depthwise_convolution.py edge_shapes.py inverted_residual.py pointwise_conv2d.py pooled_linear.py \
	strides.py transformers.py)
test-asan: venv ## tests of the CPU kernels, built with the address and undefined-behaviour sanitizers
	CMAKE_ARGS="-DMOBILEVIT_SANITIZE=ON -DMOBILEVIT_MAX_CAPABILITY=$(CAPABILITY)" $(BIN)/python setup.py --quiet build \
		--build-base $(ASAN_BUILD)/objects --build-lib $(ASAN_BUILD)/package
	$(SANITIZED) $(if $(ARGS),$(ARGS),tests/ops)
	$(if $(ARGS),,for capability in $(LOWER_CAPABILITIES); do \
		MOBILEVIT_CPU_CAPABILITY=$$capability $(SANITIZED) $(CAPABILITY_TESTS) || exit 1; done)

test-all: venv ## every test, but for the interpreted cases marked slow
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,$(INTERPRETED) -m "not slow" $(TRITON_TESTS))

aot: venv ## every Triton kernel compiled for sm_80, sm_90, sm_100 and gfx942: registers, spills, shared memory
	$(BIN)/python -m bench.aot $(ARGS)

lint: venv ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	@$(MAKE) --no-print-directory typecheck

# mypy takes a package from where its files lie, so it checks a copy laid out as installed.
typecheck: venv ## mypy alone
	@rm -rf build/typecheck
	@$(BIN)/python setup.py --quiet build_py --build-lib build/typecheck
	MYPYPATH=build/typecheck $(BIN)/mypy -p mobilevit_kernels -p bench \
		| sed -e 's#^build/typecheck/mobilevit_kernels/models/#models/#' -e 's#^build/typecheck/##'

format: venv ## format Python and C++ in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: venv ## the benchmark suites, and the ratios plain PyTorch / ours
	$(BIN)/python -m bench.suite run $(ARGS)

bench-check: venv ## the same, compared with the committed baseline; fails on a regression
	$(BIN)/python -m bench.suite check $(ARGS)

bench-record: venv ## the same, written as the new baseline
	$(BIN)/python -m bench.suite record $(ARGS)

bench-compare: venv ## ours and the peers in turn, behind a correctness gate: tables and plots in bench/results
	$(BIN)/python -m bench.compare ops models $(ARGS)

# An engine that cannot be installed here is absent in the results, no error.
INSTALL_PEERS = $(PIP) install --constraint $(VENV)/constraints.txt 'mobilevit-kernels[peers]' \
	|| echo "onnxruntime, openvino: not installed, so they are absent in the results"
bench-models: venv ## whole models against ONNX Runtime and OpenVINO: the README's table and plot
	$(INSTALL_PEERS)
	$(BIN)/python -m bench.compare models --peers onnxruntime openvino --budget 0.6 --name peers_models $(ARGS)
	$(BIN)/python -m bench.readme --write

bench-peers: venv ## ours against torch.compile, ONNX Runtime and OpenVINO too: ops, token mixers, models, training (hours)
	$(INSTALL_PEERS)
	$(BIN)/python -m bench.compare ops mixers models training --peers compile onnxruntime openvino $(ARGS)

bench-units: venv ## multi-head, Linformer and separable attention against the number of tokens, and in MobileViT-S
	$(BIN)/python -m bench.attention_units $(ARGS)

bench-memory: venv ## memory of the ops in training: kept for the backward pass, and the peak
	$(BIN)/python -m bench.op_memory $(ARGS)

bench-multi-scale: venv ## what multi-scale sampling saves: updates, padding, memory of a training step
	$(BIN)/python -m bench.multi_scale $(ARGS)

bench-training-memory: venv ## memory of a whole training step, ours and plain PyTorch's
	$(BIN)/python -m bench.training_memory $(ARGS)

bench-training-profile: venv ## where the time of training steps goes, op by op, ours and plain PyTorch's
	$(BIN)/python -m bench.training_profile $(ARGS)

bench-curves: venv ## training curves on handwritten digits, fused ops and plain PyTorch on one plot
	$(BIN)/python -m bench.training_curves $(ARGS)

bench-profile: venv ## where the time of optimised models goes, op by op, against the floor of each
	$(BIN)/python -m bench.inference_profile $(ARGS)

bench-throughput: venv ## images per second of whole models over the batch size, ours and the other runtimes
	$(INSTALL_PEERS)
	$(BIN)/python -m bench.compare models --throughput --name throughput --peers onnxruntime openvino \
		--batches 1 8 32 --filter '^(mobilevit_s|mobilevitv2_100) ' $(ARGS)

bench-startup: venv ## from a file to the first result in a fresh process, and its memory: ours and other runtimes
	$(INSTALL_PEERS)
	$(BIN)/python -m bench.startup $(ARGS)

# Without torch.compile, whose every case compiles C++ for half a minute.
bench-smoke: venv ## every benchmark for a moment, to see that it runs
	$(BIN)/python -m bench.suite run --smoke
	$(BIN)/python -m bench.compare ops models --smoke --output build/bench
	$(BIN)/python -m bench.compare mixers training --peers onnxruntime openvino --smoke --threads 1 --output build/bench
	$(BIN)/python -m bench.compare models --smoke --throughput --name throughput --dtypes fp32 --output build/bench
	$(BIN)/python -m bench.attention_units --smoke --output build/bench
	$(BIN)/python -m bench.op_memory --smoke --output build/bench
	$(BIN)/python -m bench.multi_scale --smoke --batch 2 --output build/bench
	$(BIN)/python -m bench.training_memory --smoke --batch 2 --output build/bench
	$(BIN)/python -m bench.training_profile --smoke --models mobilevit_xxs --batch 2 --output build/bench
	$(BIN)/python -m bench.training_curves --smoke --output build/bench
	$(BIN)/python -m bench.inference_profile --smoke --output build/bench
	$(BIN)/python -m bench.startup --smoke --models mobilevit_xxs --output build/bench
	$(BIN)/mobilevit bench --smoke --peers onnxruntime openvino --output build/bench/cli
	$(BIN)/python -m bench.gpu.report --device cpu --smoke --output build/bench/gpu

# Its minutes begin with make, the compiler included. timm is a peer where it can be had; all else must be there.
gpu-report: GPU_STARTED := $(shell date +%s)
gpu-report: $(VENV)/.stamp-native ## GPU tests and benchmarks in 9 minutes: a report in bench/results/gpu-NAME (ARGS="--help")
	$(PIP) install --constraint $(VENV)/constraints.txt 'mobilevit-kernels[gpu]'
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("timm") is None)' \
		|| $(PIP) install --retries 0 --timeout 5 --constraint $(VENV)/constraints.txt '$(TIMM)' \
		|| echo "timm: absent, so it is no peer in this report"
	$(BIN)/python -m bench.gpu.report --started $(GPU_STARTED) $(ARGS)

wheel: venv ## dist/*.whl, for this Python and this torch
	$(BIN)/python -m build --no-isolation --wheel

clean: ## what the targets made, the environment included
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .pytest_cache .ruff_cache
	rm -f mobilevit_kernels/*.so mobilevit_kernels/_build_info.py
	find bench examples mobilevit_kernels models tests -name __pycache__ -type d -prune -exec rm -rf {} +
