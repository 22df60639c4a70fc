"""What the records say, as data frames: a function a question, a number a column; `format_frame` makes texts of them.

Accuracies are of test images, in per cent. Beside a column `x`, `x_std` is its spread: the standard deviation over the means
of the seeds of distillation where there are several, over networks where there is one seed, NaN where there is one network.
Beside a difference, `…_low` and `…_high` are its 95 % bootstrap interval, from three seeds on; a difference is over the seeds
that both sides have, and `…_seeds` counts them. `seeds` counts distillations, `n` networks, `iterations` those of distillation
over all subsets, `epochs` those of training over all stages. `records` names each record by the last eight characters of its
file name.

Runs are those of presets as they stand; for scale "short" see `runs_of`. Queries that compare runs take `settings`,
texts KEY=VALUE: then the runs compared are those with all these settings changed and no others. With `by_seed`, for figures,
every seed has a row of its own.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import exp, nan
from operator import or_
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import method_names
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX, RunConfig, even_subsets, preset_names
from seqmatch_lib.runs.records import (
    ACCURACIES,
    OrderRecord,
    Reevaluation,
    RunRecord,
    changes_of,
    check_same_images,
    describe_changes,
    flatten_settings,
    list_scores,
    load_orders,
    load_reevaluations,
    load_runs,
)
from seqmatch_lib.runs.stages import read_progress
from seqmatch_lib.store.files import digest_json, read_json

PUBLISHED_SETTINGS = ("paper", "short")  # scales whose numbers stand beside published ones, the leading one first
LEFT_OPEN = ("teachers.num_teachers", "evaluation.num_networks", "evaluation.num_selections")  # at scale "short"
DRAWS = 10_000  # of the bootstrap
SEEDS_FOR_AN_INTERVAL = 3
SIGNED = ("difference", "gain")  # columns that are shown with a sign
KINDS = {kind.removesuffix(" real"): name for kind, name in ACCURACIES.items()}  # as columns are called
COLUMNS = (  # of `Evidence.accuracies`
    "dataset", "ipc", "scale", "method", "num_subsets", "seed", "base", "images", "even", "teachers", "iterations",
    "by_subset", "train_images", "changes", "record", "kind", "trained", "epochs", "network", "is_first", "asked", "question",
    "values",
)  # fmt: skip
Values = Mapping[int, Sequence[float]]  # seed of distillation -> accuracies of its networks, in per cent


@dataclass(frozen=True)
class Evidence:
    """All records of a results folder.

    Args:
        runs: of `run`.
        reevaluations: of `evaluate --results`.
        orders: of the ablation of order and division.
        trust: "faults" and "fuzzing" -> what `faults.py` and `fuzzing.py` in `tests/trust/` counted in their long forms.
    """

    runs: list[RunRecord]
    reevaluations: list[Reevaluation] = field(default_factory=list)
    orders: list[OrderRecord] = field(default_factory=list)
    trust: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, results_dir: Path) -> "Evidence":
        """Reads a results folder.

        Raises:
            StorageError: a damaged record, or runs of one data set and scale on different images.
        """
        runs = load_runs(results_dir)
        check_same_images(runs)
        trust = {path.stem: read_json(path) for path in sorted((results_dir / "trust").glob("*.json"))}
        return cls(runs, load_reevaluations(results_dir), load_orders(results_dir), trust)

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """Every accuracy, a row for each set of each run, training and architecture; all queries select from it.

        Columns, beside those that name the run: `kind` ("last", "selected", "joint", "random": random real images; with the
        suffix "again" in a re-evaluation), `trained`, `epochs`, `network`, `is_first` (the run's first architecture),
        `changes` (of the run from its preset) and `asked` (of a re-evaluation from its run): dictionaries; `values`: list.
        """
        rows = [row for run in self.runs for row in _accuracies_of(run, self.reevaluations)]
        return pd.DataFrame(rows, columns=COLUMNS).astype({"is_first": bool, "even": bool, "seed": int})

    def select(self, kinds: Collection[str], **equal: Any) -> pd.DataFrame:
        """Returns the rows of `accuracies` of these kinds, of each run's first architecture, equal in these columns."""
        rows = self.accuracies
        chosen = rows["is_first"] & rows["kind"].isin(kinds)
        for column, value in equal.items():
            chosen &= rows[column] == value
        return rows[chosen]


def _accuracies_of(run: RunRecord, reevaluations: Sequence[Reevaluation]) -> Iterable[dict[str, Any]]:
    """Yields the rows of `Evidence.accuracies` that belong to one run; the re-evaluations are those of all runs."""
    intervals = [f"{first} to {last}" for first, last in run.config["intervals"]]
    common = {name: getattr(run, name) for name in ("dataset", "ipc", "scale", "method", "num_subsets", "seed")} | {
        "base": run.method.removeprefix(SEQUENTIAL_PREFIX),
        "images": _sum(run.config["subset_ipcs"]),
        "even": run.method in REFERENCES or list(run.config["subset_ipcs"]) == even_subsets(run.ipc, run.num_subsets),
        "teachers": "; ".join(intervals if len(set(intervals)) > 1 else intervals[:1]) or "-",
        "iterations": iterations_of(run),
        "by_subset": _sum(stage["iterations"] for stage in run.stages),
        "train_images": run.data["train_images"],
        "changes": changes_of(run),
        "record": run.config_hash[:8],
    }
    measured = [
        (kind, kind == "joint", run.config, {}, run.run_id, getattr(run, name)["by_network"])
        for kind, name in KINDS.items()
        if getattr(run, name)
    ]
    for index, again in enumerate(one for one in reevaluations if one.run_id == run.run_id):
        asked = describe_changes(flatten_settings(run.config), flatten_settings(again.config))
        for kind, by_network in (("last again", again.accuracy), ("random again", again.random_baseline or {})):
            measured.append((kind, again.joint, again.config, asked, f"{run.run_id} {index}", by_network))
    for kind, joint, config, asked, question, by_network in measured:
        trained = "jointly" if joint else "in one stage" if run.num_subsets == 1 else "in stages"
        epochs = config["training"]["epochs"] * (1 if joint else run.num_subsets)
        for network, accuracy in by_network.items():
            yield common | {
                "kind": kind, "trained": trained, "epochs": epochs, "network": network,
                "is_first": network == run.config["evaluation"]["networks"][0], "asked": asked, "question": question,
                "values": accuracy["values"],
            }  # fmt: skip


# --- numbers


def bootstrap_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns the 95 % interval of mean(second) - mean(first), by a bootstrap over seeds and over the networks of each.

    Args:
        first: accuracies, one list a seed; the interval says something from 3 seeds on.
        second: the same of what it is compared with.
    """
    generator = np.random.default_rng(0)

    def means(values: Sequence[Sequence[float]]) -> np.ndarray:
        """(draws,) means over seeds drawn with replacement, each with networks drawn with replacement."""
        seeds = generator.integers(0, len(values), (DRAWS, len(values)))
        per_seed = [np.asarray(row)[generator.integers(0, len(row), (DRAWS, len(values), len(row)))].mean(2) for row in values]
        return np.take_along_axis(np.stack(per_seed, 2), seeds[:, :, None], 2).mean((1, 2))

    low, high = np.quantile(means(second) - means(first), [0.025, 0.975])
    return float(low), float(high)


def robust_score(weighted: float) -> float:
    """Returns a weighted sum of differences of accuracy, in [-1, 1], as DD-Ranking normalises it: 0 … 100 per cent."""
    return 100 * (exp(weighted) - exp(-1)) / (exp(1) - exp(-1))


def mean_and_std(values: Values, name: str = "accuracy") -> dict[str, float]:
    """Returns the columns `name` and `name_std`: the one definition of a spread (see the head of this file)."""
    seeds = list(values.values())
    parts = list(map(fmean, seeds)) if len(seeds) > 1 else [*seeds, []][0]
    return {name: fmean(parts) if parts else nan, f"{name}_std": stdev(parts) if len(parts) > 1 else nan}


def difference(values: Values, reference: Values, name: str = "difference") -> dict[str, float]:
    """Returns `name`, `name_low`, `name_high`, `name_seeds`: mean(values) - mean(reference) over the seeds that both have."""
    seeds = sorted(values.keys() & reference.keys())
    ours, theirs = ([by_seed[seed] for seed in seeds] for by_seed in (values, reference))
    mean = fmean(map(fmean, ours)) - fmean(map(fmean, theirs)) if seeds else nan
    low, high = bootstrap_difference(theirs, ours) if len(seeds) >= SEEDS_FOR_AN_INTERVAL else (nan, nan)
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_seeds": len(seeds)}


def values_by_seed(rows: pd.DataFrame) -> dict[int, list[float]]:
    """Returns seed of distillation -> accuracies, of rows with one for each seed; two of one seed would hide each other."""
    require(rows["seed"].is_unique, f"two accuracies of one seed, in records {', '.join(rows['record'])}", StorageError)
    return dict(zip(rows["seed"], rows["values"], strict=True))


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    values = values_by_seed(rows)
    return {"seeds": len(values), "n": sum(map(len, values.values())), "records": ", ".join(dict.fromkeys(rows["record"]))}


def _pool(rows: pd.DataFrame, by: Sequence[str], kinds: Mapping[str, str], by_seed: bool = False) -> pd.DataFrame:
    """Returns one row for each group of rows equal in the columns `by`, with mean and spread of each kind.

    Args:
        rows: of `Evidence.accuracies`.
        by: columns that are kept.
        kinds: name of a column -> the kind in it; seeds, n and records are those of the first one.
        by_seed: whether every seed is a group of its own.
    """
    by = [*by, "seed"] if by_seed else list(by)
    pooled = []
    for key, group in rows.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        for name, kind in kinds.items():
            row |= mean_and_std(values_by_seed(group[group["kind"] == kind]), name)
        pooled.append(row | _counts(group[group["kind"] == next(iter(kinds.values()))]))
    columns = [*by, *(f"{name}{end}" for name in kinds for end in ("", "_std")), "seeds", "n", "records"]
    return pd.DataFrame(pooled, columns=columns).astype(rows[by].dtypes)  # without rows, too


def _with_settings(rows: pd.DataFrame, settings: Collection[str], compared: Sequence[str] = ()) -> pd.DataFrame:
    """Returns the rows of runs that differ from their preset in exactly these settings, whatever those compared are.

    `iterations` in `compared` stands for the base method's own setting.
    """

    def differs(base: str, changes: Mapping[str, Any]) -> bool:
        ignored = {f"{base}.{key}" if key == "iterations" else key for key in compared}
        return {f"{key}={value}" for key, value in changes.items() if key not in ignored} == set(settings)

    return where(rows, map(differs, rows["base"], rows["changes"]))


def where(rows: pd.DataFrame, chosen: Iterable[bool]) -> pd.DataFrame:
    """Returns the chosen rows; of no rows none, with their columns."""
    return rows[np.fromiter(chosen, bool)]


# --- queries


def baselines(evidence: Evidence, scale: str) -> pd.DataFrame:
    """Random real images and whole data sets (ipc 0), with the number of images that they were drawn from."""
    rows = _with_settings(evidence.select(["last"], scale=scale), ())
    return _pool(rows[rows["method"].isin(REFERENCES)], ["dataset", "ipc", "train_images"], {"accuracy": "last"})


def changed(evidence: Evidence, dataset: str, scale: str) -> pd.DataFrame:
    """Runs with changed settings, one a row: ablations, equal compute, other protocols."""
    rows = evidence.select(KINDS, dataset=dataset, scale=scale)
    rows = where(rows, map(bool, rows["changes"]))
    rows = rows.assign(changed=[_describe(changes, "ipc") for changes in rows["changes"]])
    pooled = _pool(rows, ["method", "ipc", "num_subsets", "changed", "record"], {kind: kind for kind in KINDS}, by_seed=True)
    return pooled.drop(columns=["seeds", "record"])


def subsets(
    evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str] = (), by_seed: bool = False
) -> pd.DataFrame:
    """The number and sizes of subsets, and their intervals, at a fixed number of images: runs that differ in nothing else.

    `accuracy` is in stages, `joint` that of the same images trained on at once (NaN where there is one subset), `random` that
    of random real images in subsets of the same sizes; `even` says whether the subsets are of equal size.
    """
    rows = evidence.select(["last", "joint", "random"], dataset=dataset, ipc=ipc, scale=scale)
    rows = _with_settings(rows[~rows["method"].isin(REFERENCES)], settings, ("ipc", "subset_ipcs", "intervals"))
    by = ["base", "num_subsets", "images", "even", "teachers"]
    return _pool(rows.sort_values(by, kind="stable"), by, {"accuracy": "last", "joint": "joint", "random": "random"}, by_seed)


def runs_of(preset: str, scale: str, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns the runs that stand for a preset, one a seed: those of the preset as it stands.

    Scale "short" leaves open how many teachers and iterations there are. Where the preset was not run there as it stands, runs
    that differ from it in these numbers alone stand for it: of several such settings, those with most iterations.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in records:
        if (run.preset, run.scale) == (preset, scale):
            changes = changes_of(run)
            left_open = {*LEFT_OPEN, f"{run.method.removeprefix(SEQUENTIAL_PREFIX)}.iterations"}
            if not changes or (scale == "short" and changes.keys() <= left_open):
                groups.setdefault(str(changes), []).append(run)
    return groups.get("{}") or max(groups.values(), key=lambda runs: iterations_of(runs[0]), default=[])


def iterations_of(run: RunRecord) -> int:
    """Returns the iterations of distillation of all stages."""
    return sum(stage["iterations"] for stage in run.stages)


def leading_settings(evidence: Evidence, dataset: str, ipc: int, scale: str, base: str) -> list[str]:
    """Returns the settings, without the iterations, of the sequences that stand for their preset; see `runs_of`."""
    runs = runs_of(f"{dataset}-ipc{ipc}-{SEQUENTIAL_PREFIX}{base}", scale, evidence.runs)
    changes = changes_of(runs[0]) if runs else {}
    return [f"{key}={value}" for key, value in changes.items() if key != f"{base}.iterations"]


class Effort(NamedTuple):
    """What an accuracy cost: of runs with equal settings but for these."""

    base: str  # method
    num_subsets: int
    images: str  # per class of each subset
    teachers: str  # their epochs
    iterations: int  # of distillation, over all subsets
    by_subset: str  # the same, of each subset
    trained: str
    epochs: int  # of training, over all stages


def _efforts(evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str]) -> dict[Effort, pd.DataFrame]:
    """Returns effort -> rows of networks trained as their run did, jointly, or for other numbers of epochs."""
    rows = evidence.select(["last", "joint", "last again"], dataset=dataset, ipc=ipc, scale=scale)
    rows = _with_settings(rows[~rows["method"].isin(REFERENCES)], settings, ("iterations", "ipc", "subset_ipcs", "intervals"))
    longer = map(_is_longer, rows["kind"], rows["asked"])
    rows = where(rows, longer)
    rows = rows.sort_values(["base", "num_subsets", "teachers", "iterations", "trained", "epochs"], kind="stable")
    return {Effort(*key): group for key, group in rows.groupby(list(Effort._fields), sort=False)}


def _is_longer(kind: str, asked: Mapping[str, Any]) -> bool:
    """Whether an accuracy is the run's own, or that of training for another number of epochs."""
    return asked.keys() == ({"training.epochs"} if kind.endswith("again") else set())


def efforts(
    evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str] = (), by_seed: bool = False
) -> pd.DataFrame:
    """Accuracies by the effort behind them, of runs that differ in subsets, intervals, iterations and epochs alone.

    `difference` is the sequence in stages, that of most seeds, minus the row. `by_subset` has the iterations of each subset;
    `of_preset` says whether iterations and epochs are those of the preset.
    """
    groups = _efforts(evidence, dataset, ipc, scale, settings)
    rows = []
    for effort, group in groups.items():
        staged = _most_seeds(groups, effort.base)
        sequence = values_by_seed(groups[staged]) if staged not in (None, effort) else {}
        common = effort._asdict() | {"of_preset": _of_preset(effort, group)}
        rows += [common | row for row in _summaries(group, "difference", sequence, by_seed)]
    return _frame(rows, (*Effort._fields, "of_preset"))


