# Everything runs in .venv, which is made on first use and kept until pyproject.toml or constraints.txt change.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
# Tests and the demo start hundreds of processes, each of which would compile what it imports of this repository.
unexport PYTHONDONTWRITEBYTECODE

INSTALLED := $(VENV)/.installed
ARGS ?=
# Processes that share the tests, file by file in their order, so that the faults, which mostly wait, begin early.
JOBS ?= 2

# Real faces, for `make recipes`.
FACES ?=

.PHONY: help demo test test-all collect faults recipes lint types docs format clean

help:
	@echo "make demo    draw faces, train on them with several workers, evaluate (a few minutes)"
	@echo "make test    unit tests, oracles, a short run of each verb; ARGS='-k name' is passed on to pytest"
	@echo "make test-all  also injected faults and long end-to-end tests"
	@echo "make faults  break a run in every way we know, print what is left as a table; ARGS='node driver' picks some"
	@echo "make recipes  the claims of recipes/ on a drawn set, compared with the recorded losses; ARGS='adaface' picks some"
	@echo "              FACES=DIR  their tables on real faces, run in runs/recipes"
	@echo "make lint    ruff check, ruff format --check"
	@echo "make types   mypy"
	@echo "make docs    build the documentation into site/; a broken link fails"
	@echo "make format  ruff check --fix, ruff format"
	@echo "make clean   remove .venv, caches and the demo's files"

demo: $(INSTALLED)
	$(VENV)/bin/python examples/demo.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 -m "not long" $(ARGS)

test-all: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(ARGS)

collect: $(INSTALLED)
	@found="$$($(VENV)/bin/python -m pytest --collect-only -qq 2>&1)" || { echo "$$found"; exit 1; }

faults: $(INSTALLED)
	$(VENV)/bin/python -m tests.faults.table $(ARGS)

recipes: $(INSTALLED)
	$(VENV)/bin/python -m recipes.run $(if $(FACES),--faces $(FACES) --out runs/recipes) $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/python -m mypy rayface

docs: $(INSTALLED)
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet

format: $(INSTALLED)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

# The stamp is written last: an interrupted installation is done again. Python compiles what is imported, two fifths of
# what is installed, at its first import: pip would take longer for the whole than for all else.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "rayface needs Python 3.11 or newer: none found on PATH; try make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing rayface into $(VENV): once, 1 to 4 minutes; pip says what it downloads and installs"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt pip
	$(VENV)/bin/python -m pip install --no-compile -c constraints.txt -e ".[dev,onnx,tracking]"
	@touch $@

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
