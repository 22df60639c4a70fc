"""What the records say, as Markdown: the blocks of `paper_results/REPORT.md` and of the README, made again by `report`.

A block is everything between `<!-- evidence: NAME ARGUMENTS -->` and `<!-- end -->`; NAME is one of `BLOCKS`. People write the
prose around it, and no numbers. Blocks that compare runs of presets take KEY=VALUE at their end: then they compare the runs
with all these settings changed and no others, as in `comparison cifar10 10 reduced mtt.expert_epochs=2`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import method_names
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX, even_subsets
from seqmatch_lib.runs.records import (
    OrderRecord,
    Reevaluation,
    RunRecord,
    check_same_images,
    describe_changes,
    flatten_settings,
    load_orders,
    load_reevaluations,
    load_runs,
)
from seqmatch_lib.store.files import read_json, write_atomically

BLOCK = re.compile(r"(<!-- evidence: ([\w .=-]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SET = ("method", "images a class", "seed")  # columns that name a set
DRAWS = 10_000  # of the bootstrap
Values = Sequence[Sequence[float]]  # accuracies in per cent: one list a seed of distillation, of its networks


@dataclass(frozen=True)
class Evidence:
    """All records of a results folder.

    Args:
        runs: of `run`.
        reevaluations: of `evaluate --results`.
        orders: of `21_ablation_order`.
        trust: "faults" and "fuzzing" -> what `tests/faults.py` and `tests/fuzzing.py` counted in their long forms.
    """

    runs: list[RunRecord]
    reevaluations: list[Reevaluation]
    orders: list[OrderRecord] = field(default_factory=list)
    trust: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, results_dir: Path | str) -> "Evidence":
        """Reads a results folder.

        Raises:
            StorageError: a damaged record, or runs of one data set and scale on different images.
        """
        results_dir = Path(results_dir)
        runs = load_runs(results_dir)
        check_same_images(runs)
        trust = {path.stem: read_json(path) for path in sorted((results_dir / "trust").glob("*.json"))}
        return cls(runs, load_reevaluations(results_dir), load_orders(results_dir), trust)

    def of_preset(self, dataset: str, ipc: int, method: str, scale: str, settings: Sequence[str] = ()) -> list[RunRecord]:
        """Returns the runs of a preset as it stands, or with these settings (KEY=VALUE), in the order of their seeds."""
        wanted = (dataset, ipc, method, scale)
        found = [run for run in self.runs if (run.dataset, run.ipc, run.method, run.scale) == wanted]
        return sorted((run for run in found if _differs(run, settings)), key=lambda run: run.seed)

    def orders_of(self, dataset: str, ipc: int, scale: str, settings: Sequence[str] = ()) -> dict[str, list[OrderRecord]]:
        """Returns base method -> its ablations of order and division, of settings as in `of_preset`, in the order of seeds."""
        found: dict[str, list[OrderRecord]] = {}
        for one in sorted(self.orders, key=lambda one: (one.method, one.seed)):
            if (one.dataset, one.ipc, one.scale) == (dataset, ipc, scale) and _differs(one, settings):
                found.setdefault(one.method.removeprefix(SEQUENTIAL_PREFIX), []).append(one)
        return found


def bootstrap_difference(first: Values, second: Values, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of mean(second) - mean(first), by a bootstrap over seeds and over the networks of each.

    Args:
        first: accuracies, one list a seed; the interval says something from 3 seeds on.
        second: the same of what it is compared with.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)

    def means(values: Values) -> np.ndarray:
        """(draws,) means over seeds drawn with replacement, each with networks drawn with replacement."""
        seeds = generator.integers(0, len(values), (DRAWS, len(values)))
        per_seed = [np.asarray(one)[generator.integers(0, len(one), (DRAWS, len(values), len(one)))].mean(2) for one in values]
        return np.take_along_axis(np.stack(per_seed, 2), seeds[:, :, None], 2).mean((1, 2))

    low, high = np.quantile(means(second) - means(first), [0.025, 0.975])
    return float(low), float(high)


def robust_score(weighted: float) -> float:
    """Returns a weighted sum of differences of accuracy, in [-1, 1], as DD-Ranking normalises it: 0 … 100 per cent."""
    return 100 * (exp(weighted) - exp(-1)) / (exp(1) - exp(-1))


# --- blocks


def baselines(evidence: Evidence, scale: str) -> str:
    """Random real images and whole data sets."""
    rows = [("data set", "images a class", "train images", "accuracy", "seeds", "n", "records")]
    kept = [run for run in evidence.runs if run.method in REFERENCES and run.scale == scale and not run.overrides]
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    for run in kept:
        groups.setdefault((run.dataset, run.ipc), []).append(run)
    for (dataset, ipc), runs in groups.items():
        values = _values(runs, "accuracy_last")
        size = f"{runs[0].data['train_images']:,}"
        rows.append(
            (dataset, ipc or "all", size, _spread(values), len(runs), sum(map(len, values)), ", ".join(map(_short, runs)))
        )
    return _table(rows)


def comparison(evidence: Evidence, dataset: str, ipc: str, scale: str, *settings: str) -> str:
    """Every base method alone and in sequence: equal images and iterations a subset."""
    rows = [("method", "K", "seeds", "n", "random", "alone", "staged", "joint", "staged - alone", "joint - alone", "records")]
    for base in method_names():
        alone = evidence.of_preset(dataset, int(ipc), base, scale, settings)
        sequence = evidence.of_preset(dataset, int(ipc), SEQUENTIAL_PREFIX + base, scale, settings)
        if not (alone and sequence):
            continue
        random, plain = _values(alone, "random_baseline"), _values(alone, "accuracy_last")
        staged, joint = _values(sequence, "accuracy_last"), _values(sequence, "accuracy_joint")
        counts = len(alone) if len(alone) == len(sequence) else f"{len(alone)}, {len(sequence)}"
        rows.append((
            base, sequence[0].num_subsets, counts, sum(map(len, plain)), *map(_spread, (random, plain, staged, joint)),
            _difference(plain, staged), _difference(plain, joint), ", ".join(map(_short, [*alone, *sequence])),
        ))  # fmt: skip
    return _table(rows)


def changed(evidence: Evidence, dataset: str, scale: str) -> str:
    """Runs with changed settings: ablations, equal compute, other protocols."""
    rows = [("method", "ipc", "K", "seed", "changed", "last", "selected", "joint", "random", "record")]
    for run in evidence.runs:
        changes = run.overrides
        if (run.dataset, run.scale) != (dataset, scale) or not changes:
            continue
        shown = ", ".join(f"{key} = {value}" for key, value in changes.items() if key != "ipc")
        kinds = (run.accuracy_last, run.accuracy_selected, run.accuracy_joint, run.random_baseline)
        rows.append((run.method, run.ipc, run.num_subsets, run.seed, shown, *map(_accuracy, kinds), _short(run)))
    return _table(rows)


def subsets(evidence: Evidence, dataset: str, ipc: str, scale: str, *settings: str) -> str:
    """The number and sizes of subsets, and their intervals, at a fixed number of images: runs that differ in nothing else."""
    rows = [("method", "K", "images a class", "teachers", "seeds", "n", "random", "staged", "joint", "records")]
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for run in evidence.runs:
        same = (run.dataset, run.ipc, run.scale) == (dataset, int(ipc), scale) and run.method not in REFERENCES
        if same and _differs(run, settings, ("ipc", "subset_ipcs", "intervals")):
            sizes, intervals = run.config["subset_ipcs"], _intervals(run)
            groups.setdefault((run.method.removeprefix(SEQUENTIAL_PREFIX), len(sizes), *sizes, intervals), []).append(run)
    for (base, count, *sizes, intervals), runs in sorted(groups.items(), key=lambda group: (group[0][:2], str(group[0]))):
        last = _values(runs, "accuracy_last")
        joint = _spread(_values(runs, "accuracy_joint")) if count > 1 else "-"
        rows.append((
            base, count, _sum(sizes), intervals, len(runs), sum(map(len, last)),
            _spread(_values(runs, "random_baseline")), _spread(last), joint, ", ".join(map(_short, runs)),
        ))  # fmt: skip
    return _table(rows)


class Effort(NamedTuple):
    """What an accuracy cost: of runs with equal settings but for these."""

    base: str  # method
    sizes: tuple[int, ...]  # images per class of each subset
    teachers: str  # their epochs
    iterations: tuple[int, ...]  # of distillation, of each subset
    trained: str
    epochs: int  # of training, over all stages


def efforts(
    evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Sequence[str] = ()
) -> dict[Effort, dict[int, tuple[RunRecord, list[float]]]]:
    """Returns effort -> seed of distillation -> (run, accuracies in per cent).

    Of runs that differ from their preset in subsets, their intervals, iterations and `settings` (KEY=VALUE) alone; networks
    trained as the run did, jointly, and as reevaluations did that changed nothing but the epochs of training.
    """
    found: dict[Effort, dict[int, tuple[RunRecord, list[float]]]] = {}
    for run in evidence.runs:
        base = run.method.removeprefix(SEQUENTIAL_PREFIX)
        same = (run.dataset, run.ipc, run.scale) == (dataset, ipc, scale) and run.method not in REFERENCES
        if not (same and _differs(run, settings, (f"{base}.iterations", "ipc", "subset_ipcs", "intervals"))):
            continue
        network, epochs = run.config["network"]["name"], run.config["training"]["epochs"]
        trainings = [(False, epochs, run.accuracy_last)]
        if run.accuracy_joint is not None:
            trainings.append((True, epochs, run.accuracy_joint))
        for one in evidence.reevaluations:
            if one.run_id == run.run_id and network in one.accuracy and _changes(run, one).keys() == {"training.epochs"}:
                trainings.append((one.joint, one.config["training"]["epochs"], one.accuracy[network]))
        sizes, iterations = tuple(run.config["subset_ipcs"]), tuple(stage["iterations"] for stage in run.stages)
        for joint, epochs, accuracy in trainings:
            total = epochs if joint else epochs * run.num_subsets
            effort = Effort(base, sizes, _intervals(run), iterations, _trained(run, joint), total)
            found.setdefault(effort, {})[run.seed] = (run, accuracy["values"])
    return dict(sorted(found.items(), key=lambda item: (item[0].base, len(item[0].sizes), *item[0][2:])))


def compute(evidence: Evidence, dataset: str, ipc: str, scale: str, *settings: str) -> str:
    """Accuracies by the effort behind them, each less two others, over the seeds that both have.

    Less the staged sequence of most seeds; and sequences less the one set that took as many iterations and epochs.
    """
    effort_names = ("method", "images", "teachers", "iterations", "trained", "epochs")
    rows = [(*effort_names, "seeds", "n", "accuracy", "less staged", "less one set", "records")]
    groups = efforts(evidence, dataset, int(ipc), scale, settings)
    staged: dict[str, dict[int, tuple[RunRecord, list[float]]]] = {}
    single = {}
    for effort, found in groups.items():
        if effort.trained == "in stages" and len(found) > len(staged.get(effort.base, {})):
            staged[effort.base] = found
        if len(effort.sizes) == 1:
            single[effort.base, effort.teachers, sum(effort.iterations), effort.epochs] = found

    def gap(found: Mapping[int, Any], other: Mapping[int, Any]) -> str:
        shared = sorted(found.keys() & other.keys())
        return _difference(*([values[seed][1] for seed in shared] for values in (other, found))) if shared else ""

    for effort, found in groups.items():
        runs, values = zip(*(found[seed] for seed in sorted(found)), strict=True)
        reference = staged.get(effort.base, {})
        total = sum(effort.iterations)
        equal = single.get((effort.base, effort.teachers, total, effort.epochs), {})
        rows.append((
            effort.base, _sum(effort.sizes), effort.teachers, total, effort.trained, effort.epochs,
            len(values), sum(map(len, values)), _spread(values),
            "" if found is reference else gap(found, reference), "" if found is equal else gap(found, equal),
            ", ".join(map(_short, runs)),
        ))  # fmt: skip
    return _table(rows)


def runs_by_size(evidence: Evidence, dataset: str, scale: str) -> dict[tuple[str, int], dict[int, list[RunRecord]]]:
    """Returns (method, K) -> images per class -> runs, of equal subsets; other settings are those of a preset.

    A size that has a preset of its own is represented by that, others by runs of another size's preset.
    """
    groups: dict[tuple[str, int], dict[int, list[RunRecord]]] = {}
    for run in evidence.runs:
        same = (run.dataset, run.scale) == (dataset, scale) and run.method not in REFERENCES
        if not (same and run.overrides.keys() <= {"ipc", "subset_ipcs"}):
            continue
        if list(run.config["subset_ipcs"]) == even_subsets(run.ipc, run.num_subsets):
            groups.setdefault((run.method, run.num_subsets), {}).setdefault(run.ipc, []).append(run)
    return {
        key: {ipc: [run for run in runs if not run.overrides] or runs for ipc, runs in sorted(sizes.items())}
        for key, sizes in sorted(groups.items())
    }


def lead(evidence: Evidence, dataset: str, scale: str) -> str:
    """What every method gains over random real images as the images per class grow; staged training where K > 1."""
    groups = runs_by_size(evidence, dataset, scale)
    sizes = sorted({ipc for found in groups.values() for ipc in found})
    rows = [("method", "K", *(f"{ipc} images" for ipc in sizes))]
    for (method, count), found in groups.items():
        pairs = [[_values(found.get(ipc, []), name) for name in ("random_baseline", "accuracy_last")] for ipc in sizes]
        rows.append((method, count, *(_difference(*pair) if all(pair) else "" for pair in pairs)))
    return _table(rows)


def order(evidence: Evidence, dataset: str, ipc: str, scale: str, *settings: str) -> str:
    """Sets of equal size that are divided or not, in sequence or not, with their distance from SeqMatch."""
    rows = [("method", "set", "seeds", "n", "accuracy", "less SeqMatch")]
    for method, found in evidence.orders_of(dataset, int(ipc), scale, settings).items():
        for name in dict.fromkeys(name for one in found for name in one.accuracy):
            pairs = [(one.accuracy["SeqMatch"], one.accuracy[name]) for one in found if name in one.accuracy]
            seqmatch, values = zip(*pairs, strict=True)
            gap = _difference(seqmatch, values) if name != "SeqMatch" else ""
            rows.append((method, name.replace("$", ""), len(values), sum(map(len, values)), _spread(values), gap))
    return _table(rows)


def judged(evidence: Evidence, dataset: str) -> str:
    """Finished sets under other questions: other networks, other training, jointly."""
    rows = [(*SET, "trained", "changed", "network", "accuracy", "random real", "difference", "n", "record")]
    runs = {run.run_id: run for run in evidence.runs}
    for one in evidence.reevaluations:
        if one.config["dataset"] != dataset or one.run_id not in runs:
            continue
        run = runs[one.run_id]
        changes = _changes(run, one)
        shown = ", ".join(f"{key} = {value}" for key, value in changes.items() if not key.startswith("evaluation."))
        for name, found in one.accuracy.items():
            random = (one.random_baseline or {}).get(name)
            gain = "" if random is None else f"{found['mean'] - random['mean']:+.1f}"
            accuracies = (_accuracy(found), _accuracy(random), gain, found["n"])
            rows.append((*_set(run), _trained(run, one.joint), shown, name, *accuracies, _short(run)))
    return _table(rows)


def robust(evidence: Evidence, dataset: str, scale: str) -> str:
    """Label-robust and augmentation-robust scores in the sense of DD-Ranking, with weights of one half."""
    whole = evidence.of_preset(dataset, 0, "whole", scale)
    require(bool(whole), f"robust scores need the whole data set: run {dataset}-whole --scale {scale}", StorageError)
    real = fmean(fmean(values) for values in _values(whole, "accuracy_last"))
    rows = [(*SET, "set", "random", "set, plain", "random, plain", "label-robust", "augmentation-robust", "record")]
    plain = {
        one.run_id: one
        for one in evidence.reevaluations
        if one.config["training"]["augment"] == "none" and one.random_baseline is not None and not one.joint
    }
    for run in evidence.runs:
        if (run.dataset, run.scale) != (dataset, scale) or run.run_id not in plain:
            continue
        bare, network = plain[run.run_id], run.config["network"]["name"]
        found = (run.accuracy_last, run.random_baseline, bare.accuracy[network], bare.random_baseline[network])
        ours, random, ours_plain, random_plain = (one["mean"] / 100 for one in found)
        label = robust_score(0.5 * (ours - random) - 0.5 * (real / 100 - ours))
        augment = robust_score(0.5 * (ours - random) + 0.5 * (ours_plain - random_plain))
        rows.append((*_set(run), *map(_accuracy, found), f"{label:.1f}", f"{augment:.1f}", _short(run)))
    return _table(rows)


def trust(evidence: Evidence) -> str:
    """What happened to runs that were harmed and to readers that were lied to, by kind of fault."""
    counts: dict[str, Counter[str]] = {}
    for fault, row in evidence.trust.get("faults", {"rows": {}})["rows"].items():
        if not fault.endswith("goes on to its end"):  # what became of a run after its kills, and no kill itself
            kind = re.match(r"clock jumps|files from|[^:]*", fault)[0]
            counts.setdefault(kind.replace("files from", "files from another time"), Counter()).update(row)
    targets = evidence.trust.get("fuzzing", {"targets": {}})["targets"]
    for row in targets.values():
        numbers = Counter({name: count for name, count in row.items() if name != "examples"})
        other = numbers["crash"] + numbers["hang"] + numbers["memory"]
        found = Counter(injected=numbers.total(), crashes=other, silent=numbers["silent"])
        counts.setdefault(f"fuzzed inputs, {len(targets)} readers", Counter()).update(found)
    rows = [("fault", "times", "crashes", "losses", "silent errors")]
    for fault, row in counts.items():
        numbers = (row["injected"], row["crashes"] + row["other"], row["losses"], row["silent"])
        rows.append((fault, *(f"{number:,}" for number in numbers)))
    return _table(rows)


BLOCKS: dict[str, Callable[..., str]] = {
    "baselines": baselines, "comparison": comparison, "changed": changed, "subsets": subsets, "compute": compute,
    "lead": lead, "order": order, "judged": judged, "robust": robust, "trust": trust,
}  # fmt: skip


def _differs(record: RunRecord | OrderRecord, settings: Sequence[str], compared: Sequence[str] = ()) -> bool:
    """Returns whether a run differs from its preset in exactly these settings (KEY=VALUE), whatever those compared are."""
    changes = {f"{key}={value}" for key, value in record.overrides.items() if key not in compared}
    return changes == set(settings)


def _values(runs: Sequence[RunRecord], name: str) -> list[list[float]]:
    return [getattr(run, name)["values"] for run in runs]


def _set(run: RunRecord) -> tuple[str, str, int]:
    """Returns the columns `SET`, which with the record's id tell sets apart."""
    return run.method, _sum(run.config["subset_ipcs"]), run.seed


