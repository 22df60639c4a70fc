"""The sequence, its base method and the controls that a gain must pass; and the ablation of order and division.

Columns are those of `queries`. `difference` is always the sequence in stages minus the row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from seqmatch_lib.methods import method_names
from seqmatch_lib.report.evidence import Evidence, runs_of, with_settings
from seqmatch_lib.report.numbers import make_frame, summarise, values_by_seed, where
from seqmatch_lib.report.queries import values_by_network
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX
from seqmatch_lib.runs.overrides import changes_of
from seqmatch_lib.runs.records import OrderRecord
from seqmatch_lib.store.files import digest_json

# what `comparison` sets side by side
RANDOM, ONE_SET, STAGED = "random real", "one set", "sequence, in stages"
LONGER = "one set, as many iterations"
MORE_EPOCHS = "one set, as many epochs"
EQUAL = "one set, as many iterations and epochs"
HALVES, HALVES_JOINTLY = "independent halves, in stages", "independent halves, jointly"
HALVES_LONGER = "independent halves, jointly, as many epochs"
JOINTLY = "sequence, jointly"
SELECTED = {name: f"{name}, both by selected iterates" for name in (ONE_SET, LONGER)}  # the sequence's, too
SETS = (
    RANDOM, ONE_SET, SELECTED[ONE_SET], LONGER, SELECTED[LONGER], MORE_EPOCHS, EQUAL, HALVES, HALVES_JOINTLY, HALVES_LONGER,
    STAGED, JOINTLY, "sequence, jointly, as many epochs",
)  # fmt: skip
OF_ORDER = {  # name in the records of order and division -> name here, in the order of tables
    **{base.upper(): ONE_SET for base in method_names()},
    "SeqMatch": STAGED,
    "SeqMatch, joint": JOINTLY,
    "SeqMatch, $S_2$ first": "sequence, S_2 first",
    "SeqMatch, $S_2$ undistilled": "sequence, S_2 undistilled",
    "SeqMatch, $S_1$ twice": "sequence, S_1 twice",
    "divided, staged": HALVES,
    "divided, joint": HALVES_JOINTLY,
    "divided, joint, as many epochs": HALVES_LONGER,
    "undivided, staged": "one set and its second version, in stages",
    "undivided, last": "one set, its second version alone",
    "random real": RANDOM,
}
DECIDING = (EQUAL, HALVES, HALVES_JOINTLY, HALVES_LONGER)  # the controls that a gain of the sequence must pass


class Cost(NamedTuple):
    """What an accuracy cost. Runs that are compared have equal settings except these."""

    base: str  # method
    num_subsets: int
    images: str  # per class of each subset
    teacher_epochs: str  # that the subsets are matched with
    iterations: int  # of distillation, over all subsets
    by_subset: str  # the same, of each subset
    trained: str
    epochs: int  # of training, over all stages


def comparison(
    evidence: Evidence,
    dataset: str,
    ipc: int,
    scale: str,
    settings: Collection[str] | None = None,
    bases: Collection[str] = (),
    by_seed: bool = False,
) -> pd.DataFrame:
    """Compares the sequence with its base method and the controls: for each base method, one row per set and way of training.

    Args:
        evidence: the records, perhaps `on` one architecture. Base methods that were not run both alone and in sequence are
            left out. Of several sequences, the one that stands for its preset is taken; of several of these, the one with
            most seeds.
        dataset: its name.
        ipc: images per class of every set.
        scale: of the runs.
        settings: as in `queries`; by default those of `leading_settings`.
        bases: base methods; all by default.
        by_seed: whether each seed has a row of its own; then sets that were not run have none.

    Returns:
        Columns `base`, `num_subsets`, `set` (one of `SETS`), `iterations`, `epochs`, `accuracy`, `difference` (the sequence in
        stages minus this set), `seeds` (0: not run), `n` and `records`. Accuracies are of last iterates; in the rows of
        `SELECTED` the set and the sequence are both those of the selected iterates.
    """
    rows, selected = [], evidence.select(["selected"], dataset=dataset)
    for base in bases or method_names():
        changed = leading_settings(evidence, dataset, ipc, scale, base) if settings is None else settings
        groups = _efforts(evidence, dataset, ipc, scale, changed)
        sequence = _leading_sequence(groups, base)
        alone = [effort for effort in groups if (effort.base, effort.num_subsets) == (base, 1)]
        if sequence is None or not alone:
            continue
        plain, of_sequence = _plain(groups, alone, sequence), set(groups[sequence]["record"])
        ablations = [record for record in evidence.orders if digest_json(record.config)[:8] in of_sequence]
        random, sets = evidence.select(["random"], dataset=dataset), _sets(plain, sequence)
        known = {name: groups[effort] for name, effort in sets.items() if effort in groups} | {
            RANDOM: _of_runs(random, groups.get(plain, groups[alone[0]])),
            HALVES: _of_order(ablations, "divided, staged", evidence.network),
            HALVES_JOINTLY: _of_order(ablations, "divided, joint", evidence.network),
            HALVES_LONGER: _of_order(ablations, "divided, joint, as many epochs", evidence.network),
        }
        known |= {SELECTED[name]: _of_runs(selected, known[name]) for name in SELECTED if name in known}
        staged, staged_selected = (values_by_seed(each) for each in (groups[sequence], _of_runs(selected, groups[sequence])))
        for name, effort in sets.items():
            cost = {"iterations": effort.iterations, "epochs": effort.epochs}
            common = {"base": base, "num_subsets": effort.num_subsets, "set": name} | cost
            gap = {} if name == STAGED else staged_selected if name in SELECTED.values() else staged
            rows += [common | row for row in summarise(known.get(name, random.iloc[:0]), "difference", gap, by_seed)]
    return make_frame(rows, ("base", "num_subsets", "set", "iterations", "epochs", "difference"))


def leads(compared: pd.DataFrame) -> tuple[list[str], str | None]:
    """Returns which sets of `comparison` the lead of one sequence is to be told over, as far as they were run.

    First one set: with as many iterations and epochs; for want of that with as many of each; else as the preset has it. Then
    the independent halves, in whatever training, over which the lead is least; None if there are none.
    """
    found = compared[compared["difference_seeds"] > 0].set_index("set")["difference"] if len(compared) else {}
    one_set = [name for name in (EQUAL,) if name in found] or [name for name in (LONGER, MORE_EPOCHS) if name in found]
    halves = [name for name in (HALVES, HALVES_JOINTLY, HALVES_LONGER) if name in found]
    return one_set or [name for name in (ONE_SET,) if name in found], min(halves, key=found.get, default=None)


def _of_runs(accuracies: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the accuracies of the same runs as these rows."""
    return accuracies[accuracies["record"].isin(rows["record"])]


