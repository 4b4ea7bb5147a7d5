# Targets for development, from a fresh clone on. `make` lists them; PYTHON= sets another interpreter.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full gpu-check lint clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install gpt1 there (once, and again when its dependencies change)
	@echo "gpt1 is installed: $(BIN)/gpt1"

# The last line marks the installation as complete: an interrupted one is repeated, a complete one is skipped.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gpt1 needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "To use another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "installing gpt1 into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## pretrain a tiny model, fine-tune it with and without that pretraining, print a table (minutes)
	run=outputs/demo/$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/gpt1 pretrain model=tiny corpus=demo steps=3000 hydra.run.dir=$$run/pretrain && \
	$(BIN)/gpt1 -m finetune task=demo_sentiment,demo_entailment,demo_acceptability pretrained=true,false \
	  init=$$run/pretrain hydra.sweep.dir=$$run/finetune && \
	$(BIN)/gpt1 report runs=[$$run] hydra.run.dir=$$run/report

test: $(INSTALLED) ## run the tests (with GPT1_TEST_HUB=DIR also those on real data)
	$(BIN)/pytest -q -n auto --dist loadfile

test-full: $(INSTALLED) ## run the slow tests too
	$(BIN)/pytest -q -n auto --dist loadfile -m "not network"

gpu-check: $(INSTALLED) ## on a machine with CUDA: run the tests marked gpu, then the benchmarks
	$(BIN)/pytest -q -m gpu
	$(BIN)/gpt1 bench what=[pretrain,finetune,choice,generate] rounds=3 runtime.device=cuda

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check gpt1cli tests
	$(BIN)/mypy gpt1cli

clean: ## remove caches and builds; .venv and outputs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gpt1cli tests -name __pycache__ -prune -exec rm -rf {} +