def _sum(parts: Iterable[int]) -> str:
    return " + ".join(map(str, parts))


def _intervals(run: RunRecord) -> str:
    """Returns the epochs of teachers that each subset matches: once if they are all equal, "-" where there are no teachers."""
    names = [f"{first} to {last}" for first, last in run.config["intervals"]]
    return "; ".join(names if len(set(names)) > 1 else names[:1]) or "-"


def _changes(run: RunRecord, one: Reevaluation) -> dict[str, Any]:
    """Returns the settings in which a reevaluation differs from the run of its set."""
    return describe_changes(flatten_settings(run.config), flatten_settings(one.config))


def _trained(run: RunRecord, joint: bool) -> str:
    return "jointly" if joint else "in stages" if run.num_subsets > 1 else "in one stage"


def _spread(values: Values) -> str:
    """Returns mean ± standard deviation over the seeds' means, or over networks if there is one seed."""
    means = [fmean(one) for one in values] if len(values) > 1 else values[0]
    return f"{fmean(means):.1f} ± {stdev(means) if len(means) > 1 else 0.0:.1f}"


def _difference(first: Values, second: Values) -> str:
    mean = fmean(fmean(one) for one in second) - fmean(fmean(one) for one in first)
    if min(len(first), len(second)) < 3:
        return f"{mean:+.1f}"
    low, high = bootstrap_difference(first, second)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _accuracy(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['mean']:.1f} ± {found['std']:.1f}"


def _short(run: RunRecord) -> str:
    return f"`{run.config_hash[:8]}`"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = [[str(cell) for cell in row] for row in rows]
    if not body:
        return "Not run yet.\n"
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)) + "\n"


# --- pages


def render(text: str, evidence: Evidence) -> str:
    """Returns a page with all its blocks made anew.

    Raises:
        StorageError: a block that `BLOCKS` does not know.
    """

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        require(name in BLOCKS, f"evidence block {name!r} is unknown; use one of {', '.join(BLOCKS)}", StorageError)
        return match[1] + BLOCKS[name](evidence, *arguments) + match[3]

    return BLOCK.sub(replace, text)


def update_page(path: Path, evidence: Evidence) -> bool:
    """Makes the blocks of a Markdown file anew; returns whether anything changed."""
    before = path.read_text()
    after = render(before, evidence)
    if after != before:
        write_atomically(path, lambda temporary: temporary.write_text(after))
    return after != before
