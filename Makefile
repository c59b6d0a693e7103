# make lab         install what the notebooks need and open JupyterLab on the first one
# make test        install what the tests need and run all of them, stage by stage: see STAGES
# make test-fast   lint, types, and the quick tests: no browser, no notebook, no training, hardly any clip
# make notebooks   run every notebook again from top to bottom and save it, cleaned
#
# The stages of `make test`, each a target of its own:
# make lint              ruff reads the code and the notebooks
# make types             mypy checks the package's type hints
# make unit              pytest tests the package, without a browser, several tests side by side
# make browser           pytest tests widgets and JupyterLab in a browser, two files at once
# make notebooks-check   nbval runs the notebooks and compares what they print; lessons run with other prompts
# make package           build wheel and sdist into dist/, install the wheel elsewhere, and make a clip with it
# make test-colab        set-up cell, notebook 00 and widgets with the versions that Google Colab has, in .venv-colab
#
# Options:  PYTHON=python3.12                the Python that makes .venv
#           CONSTRAINTS=constraints.txt      install exactly these versions
#           NBVAL=--nbval-lax                compare only the outputs tagged nbval-check-output
#           WORKERS=2                        so many tests or notebooks at once; one a core by default, at most 4
#           TRY_WHEEL=--clean                try the wheel in a new environment, with dependencies of its own
#           LAB_OPTIONS=--no-browser         handed on to JupyterLab
#           PIP_QUIET=0                      show what pip does; its errors are shown in any case

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := .venv/Scripts
COLAB_BIN := .venv-colab/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
COLAB_BIN := .venv-colab/bin
endif
CONSTRAINTS ?=
NBVAL ?= --nbval
WORKERS ?= auto

# JupyterLab refuses to run as root unless told to, and cannot open a browser where there is no display.
ROOT := $(filter 0,$(shell id -u))
HEADLESS := $(and $(filter Linux,$(shell uname -s)),$(if $(DISPLAY)$(WAYLAND_DISPLAY),,yes))
LAB_OPTIONS ?= $(if $(ROOT),--allow-root) $(if $(HEADLESS),--no-browser)

export PIP_QUIET ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PIP_ROOT_USER_ACTION ?= ignore

INSTALL = $(BIN)/python -m pip install $(strip $(CONSTRAINTS:%=-c %) -e)

STAGES = lint types unit browser notebooks-check package test-colab

.PHONY: help lab test test-fast notebooks check-tag release-notes clean $(STAGES)
.NOTPARALLEL:
help:
	@sed -n 's/^# \{0,1\}//p' Makefile

lab: .venv/lab.stamp
	@echo "Opening JupyterLab; without a browser, visit the address it prints. Ctrl+C ends it."
	@$(strip $(BIN)/python tools/open_lab.py $(LAB_OPTIONS))

# A stage that fails does not keep the next ones from running; `make test` fails in the end.
test: .venv/test.stamp
	@$(MAKE) --no-print-directory --keep-going $(STAGES)

test-fast: lint types
	@echo "pytest runs the quick tests."
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --dist worksteal -m "not browser and not notebooks and not slow"

lint: .venv/test.stamp
	@echo "ruff reads the code and the notebooks."
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: .venv/test.stamp
	@echo "mypy checks the type hints of the package."
	$(BIN)/python -m mypy riffusion_lab

# Tests run side by side, each in one thread: two processes of one thread do more than one process of two.
SIDE_BY_SIDE = -n $(WORKERS) --maxprocesses 4
test-fast unit notebooks-check package test-colab: export OMP_NUM_THREADS = 1

unit: .venv/test.stamp
	@echo "pytest tests the package; tests that need a missing program are skipped and say how to get it."
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --dist worksteal -m "not browser and not notebooks"

# Two files at once, the tests of a file one after the other: they watch the clock, but most of the time they wait.
browser: .venv/test.stamp
	@echo "pytest tests widgets and JupyterLab in a browser; without Chromium they are skipped."
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 2 --dist loadfile -m browser

# tests/notebook_lane.py keeps the cells of a notebook together. What takes longest goes first.
notebooks-check: .venv/test.stamp
	@echo "nbval runs the notebooks and compares what they print; then lessons run with other prompts."
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -p tests.notebook_lane $(NBVAL) --nbval-current-env --nbval-sanitize-with=tests/nbval_sanitize.cfg --nbval-cell-timeout=180 --no-loadscope-reorder tests/test_extras.py notebooks

package: .venv/test.stamp
	@echo "build makes wheel and sdist; what the wheel installs is tried in a folder of its own."
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python tools/release.py try-wheel $(TRY_WHEEL)

# For .github/workflows/release.yml; they need no .venv.
check-tag:
	$(PYTHON) tools/release.py check-tag $(TAG)

release-notes:
	$(PYTHON) tools/release.py notes

# The set-up cell with notebook 00, and the tests of the widgets that need no browser.
COLAB_TESTS = tests/colab_notebook.py tests/colab_lane.py $(patsubst %,tests/test_%.py,widgets player mask_painter live session studio figures panel)
test-colab: .venv-colab/test.stamp
	@echo "pytest tests the set-up cell, notebook 00 and the widgets with the versions that Google Colab has."
	$(COLAB_BIN)/python -m pytest -p no:nbval $(SIDE_BY_SIDE) --dist worksteal -m "not browser" $(COLAB_TESTS)

notebooks: .venv/test.stamp
	@echo "Running every notebook from top to bottom; each is saved with its outputs."
	$(BIN)/python tools/notebooks.py

# The stamps remember what is installed: they are made again only when pyproject.toml changes.
.venv/lab.stamp: pyproject.toml | .venv
	@echo "Installing riffusion-lab and JupyterLab into .venv, in silence: some minutes the first time, several GB on Linux."
	@$(INSTALL) ".[lab]"
	@touch $@

# The oldest versions that pyproject.toml allows: `make unit CONSTRAINTS=floors.txt`
floors.txt: pyproject.toml tools/release.py
	$(PYTHON) tools/release.py floors > $@

.venv/test.stamp: pyproject.toml $(CONSTRAINTS) | .venv
	@echo "Installing riffusion-lab and what its tests need into .venv, in silence: some minutes, several GB on Linux."
	@$(INSTALL) ".[lab,train,test]"
	@touch $@

# What is not pinned for Colab comes from .venv, behind the pins. Only when they are in does pip get to see it.
# setuptools builds the lab: from `wheels`, where pip finds it without network, but an older one of .venv would be first.
.venv-colab/test.stamp: tests/colab_constraints.txt .venv/test.stamp
	@echo "Installing the versions that Google Colab has into .venv-colab: about 100 MB."
	rm -rf .venv-colab
	$(BIN)/python -m venv --without-pip .venv-colab
	$(BIN)/python -m pip --python $(COLAB_BIN)/python install --no-deps --no-compile -r tests/colab_constraints.txt "setuptools>=77"
	$(BIN)/python -m pip download --no-deps --only-binary=:all: --dest .venv-colab/wheels "setuptools>=77"
	$(BIN)/python tests/colab_lane.py .venv-colab
	@touch $@

.venv:
	@echo "Making the virtual environment .venv."
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + ': try make PYTHON=python3.11')"
	@$(PYTHON) -m venv .venv

clean:
	@echo "Removing .venv, .venv-colab and what the tools left behind."
	rm -rf .venv .venv-colab floors.txt .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
