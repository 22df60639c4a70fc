# Everything at once: shared teachers, runs, notebooks, tables. `make tables SCALE=smoke|reduced|paper` calls this.
#
#   snakemake --cores all --config scale=reduced datasets=cifar10,svhn seeds=0,1,2
#   snakemake --profile profiles/slurm-gpu --config scale=paper   # on a cluster, see docs/cluster.md
#
# config: scale; datasets or presets, seeds, notebooks (names separated by commas or spaces); results (folder); threads of a
# job; for clusters device, slot and memory. What a run needs, and what is missing: `python -m seqmatch_lib plan`.
# Finished records and executed notebooks are not made again. A failing job does not stop the others.
import shlex
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seqmatch_lib.bench.batch import Batch, split_names
from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.report.notebooks import batch_parameters, list_copies
from seqmatch_lib.runs.config import require_known


@contextmanager
def errors_in_one_line():
    try:
        yield
    except SeqMatchError as error:
        sys.exit(f"error: {error}")


COPIES = list_copies("notebooks")  # name of an executed copy -> notebook, its parameters
with errors_in_one_line():
    BATCH = Batch.read(config)
    NOTEBOOKS = list(split_names(config.get("notebooks")) or COPIES)
    for name in NOTEBOOKS:
        require_known("notebook", name, COPIES)
SCALE, RESULTS = BATCH.scale, str(BATCH.results)
PYTHON = sys.executable
THREADS = BATCH.threads  # one job already keeps all cores busy
RECORDS = {run: BATCH.record(run) for run in BATCH.configs}
EXECUTED = [f"{RESULTS}/executed/{name}.ipynb" for name in NOTEBOOKS]
LOCK = ExitStack()  # Snakemake's own lock would stay when its process is killed; profiles/default turns it off


localrules:
    all,
    summary,


def parameters_of(name):
    """The parameters of a notebook in a batch, as the command line takes them; all notebooks share the batch's folder."""
    wanted = batch_parameters(*COPIES[name], SCALE, BATCH.datasets, BATCH.seeds, RESULTS)
    return " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in wanted.items())


rule all:
    input:
        RECORDS.values(),
        EXECUTED,
        f"{RESULTS}/summary.txt",


# Teachers are recorded once, before the runs that begin with them.
rule teachers:
    output:
        touch(BATCH.recorded("{name}")),
    params:
        arguments=lambda wildcards: BATCH.arguments(wildcards.name),
    resources:
        runtime=lambda wildcards: BATCH.runtime(wildcards.name),
        mem_mb=lambda wildcards: BATCH.mem_mb(wildcards.name),
    threads: THREADS
    shell:
        "{PYTHON:q} -m seqmatch_lib teachers {params.arguments}"


rule run:
    input:
        lambda wildcards: BATCH.inputs(wildcards.run),
    output:
        RESULTS + "/runs/{dataset}/{run}.json",
    priority: 1  # notebooks read what was run before, and run themselves what was not
    params:
        arguments=lambda wildcards: BATCH.arguments(wildcards.run),
    resources:
        runtime=lambda wildcards: BATCH.runtime(wildcards.run),
        mem_mb=lambda wildcards: BATCH.mem_mb(wildcards.run),
    threads: THREADS
    shell:
        "{PYTHON:q} -m seqmatch_lib run {params.arguments}"


rule notebook:
    input:
        notebook=lambda wildcards: COPIES[wildcards.name][0],
        # on a cluster all wait for the runs: what they miss they would run themselves, beside the jobs that are at it
        records=lambda wildcards: list(RECORDS.values()) if BATCH.slot or ("_tables_" in wildcards.name and SCALE != "smoke") else [],
    output:
        RESULTS + "/executed/{name}.ipynb",
    params:
        settings=lambda wildcards: parameters_of(wildcards.name),
    resources:
        **BATCH.largest,
    threads: THREADS
    shell:
        "{PYTHON:q} -m seqmatch_lib notebook {input.notebook:q} --out {output:q} {params.settings}"


rule summary:
    input:
        RECORDS.values(),
    output:
        f"{RESULTS}/summary.txt",
    shell:
        "{PYTHON:q} -m seqmatch_lib show {RESULTS:q} > {output:q}"


onstart:
    with errors_in_one_line():
        LOCK.enter_context(BATCH.hold())


onsuccess:
    print(Path(f"{RESULTS}/summary.txt").read_text())


onerror:
    missing = [path for path in [*RECORDS.values(), *EXECUTED] if not Path(path).is_file()]
    print(f"{len(missing)} of {len(RECORDS) + len(EXECUTED)} cells and notebooks are missing; the rest is finished:", *missing, sep="\n  ")
