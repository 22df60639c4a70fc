"""Made-up records of runs, re-evaluations and ablations, for tests of what is read from records; and the committed ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.tables import load_published
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.order import independent_parts
from seqmatch_lib.runs.overrides import overrides_of
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.records import SCHEMA, OrderRecord, Reevaluation

RESULTS = Path(__file__).parents[1] / "paper_results"
COMMITTED = Evidence.load(RESULTS)
PUBLISHED = load_published(RESULTS)
TEMPLATE = next(run for run in COMMITTED.runs if run.dataset == "cifar10")
CELL = ("cifar10", 10, "reduced")
HALF = {"subset_ipcs": [4, 3, 3]}
SHORTER = {"teachers.num_teachers": 2, "evaluation.num_networks": 3}  # what scale "short" leaves open


def accuracy(*values):
    """Returns the accuracy of networks as records hold it."""
    summary = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "n": len(values), "values": list(values)}
    return summary | {"by_network": {"convnet": dict(summary)}}


def make_run(preset, seed=0, last=(40.0, 42.0), joint=None, overrides=None, iterations=(300,), scale="reduced"):
    """Returns a record of a preset, with these accuracies of its networks."""
    config = RunConfig.from_preset(preset, scale, seed, overrides)
    return replace(
        TEMPLATE, run_id=config.run_id, dataset=config.dataset, method=config.method, ipc=config.ipc, preset=preset,
        scale=scale, num_subsets=config.num_subsets, seed=seed, config=config.as_dict(), config_hash=config.hash,
        overrides=overrides_of(config), selected_on=config.select_on, accuracy_last=accuracy(*last),
        accuracy_selected=accuracy(*last), random_baseline=accuracy(20.0, 22.0),
        accuracy_joint=None if joint is None else accuracy(*joint),
        stages=[{"iterations": count, "losses": [1.0] * count} for count in iterations],
    )  # fmt: skip


def make_sequence(seed=0, last=(50.0, 52.0), overrides=None, iterations=(300, 300)):
    """Returns a record of SeqMatch-MTT with ten images per class."""
    return make_run("cifar10-ipc10-seqmatch_mtt", seed, last, (44.0, 46.0), overrides, iterations)


def make_short(method, seed=0, last=(50.0, 52.0), iterations=(200, 200), overrides=None):
    """Returns a record at scale "short" with the number of teachers and iterations that it leaves open."""
    overrides = SHORTER | {"mtt.iterations": iterations[0]} if overrides is None else overrides
    joint = (44.0, 46.0) if method.startswith("seqmatch_") else None
    return make_run(f"cifar10-ipc10-{method}", seed, last, joint, overrides, iterations, "short")


def make_reevaluation(run, joint=False, **training):
    """Returns a re-evaluation of a run, under other training settings."""
    config = {**run.config, "training": {**run.config["training"], **training}}
    return Reevaluation(
        schema=SCHEMA, run_id=run.run_id, synthetic_sha256=run.synthetic_sha256, joint=joint, seed=0, config=config,
        data="", seconds=1.0, accuracy={"convnet": accuracy(30.0, 32.0)},
        random_baseline={"convnet": accuracy(15.0, 17.0)}, device="cpu",
        device_name="", threads=1, torch="", python="", git_commit="", dirty=False, uncompiled=[],
    )  # fmt: skip


def make_order(folder, seed, values, method="mtt", changes=None, scale="reduced", preset=None, sha256=""):
    """Saves a record of order and division, with accuracies by the name of the set; returns its path."""
    config = RunConfig.from_preset(preset or f"cifar10-ipc10-seqmatch_{method}", scale, seed, changes)
    half = ", ".join(run.run_id for run in independent_parts(config))
    record = OrderRecord(
        schema=SCHEMA, dataset=config.dataset, ipc=config.ipc, scale=config.scale, seed=seed, config=config.as_dict(),
        overrides=overrides_of(config), synthetic_sha256=sha256, other_half=half, accuracy=values,
        **describe_provenance(torch.device("cpu")),
    )  # fmt: skip
    return record.save(folder)


def make_transfer(run, mean, selected=False, **training):
    """Returns the re-evaluation of a run's last or selected set on another architecture, where random images reach 19 %."""
    again = make_reevaluation(run, **training)
    asked = again.config["evaluation"] | {"networks": ["vit"]}
    both = {"accuracy": {"vit": accuracy(mean - 1, mean + 1)}, "random_baseline": {"vit": accuracy(18.0, 20.0)}}
    again = replace(again, config=again.config | {"evaluation": asked}, **both)
    of_selected = {"synthetic_sha256": f"selected {run.run_id}", "last_sha256": run.synthetic_sha256}
    return replace(again, random_baseline=None, **of_selected) if selected else again
