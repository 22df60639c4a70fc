"""What the records say, as data frames: a function a question, a number a column; see `numbers` for spreads and intervals.

`iterations` are those of distillation over all subsets, `epochs` those of training over all stages. Runs are those of presets
as they stand; for scale "short" see `evidence.runs_of`, and give a query one of `Evidence.parts`, whose sets may be compared.
Queries that compare runs take `settings`, texts KEY=VALUE: then the runs compared are those with all these settings changed
and no others. With `by_seed`, for figures, every seed has a row of its own.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.report.evidence import KINDS, OF_NETWORKS, Evidence, iterations_of, runs_left_open, with_settings
from seqmatch_lib.report.numbers import (
    Values,
    difference,
    make_frame,
    mean_and_std,
    of_common_seeds,
    pool,
    robust_score,
    summarise,
    values_by_seed,
    where,
)
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX, RunConfig, preset_names
from seqmatch_lib.runs.overrides import flatten_settings
from seqmatch_lib.runs.records import RunRecord, list_scores
from seqmatch_lib.runs.stages import read_progress


def baselines(evidence: Evidence, scale: str) -> pd.DataFrame:
    """Random real images and whole data sets (ipc 0), with the number of images that they were drawn from."""
    rows = with_settings(evidence.select(["last"], scale=scale), ())
    return pool(rows[rows["method"].isin(REFERENCES)], ["dataset", "ipc", "train_images"], {"accuracy": "last"})


def changed(evidence: Evidence, dataset: str, scale: str) -> pd.DataFrame:
    """Runs with changed settings, one a row: ablations, equal compute, other protocols."""
    rows = evidence.select(KINDS, dataset=dataset, scale=scale)
    rows = rows[rows["changes"].astype(bool)]
    rows = rows.assign(changed=[_describe(changes, "ipc") for changes in rows["changes"]])
    pooled = pool(rows, ["method", "ipc", "num_subsets", "changed", "record"], {kind: kind for kind in KINDS}, by_seed=True)
    return pooled.drop(columns=["seeds", "record"])


def subsets(
    evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str] = (), by_seed: bool = False
) -> pd.DataFrame:
    """The number and sizes of subsets, and their intervals, at a fixed number of images: runs that differ in nothing else.

    `accuracy` is in stages, `joint` that of the same images trained on at once (NaN where there is one subset), `random` that
    of random real images in subsets of the same sizes; `even` says whether the subsets are of equal size, `of_preset` whether
    the runs stand for their preset.
    """
    rows = evidence.select(["last", "joint", "random"], dataset=dataset, ipc=ipc, scale=scale)
    rows = rows.rename(columns={"stands": "of_preset"})
    rows = with_settings(rows[~rows["method"].isin(REFERENCES)], settings, ("ipc", "subset_ipcs", "intervals"))
    by = ["base", "num_subsets", "images", "even", "teacher_epochs", "of_preset"]
    return pool(rows.sort_values(by, kind="stable"), by, {"accuracy": "last", "joint": "joint", "random": "random"}, by_seed)


def of_one_interval(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `subsets` with one choice of teacher epochs for each base method and K.

    It is that of the runs that stand for their preset; at other K, or without such runs, the one that most K were run with.
    """
    most = frame.groupby(["base", "teacher_epochs"])["num_subsets"].transform("nunique")
    ranked = frame.assign(most=most).sort_values(["of_preset", "most"], ascending=False, kind="stable")
    chosen = ranked.groupby(["base", "num_subsets"])["teacher_epochs"].transform("first").reindex(frame.index)
    return frame[frame["teacher_epochs"] == chosen]


def gain_over_random(
    evidence: Evidence, dataset: str, scale: str, by_seed: bool = False, cut_short: bool = True
) -> pd.DataFrame:
    """What every method gains over random real images as the images per class grow; staged training where there are subsets.

    Subsets are of equal size. A size with a preset of its own is represented by the runs that stand for that, others by runs
    of another size's preset; `of_preset` tells which. With `cut_short` a preset may also be represented by runs with fewer
    teachers or iterations than it has.
    """
    rows = evidence.select(["last", "random"], dataset=dataset, scale=scale).rename(columns={"stands": "of_preset"})
    rows = rows[~rows["method"].isin(REFERENCES) & rows["even"]]
    rows = where(rows, lambda row: (row.of_preset and cut_short) or row.changes.keys() <= {"ipc", "subset_ipcs"})
    by, pooled = ["method", "num_subsets", "ipc"], []
    for key, group in rows.groupby(by):
        of_preset = bool(group["of_preset"].any())
        group = group[group["of_preset"] == of_preset]
        pooled += _gains(group, dict(zip(by, key, strict=True)) | {"of_preset": of_preset}, by_seed)
    return make_frame(pooled, (*by, "of_preset", "gain"))


