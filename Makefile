# `make reproduce` regenerates every claim; `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3.11
WORKERS ?= 2
VENV := .venv
READY := $(VENV)/.ready
SNAKEMAKE := $(VENV)/bin/snakemake

.DEFAULT_GOAL := help
.PHONY: help reproduce smoke test lint report lock clean

help:
	@echo "make reproduce   regenerate every table, figure and claim (results/claims.csv)"
	@echo "make smoke       the same on a tiny configuration, into build/smoke/"
	@echo "make test        run the tests, WORKERS=2 at a time"
	@echo "make report      report.html with every figure and its caption"
	@echo "make lint        ruff, snakefmt, snakemake --lint, mypy"
	@echo "make lock        resolve envs/*.in into requirements.lock and the conda mirrors"

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(READY)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(SNAKEMAKE) --cores all
	@cat results/claims.txt

smoke: $(READY)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(SNAKEMAKE) --cores all --configfile config/smoke.yaml
	@tail -n 1 build/smoke/results/claims.txt

test: $(READY)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

report: reproduce
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(SNAKEMAKE) --cores all --report report.html

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(SNAKEMAKE) --lint
	$(VENV)/bin/mypy

lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet -r envs/runtime.in -r envs/dev.in
	build/lock/bin/python envs/lock.py --output requirements.lock

clean:
	rm -rf build results .snakemake