def _of_preset(effort: Effort, group: pd.DataFrame) -> bool:
    changed = any(f"{effort.base}.iterations" in changes for changes in group["changes"])
    return not changed and bool(group["kind"].isin(["last", "joint"]).all())


def _most_seeds(groups: Mapping[Effort, pd.DataFrame], base: str) -> Effort | None:
    """Returns the staged sequence of a base method that has most seeds."""
    staged = [effort for effort in groups if (effort.base, effort.trained) == (base, "in stages")]
    return max(staged, key=lambda effort: groups[effort]["seed"].nunique(), default=None)


# what `comparison` sets side by side
RANDOM, ONE_SET, STAGED = "random real", "one set", "sequence, in stages"
LONGER = "one set, as many iterations"
EQUAL = "one set, as many iterations and epochs"
HALVES, HALVES_JOINTLY = "independent halves, in stages", "independent halves, jointly"
JOINTLY = "sequence, jointly"
SETS = (
    RANDOM, ONE_SET, LONGER, "one set, as many epochs", EQUAL, HALVES, HALVES_JOINTLY,
    STAGED, JOINTLY, "sequence, jointly, as many epochs",
)  # fmt: skip
OF_ORDER = {  # name in the records of order and division -> name here
    **{base.upper(): ONE_SET for base in method_names()},
    "SeqMatch": STAGED,
    "SeqMatch, joint": JOINTLY,
    "SeqMatch, $S_2$ first": "sequence, S_2 first",
    "SeqMatch, $S_2$ undistilled": "sequence, S_2 undistilled",
    "SeqMatch, $S_1$ twice": "sequence, S_1 twice",
    "divided, staged": HALVES,
    "divided, joint": HALVES_JOINTLY,
    "undivided, staged": "one set and its second version, in stages",
    "undivided, last": "one set, its second version alone",
}
DECIDING = (EQUAL, HALVES, HALVES_JOINTLY)  # the controls that a gain of the sequence must pass


