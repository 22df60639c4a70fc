# The two commands of the README are `make quickstart` and `make test`; both build .venv first if it is not there.
PYTHON ?= python3
SCALE ?= smoke
ifeq ($(CONDA_DEFAULT_ENV),seqmatch)  # made from environment.yml: used as it is, and never changed
BIN := $(CONDA_PREFIX)/bin
else
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
endif

# The notebook's kernel is the one of .venv, whatever else is installed.
export PATH := $(if $(filter /%,$(BIN)),,$(CURDIR)/)$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help install quickstart test test-all style lab lab-copies tables plan gpu site clean

help:
	@echo "make quickstart  distil the built-in digits and show what comes out (2 minutes on 2 cores)"
	@echo "make test        check style and imports, and run the tests"
	@echo "make test-all    the same with notebooks, site, batches, faults and fuzzing, as CI does"
	@echo "make lab         open copies of the notebooks in JupyterLab; ARGS=\"--no-browser --port 9999\" are passed on to it"
	@echo "make site        build the site (notebooks, guides, library reference) in build/site; needs no network"
	@echo "make tables      run all presets and notebooks and make the tables; SCALE=smoke|reduced|short|paper,"
	@echo "                 DATASETS=\"cifar10 svhn\", SEEDS=\"0 1 2\""
	@echo "make plan        list the runs that make tables has yet to make, with minutes, memory and totals"
	@echo "make gpu         for a GPU at hand for 15 minutes: checks, benchmark and runs; SCALE=paper MINUTES=5 BENCH="
	@echo "make clean       remove what the commands above made in build/, but not your notebooks in build/lab"
	@echo "The first of them makes the environment $(VENV). In an active conda environment called seqmatch, that one is used."

install: $(STAMP)

ifdef STAMP
# A folder that make did not fill is never cleared. The stamp is old until everything is installed.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: Python %d.%d is too old; give a newer one: make PYTHON=python3.11" % v[:2])'
	@test ! -e $(VENV) || test -e $@ || { echo "error: $(VENV) exists and was not made by make; move it away, or name another folder: make VENV=.venv-seqmatch" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch -t 200001010000 $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
endif

quickstart: $(STAMP)
	python -m seqmatch_lib notebook notebooks/00_quickstart.ipynb --out build/00_quickstart.ipynb --html
	@python -m seqmatch_lib show build/quickstart

# One torch thread in each of two processes is quicker than two threads in one.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

test: style
	$(PYTEST)

# Notebooks, site, batches, faults, fuzzing and the pretended GPU on top.
test-all: style
	$(PYTEST) -m "not (slow or browser or gpu or slurm)"

style: $(STAMP)
	ruff check
	ruff format --check
	lint-imports

tables: $(STAMP)
	snakemake --cores all --quiet rules \
		--config scale="$(SCALE)" $(if $(DATASETS),datasets="$(DATASETS)") $(if $(SEEDS),seeds="$(SEEDS)")

plan: $(STAMP)
	@python -m seqmatch_lib plan \
		--scale "$(SCALE)" $(if $(DATASETS),--datasets "$(DATASETS)") $(if $(SEEDS),--seeds "$(SEEDS)")

# With a GPU for 15 minutes: a run of seconds, which misses data before anything else has begun; the checks; the benchmark;
# then the two runs that the paper compares, for MINUTES each. What fails stops none of the others, and the same command goes
# on from there. All but the teachers is packed into one file at the end. BENCH= measures all sizes, which takes longer.
# A rehearsal: make gpu SCALE=smoke DATASET=digits MINUTES=1
DATASET ?= cifar10
MINUTES ?= 3
OUT ?= build/gpu
BENCH ?= --quick
gpu: SCALE := $(if $(filter file,$(origin SCALE)),short,$(SCALE))
gpu: $(STAMP)
	python -m seqmatch_lib run $(DATASET)-ipc10-seqmatch_mtt --scale smoke --results $(OUT)
	failed=0; \
	python -m pytest -m gpu tests/test_gpu.py || failed=1; \
	python -m seqmatch_lib bench $(BENCH) --results $(OUT) || failed=1; \
	for method in mtt seqmatch_mtt; do \
	  python -m seqmatch_lib run $(DATASET)-ipc10-$$method --scale $(SCALE) --results $(OUT) --max-minutes $(MINUTES) \
	    || test $$? = 75 || failed=1; \
	done; \
	tar -czf $(OUT).tar.gz --exclude=./teachers -C $(OUT) . || failed=1; \
	exit $$failed

site: $(STAMP)
	@rm -rf build/site
	sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site
	@echo "open build/site/index.html"

lab: $(STAMP) lab-copies
	jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/build/lab/00_quickstart.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

# A copy that the user changed is kept; the others follow notebooks/. The folder .originals tells them apart.
lab-copies:
	@mkdir -p build/lab/.originals
	@for notebook in notebooks/*.ipynb; do \
		name=$${notebook##*/}; copy=build/lab/$$name; original=build/lab/.originals/$$name; \
		if [ ! -e $$copy ] || cmp -s $$copy $$original; then cp $$notebook $$copy && cp $$notebook $$original; \
		elif ! cmp -s $$notebook $$original; then \
			echo "$$copy is kept, since you changed it. $$notebook is newer: to get it, delete or rename your copy."; \
		fi; \
	done

clean:
	rm -rf .pytest_cache .ruff_cache docs/api
	test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name lab -exec rm -rf {} +
