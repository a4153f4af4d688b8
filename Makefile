# limbeck: `make demo` and `make test` need Python >= 3.11 and make, nothing else.
#
#   PYTHON=python3.12   which Python; by default the first that is new enough
#   VENV=DIR            where the virtual environment lives (default .venv)
#   EXTRAS=dev          what is installed beside limbeck, e.g. EXTRAS=all,dev
#   TORCH=cpu           torch without CUDA (smaller), where torch's own index can be reached
#   WHEELS=DIR          install from a folder of wheels, without a network (hatchling and editables belong in it too)
#   UV=                 use pip even where uv is on the path; PIP_ARGS=... are passed on to it
#   ARGS="-k taid"      passed on to pytest, the demo or the benchmarks; ARGS=--all runs the expensive tests too
#   JOBS=2              how many processes share the tests

SHELL  := /bin/sh
VENV   ?= .venv
EXTRAS ?= dev
UV     ?= $(shell command -v uv 2>/dev/null)
BIN    := $(VENV)/bin
ARGS   ?=
JOBS   ?= 2
PIP_ARGS ?=
PY     := "$(BIN)/python"

# Sized for the many small tensors of the tests: threads cost more than they give there.
TEST_ENV := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PYTHONPATH=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench docs build clean

help: ## this list
	@echo 'limbeck: make TARGET [PYTHON=...] [VENV=DIR] [EXTRAS=dev] [TORCH=cpu] [WHEELS=DIR]'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A marker names what was installed: pyproject.toml, Python, extras, torch's build and this folder. If it is there, there
# is nothing to do; otherwise the environment is made or brought up to date, and marked last.
setup: ## make .venv with limbeck and all that it needs
	@set -eu; \
	usable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	py=; \
	for try in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11 python "$(BIN)/python"; do \
	  if [ -n "$$try" ] && usable "$$try"; then py=$$try; break; fi; \
	  if [ -n "$(PYTHON)" ]; then echo "limbeck: PYTHON=$(PYTHON) is no Python 3.11 or newer" >&2; exit 2; fi; \
	done; \
	if [ -z "$$py" ] && [ -n "$(UV)" ]; then py=$$("$(UV)" python find '>=3.11' 2>/dev/null || \
	  { "$(UV)" python install 3.12 >&2 && "$(UV)" python find '>=3.11'; }); fi; \
	if [ -z "$$py" ]; then \
	  echo "limbeck: no Python 3.11 or newer is on the path; install one, or say make PYTHON=/path/to/python3" >&2; exit 2; \
	fi; \
	key=$$("$$py" -c 'import hashlib, sys; print(hashlib.sha256(repr((open("pyproject.toml").read(), sys.version, sys.argv)).encode()).hexdigest()[:16])' \
	  "$(EXTRAS)" "$(TORCH)" "$(CURDIR)"); \
	if [ -e "$(VENV)/.ready-$$key" ]; then exit 0; fi; \
	if [ -e "$(VENV)" ]; then \
	  rm -f "$(VENV)"/.ready-*; \
	  want=$$("$$py" -c 'import sys; print(sys.version_info[:2])'); \
	  have=$$("$(BIN)/python" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true); \
	  if [ "$$want" != "$$have" ]; then \
	    if [ -e "$(VENV)/.limbeck" ]; then rm -rf "$(VENV)"; \
	    else echo "limbeck: $(VENV) is there, but was not made by this Makefile; say make VENV=DIR" >&2; exit 2; fi; \
	  fi; \
	fi; \
	if [ ! -e "$(VENV)" ]; then \
	  echo "limbeck: making $(VENV) with $$("$$py" -V); the first time this loads torch, up to 3 GB" >&2; \
	  mkdir -p "$(VENV)"; touch "$(VENV)/.limbeck"; \
	  if "$$py" -c 'import ensurepip, venv' >/dev/null 2>&1; then "$$py" -m venv "$(VENV)"; \
	  elif [ -n "$(UV)" ]; then "$(UV)" venv --quiet --seed --allow-existing --python "$$py" "$(VENV)"; \
	  else echo "limbeck: this Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
	    rm -rf "$(VENV)"; exit 2; fi; \
	fi; \
	offline=; if [ -n "$(WHEELS)" ]; then offline="--no-index --find-links $(WHEELS)"; fi; \
	uv="$(UV)"; backend=; \
	if [ -n "$(TORCH)" ]; then \
	  backend="--torch-backend=$(TORCH)"; \
	  if [ -z "$$uv" ]; then "$(BIN)/python" -m pip install -q $$offline uv; uv="$(BIN)/uv"; fi; \
	fi; \
	if [ -n "$$uv" ] && "$$uv" pip install --python "$(BIN)/python" $$backend $$offline -e '.[$(EXTRAS)]'; then :; \
	elif [ -n "$$backend" ]; then echo "limbeck: uv could not install torch for TORCH=$(TORCH)" >&2; exit 2; \
	else \
	  if [ -n "$$uv" ]; then echo "limbeck: uv could not install; trying pip, which may know other indexes" >&2; fi; \
	  "$(BIN)/python" -m pip install --disable-pip-version-check $(PIP_ARGS) $$offline -e '.[$(EXTRAS)]'; \
	fi; \
	touch "$(VENV)/.ready-$$key"

demo: setup ## the main job on real data: teacher, student alone, distilled; one table and a report
	@$(PY) -m limbeck demo --out demo $(ARGS)

test: setup ## the test suite
	@$(TEST_ENV) $(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: setup ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: setup ## bring the sources into shape
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: setup ## speed and memory beside the floor and beside peers
	@$(PY) -m benchmarks --peers $(ARGS)

docs: setup ## fill the tables of the docs and build the website in site/
	@$(PY) -m docs.build $(ARGS)

build: setup ## wheel and sdist in dist/
	@$(PY) -m build $(ARGS)

clean: ## remove what building and testing left (not .venv)
	@rm -rf build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
