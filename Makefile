# Everything here works on a bare machine with Python and pip: each target installs what it needs into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --use-pep517 --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install quickstart quickstart-seeds test test-long test-gpu gpu-report test-deepspeed test-browser test-families lint format dist clean docs

help:  ## Show what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## Make .venv with the package and its tools, in the known-good versions

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(call install_extra,test)
	@touch .venv/quickstart $@

# What the quickstart uses, without the tools for development.
.venv/quickstart: setup.cfg pyproject.toml constraints.txt
	$(call install_extra,quickstart)
	@touch $@

define install_extra
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed. To choose one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv || { echo "Could not make .venv: $(PYTHON) needs the modules venv and pip." >&2; exit 1; }
	@$(INSTALL) --editable '.[$(1)]' || \
	  { echo "Could not install the packages that constraints.txt names. pip says why, above: is there a network?" >&2; \
	    exit 1; }
endef

quickstart: .venv/quickstart  ## Distil a teacher, export the student to int8, compare the three (2 to 4 minutes on 2 cores)
	@$(BIN)/python -m recipes.quickstart

quickstart-seeds: .venv/quickstart  ## Students with and without labels and teacher, three seeds (a quarter of an hour)
	@$(BIN)/python -m recipes.quickstart.seeds

test: install lint  ## Check style and types, and run the tests: no network, no GPU
	@$(BIN)/python -m pytest -m 'not gpu and not deepspeed and not browser and not families and not docs and not long' --numprocesses auto --dist worksteal

test-long: install  ## Run the tests that take long, mostly of recipes and benchmarks (some minutes)
	@$(BIN)/python -m pytest -m long --numprocesses auto --dist worksteal

test-gpu: install  ## Run the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu

gpu-report: install  ## Run those tests and measure on the GPU: docs/gpu.md and docs/gpu.json (less than 9 minutes)
	@$(BIN)/python -m recipes.benchmarks.gpu_report

test-deepspeed: install  ## Run the tests that need DeepSpeed, on two CPU processes; installs it first
	@DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(INSTALL) --no-build-isolation wheel setuptools deepspeed
	@$(BIN)/python -m pytest -m deepspeed

test-browser: install  ## Run the tests of the page in Chromium (Debian's packages chromium and chromium-driver)
	@$(INSTALL) selenium
	@$(BIN)/python -m pytest -m browser

test-families: install  ## Distil a step of every family that transformers has, against the losses by hand (some minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m families

docs: install  ## Build the documentation into site/, strictly, and check that it loads nothing from elsewhere
	@$(INSTALL) --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@$(BIN)/python -m pytest -m docs tests/docs

# What a person reads. Phrases that the writing guide rules out are in .codespell/phrases.txt, with what to write instead.
PROSE := *.md docs hf_distill recipes tests

lint: install  ## Check style, types and spelling
	@$(BIN)/codespell $(PROSE)
	@$(BIN)/codespell --dictionary .codespell/phrases.txt \
	  --regex "\b(?:$$(sed 's/->.*//' .codespell/phrases.txt | paste -sd'|'))\b" $(PROSE)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install  ## Put the code into style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

dist:  ## Build sdist and wheel, check them, and try the wheel in an empty environment
	@rm -rf dist build
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build twine
	@build/tools/bin/python -m build
	@build/tools/bin/python -m twine check --strict dist/*
	@$(PYTHON) -m venv build/empty
	@build/empty/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	@cd build && empty/bin/hf-distill --version
	@cd build && empty/bin/python -c "import hf_distill; hf_distill.DistillationTrainer; print('imported', hf_distill.__file__)"

clean:  ## Remove .venv; what was trained stays in outputs
	@rm -rf .venv
