"""All records of a results folder as one data frame of accuracies, and which runs stand for a preset."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from seqmatch_lib.report.numbers import where
from seqmatch_lib.runs.config import REFERENCES, SEQUENTIAL_PREFIX, even_subsets, preset_names
from seqmatch_lib.runs.overrides import changes_of, describe_changes, flatten_settings
from seqmatch_lib.runs.records import (
    ACCURACIES,
    OrderRecord,
    Reevaluation,
    RunRecord,
    check_same_images,
    load_orders,
    load_reevaluations,
    load_runs,
)
from seqmatch_lib.store.files import digest_json, read_json

PUBLISHED_SETTINGS = ("paper", "short")  # scales whose numbers stand beside published ones, the leading one first
LEFT_OPEN = ("teachers.num_teachers", "evaluation.num_networks", "evaluation.num_selections")  # at scale "short"
OF_NETWORKS = {"evaluation.networks", "evaluation.num_networks"}  # settings that say which networks are asked
OWN_NUMBER = 0  # of teachers: that of the scale, whatever it is
KINDS = {kind.removesuffix(" real"): name for kind, name in ACCURACIES.items()}  # as columns are called
COLUMNS = (  # of `Evidence.accuracies`
    "dataset", "ipc", "scale", "method", "num_subsets", "seed", "base", "images", "even", "teacher_epochs", "iterations",
    "by_subset", "train_images", "changes", "stands", "record", "kind", "trained", "epochs", "network", "is_first", "asked",
    "question", "values",
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """All records of a results folder.

    Args:
        runs: records of `run`.
        reevaluations: records of `evaluate --results`.
        orders: records of the ablation of order and division.
        trust: "faults" and "fuzzing" -> what `faults.py` and `fuzzing.py` in `tests/trust/` counted in their long forms.
        network: the architecture that all accuracies are of, see `on`; None: each run's own ones.
    """

    runs: list[RunRecord]
    reevaluations: list[Reevaluation] = field(default_factory=list)
    orders: list[OrderRecord] = field(default_factory=list)
    trust: dict[str, dict[str, Any]] = field(default_factory=dict)
    network: str | None = None

    @classmethod
    def load(cls, *folders: Path) -> "Evidence":
        """Reads results folders; of records of one name that of the first folder stands.

        Of several runs of one name whose sets differ it is the first one whose set was asked about again, so that what was
        measured on a set that was made again is shown. Measurements of other sets are left out, with a notice.

        Raises:
            StorageError: a damaged record, or runs of one data set and scale on different images.
        """
        reevaluations, orders = ([(home, load(home)) for home in folders] for load in (load_reevaluations, load_orders))
        measured = {record.run_sha256 for _, records in (*reevaluations, *orders) for record in records}
        runs: dict[str, RunRecord] = {}
        for run in (run for home in folders for run in load_runs(home)):
            first = runs.setdefault(run.run_id, run)
            if run.synthetic_sha256 in measured and first.synthetic_sha256 not in measured:
                runs[run.run_id] = run
        check_same_images(runs.values())
        trust = {path.stem: read_json(path) for path in sorted((folders[0] / "trust").glob("*.json"))}
        return cls(list(runs.values()), _of_these_sets(reevaluations, runs), _of_these_sets(orders, runs), trust)

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """Every accuracy, a row for each set of each run, training and architecture; all queries select from it.

        Columns, besides those that name the run: `stands` (whether the run stands for its preset, see `runs_of`), `kind`
        ("last", "selected", "joint", "random": random real images; in a re-evaluation "last again", "selected again" and
        "random again", where `trained` says whether jointly), `trained`, `epochs`, `network`, `is_first` (the run's first
        architecture), `changes` (of the run from its preset) and `asked` (of a re-evaluation from its run): dictionaries;
        `values`: list.
        """
        presets = {(run.preset, run.scale) for run in self.runs}
        standing = {run.run_id for preset, scale in presets for run in runs_of(preset, scale, self.runs)}
        rows = [
            row | {"stands": run.run_id in standing} for run in self.runs for row in _accuracies_of(run, self.reevaluations)
        ]
        frame = pd.DataFrame(rows, columns=COLUMNS).astype({"is_first": bool, "even": bool, "stands": bool, "seed": int})
        return frame if self.network is None else self._on_network(frame)

    def on(self, network: str) -> "Evidence":
        """Returns the records as if this architecture were the first of each run, so that queries compare its accuracies.

        Those of a re-evaluation count as the run's own if nothing but the networks was asked for; of several the one with
        most networks. A set that is the last and the selected one at once has both kinds. Joint training is left out.
        """
        return replace(self, network=network)

    def _on_network(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns `accuracies` as `on` says."""
        rows = rows[(rows["network"] == self.network) & (rows["trained"] != "jointly")]
        asked = [{key: value for key, value in changes.items() if key not in OF_NETWORKS} for changes in rows["asked"]]
        kinds = [kind if changes else kind.split()[0] for kind, changes in zip(rows["kind"], asked, strict=True)]
        rows = rows.assign(asked=asked, kind=kinds, is_first=True, n=rows["values"].map(len), text=list(map(str, asked)))
        both = {run.config_hash[:8] for run in self.runs if run.selects_last}
        selected = rows[(rows["kind"] == "last") & rows["record"].isin(both)].assign(kind="selected")
        rows = pd.concat([rows, selected]).sort_values("n", kind="stable")
        return rows.drop_duplicates(["record", "kind", "epochs", "text"], keep="last").sort_index(kind="stable")[[*COLUMNS]]

    def parts(self, scale: str) -> list["Evidence"]:
        """Returns the records in parts whose sets may be compared: at scale "short" one for each number of teachers.

        That scale leaves the number open, and sets distilled with few teachers are worse than others. The part with the
        scale's own number comes first, then those of most to fewest teachers. Other scales are one part, with all records.
        """
        if scale != "short":
            return [self]
        return self._by_teachers or [self]

    def parts_of(self, scales: Iterable[str]) -> list[tuple["Evidence", str]]:
        """Returns the `parts` of several scales, each with its scale."""
        return [(part, scale) for scale in scales for part in self.parts(scale)]

    @cached_property
    def _by_teachers(self) -> list["Evidence"]:
        """The records of scale "short", in parts of as many teachers."""
        runs, orders = _group_by_teachers(self.runs), _group_by_teachers(self.orders)
        numbers = sorted({*runs, *orders}, key=lambda number: (number != OWN_NUMBER, -number))
        return [replace(self, runs=runs.get(number, []), orders=orders.get(number, [])) for number in numbers]

    def select(self, kinds: Collection[str], **equal: Any) -> pd.DataFrame:
        """Returns the rows of `accuracies` of these kinds, of each run's first architecture, equal in these columns."""
        rows = self.accuracies
        chosen = rows["is_first"] & rows["kind"].isin(kinds)
        for column, value in equal.items():
            chosen &= rows[column] == value
        return rows[chosen]


