# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
# Needs a Debian-like machine with python3 (3.10 or newer), python3-venv, git and make; the network for pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := examples/demo/sweep.yaml
# For the tests of the trainer: pinned, since an open range brings gigabytes of CUDA.
TORCH := torch==2.13.0 lightning==2.6.6 torchdata==0.11.0 numpy
# Where a training's metrics go, for the tests that read them back.
TRACKERS := tensorboard==2.21.0 wandb==0.31.0 mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help demo demo-clean demo-picture test lint types contracts dead format package bench bench-quick soak docs check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

# ---------------------------------------------------------------- see it at work

demo: $(VENV)/core.done  ## run eight small trainings, four of which go wrong on purpose (under a minute)
	@PATH="$(abspath $(BIN)):$$PATH"; \
	oellm-autoexp submit $(DEMO) --local; code=$$?; \
	if [ $$code -gt 1 ]; then exit $$code; fi; \
	oellm-autoexp status $(DEMO) --json | python3 examples/demo/check.py --submit-exit-code $$code && \
	oellm-autoexp report $(DEMO) -o examples/demo/outputs/report.html

demo-clean:  ## forget the demo, so that it can be run again
	rm -rf examples/demo/outputs

demo-picture: $(VENV)/core.done  ## draw docs/demo.svg from a finished demo
	$(BIN)/python scripts/draw_terminal.py docs/demo.svg -- $(abspath $(BIN))/oellm-autoexp status $(DEMO)

# ---------------------------------------------------------------- checks

# Many tests wait for Slurm, for clocks and for processes: twice as many are a third faster, and hold less well
# on a machine that others use meanwhile.
WORKERS ?= auto

test: $(VENV)/dev.done  ## run the tests (needs tmux)
	@bash scripts/check_machine.sh $(PYTHON) tmux
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/dev.done  ## ruff: mistakes and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.done  ## mypy --strict
	$(BIN)/mypy
	cd examples/demo && $(abspath $(BIN))/mypy --strict --cache-dir=../../.mypy_cache *.py

contracts: $(VENV)/dev.done  ## who may import whom
	$(BIN)/lint-imports

dead: $(VENV)/dev.done  ## code that nothing calls
	$(BIN)/vulture

package: $(VENV)/dev.done  ## build the wheel and try it in a clean environment, with the demo
	$(BIN)/python -m build --wheel --outdir dist
	bash scripts/check_wheel.sh "$$(ls -t dist/*.whl | head -1)" $(PYTHON)

check: lint types contracts dead test  ## all of the above but the package

format: $(VENV)/dev.done  ## let ruff write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench.done  ## measure everything (an hour, on a quiet machine, as root) and put the figures into docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/bench.done  ## try the benchmarks at small sizes; no figure is kept
	$(BIN)/python benchmarks/run.py --quick

SEEDS ?= 10000
EXAMPLES ?= 2000

soak: $(VENV)/dev.done  ## play SEEDS=10000 campaigns of faults and EXAMPLES=2000 histories, on all CPUs
	$(BIN)/python tests/sim/simulation.py --seeds $(SEEDS)
	AUTOEXP_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q --timeout 0 tests/crash/test_machine.py

# ---------------------------------------------------------------- environments

$(VENV)/bin/python:
	@bash scripts/check_machine.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(TORCH) $(TRACKERS)
	@touch $@ $(VENV)/core.done

$(VENV)/bench.done: $(VENV)/dev.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