def comparison(
    evidence: Evidence,
    dataset: str,
    ipc: int,
    scale: str,
    settings: Collection[str] | None = None,
    bases: Collection[str] = (),
    by_seed: bool = False,
) -> pd.DataFrame:
    """The sequence beside its base method, always with the controls: for each base method, a row a set and training.

    Args:
        evidence: the records; base methods that were not run both alone and in sequence are left out. Of several sequences,
            that of most seeds is taken.
        dataset: its name.
        ipc: images per class of every set.
        scale: of the runs.
        settings: see the head of this file; by default those of `leading_settings`.
        bases: base methods; all by default.
        by_seed: a row for each seed; what was not run has none then.

    Returns:
        Columns `base`, `num_subsets`, `set` (one of `SETS`), `iterations`, `epochs`, `accuracy`, `difference` (the sequence in
        stages minus this set), `seeds` (0: not run), `n` and `records`.
    """
    rows = []
    for base in bases or method_names():
        changed = leading_settings(evidence, dataset, ipc, scale, base) if settings is None else settings
        groups = _efforts(evidence, dataset, ipc, scale, changed)
        sequence = _most_seeds(groups, base)
        alone = [effort for effort in groups if (effort.base, effort.num_subsets) == (base, 1)]
        if sequence is None or not alone:
            continue
        plain, of_sequence = _plain(groups, alone, sequence), set(groups[sequence]["record"])
        ablations = [record for record in evidence.orders if digest_json(record.config)[:8] in of_sequence]
        random, sets = evidence.select(["random"], dataset=dataset), _sets(plain, sequence)
        known = {name: groups[effort] for name, effort in sets.items() if effort in groups} | {
            RANDOM: random[random["record"].isin(groups.get(plain, groups[alone[0]])["record"])],
            HALVES: _of_order(ablations, "divided, staged"),
            HALVES_JOINTLY: _of_order(ablations, "divided, joint"),
        }
        for name, effort in sets.items():
            cost = {"iterations": effort.iterations, "epochs": effort.epochs}
            common = {"base": base, "num_subsets": effort.num_subsets, "set": name} | cost
            gap = {} if name == STAGED else values_by_seed(groups[sequence])
            rows += [common | row for row in _summaries(known.get(name, random.iloc[:0]), "difference", gap, by_seed)]
    return _frame(rows, ("base", "num_subsets", "set", "iterations", "epochs", "difference"))


