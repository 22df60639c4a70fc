# The two commands of the README are `make quickstart` and `make test`; both build .venv first if it is not there.
PYTHON ?= python3
SCALE ?= smoke
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The notebook's kernel is the one of .venv, whatever else is installed.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help install quickstart test lab tables plan gpu site clean

help:
	@echo "make quickstart  distil the built-in digits and show the result (2 minutes on 2 cores)"
	@echo "make test        check style, imports and all tests (8 to 17 minutes on 2 cores)"
	@echo "make tables      all runs, notebooks and tables; SCALE=smoke|reduced|paper, DATASETS=\"cifar10 svhn\""
	@echo "make plan        the runs that are missing, with minutes and memory, and totals"
	@echo "make gpu SCALE=paper MINUTES=5    checks and runs for a GPU at hand for some minutes"
	@echo "make site        executed notebooks and tables as static HTML"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make clean       remove build output (the environment stays in $(VENV))"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python %d.%d is too old; give a newer one: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

quickstart: $(STAMP)
	@mkdir -p build
	papermill notebooks/00_quickstart.ipynb build/00_quickstart.ipynb -p scale reduced -p results_dir build/quickstart
	jupyter nbconvert --log-level WARN --to html build/00_quickstart.ipynb
	@python -m seqmatch_lib show build/quickstart
	@echo "open build/00_quickstart.html for the images and curves"

# One torch thread in each of two processes is quicker than two threads in one.
test: $(STAMP)
	ruff check
	ruff format --check
	lint-imports
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

tables: $(STAMP)
	snakemake --cores all --quiet rules \
		--config scale="$(SCALE)" $(if $(DATASETS),datasets="$(DATASETS)") $(if $(SEEDS),seeds="$(SEEDS)")

plan: $(STAMP)
	@python -m seqmatch_lib plan \
		--scale "$(SCALE)" $(if $(DATASETS),--datasets "$(DATASETS)") $(if $(SEEDS),--seeds "$(SEEDS)")

# With a GPU for some minutes: the checks, the benchmark, then the two runs that the paper compares, each as far as it gets.
# The same command goes on from there. A rehearsal without one: make gpu SCALE=smoke DATASET=digits MINUTES=1 BENCH=--quick
DATASET ?= cifar10
MINUTES ?= 3
OUT ?= build/gpu
gpu: $(STAMP)
	python -m pytest -m gpu
	python -m seqmatch_lib bench $(BENCH) --results $(OUT)
	for method in mtt seqmatch_mtt; do \
	  python -m seqmatch_lib run $(DATASET)-ipc10-$$method --scale $(SCALE) --results $(OUT) --max-minutes $(MINUTES) || test $$? = 75 || exit 1; \
	done

site: $(STAMP)
	python -m seqmatch_lib site --executed build/$(SCALE)/executed

lab: $(STAMP)
	jupyter lab notebooks/00_quickstart.ipynb

clean:
	rm -rf build .pytest_cache .ruff_cache
