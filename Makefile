# Needs Python 3.10 or newer and git; everything else is installed into .venv by the first command.
#
#     make demo    train, evaluate, export and report on the stamps in demo/, in minutes on two cores
#     make test    format, lint and type checks, then the tests
#     make lint    the checks alone
#     make env     the environment alone

PYTHON ?= python3
BIN := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
# Where this is set, as in many containers, each of the processes that tests start compiles PyTorch's modules anew.
unexport PYTHONDONTWRITEBYTECODE
# The tests run in as many processes as there are cores, so that each process wants one thread.
test: export OMP_NUM_THREADS = 1

.PHONY: demo test lint format env clean
.DEFAULT_GOAL := test

demo: .venv/stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" demo/run.sh

test: lint
	$(BIN)/pytest -q -n auto --dist loadfile

lint: .venv/stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: .venv/stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

env: .venv/stamp

# Renewed only when the dependencies may have changed. Bytecode is compiled as modules are used: faster.
.venv/stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'error: needs Python 3.10 or newer; name one with make PYTHON=python3.12'; exit 1; }
	@echo 'Making the environment in .venv (PyTorch and the rest, a few minutes, once) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	@touch $@
	@echo 'The environment is ready.'

clean:
	rm -rf .venv runs dist