def leading_settings(evidence: Evidence, dataset: str, ipc: int, scale: str, base: str) -> list[str]:
    """Returns the settings, without the iterations, of the sequences that stand for their preset; see `runs_of`."""
    runs = runs_of(f"{dataset}-ipc{ipc}-{SEQUENTIAL_PREFIX}{base}", scale, evidence.runs)
    changes = changes_of(runs[0]) if runs else {}
    return [f"{key}={value}" for key, value in changes.items() if key != f"{base}.iterations"]


def _plain(groups: Mapping[Cost, pd.DataFrame], alone: Sequence[Cost], sequence: Cost) -> Cost:
    """Returns one set with the iterations and epochs of its preset; if there is none, with those of one stage."""
    iterations, epochs = sequence.iterations // sequence.num_subsets, sequence.epochs // sequence.num_subsets
    of_stage = alone[0]._replace(iterations=iterations, by_subset=str(iterations), epochs=epochs)
    return next((effort for effort in alone if _of_preset(effort, groups[effort])), of_stage)


def _sets(plain: Cost, sequence: Cost) -> dict[str, Cost]:
    """Returns set of `SETS` -> what it costs, whether it was run or not."""
    longer, epochs = plain._replace(iterations=sequence.iterations, by_subset=str(sequence.iterations)), sequence.epochs
    jointly_longer = sequence._replace(trained="jointly")
    jointly = jointly_longer._replace(epochs=epochs // sequence.num_subsets)
    return {
        RANDOM: plain._replace(iterations=0),
        ONE_SET: plain,
        SELECTED[ONE_SET]: plain,
        LONGER: longer,
        SELECTED[LONGER]: longer,
        MORE_EPOCHS: plain._replace(epochs=epochs),
        EQUAL: longer._replace(epochs=epochs),
        HALVES: sequence,
        HALVES_JOINTLY: jointly,
        HALVES_LONGER: jointly_longer,
        STAGED: sequence,
        JOINTLY: jointly,
        "sequence, jointly, as many epochs": jointly_longer,
    }


def efforts(
    evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str] = (), by_seed: bool = False
) -> pd.DataFrame:
    """Accuracies by the effort behind them, of runs that differ only in subsets, intervals, iterations and epochs.

    `difference` is the sequence in stages, see `comparison`, minus the row. `by_subset` has the iterations of each subset;
    `of_preset` says whether iterations and epochs are those of the preset.
    """
    groups = _efforts(evidence, dataset, ipc, scale, settings)
    rows = []
    for effort, group in groups.items():
        staged = _leading_sequence(groups, effort.base)
        sequence = values_by_seed(groups[staged]) if staged not in (None, effort) else {}
        common = effort._asdict() | {"of_preset": _of_preset(effort, group)}
        rows += [common | row for row in summarise(group, "difference", sequence, by_seed)]
    return make_frame(rows, (*Cost._fields, "of_preset"))