Measured = TypeVar("Measured", Reevaluation, OrderRecord)
Grouped = TypeVar("Grouped", RunRecord, OrderRecord)


def _of_these_sets(found: Iterable[tuple[Path, list[Measured]]], runs: Mapping[str, RunRecord]) -> list[Measured]:
    """Returns the records whose set is that of their run. A notice names the others, for example after `run --force`.

    Of records of one name the first stands; of ablations of one sequence it gets the further sets of the others.
    """
    kept: dict[Path, Measured] = {}
    for home, record in ((home, record) for home, records in found for record in records):
        run = runs.get(record.run_id)
        if run is None or run.synthetic_sha256 == record.run_sha256:
            first = kept.setdefault(record.path(Path()), record)
            if isinstance(record, OrderRecord):
                kept[record.path(Path())] = first.joined_with(record)
        else:
            path = record.path(home)
            print(f"notice: left out: {path} was measured on another set than that of {record.run_id} here", file=sys.stderr)
    return list(kept.values())


def _group_by_teachers(records: Iterable[Grouped]) -> dict[int, list[Grouped]]:
    """Returns number of teachers -> records of scale "short"; `OWN_NUMBER` stands for the one that the scale has itself."""
    groups: dict[int, list[Grouped]] = {}
    for record in records:
        if record.scale == "short":
            groups.setdefault(changes_of(record).get("teachers.num_teachers", OWN_NUMBER), []).append(record)
    return groups


