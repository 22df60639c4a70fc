# Everything at once: shared teachers, runs, notebooks, tables. `make tables SCALE=smoke|reduced|paper` calls this.
#
#   snakemake --cores all --keep-going --config scale=reduced datasets="cifar10 svhn" seeds="0 1 2"
#   snakemake --dry-run --cores all --config scale=paper      # the plan, with predicted minutes and memory of every run
#   snakemake --profile profiles/slurm --config scale=paper   # on a cluster, see the README
#
# config: scale; datasets, presets, notebooks (names separated by spaces); seeds; results (folder).
# Finished records and executed notebooks are not made again. A failing job does not stop the others (--keep-going).
import os
import sys
from functools import lru_cache
from pathlib import Path

from seqmatch_lib.bench.report import load_benchmark, newest_benchmark
from seqmatch_lib.runs.config import RunConfig, preset_names
from seqmatch_lib.bench.cost import DataSizes, predict_seconds, predict_work
from seqmatch_lib.methods import get_method
from seqmatch_lib.report.notebooks import batch_parameters, list_copies

SCALE = config.get("scale", "smoke")
RESULTS = config.get("results", f"build/{SCALE}")
DATASETS = str(config.get("datasets", "digits" if SCALE == "smoke" else "digits svhn cifar10 cifar100 tiny_imagenet")).split()
SEEDS = [int(seed) for seed in str(config.get("seeds", 0)).split()]
PRESETS = str(config.get("presets", "")).split() or [name for name in preset_names() if name.split("-")[0] in DATASETS]
COPIES = list_copies("notebooks")  # name of an executed copy -> notebook, its parameters
NOTEBOOKS = str(config.get("notebooks", "")).split() or list(COPIES)
PYTHON = sys.executable
THREADS = int(config.get("threads", os.cpu_count()))  # of a job; one job already keeps all cores busy
BENCHMARK = load_benchmark(newest_benchmark(Path("paper_results") / "benchmarks"))

CONFIGS = {}
for preset in PRESETS:
    for seed in SEEDS:
        one = RunConfig.from_preset(preset, SCALE, seed)
        CONFIGS[one.run_id] = one
RECORDS = {run: f"{RESULTS}/runs/{one.dataset}/{run}.json" for run, one in CONFIGS.items()}
KIND = {True: "zca", False: "plain"}
EXECUTED = [f"{RESULTS}/executed/{name}.ipynb" for name in NOTEBOOKS]


def uses_teachers(one):
    return one.options is not None and get_method(one.base_method).uses_teachers


@lru_cache
def predict(run):
    """Minutes and MiB of a run, predicted from the newest committed benchmark."""
    work = predict_work(CONFIGS[run], DataSizes.of(CONFIGS[run].dataset))
    seconds = sum(predict_seconds(one, CONFIGS[run].network, BENCHMARK) for one in work.values())
    return max(1, round(seconds / 60)), round(1024 + max(one.bytes for one in work.values()) / 2**20)


def teachers_of(wildcards):
    """The shared teachers that a run begins with; runs of other methods need none."""
    one = CONFIGS[wildcards.run]
    return f"{RESULTS}/teachers/{one.dataset}-{KIND[one.zca]}.recorded" if uses_teachers(one) else []


def parameters_of(name):
    """The parameters of a notebook in a batch, as the command line takes them; all notebooks share the batch's folder."""
    wanted = batch_parameters(*COPIES[name], SCALE, DATASETS, SEEDS, RESULTS)
    return " ".join(f"--set '{key}={value}'" for key, value in wanted.items())


rule all:
    input:
        RECORDS.values(),
        EXECUTED,
        f"{RESULTS}/summary.txt",


# Teachers of stage 1 depend on the images and the scale alone, so they are recorded once, before the runs that need them.
rule teachers:
    output:
        touch(RESULTS + "/teachers/{dataset}-{kind}.recorded"),
    params:
        preset=lambda wildcards: next(
            one.preset
            for one in CONFIGS.values()
            if (one.dataset, KIND[one.zca]) == (wildcards.dataset, wildcards.kind) and uses_teachers(one)
        ),
    threads: THREADS
    shell:
        "{PYTHON} -m seqmatch_lib teachers {params.preset} --scale {SCALE} --results {RESULTS}"


rule run:
    input:
        teachers_of,
    output:
        RESULTS + "/runs/{dataset}/{run}.json",
    priority: 1  # notebooks read what was run before, and run themselves what was not
    params:
        preset=lambda wildcards: CONFIGS[wildcards.run].preset,
        seed=lambda wildcards: CONFIGS[wildcards.run].seed,
    resources:
        runtime=lambda wildcards: predict(wildcards.run)[0],
        mem_mb=lambda wildcards: predict(wildcards.run)[1],
    threads: THREADS
    shell:
        "{PYTHON} -m seqmatch_lib run {params.preset} --scale {SCALE} --seed {params.seed} --results {RESULTS}"


rule notebook:
    input:
        notebook=lambda wildcards: COPIES[wildcards.name][0],
        records=lambda wildcards: list(RECORDS.values()) if "_tables_" in wildcards.name and SCALE != "smoke" else [],
    output:
        RESULTS + "/executed/{name}.ipynb",
    params:
        settings=lambda wildcards: parameters_of(wildcards.name),
    threads: THREADS
    shell:
        "{PYTHON} -m seqmatch_lib notebook {input.notebook} --out {output} {params.settings}"


rule summary:
    input:
        RECORDS.values(),
    output:
        f"{RESULTS}/summary.txt",
    shell:
        "{PYTHON} -m seqmatch_lib show {RESULTS} > {output}"


onsuccess:
    print(Path(f"{RESULTS}/summary.txt").read_text())


onerror:
    missing = [path for path in [*RECORDS.values(), *EXECUTED] if not Path(path).is_file()]
    print(f"{len(missing)} of {len(RECORDS) + len(EXECUTED)} cells and notebooks are missing; the rest is finished:", *missing, sep="\n  ")