def gains_at_several_sizes(evidence: Evidence, dataset: str, scale: str, by_seed: bool = False) -> pd.DataFrame:
    """`gain_over_random` of methods that were run at more than one size, with equal settings where that can be.

    Presets of different sizes may differ in more than the size. So where a method was run at two sizes or more with the
    settings and iterations of its largest size, it has these rows, and `equal` is true. Otherwise they are those of its
    presets. Sequences have the K of their presets, or the smallest that was run with equal settings. Runs that were cut short
    are left out, since they differ in more than their size.
    """
    frame = gain_over_random(evidence, dataset, scale, by_seed, cut_short=False)
    frame = frame[(frame["num_subsets"] == 1) | frame["of_preset"]]
    frame = frame.groupby("method").filter(lambda rows: rows["ipc"].nunique() > 1)
    runs = {run.config_hash[:8]: run for run in evidence.runs}
    rows = evidence.select(["last", "random"], dataset=dataset, scale=scale, even=True)
    rows = rows.assign(settings=[_settings_but_size(runs[record]) for record in rows["record"]])
    parts, by = [frame.assign(equal=False)[:0]], ["method", "num_subsets", "ipc"]
    for method, own in frame.groupby("method", sort=False):
        largest = own.loc[own["ipc"].idxmax(), "records"].split(", ")[0]
        alike = rows[(rows["method"] == method) & (rows["settings"] == _settings_but_size(runs[largest]))]
        alike = alike[alike["num_subsets"] == alike.groupby("ipc")["num_subsets"].transform("min")]
        if equal := alike["ipc"].nunique() > 1:
            groups = [(key, _leading(group)) for key, group in alike.groupby(by)]
            own = pd.DataFrame(row for key, group in groups for row in _gains(group, dict(zip(by, key, strict=True)), by_seed))
        parts.append(own.assign(equal=equal))
    return pd.concat(parts, ignore_index=True).drop(columns="of_preset")


