.DEFAULT_GOAL := help
PYTHON ?= python3
EXTRA ?= cpu
ARGS ?=
DATA ?=
VENV := .venv
STAMP := $(VENV)/.installed
THEIRS := .differential/.installed
DOCS := .venv-docs/.installed
# Runs of neighbours stay with one worker, and with them the fixtures of their module.
WORKERS := -n auto --dist worksteal

# uv from the PATH, else one of our own.
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .venv-uv/bin/uv
UV_NEEDED := $(UV)
endif

# Compiled once, at installation: a run starts half a dozen Pythons, and where none may write bytecode
# (PYTHONDONTWRITEBYTECODE) each of them would compile vLLM, torch and transformers anew.
export UV_COMPILE_BYTECODE := 1
export UV_COMPILE_BYTECODE_TIMEOUT := 600

# Where the environment forbids it, every worker of every test run would compile all tests anew.
export PYTHONDONTWRITEBYTECODE :=

# On CPU torch comes from the wheels that PIP_FIND_LINKS names, else from PyTorch's own CPU index.
ifeq ($(EXTRA),cpu)
INSTALL_FLAGS := --overrides .ci/cpu-overrides.txt
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else
export UV_TORCH_BACKEND := cpu
endif
endif

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(STAMP) ## install everything into .venv (EXTRA=gpu for CUDA)

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install -q uv

$(STAMP): pyproject.toml .ci/cpu-overrides.txt $(UV_NEEDED)
	test -x $(VENV)/bin/python || $(UV) venv -q --python $(PYTHON) $(VENV)
	$(UV) pip install -q --python $(VENV)/bin/python $(INSTALL_FLAGS) -e '.[$(EXTRA),dev]'
	touch $@

.PHONY: demo
demo: $(STAMP) ## train a small model from nothing and show its accuracy before and after
	$(VENV)/bin/grpo train recipes/tiny_cpu.yaml $(ARGS)

.PHONY: check
check: $(STAMP) ## lint, types and unit tests, properties on a quarter of their examples (a minute or two)
	@$(MAKE) --no-print-directory --output-sync=target -j2 types quick

# Room for young objects: node's collector is a tenth of a type check otherwise.
.PHONY: types
types: export NODE_OPTIONS := --max-semi-space-size=128
types: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright

.PHONY: quick
quick: $(STAMP)
	GRPO_TESTS=quick $(VENV)/bin/pytest tests/unit $(WORKERS) $(ARGS)

# First what needs no engine; behind it what starts vLLM and DeepSpeed, by two workers whatever the
# number of cores: each holds a Ray, an engine and a learner, and while one starts, the other computes.
.PHONY: test test-full
test: ## every test, vLLM and DeepSpeed end to end included (ten to fifteen minutes)
test-full: ## the same, every round of every grid, and the longest runs
test-full: ROUNDS := -m "full or not full"
test test-full: $(STAMP) $(THEIRS)
	$(VENV)/bin/pytest tests --ignore tests/e2e $(WORKERS) $(ARGS)
	$(VENV)/bin/pytest tests/e2e -n 2 --dist loadfile $(ROUNDS) $(ARGS)

.PHONY: differential
differential: $(STAMP) $(THEIRS) ## our estimators against TRL's and verl's own code
	$(VENV)/bin/pytest tests/differential $(ARGS)

.PHONY: bench
bench: $(STAMP) ## every benchmark beside its rival, a table in .bench/ (under 25 minutes)
	PATH="$(dir $(abspath $(UV))):$$PATH" $(VENV)/bin/python benchmarks/run_all.py $(ARGS)

.PHONY: attacks
attacks: $(STAMP) ## answer every problem at hand without solving it (DATA=FOLDER of files of rows)
	PYTHONPATH=. $(VENV)/bin/python benchmarks/attacks.py $(DATA) $(ARGS)

.PHONY: chaos
chaos: $(STAMP) ## 200 small runs to which one thing happens each, a table in .chaos/ (hours; goes on after a stop)
	PYTHONPATH=. $(VENV)/bin/python benchmarks/chaos.py $(ARGS)

.PHONY: real
real: $(STAMP) ## train a real language model (SmolLM2-135M) on questions in words, accuracy before and after (a quarter of an hour)
	PATH="$(dir $(abspath $(UV))):$$PATH" PYTHONPATH=. $(VENV)/bin/python benchmarks/real.py $(ARGS)

.PHONY: stops
stops: $(STAMP) ## stop a small run by SIGTERM and SIGINT at every kind of moment, a table in .stops/ (an hour)
	PYTHONPATH=. $(VENV)/bin/python benchmarks/stops.py $(ARGS)

# Without a network these tests are skipped, and the next run tries again.
$(THEIRS): tests/differential/requirements.txt $(STAMP)
	$(UV) pip install -q --no-deps --target .differential --python $(VENV)/bin/python -r $< \
		&& touch $@ || echo "TRL and verl cannot be installed: their tests will be skipped"

.PHONY: plans
plans: $(STAMP) ## write what fits where anew, into docs/plan.md
	PYTHONPATH=. $(VENV)/bin/python docs/_tools/fits.py

.PHONY: docs
docs: $(DOCS) ## the documentation as a site, in .docs-site/index.html
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict $(ARGS)

$(DOCS): pyproject.toml $(UV_NEEDED)
	test -x .venv-docs/bin/python || $(UV) venv -q --python $(PYTHON) .venv-docs
	$(UV) pip install -q --python .venv-docs/bin/python --group docs
	touch $@

.PHONY: clean
clean: ## remove environments and caches; runs/ stays
	rm -rf $(VENV) .venv-uv .venv-docs .docs-site .differential .bench .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
