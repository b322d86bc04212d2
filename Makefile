# Sets up .venv by itself; needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell $(python) -c 'import sys; sys.version_info[:2] in ((3,11),(3,12),(3,13)) and print("$(python)")' 2>/dev/null)))
BIN = .venv/bin

.PHONY: demo test check bench clean

demo: .venv/ready  ## import, score and print the demo dataset
	$(BIN)/vig demo --out demo-out

test: .venv/ready  ## run every test
	$(BIN)/python -m pytest

check: .venv/ready  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## the README's numbers
	$(BIN)/python benchmarks/score.py

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-out