def _leading(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of one size that stand for its preset; where there are none, those of the setting with most seeds."""
    if rows["stands"].any():
        return rows[rows["stands"]]
    settings = rows["changes"].map(str)
    return rows[settings == settings.value_counts().idxmax()]


def _gains(group: pd.DataFrame, common: Mapping[str, Any], by_seed: bool) -> Iterable[dict[str, Any]]:
    """Yields what runs gain over random real images: in one row, or in one for each seed."""
    random = values_by_seed(group[group["kind"] == "random"])
    return (common | row for row in summarise(group[group["kind"] == "last"], "gain", random, by_seed))


def _settings_but_size(run: RunRecord) -> str:
    """Returns the settings of a run but for its size, what follows from it (batches, epochs), its seed and its networks.

    Of the intervals of a sequence only the epochs that they span count, and of its iterations those of all subsets.
    """
    sized = ("preset", "ipc", "subset_ipcs", "num_subsets", "seed", "intervals", "batch_syn", "iterations", "epochs")
    kept = {
        name: value
        for name, value in flatten_settings(run.config).items()
        if not name.startswith(("evaluation.", "teachers.")) and name.rpartition(".")[2] not in sized
    }
    epochs = [epoch for interval in run.config["intervals"] for epoch in interval]
    teachers = run.config["teachers"] if epochs else {}
    return str([kept, teachers, (min(epochs), max(epochs)) if epochs else (), iterations_of(run)])


def reevaluated(evidence: Evidence, dataset: str) -> pd.DataFrame:
    """Finished sets under other questions, one a row: other networks, other training, jointly; `random` under the same.

    `distilled_with` has the settings of the run that are not its preset's, `changed` those of the question, after "selected
    iterate" if the set is not that with the last one.
    """
    rows = evidence.accuracies
    rows = rows[(rows["dataset"] == dataset) & rows["kind"].str.endswith("again")]
    of_selected = rows["question"].isin(rows[rows["kind"] == "selected again"]["question"])
    asked = [_describe(changes, "evaluation.") for changes in rows["asked"]]
    both = zip(of_selected.map({True: "selected iterate", False: ""}), asked, strict=True)
    rows = rows.assign(
        kind=rows["kind"].replace("selected again", "last again"), changed=[", ".join(filter(None, texts)) for texts in both]
    )
    rows = rows.assign(distilled_with=[_describe(changes, "evaluation.") for changes in rows["changes"]])
    by = ["scale", "method", "images", "distilled_with", "trained", "changed", "network", "question"]
    pooled = pool(rows, by, {"accuracy": "last again", "random": "random again"}, by_seed=True)
    return pooled.assign(difference=pooled["accuracy"] - pooled["random"]).drop(columns=["seeds", "question"])


def curves(evidence: Evidence, results_dir: Path, dataset: str, ipc: int, scale: str, base: str = "mtt") -> pd.DataFrame:
    """Accuracies of scored iterates of a base method and its sequence, one a row, of one network each.

    Of finished runs from their records, of others from their checkpoints in `state/` and `checkpoints/` of the results folder.
    At scale "short", runs with any number of teachers and iterations.

    Returns:
        Columns `method`, `teachers` (0 for methods without), `run` (its id), `seed`, `finished`, `images` ("validation" or
        "test"), `subset` (k of S_k), `iteration` (counted through all stages) and `accuracy`.
    """
    rows = []
    for method in (base, SEQUENTIAL_PREFIX + base):
        preset = f"{dataset}-ipc{ipc}-{method}"
        finished = runs_left_open(preset, scale, evidence.runs)
        runs = {run.run_id: (RunConfig.from_dict(run.config), run.stages, True) for run in finished}
        folders = [results_dir / name for name in ("state", "checkpoints")]
        unfinished = [path for folder in folders for path in folder.glob(f"{dataset}-{method}-ipc{ipc}-*-seed*-*/")]
        for path in unfinished if preset in preset_names() else ():
            seed = int(path.name.rpartition("-seed")[2].split("-")[0])
            config = RunConfig.from_preset(preset, scale, seed)
            if path.name == config.run_id:
                runs.setdefault(path.name, (config, read_progress(path), False))
        for name, (config, stages, is_finished) in runs.items():
            begins = [0, *accumulate(len(stage["losses"]) for stage in stages)]
            common = (method, _count_teachers(config), name, config.seed, is_finished)
            for k, iteration, images, score in list_scores(stages, config.select_on):
                rows.append((*common, images, k, begins[k - 1] + iteration, score))
    columns = ["method", "teachers", "run", "seed", "finished", "images", "subset", "iteration", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def by_teachers(evidence: Evidence, dataset: str, ipc: int, scale: str, base: str = "mtt") -> pd.DataFrame:
    """What runs reach that differ from their preset in nothing but what the scale leaves open, by teachers and iterations.

    A row for each setting, for those that differ in evaluation, too. Sequences are trained on in stages; `of_preset` says
    whether the runs stand for their preset, `seed_names` which seeds they are; methods without teachers have 0.
    """
    presets = [f"{dataset}-ipc{ipc}-{prefix}{base}" for prefix in ("", SEQUENTIAL_PREFIX)]
    records = [run for preset in presets for run in runs_left_open(preset, scale, evidence.runs)]
    teachers = {run.run_id: _count_teachers(RunConfig.from_dict(run.config)) for run in records}
    rows = evidence.select(["last", "random"], dataset=dataset, ipc=ipc, scale=scale).rename(columns={"stands": "of_preset"})
    rows = rows[rows["question"].isin(teachers)]
    rows = rows.assign(num_teachers=rows["question"].map(teachers).astype(int), settings=rows["changes"].map(str))
    by = ["method", "num_teachers", "iterations", "of_preset", "settings"]
    names = rows.groupby(by)["seed"].transform(lambda seeds: ", ".join(map(str, sorted(set(seeds)))))
    rows, by = rows.assign(seed_names=names), [*by, "seed_names"]
    return pool(rows.sort_values(by, kind="stable"), by, {"accuracy": "last", "random": "random"}).drop(columns="settings")


def transfer(evidence: Evidence, dataset: str, ipc: int, scale: str) -> pd.DataFrame:
    """Accuracy of several architectures trained on the sets of presets: a row for each method and architecture.

    `gain` is over random real images, `lead` that of a sequence over its base method. All is over the seeds that every
    architecture of a method has. Methods of which one architecture is known are left out. `controls.controls_by_network` has
    the controls of `lead`.
    """
    found, pooled = values_by_network(evidence, dataset, ipc, scale), []
    for (method, network), (last, random) in found.items():
        base = method.removeprefix(SEQUENTIAL_PREFIX)
        reference = found.get((base, network), [{}])[0] if base != method else {}
        if random:
            row = {"method": method, "network": network} | mean_and_std(last) | mean_and_std(random, "random")
            row |= difference(last, random, "gain") | difference(last, reference, "lead")
            pooled.append(row | {"seeds": len(last), "n": sum(map(len, last.values()))})
    if not pooled:
        return pd.DataFrame(columns=["method", "network", "accuracy", "random", "gain", "lead", "seeds", "n"])
    frame = pd.DataFrame(pooled)
    return frame[frame.groupby("method")["network"].transform("nunique") > 1].reset_index(drop=True)


def values_by_network(evidence: Evidence, dataset: str, ipc: int, scale: str) -> dict[tuple[str, str], list[Values]]:
    """Returns (method, architecture) -> accuracies of the sets of presets, and of random real images, by seed.

    All are of the seeds that every architecture of a method has.
    """
    rows = evidence.accuracies
    rows = rows[(rows["dataset"] == dataset) & (rows["ipc"] == ipc) & (rows["scale"] == scale)]
    rows = where(rows, lambda row: row.stands or row.changes.keys() <= OF_NETWORKS)
    rows = where(rows, lambda row: row.asked.keys() <= OF_NETWORKS)
    rows = rows[(rows["trained"] != "jointly") & (rows["method"] != "random") & ~rows["kind"].str.startswith("selected")]
    rows = rows.assign(kind=rows["kind"].str.split().str[0], n=rows["values"].str.len()).sort_values("n", kind="stable")
    rows = rows.drop_duplicates(["method", "network", "kind", "seed"], keep="last").sort_index()  # the answer of most networks
    found: dict[tuple[str, str], list[Values]] = {}
    for method, known in rows.groupby("method", sort=False):
        for network, group in of_common_seeds(known, "network").groupby("network", sort=False):
            found[method, network] = [values_by_seed(group[group["kind"] == kind]) for kind in ("last", "random")]
    return found


def robust(evidence: Evidence, dataset: str, scale: str) -> pd.DataFrame:
    """Label-robust and augmentation-robust scores in the sense of DD-Ranking, with weights of one half.

    Raises:
        StorageError: the whole data set was not run.
    """
    whole = with_settings(evidence.select(["last"], dataset=dataset, ipc=0, method="whole", scale=scale), ())
    require(len(whole) > 0, f"robust scores need the whole data set: run {dataset}-whole --scale {scale}", StorageError)
    real = fmean(map(fmean, whole["values"]))
    kinds = {"accuracy": "last", "random": "random", "plain": "last again", "random_plain": "random again"}
    rows = evidence.select(list(kinds.values()), dataset=dataset, scale=scale)
    rows = rows[rows["trained"] != "jointly"]
    rows = where(rows, _is_own_or_plain)
    rows = rows.assign(distilled_with=[_describe(changes, "ipc") for changes in rows["changes"]])
    by = ["method", "images", "distilled_with", "record"]
    scores = pool(rows, by, kinds, by_seed=True).dropna(subset=["plain", "random_plain"])
    lead, plain = (scores["accuracy"] - scores["random"]) / 200, (scores["plain"] - scores["random_plain"]) / 200
    scores["label_robust"] = (lead - (real - scores["accuracy"]) / 200).map(robust_score)
    scores["augmentation_robust"] = (lead + plain).map(robust_score)
    return scores.drop(columns=["seeds", "record"])


def _is_own_or_plain(row: Any) -> bool:
    """Whether an accuracy is the run's own, or that of training without augmentation; CutMix, where it was, is off, too."""
    if not row.kind.endswith("again"):
        return True
    return row.asked.get("training.augment") == "none" and row.asked.keys() <= {"training.augment", "training.cutmix"}


def trust(evidence: Evidence) -> pd.DataFrame:
    """Outcomes of injected faults and of fuzzed inputs, by kind of fault."""
    rows = []
    for fault, row in evidence.trust.get("faults", {"rows": {}})["rows"].items():
        if not fault.endswith("goes on to its end"):  # what became of a run after its kills, and no kill itself
            kind = fault.split(":")[0]
            if kind.startswith("clock jumps"):
                kind = "clock jumps"
            elif kind.startswith("files from"):
                kind = "files from another time"
            rows.append((kind, row["injected"], row["crashes"] + row["other"], row["losses"], row["silent"]))
    targets = evidence.trust.get("fuzzing", {"targets": {}})["targets"]
    for row in targets.values():
        counts = Counter(row | {"examples": 0})
        crashes = counts["crash"] + counts["hang"] + counts["memory"]
        rows.append((f"fuzzed inputs, {len(targets)} readers", counts.total(), crashes, 0, counts["silent"]))
    frame = pd.DataFrame(rows, columns=["fault", "times", "crashes", "losses", "silent_errors"])
    return frame.groupby("fault", sort=False).sum().reset_index()


def _describe(changes: Mapping[str, Any], hidden: str) -> str:
    """Returns changed settings as text, without those whose name begins with `hidden`."""
    return ", ".join(f"{key} = {value}" for key, value in changes.items() if not key.startswith(hidden))


def _count_teachers(config: RunConfig) -> int:
    return config.teachers.num_teachers if config.uses_teachers else 0