def _plain(groups: Mapping[Effort, pd.DataFrame], alone: Sequence[Effort], sequence: Effort) -> Effort:
    """Returns the one set with the iterations and epochs of its preset; where there is none, with those of one stage."""
    iterations, epochs = sequence.iterations // sequence.num_subsets, sequence.epochs // sequence.num_subsets
    of_stage = alone[0]._replace(iterations=iterations, by_subset=str(iterations), epochs=epochs)
    return next((effort for effort in alone if _of_preset(effort, groups[effort])), of_stage)


def _sets(plain: Effort, sequence: Effort) -> dict[str, Effort]:
    """Returns the sets of `SETS`, and what each took, run or not."""
    longer, epochs = plain._replace(iterations=sequence.iterations, by_subset=str(sequence.iterations)), sequence.epochs
    jointly = sequence._replace(trained="jointly", epochs=epochs // sequence.num_subsets)
    return {
        RANDOM: plain._replace(iterations=0),
        ONE_SET: plain,
        LONGER: longer,
        "one set, as many epochs": plain._replace(epochs=epochs),
        EQUAL: longer._replace(epochs=epochs),
        HALVES: sequence,
        HALVES_JOINTLY: jointly,
        STAGED: sequence,
        JOINTLY: jointly,
        "sequence, jointly, as many epochs": sequence._replace(trained="jointly"),
    }


def _of_order(records: Iterable[OrderRecord], name: str) -> pd.DataFrame:
    """Returns what one set of the ablation of order and division is worth, for the seeds that have one."""
    having = sorted((record for record in records if name in record.accuracy), key=lambda record: record.seed)
    rows = [(record.seed, record.accuracy[name], digest_json(record.config)[:8]) for record in having]
    return pd.DataFrame(rows, columns=["seed", "values", "record"])


def gain_over_random(evidence: Evidence, dataset: str, scale: str, by_seed: bool = False) -> pd.DataFrame:
    """What every method gains over random real images as the images per class grow; staged training where there are subsets.

    Subsets are of equal size. A size with a preset of its own is represented by the runs that stand for that (see `runs_of`),
    others by runs of another size's preset; `of_preset` tells which.
    """
    presets = {run.preset for run in evidence.runs if (run.dataset, run.scale) == (dataset, scale)}
    standing = {run.config_hash[:8] for preset in presets for run in runs_of(preset, scale, evidence.runs)}
    rows = evidence.select(["last", "random"], dataset=dataset, scale=scale)
    rows = rows.assign(of_preset=rows["record"].isin(standing))[~rows["method"].isin(REFERENCES) & rows["even"]]
    resized = (changes.keys() <= {"ipc", "subset_ipcs"} for changes in rows["changes"])
    by, pooled = ["method", "num_subsets", "ipc"], []
    rows = where(rows, map(or_, rows["of_preset"], resized)).sort_values(by, kind="stable")
    for key, group in rows.groupby(by, sort=False):
        group = group[group["of_preset"] == group["of_preset"].max()]
        random = values_by_seed(group[group["kind"] == "random"])
        common = dict(zip(by, key, strict=True)) | {"of_preset": bool(group["of_preset"].max())}
        last = group[group["kind"] == "last"]
        pooled += [common | row for row in _summaries(last, "gain", random, by_seed)]
    return _frame(pooled, (*by, "of_preset", "gain"))


def gains_at_several_sizes(evidence: Evidence, dataset: str, scale: str, by_seed: bool = False) -> pd.DataFrame:
    """`gain_over_random` of methods that were run at more than one size; sequences have the K of their presets."""
    frame = gain_over_random(evidence, dataset, scale, by_seed)
    frame = frame[(frame["num_subsets"] == 1) | frame["of_preset"]]
    return frame.groupby("method").filter(lambda rows: rows["ipc"].nunique() > 1)


def order(
    evidence: Evidence,
    dataset: str,
    ipc: int,
    scale: str,
    settings: Collection[str] | None = None,
    by_seed: bool = False,
) -> pd.DataFrame:
    """Sets of equal size that are divided or not, in sequence or not; `difference` is the sequence in stages minus the set.

    By default these are the ablations of the runs that stand for their preset, see `runs_of`. An ablation that was asked about
    other sets alone has the accuracies of SeqMatch from its run.
    """
    groups: dict[str, list[OrderRecord]] = {}
    runs = {run.config_hash: run for run in evidence.runs}
    for record in sorted(evidence.orders, key=lambda record: (record.method, record.seed)):
        changes, run = changes_of(record), runs.get(digest_json(record.config))
        standing = runs_of(record.config["preset"], scale, evidence.runs) if settings is None and changes else []
        chosen = run in standing or {f"{key}={value}" for key, value in changes.items()} == set(settings or ())
        wanted = (record.dataset, record.ipc, record.scale) == (dataset, ipc, scale)
        if run is not None and "SeqMatch" not in record.accuracy:
            own = {"SeqMatch": run.accuracy_last, "SeqMatch, joint": run.accuracy_joint}
            record = replace(record, accuracy={name: one["values"] for name, one in own.items() if one} | record.accuracy)
        if chosen and wanted and "SeqMatch" in record.accuracy:
            groups.setdefault(record.method.removeprefix(SEQUENTIAL_PREFIX), []).append(record)
    rows = []
    for base, records in groups.items():
        sequence = values_by_seed(_of_order(records, "SeqMatch"))
        for name in dict.fromkeys(name for record in records for name in record.accuracy):
            gap = {} if name == "SeqMatch" else sequence
            common = {"base": base, "set": OF_ORDER.get(name, name)}
            rows += [common | row for row in _summaries(_of_order(records, name), "difference", gap, by_seed)]
    return _frame(rows, ("base", "set", "difference"))


def reevaluated(evidence: Evidence, dataset: str) -> pd.DataFrame:
    """Finished sets under other questions, one a row: other networks, other training, jointly; `random` under the same.

    `distilled_with` has the settings of the run that are not its preset's, `changed` those of the question.
    """
    rows = evidence.accuracies
    rows = rows[(rows["dataset"] == dataset) & rows["kind"].str.endswith("again")]
    rows = rows.assign(changed=[_describe(asked, "evaluation.") for asked in rows["asked"]])
    rows = rows.assign(distilled_with=[_describe(changes, "evaluation.") for changes in rows["changes"]])
    by = ["scale", "method", "images", "distilled_with", "trained", "changed", "network", "question"]
    pooled = _pool(rows, by, {"accuracy": "last again", "random": "random again"}, by_seed=True)
    return pooled.assign(difference=pooled["accuracy"] - pooled["random"]).drop(columns=["seeds", "question"])


def curves(evidence: Evidence, results_dir: Path, dataset: str, ipc: int, scale: str, base: str = "mtt") -> pd.DataFrame:
    """Accuracies of scored iterates of a base method and its sequence, one a row, of one network each.

    Of finished runs from their records, of others from their checkpoints in `state/` and `checkpoints/` of the results folder.

    Returns:
        Columns `method`, `seed`, `finished`, `images` ("validation" or "test"), `iteration` (counted through all stages) and
        `accuracy`.
    """
    rows = []
    for method in (base, SEQUENTIAL_PREFIX + base):
        preset = f"{dataset}-ipc{ipc}-{method}"
        runs = {run.seed: (run.stages, run.selected_on, True) for run in runs_of(preset, scale, evidence.runs)}
        folders = [results_dir / name for name in ("state", "checkpoints")]
        unfinished = [path for folder in folders for path in folder.glob(f"{dataset}-{method}-ipc{ipc}-*-seed*-*/")]
        for path in unfinished if preset in preset_names() else ():
            seed = int(path.name.rpartition("-seed")[2].split("-")[0])
            config = RunConfig.from_preset(preset, scale, seed)
            if path.name == config.run_id:
                runs.setdefault(seed, (read_progress(path), config.select_on, False))
        for seed, (stages, selected_on, finished) in runs.items():
            begins = [0, *accumulate(len(stage["losses"]) for stage in stages)]
            for k, iteration, images, score in list_scores(stages, selected_on):
                rows.append((method, seed, finished, images, begins[k - 1] + iteration, score))
    return pd.DataFrame(rows, columns=["method", "seed", "finished", "images", "iteration", "accuracy"])


def robust(evidence: Evidence, dataset: str, scale: str) -> pd.DataFrame:
    """Label-robust and augmentation-robust scores in the sense of DD-Ranking, with weights of one half.

    Raises:
        StorageError: the whole data set was not run.
    """
    whole = _with_settings(evidence.select(["last"], dataset=dataset, ipc=0, method="whole", scale=scale), ())
    require(len(whole) > 0, f"robust scores need the whole data set: run {dataset}-whole --scale {scale}", StorageError)
    real = fmean(map(fmean, whole["values"]))
    kinds = {"accuracy": "last", "random": "random", "plain": "last again", "random_plain": "random again"}
    rows = evidence.select(list(kinds.values()), dataset=dataset, scale=scale)
    rows = rows[rows["trained"] != "jointly"]
    rows = where(rows, map(_is_plain, rows["kind"], rows["asked"]))
    rows = rows.assign(distilled_with=[_describe(changes, "ipc") for changes in rows["changes"]])
    by = ["method", "images", "distilled_with", "record"]
    scores = _pool(rows, by, kinds, by_seed=True).dropna(subset=["plain", "random_plain"])
    lead, plain = (scores["accuracy"] - scores["random"]) / 200, (scores["plain"] - scores["random_plain"]) / 200
    scores["label_robust"] = (lead - (real - scores["accuracy"]) / 200).map(robust_score)
    scores["augmentation_robust"] = (lead + plain).map(robust_score)
    return scores.drop(columns=["seeds", "record"])


def _is_plain(kind: str, asked: Mapping[str, Any]) -> bool:
    """Whether an accuracy is the run's own, or that of training without augmentation; CutMix, where it was, is off, too."""
    if not kind.endswith("again"):
        return True
    return asked.get("training.augment") == "none" and asked.keys() <= {"training.augment", "training.cutmix"}


def trust(evidence: Evidence) -> pd.DataFrame:
    """Outcomes of injected faults and of fuzzed inputs, by kind of fault."""
    rows = []
    for fault, row in evidence.trust.get("faults", {"rows": {}})["rows"].items():
        if not fault.endswith("goes on to its end"):  # what became of a run after its kills, and no kill itself
            kind = re.match(r"clock jumps|files from|[^:]*", fault)[0].replace("files from", "files from another time")
            rows.append((kind, row["injected"], row["crashes"] + row["other"], row["losses"], row["silent"]))
    targets = evidence.trust.get("fuzzing", {"targets": {}})["targets"]
    for row in targets.values():
        counts = Counter(row | {"examples": 0})
        crashes = counts["crash"] + counts["hang"] + counts["memory"]
        rows.append((f"fuzzed inputs, {len(targets)} readers", counts.total(), crashes, 0, counts["silent"]))
    frame = pd.DataFrame(rows, columns=["fault", "times", "crashes", "losses", "silent_errors"])
    return frame.groupby("fault", sort=False).sum().reset_index()


# --- for showing


def label_scale(scale: str) -> str:
    """Returns the name of a scale with what a reader must know of it."""
    return {"reduced": "rehearsal (reduced)", "smoke": "smoke: means nothing"}.get(scale, scale)


def name_cell(dataset: str, ipc: int | None) -> str:
    """Returns the name of a data set with the size of a set; `ipc` is None for several sizes, 0 for all images."""
    size = {None: "", 0: "all images", 1: "1 image per class"}.get(ipc, f"{ipc} images per class")
    return ", ".join(filter(None, (dataset, size)))


def name_setting(dataset: str, ipc: int | None, scale: str) -> str:
    """Returns what a heading says of runs; `ipc` as in `name_cell`."""
    return f"{name_cell(dataset, ipc)}, {label_scale(scale)}"


def name_runs(evidence: Evidence, dataset: str, ipc: int, scale: str, bases: Collection[str] = ()) -> str:
    """Returns what a heading says of the runs that stand for presets, by default of all base methods; see `runs_of`."""
    return f"{name_cell(dataset, ipc)}, {name_scale(evidence, dataset, ipc, scale, bases)}"


def name_scale(evidence: Evidence, dataset: str, ipc: int, scale: str, bases: Collection[str] = ()) -> str:
    """Returns the name of a scale; at scale "short", which leaves it open, with the number of teachers."""
    presets = [f"{dataset}-ipc{ipc}-{prefix}{base}" for base in bases or method_names() for prefix in ("", SEQUENTIAL_PREFIX)]
    configs = [RunConfig.from_dict(run.config) for preset in presets for run in runs_of(preset, scale, evidence.runs)[:1]]
    counts = pd.Series([config.teachers.num_teachers for config in configs if config.uses_teachers])
    return label_scale(scale) + (f", {format_range(counts)} teachers" if scale == "short" and len(counts) else "")


def count_seeds(count: int) -> str:
    """Returns a number of seeds in words: "1 seed", "3 seeds"."""
    return "1 seed" if count == 1 else f"{count} seeds"


def format_range(counts: pd.Series) -> str:
    """Returns numbers of seeds as "3", or as "1 to 3" where they differ."""
    return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def format_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame as texts: `x` and `x_std` as "47.2 ± 0.6", `x` with its interval as "+1.1 [+0.1, +2.2]"."""
    rows, kept = frame.to_dict("records"), [name for name in frame if not name.endswith(("_std", "_low", "_high", "_seeds"))]
    shown = {name.replace("_", " "): [_format_cell(row, name) for row in rows] for name in kept}
    if "seeds" in frame and "accuracy" in frame:
        shown["accuracy"] = [text or "not run" for text in shown["accuracy"]]
    return pd.DataFrame(shown)


def _format_cell(row: Mapping[str, Any], name: str) -> str:
    value, std = row[name], row.get(f"{name}_std")
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if f"{name}_low" in row:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{value:+.1f}" + ("" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]")
    return f"{value:{'+' * (name in SIGNED)}.1f}" + ("" if pd.isna(std) else f" ± {std:.1f}")


def style_frame(shown: pd.DataFrame, caption: str = "") -> Styler:
    """Returns a frame of texts as notebooks show it: no index, text to the left, short texts on one line."""
    kept = shown.map(lambda text: text.replace(" ", "\u00a0") if len(text) < 24 else text)
    left = {"selector": "td, th", "props": "text-align: left; vertical-align: top"}
    bold = {"selector": "caption", "props": "text-align: left; font-weight: bold"}
    name = digest_json([caption, shown.to_numpy().tolist()])[:8]  # by default a random one, so that equal pages would differ
    return kept.style.hide().set_caption(caption).set_table_styles([left, bold]).set_uuid(name)


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Returns rows as a frame; without rows, one with the columns that any would have."""
    if rows:
        return pd.DataFrame(rows)
    empty = pd.DataFrame(columns=[*columns, "accuracy", "accuracy_std", "seeds", "n", "records"])
    return empty.astype({name: bool for name in columns if name == "of_preset"})


def _summaries(group: pd.DataFrame, name: str, reference: Values, by_seed: bool) -> Iterable[dict[str, Any]]:
    """Yields mean, spread, difference and counts of one group: in one row, or in one for each seed.

    Args:
        group: rows with `seed`, `values` and `record`.
        name: "gain", the group minus the reference, or "difference", the reference minus the group.
        reference: accuracies that those of the group are compared with.
        by_seed: whether each seed has a row.
    """
    for part in [group[group["seed"] == seed] for seed in sorted(group["seed"])] if by_seed else [group]:
        values = values_by_seed(part)
        gap = difference(*((values, reference) if name == "gain" else (reference, values)), name)
        yield ({"seed": part["seed"].iloc[0]} if by_seed else {}) | mean_and_std(values) | gap | _counts(part)


def _describe(changes: Mapping[str, Any], hidden: str) -> str:
    """Returns changed settings as text, without those whose name begins with `hidden`."""
    return ", ".join(f"{key} = {value}" for key, value in changes.items() if not key.startswith(hidden))


def _sum(parts: Iterable[int]) -> str:
    return " + ".join(map(str, parts))