def _efforts(evidence: Evidence, dataset: str, ipc: int, scale: str, settings: Collection[str]) -> dict[Cost, pd.DataFrame]:
    """Returns effort -> rows of networks trained as their run did, jointly, or for other numbers of epochs.

    There is one row for each seed. At scale "short" several runs of a seed fit, see `with_settings`: that of the preset
    counts, else that with most networks.
    """
    rows = evidence.select(["last", "joint", "last again"], dataset=dataset, ipc=ipc, scale=scale)
    rows = with_settings(rows[~rows["method"].isin(REFERENCES)], settings, ("iterations", "ipc", "subset_ipcs", "intervals"))
    rows = where(rows, _is_own_or_longer)
    if scale == "short":
        rows = rows.sort_values("values", key=lambda values: -values.map(len), kind="stable")
        rows = rows.sort_values("stands", ascending=False, kind="stable").drop_duplicates([*Cost._fields, "seed"]).sort_index()
    rows = rows.sort_values(["base", "num_subsets", "teacher_epochs", "iterations", "trained", "epochs"], kind="stable")
    return {Cost(*key): group for key, group in rows.groupby(list(Cost._fields), sort=False)}


def _is_own_or_longer(row: Any) -> bool:
    """Whether an accuracy is the run's own, or that of training for another number of epochs."""
    return row.asked.keys() == ({"training.epochs"} if row.kind.endswith("again") else set())


def _of_preset(effort: Cost, group: pd.DataFrame) -> bool:
    changed = any(f"{effort.base}.iterations" in changes for changes in group["changes"])
    other_intervals = any("intervals" in changes and "subset_ipcs" not in changes for changes in group["changes"])
    return not changed and not other_intervals and bool(group["kind"].isin(["last", "joint"]).all())


def _leading_sequence(groups: Mapping[Cost, pd.DataFrame], base: str) -> Cost | None:
    """Returns the staged sequence that stands for its preset; if none or several do, the one with most seeds."""
    staged = [effort for effort in groups if (effort.base, effort.trained) == (base, "in stages")]
    return max(staged, key=lambda effort: (groups[effort]["stands"].any(), groups[effort]["seed"].nunique()), default=None)


