# make serve    a fresh environment, then the server on 127.0.0.1:8000 with the built-in model
# make test     a fresh environment, then every test
# make test-heavy  what takes minutes: cases at their full size
# make fuzz SECONDS=3600  every parser, fed with what is almost right, for so long
# make soak MINUTES=30  a server under load and chaos, and all that must hold: results/soak.json
# make test-clients  other people's clients against a server, in an environment of their own
# make gpu      on a GPU, with the Python and PyTorch that are there: tests, kernels, steps, throughput, a score-card
# make check    format, lint, types, architecture
# make fmt      format and fix what can be fixed by itself
# make clean    remove environments and caches

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Installed first and by exact version, so that no later requirement can choose another build of it.
TORCH ?= torch==2.13.0

MODEL ?= story
PORT ?= 8000
ARGS ?=
TESTS ?=
SECONDS ?= 60
MINUTES ?= 30
STAGES ?= tests,kernels,step,offline,peers,probe
OUT ?= results

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: serve test test-heavy test-clients fuzz soak gpu check fmt clean

# Byte-compiling torch and transformers takes longer than installing them; Python does it on first import.
PIP_INSTALL = -m pip install --no-compile --disable-pip-version-check

# $(call environment,folder,extras): a new virtual environment, whatever was there before.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Tokenmill needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "== $(1) 1/3: fresh virtual environment ($$($(PYTHON) --version))"
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1)
	@echo "== $(1) 2/3: $(TORCH)"
	@$(1)/bin/python $(PIP_INSTALL) "$(TORCH)"
	@echo "== $(1) 3/3: tokenmill$(2)"
	@$(1)/bin/python $(PIP_INSTALL) -e ".$(2)"
	@touch $@
endef

serve: .venv/installed
	@exec .venv/bin/tokenmill serve "$(MODEL)" --host 127.0.0.1 --port $(PORT) $(ARGS)

test: .venv-test/installed
	.venv-test/bin/python -m pytest -m "not heavy" --ignore tests/clients $(TESTS)

test-heavy: .venv-test/installed
	.venv-test/bin/python -m pytest -m heavy -o faulthandler_timeout=3600 $(TESTS)

fuzz: .venv-test/installed
	TOKENMILL_FUZZ_SECONDS=$(SECONDS) .venv-test/bin/python -m pytest -o faulthandler_timeout=0 \
		tests/fuzz tests/server/test_pairwise.py -k "mf05 or bi27" $(TESTS)

soak: .venv/installed
	@.venv/bin/tokenmill bench soak "$(MODEL)" --minutes $(MINUTES) --isolate --output results/soak.json $(ARGS)

# Installs nothing: a machine with a GPU has a PyTorch of its own, and often no way to the package index.
gpu: PYTHON = python3
gpu: MINUTES = 9.5
gpu:
	@PYTHONPATH=. $(PYTHON) -m tokenmill bench gpu --minutes $(MINUTES) --stages $(STAGES) --output "$(OUT)" $(ARGS)

# Their requirements must not decide what the engine runs with, so they do not share its environment.
test-clients: .venv-test/installed .venv-clients/installed
	TOKENMILL=.venv-test/bin/tokenmill .venv-clients/bin/python -m pytest tests/clients $(TESTS)

check: .venv-test/installed
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy
	.venv-test/bin/python -m pytest tests/architecture

fmt: .venv-test/installed
	.venv-test/bin/ruff format .
	.venv-test/bin/ruff check --fix .

clean:
	rm -rf .venv .venv-test .venv-clients build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml Makefile
	$(call environment,.venv,[hub])

.venv-clients/installed: pyproject.toml Makefile
	@rm -rf .venv-clients
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python $(PIP_INSTALL) $$($(PYTHON) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["clients"])')
	@touch $@

.venv-test/installed: pyproject.toml Makefile
	$(call environment,.venv-test,[dev])
