# `make demo` and `make test` are all a fresh machine with Python 3.11 needs.
VENV    := .venv
RUNTIME := cpu
GPU_RUNTIME ?= gpu,tensorrt
PYTHON  ?= python3.11
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DEMO    := out/demo
FUZZ_CASES ?= 50000
FUZZ_SEED ?= 1
# The lowest versions of pyproject.toml; an older transformers has an older hub, with packages that it alone needs.
FLOOR_HUB := huggingface-hub==1.5.0
FLOOR   := click==8.1.8 jinja2==3.1.6 msgspec==0.19.0 onnx==1.21.0 onnxruntime==1.23.2 onnxscript==0.7.2 onnx-ir==1.0.0 \
	peft==0.21.0 safetensors==0.5.3 tokenizers==0.22.0 transformers==5.10.0

# The tests start hundreds of processes; each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow fuzz gpu gpu-all lint types docs floor interop triton bindings wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with all that the demo and the tests need

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(RUNTIME),openvino,train,tensorrt-rtx,sign,serve,docs,dev]"
	@touch $@

demo: venv ## Export, validate and run the embedded demo model
	$(BIN)/adakron-export onnx models/demo -o $(DEMO)
	$(BIN)/adakron-export predict $(DEMO) --text "The printer stopped working after the update" --text "How do I share the calendar?"
	$(BIN)/adakron-export bank create topic=models/demo reply=models/demo/reply --backbone models/demo/backbone -o $(DEMO)-bank
	$(BIN)/adakron-export predict $(DEMO)-bank --text "The printer stopped working after the update" --adapter topic
	$(BIN)/adakron-export predict $(DEMO)-bank --text "The printer stopped working after the update" --adapter reply
	@echo "serve it: $(BIN)/adakron-export serve $(DEMO)-bank"

test: venv ## Run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu"

slow: venv ## Run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not gpu"

fuzz: venv ## Read 50,000 damaged files of every kind
	FUZZ_CASES=$(FUZZ_CASES) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -n auto tests/whole/test_fuzz.py

gpu: ## Test and measure on an NVIDIA GPU, in .venv-gpu (without TensorRT: GPU_RUNTIME=gpu)
	$(MAKE) --no-print-directory VENV=.venv-gpu RUNTIME=$(GPU_RUNTIME) gpu-all

gpu-all: venv
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py -o benchmarks/results

lint: venv ## Check style and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: venv ## Check types
	$(BIN)/mypy

docs: venv ## Build the site of the documentation in out/site
	$(BIN)/python docs/draw_house.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

floor: venv ## Test with the lowest versions that are allowed, beside the torch that is there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target out/floor $(FLOOR_HUB) 2>/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target out/floor $(FLOOR)
	PYTHONPATH=out/floor $(BIN)/python -m pytest -n auto -m "not slow and not gpu" tests/adapter/test_peft_contract.py tests/verbs/test_export.py

interop: venv ## Open artifacts in optimum-onnx, onnxruntime-genai, sentence-transformers and transformers.js
	PYTHONPATH=tests $(BIN)/python tests/interop/optimum_onnx.py
	PYTHONPATH=tests $(BIN)/python tests/interop/onnxruntime_genai.py
	PYTHONPATH=tests $(BIN)/python tests/interop/sentence_transformers_onnx.py
	PYTHONPATH=tests $(BIN)/python tests/interop/transformers_js.py

triton: venv ## Ask a real Triton server what it makes of our repositories
	PYTHONPATH=tests $(BIN)/python tests/interop/triton_server.py

bindings: venv ## Hold what is called of TensorRT against its own bindings
	$(BIN)/python tests/interop/tensorrt_bindings.py

wheel: venv ## Build the wheel and use it outside the checkout
	$(BIN)/python tests/interop/wheel.py

clean: ## Remove what was made
	rm -rf .venv .venv-gpu out build dist *.egg-info
