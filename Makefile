# make demo | test | lint | types | bench | clean; every target sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Without a bytecode cache `import feast` alone takes ten seconds, in every process.
unexport PYTHONDONTWRITEBYTECODE
# Reaches isolated builds too; a plain `torch` would pull gigabytes of CUDA.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help setup demo test lint types bench clean

help:
	@echo "make demo [DATASET=ml1m]        raw events to a served embedding and a report in demo-output/"
	@echo "make test                       lint, types and all tests"
	@echo "make lint | make types          one of them"
	@echo "make bench [NAME=x] [ARGS=...]  run benchmarks/x.py; without NAME, list them"
	@echo "make clean                      remove what these commands made, except .venv"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,ray,dev]'
	touch $@

demo: setup
	$(BIN)/palate demo --output demo-output $(if $(DATASET),--dataset $(DATASET))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# One after the other also under -j, so that pytest's count is the last line.
test: setup
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(BIN)/python -m pytest

bench: setup
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

clean:
	rm -rf demo-output build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
