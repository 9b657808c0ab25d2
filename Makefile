# make setup | check | test | bench | kernels
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup check test bench kernels links

setup:
	python3 -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[dev]"

# mypy sees the folders as the package they install as.
links:
	mkdir -p typings/ebca
	for f in src/ebca/*; do ln -sfn ../../$$f typings/ebca/$$(basename $$f); done
	for d in bench engines export plugins runtime; do ln -sfn ../../$$d typings/ebca/$$d; done

check: links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test:
	$(BIN)/pytest

bench:
	$(BIN)/ebca-export --model tiny --output-dir build/engine-tiny --overwrite
	$(BIN)/ebca-bench --engine build/engine-tiny --model tiny --compare
	$(BIN)/ebca-bench startup

# The GPU kernels for every compute capability, on any machine; needs ebca[kernels], takes a few minutes.
kernels:
	$(BIN)/python -m ebca.plugins.compile
