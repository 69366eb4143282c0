# `make help` lists the commands. Optional variables:
#   ARGS="..."       options for the program, for example: make train ARGS="--max_epochs 1"
#   LOCKED=1         install the exact versions of requirements.lock and check their hashes
#   TORCH=cpu        install PyTorch's CPU build if the index has one
#   PYTHON=python3.N the Python for .venv, 3.11 or newer
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
KIND := $(if $(LOCKED),locked,bounds)$(if $(TORCH),-$(TORCH))
# pip skips compiling, as Python compiles on import, unless PYTHONDONTWRITEBYTECODE forbids it.
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)
# The CPU build 2.x+cpu sorts above 2.x: pip installs it if this index can be reached, else the default build.
TORCH_INDEX := $(if $(filter cpu,$(TORCH)),--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help train test coverage test-slow lint tensorboard docs bench figures lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: .venv/.$(KIND)  ## set up if needed, then train and test the default recipe
	@$(BIN)/python -m src.train $(ARGS)

test: .venv/.$(KIND)-dev  ## set up if needed, then run the quick tests
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

coverage: .venv/.$(KIND)-dev  ## run all tests and list the lines of src that they do not run
	@$(BIN)/python -m pytest --dist worksteal --cov --cov-report=term $(ARGS)

test-slow: .venv/.$(KIND)-dev  ## run the tests that take long: trainings, projects, every command of the documentation
	@$(BIN)/python -m pytest -m slow --dist worksteal $(ARGS)

lint: .venv/.$(KIND)-dev  ## format, lint, check types and files, as the pre-commit hooks do
	@$(BIN)/pre-commit run --all-files

tensorboard: .venv/.$(KIND)  ## show the curves of all runs
	@$(BIN)/tensorboard --logdir logs $(ARGS)

docs: .venv/.$(KIND)-dev  ## build the documentation and show it at http://127.0.0.1:8000
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

bench: .venv/.$(KIND)-dev  ## run the benchmarks and write benchmarks/results.json
	@$(BIN)/python benchmarks/run.py $(ARGS)

figures: .venv/.$(KIND)-dev  ## write docs/figures.md; ARGS="--rerun NAME" trains again and compares
	@$(BIN)/python benchmarks/figures.py $(ARGS)

lock: .venv/.$(KIND)-dev  ## update requirements.lock within the bounds of pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --upgrade --quiet \
		--no-emit-package lightning-starter --custom-compile-command "make lock" --output-file requirements.lock

clean:  ## remove the virtual environment and caches; keep logs and data
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info

ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH=$(TORCH): only TORCH=cpu is known; for the default build omit it, after make clean)
endif
ifneq ($(and $(LOCKED),$(TORCH)),)
$(error requirements.lock holds the hashes of the default builds: give LOCKED=1 or TORCH=cpu, not both)
endif

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer; give a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/bin/pip: | .venv/bin/python  # uv makes environments without it
	@test -e $@ || $(BIN)/python -m ensurepip --default-pip

.venv/.bounds .venv/.bounds-cpu: pyproject.toml | .venv/bin/pip
	$(if $(TORCH),$(PIP) $(TORCH_INDEX) --upgrade torch torchvision)
	$(PIP) $(TORCH_INDEX) --editable '.[sample]'
	@touch $@

.venv/.bounds-dev .venv/.bounds-cpu-dev: pyproject.toml | .venv/bin/pip
	$(if $(TORCH),$(PIP) $(TORCH_INDEX) --upgrade torch torchvision)
	$(PIP) $(TORCH_INDEX) --editable '.[dev]'
	@touch $@ $(@:-dev=)

.venv/.locked .venv/.locked-dev: requirements.lock pyproject.toml | .venv/bin/pip
	$(PIP) --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch .venv/.locked .venv/.locked-dev