def _accuracies_of(run: RunRecord, reevaluations: Sequence[Reevaluation]) -> Iterable[dict[str, Any]]:
    """Yields the rows of `Evidence.accuracies` that belong to one run; the re-evaluations are those of all runs."""
    intervals = [f"{first} to {last}" for first, last in run.config["intervals"]]
    common = {name: getattr(run, name) for name in ("dataset", "ipc", "scale", "method", "num_subsets", "seed")} | {
        "base": run.method.removeprefix(SEQUENTIAL_PREFIX),
        "images": _sum(run.config["subset_ipcs"]),
        "even": run.method in REFERENCES or list(run.config["subset_ipcs"]) == even_subsets(run.ipc, run.num_subsets),
        "teacher_epochs": "; ".join(intervals if len(set(intervals)) > 1 else intervals[:1]) or "-",
        "iterations": iterations_of(run),
        "by_subset": _sum(stage["iterations"] for stage in run.stages),
        "train_images": run.data["train_images"],
        "changes": changes_of(run),
        "record": run.config_hash[:8],
    }
    measured = [
        (kind, kind == "joint", run.config, {}, run.run_id, _pool_networks([getattr(run, name)["by_network"]]))
        for kind, name in KINDS.items()
        if getattr(run, name)
    ]
    questions: dict[str, list[Reevaluation]] = {}  # one, asked with several seeds of its own, has more networks
    for again in reevaluations:
        if again.run_id == run.run_id:
            questions.setdefault(digest_json([again.synthetic_sha256, again.joint, again.config]), []).append(again)
    for question, answers in questions.items():
        first = answers[0]
        asked = first.overrides  # of which older records say nothing
        if asked is None:
            asked = describe_changes(flatten_settings(run.config), flatten_settings(first.config))
        for kind, name in ((f"{first.iterate} again", "accuracy"), ("random again", "random_baseline")):
            by_network = _pool_networks([getattr(again, name) or {} for again in answers])
            measured.append((kind, first.joint, first.config, asked, f"{run.run_id} {question}", by_network))
    for kind, joint, config, asked, question, by_network in measured:
        trained = "jointly" if joint else "in one stage" if run.num_subsets == 1 else "in stages"
        epochs = config["training"]["epochs"] * (1 if joint else run.num_subsets)
        for network, values in by_network.items():
            yield common | {
                "kind": kind, "trained": trained, "epochs": epochs, "network": network,
                "is_first": network == run.config["evaluation"]["networks"][0], "asked": asked, "question": question,
                "values": values,
            }  # fmt: skip


def _pool_networks(answers: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Returns architecture -> the accuracies of all its networks in several answers."""
    pooled: dict[str, list[float]] = {}
    for answer in answers:
        for network, accuracy in answer.items():
            pooled.setdefault(network, []).extend(accuracy["values"])
    return pooled


def with_settings(rows: pd.DataFrame, settings: Collection[str], compared: Sequence[str] = ()) -> pd.DataFrame:
    """Returns the rows of runs that differ from their preset in exactly these settings; settings in `compared` are ignored.

    `iterations` in `compared` stands for the base method's own setting. A run that changes the `ipc` of its preset is left out
    if its size has a preset of its own, because the two presets may differ in anything. At scale "short" two more are ignored:
    the number of networks, and how often the iterates of one set are scored, since the last one does not depend on it. Later
    subsets do: they are distilled beside the iterate that was selected before them.
    """
    presets = set(preset_names())

    def has_these(run: Any) -> bool:
        if "ipc" in run.changes and f"{run.dataset}-ipc{run.ipc}-{run.method}" in presets:
            return False
        ignored = {f"{run.base}.{key}" if key == "iterations" else key for key in compared}
        if run.scale == "short":
            ignored |= {"evaluation.num_networks"} | ({"evaluation.num_selections"} if run.num_subsets == 1 else set())
        changes = {f"{key}={value}" for key, value in run.changes.items() if key not in ignored}
        return changes == {text for text in settings if text.split("=")[0] not in ignored}

    return where(rows, has_these)


def runs_of(preset: str, scale: str, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns the runs that stand for a preset, one a seed: those of the preset as it stands.

    Scale "short" leaves the numbers of teachers and iterations open. If the preset was not run there as it stands, runs that
    differ from it only in these numbers stand for it: of several such settings, the one with most iterations, then with most
    networks.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs_left_open(preset, scale, records):
        groups.setdefault(str(changes_of(run)), []).append(run)

    def rank(runs: list[RunRecord]) -> tuple[int, int]:
        return iterations_of(runs[0]), runs[0].config["evaluation"]["num_networks"]

    return groups.get("{}") or max(groups.values(), key=rank, default=[])


def runs_left_open(preset: str, scale: str, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns the runs of a preset as it stands, and those that differ only in what its scale leaves open."""

    def is_left_open(run: RunRecord) -> bool:
        left_open = {*LEFT_OPEN, f"{run.method.removeprefix(SEQUENTIAL_PREFIX)}.iterations"} if scale == "short" else set()
        return (run.preset, run.scale) == (preset, scale) and changes_of(run).keys() <= left_open

    return list(filter(is_left_open, records))


def iterations_of(run: RunRecord) -> int:
    """Returns the iterations of distillation of all stages."""
    return sum(stage["iterations"] for stage in run.stages)


def _sum(parts: Iterable[int]) -> str:
    return " + ".join(map(str, parts))