def order(
    evidence: Evidence,
    dataset: str,
    ipc: int,
    scale: str,
    settings: Collection[str] | None = None,
    by_seed: bool = False,
) -> pd.DataFrame:
    """Sets of equal size that are divided or not, in sequence or not; `difference` is the sequence in stages minus the set.

    By default these are the ablations of the runs that stand for their preset, see `runs_of`. If an ablation covers only the
    other sets, it takes the accuracies of SeqMatch from its run.
    """
    groups: dict[str, list[OrderRecord]] = {}
    runs = {run.config_hash: run for run in evidence.runs}
    for record in sorted(evidence.orders, key=lambda record: (record.method, record.seed)):
        if (record.dataset, record.ipc, record.scale) != (dataset, ipc, scale):
            continue
        run = runs.get(digest_json(record.config))
        record = replace(record, accuracy=record.on())
        if run is not None and "SeqMatch" not in record.accuracy:
            own = {"SeqMatch": run.accuracy_last, "SeqMatch, joint": run.accuracy_joint}
            record = replace(record, accuracy={name: one["values"] for name, one in own.items() if one} | record.accuracy)
        standing = runs_of(record.config["preset"], scale, evidence.runs) if settings is None else []
        changes = {f"{key}={value}" for key, value in changes_of(record).items()}
        if "SeqMatch" in record.accuracy and (run in standing or changes == set(settings or ())):
            groups.setdefault(record.method.removeprefix(SEQUENTIAL_PREFIX), []).append(record)
    rows = []
    for base, records in groups.items():
        sequence = values_by_seed(_of_order(records, "SeqMatch"))
        num_subsets = len(records[0].config["subset_ipcs"])
        found, places = dict.fromkeys(name for record in records for name in record.accuracy), list(OF_ORDER)
        for name in sorted(found, key=lambda name: places.index(name) if name in OF_ORDER else -1):
            gap = {} if name == "SeqMatch" else sequence
            common = {"base": base, "num_subsets": num_subsets, "set": OF_ORDER.get(name, name)}
            rows += [common | row for row in summarise(_of_order(records, name), "difference", gap, by_seed)]
    return make_frame(rows, ("base", "num_subsets", "set", "difference"))


def controls_by_network(evidence: Evidence, dataset: str, ipc: int, scale: str) -> pd.DataFrame:
    """The controls of `queries.transfer`: the rows of `comparison` on architectures that sets were not distilled with.

    Returns:
        Columns of `comparison`, and `network`. The sets are those of `DECIDING`, and of `SELECTED`, as far as they were
        evaluated there; `difference` is the sequence in stages on that architecture minus the set.
    """
    parts = [comparison(Evidence([]), dataset, ipc, scale).assign(network="")]
    for method, network in values_by_network(evidence, dataset, ipc, scale):
        base = method.removeprefix(SEQUENTIAL_PREFIX)
        runs = runs_of(f"{dataset}-ipc{ipc}-{method}", scale, evidence.runs)
        if method != base and runs and network != runs[0].config["network"]["name"]:
            rows = comparison(evidence.on(network), dataset, ipc, scale, bases=[base])
            rows = rows[rows["set"].isin((*SELECTED.values(), *DECIDING)) & (rows["difference_seeds"] > 0)]
            parts.append(rows.assign(network=network))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _of_order(records: Iterable[OrderRecord], name: str, network: str | None = None) -> pd.DataFrame:
    """Returns the accuracies of one set of the ablation of order and division, for the seeds that have it."""
    having = sorted((record for record in records if name in record.on(network)), key=lambda record: record.seed)
    rows = [(record.seed, record.on(network)[name], _runs_behind(record, name)) for record in having]
    return pd.DataFrame(rows, columns=["seed", "values", "record"])


def _runs_behind(record: OrderRecord, name: str) -> str:
    """Returns the names of the sequence's record and, of independent parts, of theirs."""
    sequence = digest_json(record.config)[:8]
    if not name.startswith("divided"):
        return sequence
    return ", ".join([sequence, *(run_id.rsplit("-", 1)[-1] for run_id in record.other_half.split(", "))])
