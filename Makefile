# `make` or `make help` lists the targets. demo and test make .venv and install what they need.

PYTHON ?= python3
VENV ?= .venv
# What pip is told about torch: the pin, or a version of your own, e.g. make test TORCH="torch==2.12.0".
TORCH ?= -c constraints.txt
# Tests that run side by side, each on one thread.
WORKERS ?= 2

python := $(VENV)/bin/python
sources := hf_seqrec modeling trainers dataset_scripts tests benchmarks
# One stamp per set of extras and torch; pip runs again when it or the project's requirements change.
torch_name := $(subst /,_,$(subst $() ,,$(TORCH)))
demo := $(VENV)/.installed-demo$(torch_name)
dev := $(VENV)/.installed-dev$(torch_name)

.DEFAULT_GOAL := help
.PHONY: help demo test check format types build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(demo)  ## train, evaluate, save, reload and recommend on a simulated world, without and with a language model, in under 8 minutes
	$(python) -m hf_seqrec.cli demo --output-dir demo-output --overwrite

test: $(dev)  ## run all tests
	OMP_NUM_THREADS=1 $(python) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(dev) types  ## format, lint, docstrings, types, import layers, model conventions
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m pytest tests/packaging/test_layers.py tests/packaging/test_model_conventions.py

types: $(dev)
	@# mypy sees the mapped folders only where an installation would put them.
	rm -rf build/types && mkdir -p build/types/hf_seqrec
	ln -s $(CURDIR)/hf_seqrec/* $(CURDIR)/modeling $(CURDIR)/trainers $(CURDIR)/dataset_scripts build/types/hf_seqrec/
	cd build/types && $(abspath $(python)) -m mypy --config-file $(CURDIR)/pyproject.toml -p hf_seqrec

format: $(dev)  ## format the code and mend what the linter can mend
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

build: $(dev)  ## build wheel and source archive into dist/
	$(python) -m build

clean:  ## remove what was made, .venv included
	rm -rf $(VENV) build dist demo-output *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(python):
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + v + ": name another, e.g. make test PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(demo): pyproject.toml constraints.txt | $(python)
	$(python) -m pip install --quiet $(TORCH) -e ".[demo]"
	@touch "$@"

$(dev): pyproject.toml constraints.txt | $(python)
	$(python) -m pip install --quiet $(TORCH) -e ".[dev]"
	@touch "$@"
