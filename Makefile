# What a developer can do, on a machine with make. Windows: the README names the command behind each target.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-310 check format bundle engines crosscheck judge bench golden schedulers clean

PYTHON ?= python3
MODEL ?= emoji
TARGET ?= tensorrt_rtx
PROFILES ?= default
PARTS ?= auto
PRECISION ?= fp16
SHARED ?=
BENCH ?=
BIN := .venv/bin
READY := .venv/.ready
BUNDLE := trt_models/$(MODEL)/bundle.json
# Idle OpenMP threads spin and slow everything else on a small machine.
export OMP_WAIT_POLICY ?= PASSIVE
# Nothing here loads a model from a hub.
export HF_HUB_OFFLINE ?= 1
# Tests of one file stay in one process; each process computes on one thread.
SIDE_BY_SIDE ?= --numprocesses auto --maxprocesses 4 --dist loadfile

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the zturbo command and everything the targets below need

# torch first and by its exact version, so that a torch from elsewhere (a CPU build) is kept by the next line. The build
# for Linux on PyPI is the CUDA one: about 2.7 GB with NVIDIA's libraries. pip's own settings can name another index.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "zturbo needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[export,cpu,bench,dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[rtx]" \
		|| echo "setup: no TensorRT-RTX wheel could be installed here; everything but TARGET=tensorrt_rtx works"
	@touch $@

demo: setup $(BUNDLE) ## export models/emoji, paint 8 prompts: out/demo/sheet.png and a table of stage times
	$(BIN)/zturbo demo --model models/$(MODEL)

test: setup ## the fast tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"

test-all: setup ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu"

test-310: ## the tests of engine/ and runtime/ on Python 3.10 without torch, where a python3.10 is found
	@sh .ci/test-310

check: setup ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bundle: setup $(BUNDLE) ## export models/$(MODEL) to trt_models/$(MODEL)  (MODEL=emoji)

$(BUNDLE): $(shell find models/$(MODEL) export engine/binding.py engine/bundle.py \
		-name '*.json' -o -name '*.safetensors' -o -path 'export/*.py' -o -path 'engine/*.py') | $(READY)
	$(BIN)/zturbo export models/$(MODEL)

engines: setup $(BUNDLE) ## build plans  (MODEL=emoji TARGET=tensorrt_rtx PROFILES="default 128@2" PARTS=auto PRECISION=fp16 SHARED=)
	$(BIN)/zturbo build trt_models/$(MODEL) --target $(TARGET) --profiles "$(PROFILES)" --parts $(PARTS) \
		--precision $(PRECISION) $(if $(SHARED),--shared)

crosscheck: setup $(BUNDLE) ## graphs and plans compared once more, by Polygraphy and ONNX Runtime
	$(BIN)/python -m benchmarks.crosscheck trt_models/$(MODEL)

judge: setup $(BUNDLE) ## how often the model paints what it is asked for
	$(BIN)/zturbo judge --model models/$(MODEL)

bench: setup $(BUNDLE) ## every contender on this machine: out/bench/index.html, and tables  (MODEL=emoji BENCH="--quick")
	$(BIN)/zturbo bench trt_models/$(MODEL) $(BENCH)

golden: setup $(BUNDLE) ## paint docs/golden: a sheet of pictures for each thing a request can ask
	$(BIN)/python -m benchmarks.golden trt_models/$(MODEL) --out docs/golden

schedulers: setup ## write docs/schedulers.md: every scheduler of diffusers, exported or refused with the reason
	$(BIN)/python -m export.scheduler_page

clean: ## remove what the targets above made, but for .venv and trt_models
	rm -rf out build .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find zturbo export engine runtime benchmarks models tests -name __pycache__ -type d -prune -exec rm -rf {} +
