# Each target makes .venv itself when it is missing or when the pins have changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SHELL := /bin/bash

.PHONY: help demo test test-integration cover test-all test-lowest parity lint lint-style lint-types format docs pins clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	@echo "installing into .venv (about two minutes, 6 GB) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]' 2> .venv/pip.log || (cat .venv/pip.log; exit 1)
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib > .venv/compile.log 2>&1 || true  # on every core; pip compiles on one
	@touch $@

demo: $(STAMP)  ## make a small data set, train two streams, evaluate, fuse, report (about five minutes)
	$(BIN)/two-stream demo

test: lint  ## linters, types, import rules and the default tests
	$(BIN)/pytest -n 2 --dist loadgroup tests

test-integration: $(STAMP)  ## torchrun, Ray, killed processes and the browser
	$(BIN)/pytest -n 3 --dist loadgroup -m integration tests  # these tests often wait

cover: $(STAMP)  ## line coverage of the default and integration tests (twice as slow)
	$(BIN)/coverage erase
	$(BIN)/pytest -n 2 --dist loadgroup -m "integration or not integration" --cov --cov-report= tests
	$(BIN)/coverage report

test-all: lint  ## every test, the slow sweeps too
	$(BIN)/pytest -n 2 --dist loadgroup -m "slow or integration or not slow" --timeout 3600 tests

test-lowest:  ## the default tests with the lowest versions that setup.cfg allows, in .venv-lowest (8 GB)
	@test -x .venv-lowest/bin/uv || ($(PYTHON) -m venv .venv-lowest && .venv-lowest/bin/pip install --quiet uv)
	@.venv-lowest/bin/uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest/tested
	@.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev setup.cfg -o .venv-lowest/versions.txt
	@.venv-lowest/bin/uv pip sync --quiet --python .venv-lowest/tested/bin/python .venv-lowest/versions.txt
	@.venv-lowest/bin/uv pip install --quiet --no-deps --python .venv-lowest/tested/bin/python -e .
	.venv-lowest/tested/bin/python -m pytest -n 2 --dist loadgroup tests

parity: $(STAMP)  ## only the comparisons with reference numbers
	$(BIN)/pytest -n 2 --dist loadgroup -m parity tests

lint: $(STAMP)  ## ruff, mypy, import-linter
	@$(MAKE) --no-print-directory -j 2 --output-sync=target lint-style lint-types

lint-style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

lint-types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation site, in build/site (with TRY=FOLDER, also a page of `export --to web`)
	TRY='$(TRY)' $(BIN)/python -m sphinx -q -W -E -c docs/site -b html . build/site
	@echo "open build/site/docs/site/index.html"

pins: $(STAMP)  ## write the installed set to constraints.txt
	@(echo '# The tested set: `make` and CI install with these pins. Regenerate with `make pins`.'; \
	  $(BIN)/pip freeze --exclude-editable | grep -viE '^(cuda-|nvidia-|torchcodec|two.stream)') > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove .venv, runs and the demo
	rm -rf .venv .venv-lowest runs demo build *.egg-info
