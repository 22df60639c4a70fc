"""Records: one JSON file each for a run, a re-evaluation of a finished set, and a comparison of orders of subsets.

Each holds everything needed to understand and repeat it. `overrides` are what differed from the preset when the record was
made, so that editing a preset never changes what an older record means; in a re-evaluation, what differed from its run.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from seqmatch_lib.engine.evaluation import format_mean
from seqmatch_lib.errors import ConfigError, NotRegisteredError, StorageError, require
from seqmatch_lib.methods import get_method, method_names
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX, RunConfig
from seqmatch_lib.runs.overrides import changes_of, overrides_of
from seqmatch_lib.runs.provenance import Provenance
from seqmatch_lib.store.files import digest_json, read_json
from seqmatch_lib.subsets import format_html

SCHEMA = 2
VOLATILE = ("seconds", "peak_memory_mb", "started_at")  # differ between two runs that are otherwise equal
AGAIN = "delete it to make it again"
ACCURACY = {"mean": float, "std": float, "n": int, "values": list[float]}  # what an accuracy holds, beside `by_network`
ACCURACIES = {
    "last": "accuracy_last",
    "selected": "accuracy_selected",
    "joint": "accuracy_joint",
    "random real": "random_baseline",
}  # of a `RunRecord`: what networks were trained on -> the field


@dataclass(frozen=True, repr=False)
class RunRecord(Provenance):
    """What a finished run leaves behind.

    Accuracies are in per cent, as `{mean, std, n, values}` of the first evaluation architecture, with
    `by_network` beneath for all of them; std is the sample standard deviation over networks.
    `not_learned`, if it is there, is the number of networks that learned nothing, see `EvaluationProtocol.evaluate`.

    Args:
        schema: version of this format.
        run_id: names the run; see `RunConfig.run_id`.
        preset: and `scale`, `dataset`, `method`, `ipc`, `num_subsets`, `seed`, `config`: see `RunConfig`.
        config_hash: sha256 of `config`.
        overrides: dotted key -> value, what differed from the preset when the run was made; see `overrides_of`.
        accuracy_last: of the set after the last iteration, trained on stage by stage.
        accuracy_selected: of the iterate that scored best on the images named in `selected_on`.
        selected_on: "validation", "test" or "none" (then the last iterate stands for the selected one).
        accuracy_joint: of the last set with all subsets trained on at once; None where K = 1.
        random_baseline: random real images, same ipc, stages and training protocol; None where all images were used.
        stages: per subset: ipc, step size, number of iterations, losses, (iteration, accuracy) of scored iterates.
        data: fingerprint, numbers of images, preprocessing, notices about missing parts.
        seconds: by phase; "teachers" is what training them took, by this run or another one.
        peak_memory_mb: by phase, of the process, or of the GPU where there is one.
        synthetic_sha256: of the last set.
        started_at: UTC, ISO 8601.
    """

    schema: int
    run_id: str
    preset: str
    scale: str
    dataset: str
    method: str
    ipc: int
    num_subsets: int
    seed: int
    config: dict[str, Any]
    config_hash: str
    overrides: dict[str, Any]
    accuracy_last: dict[str, Any]
    accuracy_selected: dict[str, Any]
    selected_on: str
    accuracy_joint: dict[str, Any] | None
    random_baseline: dict[str, Any] | None
    stages: list[dict[str, Any]]
    data: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_mb: dict[str, float]
    synthetic_sha256: str
    started_at: str

    def __repr__(self) -> str:
        return f"RunRecord({self.run_id}, scale {self.scale}: {_format_accuracy(self.accuracy_last)})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: accuracies, changed settings, time and code, a row each."""
        rows = {"scale": self.scale}
        rows |= {f"accuracy, {kind}": _format_accuracy(value) for kind, value in self.accuracies.items() if value is not None}
        changes = ", ".join(f"{key} = {value}" for key, value in changes_of(self).items())
        rows["changed from the preset"] = changes or "nothing"
        rows["minutes"] = f"{sum(self.seconds.values()) / 60:.1f} on {self.device_name}"
        rows["code"] = self.git_commit[:8] + (" and uncommitted changes" if self.dirty else "")
        return format_html(self.run_id, rows)

    @property
    def accuracies(self) -> dict[str, dict[str, Any] | None]:
        """What networks were trained on -> their accuracies; None where that was not asked."""
        return {kind: getattr(self, name) for kind, name in ACCURACIES.items()}

    @property
    def selects_last(self) -> bool:
        """Whether the selected iterate of S_K is the last one, so that one set is both."""
        if self.selected_on == "none":
            return True
        scores = self.stages[-1].get("scores", [])
        is_best = bool(scores) and scores[-1] == [self.stages[-1]["iterations"], max(score for _, score in scores)]
        return is_best and self.accuracy_selected == self.accuracy_last  # of equal scores the first one may be selected

    def comparable(self) -> dict[str, Any]:
        """Returns what must be equal between two runs of one configuration on one machine."""
        return {name: value for name, value in asdict(self).items() if name not in VOLATILE}

    def path(self, results_dir: Path) -> Path:
        """Returns where the record is kept."""
        return record_path(results_dir, self)


@dataclass(frozen=True, repr=False)
class Reevaluation(Provenance):
    """A finished set evaluated once more: by other networks, after other training, or jointly.

    Accuracies are in per cent: architecture -> `{mean, std, n, values}`. Records of older versions lack the last two fields;
    they are of last iterates.

    Args:
        schema: version of this format.
        run_id: of the run that made the set; "imported" for a set from elsewhere.
        synthetic_sha256: of the set.
        joint: whether networks were trained on all subsets at once instead of stage by stage.
        seed: of the networks and of the random real images.
        config: of the run, with the settings changed for this re-evaluation.
        accuracy: of networks trained on the set.
        random_baseline: of networks trained alike on as many random real images; None if it was not asked for.
        data: fingerprint of the real data.
        seconds: for all networks.
        last_sha256: of the run's last set, if this is another one, with the selected iterate of S_K; None: this is the last.
        overrides: dotted key -> value, the settings asked for that are not those of the run; None where that is not known.
    """

    schema: int
    run_id: str
    synthetic_sha256: str
    joint: bool
    seed: int
    config: dict[str, Any]
    accuracy: dict[str, dict[str, Any]]
    random_baseline: dict[str, dict[str, Any]] | None
    data: str
    seconds: float
    last_sha256: str | None = None
    overrides: dict[str, Any] | None = None

    def __repr__(self) -> str:
        accuracies = (f"{network} {_format_accuracy(accuracy)}" for network, accuracy in self.accuracy.items())
        return f"Reevaluation({self._title}: {'; '.join(accuracies)})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: a row for each architecture, and for random real images on it."""
        rows = {network: _format_accuracy(accuracy) for network, accuracy in self.accuracy.items()}
        random = (self.random_baseline or {}).items()
        rows |= {f"{network}, random real": _format_accuracy(accuracy) for network, accuracy in random}
        return format_html(self._title, rows)

    @property
    def _title(self) -> str:
        """The run, and which of its sets was trained on in which way, in words."""
        return self.run_id + ", selected iterate" * (self.iterate == "selected") + ", jointly" * self.joint

    @property
    def iterate(self) -> str:
        """Which set of its run was evaluated: that with the "last" or with the "selected" iterate of S_K."""
        return "last" if self.last_sha256 is None else "selected"

    @property
    def run_sha256(self) -> str:
        """The digest of the last set of its run, as the run's record has it."""
        return self.last_sha256 or self.synthetic_sha256

    def path(self, results_dir: Path) -> Path:
        """Returns where the record is kept."""
        name = name_reevaluation(self.run_id, self.synthetic_sha256, self.joint, self.seed, self.config)
        return reevaluation_path(results_dir, self.config["dataset"], name)


def name_reevaluation(run_id: str, synthetic_sha256: str, joint: bool, seed: int, config: Mapping[str, Any]) -> str:
    """Returns `<run id>-<8 hex of set and settings>`; it is the same whether random images were evaluated, too, or not."""
    return f"{run_id}-{digest_json([synthetic_sha256, joint, seed, config])[:8]}"


def reevaluation_path(results_dir: Path, dataset: str, name: str) -> Path:
    """Returns where the record of a re-evaluation of this name is kept."""
    return results_dir / "reevaluations" / dataset / f"{name}.json"


@dataclass(frozen=True)
class OrderRecord(Provenance):
    """Accuracies of sets of equal size that are divided and ordered differently; see `notebooks/21_ablation_order.ipynb`.

    Args:
        schema: version of this format.
        dataset: and `ipc`, `scale`, `seed`: of the SeqMatch run that the other sets are compared with.
        config: of that run.
        overrides: as in `RunRecord`.
        synthetic_sha256: of the sequence.
        other_half: ids of the runs that the other independent parts are of, with commas; None if they were not measured.
        accuracy: set -> accuracies in per cent, one for each network. Other architectures than the one that the sets were
            distilled with stand in brackets behind the name of the set, see `on`.
    """

    schema: int
    dataset: str
    ipc: int
    scale: str
    seed: int
    config: dict[str, Any]
    overrides: dict[str, Any]
    synthetic_sha256: str
    other_half: str | None
    accuracy: dict[str, list[float]]

    @property
    def run_id(self) -> str:
        """Names the run of the sequence."""
        return RunConfig.from_dict(self.config).run_id

    @property
    def run_sha256(self) -> str:
        """The digest of the last set of its run, as the run's record has it."""
        return self.synthetic_sha256

    def on(self, network: str | None = None) -> dict[str, list[float]]:
        """Returns set -> accuracies on one architecture, by default the one that the sets were distilled with."""
        if network in (None, self.config["network"]["name"]):
            return {name: values for name, values in self.accuracy.items() if not name.endswith(")")}
        end = name_on("", network)
        return {name.removesuffix(end): values for name, values in self.accuracy.items() if name.endswith(end)}

    def joined_with(self, other: "OrderRecord") -> "OrderRecord":
        """Returns this record with the further sets that another record of the same sequence has."""
        if (self.config, self.synthetic_sha256) != (other.config, other.synthetic_sha256):
            return self
        return replace(self, accuracy=other.accuracy | self.accuracy, other_half=self.other_half or other.other_half)

    @property
    def method(self) -> str:
        """The sequence that the other sets are compared with, for example seqmatch_mtt."""
        return self.config["method"]

    def path(self, results_dir: Path) -> Path:
        """Returns where the record is kept."""
        return order_path(results_dir, self.run_id)


def order_path(results_dir: Path, run_id: str) -> Path:
    """Returns where the ablation of order and division of a sequence is kept."""
    return results_dir / "order" / f"{run_id}.json"


def name_on(name: str, network: str) -> str:
    """Returns how an `OrderRecord` names a set on another architecture."""
    return f"{name} ({network})"


Record = TypeVar("Record", RunRecord, Reevaluation, OrderRecord)


def record_path(results_dir: Path, run: RunConfig | RunRecord) -> Path:
    """Returns where the record of a run is kept."""
    return results_dir / "runs" / run.dataset / f"{run.run_id}.json"


def load_record(path: Path) -> RunRecord:
    """Reads the record of a run.

    Raises:
        StorageError: damaged, of another schema version, with keys missing or unknown, with values of other types, or with
            settings that no run can have.
    """
    record = _load(RunRecord, path)
    wrong = [
        ACCURACIES[kind]
        for kind, accuracy in record.accuracies.items()
        if accuracy is not None and not all(_fits(accuracy.get(key), type_) for key, type_ in ACCURACY.items())
    ]
    require(not wrong, f"{path} is no valid record: {wrong} hold values of another type; {AGAIN}", StorageError)
    return record


def load_runs(results_dir: Path) -> list[RunRecord]:
    """Reads all records below `results_dir/runs`, sorted by data set, ipc, scale, method and seed.

    Records of methods and networks that are not registered, or of a method of your own whose settings have changed since, are
    left out, with a notice that names them; so are copies, which lie elsewhere than the record itself. Hidden files and
    folders, such as .ipynb_checkpoints, are not read. All this holds below, too.
    """
    records = _load_known(load_record, results_dir, "runs")
    return sorted(records, key=lambda record: (record.dataset, record.ipc, record.scale, record.method, record.seed))


def load_reevaluations(results_dir: Path) -> list[Reevaluation]:
    """Reads all re-evaluations of a results folder, sorted by file name; raises as `load_record` does."""
    return _load_known(partial(_load, Reevaluation), results_dir, "reevaluations")


def load_orders(results_dir: Path) -> list[OrderRecord]:
    """Reads all comparisons of orders of a results folder, sorted by file name; raises as `load_record` does."""
    return _load_known(partial(_load, OrderRecord), results_dir, "order")


def _load_known(load: Callable[[Path], Record], results_dir: Path, folder: str) -> list[Record]:
    records = []
    for path in sorted((results_dir / folder).rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(results_dir).parts):
            continue
        try:
            record = load(path)
        except NotRegisteredError as error:
            print(f"notice: left out: {error}", file=sys.stderr)
            continue
        own = record.path(results_dir)
        if path == own:
            records.append(record)
        else:
            remedy = "delete it" if own.is_file() else "move it there"
            print(f"notice: left out: {path} is not {own}, where this record is kept; {remedy}", file=sys.stderr)
    return records


def find_earlier(kind: type[Record], path: Path) -> Record | None:
    """Returns the record that another one is about to replace; None if there is none, or none that can be read."""
    with suppress(StorageError):
        return _load(kind, path)
    return None


def _load(kind: type[Record], path: Path) -> Record:
    """Reads a record and checks the names and types of its fields, and its settings; fields with a default may be missing."""
    values = read_json(path)
    message = f"{path} has record schema {values.get('schema')!r:.40}, but this version reads {SCHEMA}; {AGAIN}"
    require(values.get("schema") == SCHEMA, message, StorageError)
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    values = defaults | values
    wrong = sorted({field.name for field in fields(kind)} ^ values.keys())
    require(not wrong, f"{path} is no valid record: keys {wrong} are missing or unknown; {AGAIN}", StorageError)
    wrong = [field.name for field in fields(kind) if not _fits(values[field.name], field.type)]
    require(not wrong, f"{path} is no valid record: {wrong} hold values of another type; {AGAIN}", StorageError)
    try:
        RunConfig.from_dict(values["config"])
    except NotRegisteredError as error:
        raise NotRegisteredError(f"{path}: {error}") from error
    except ConfigError as error:
        base = str(values["config"].get("method")).removeprefix(SEQUENTIAL_PREFIX)
        if base in method_names() and not get_method(base).__module__.startswith("seqmatch_lib."):  # its class has changed
            raise NotRegisteredError(f"{path} does not fit method {base!r} as it is now: {error}") from error
        raise StorageError(f"{path} is no valid record: {error}; {AGAIN}") from error
    return kind(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is one of a type; a whole number may stand for a float."""
    if kind is Any:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, member) for member in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) != float("inf")
    return value is None if kind is NoneType else type(value) is kind


def check_same_images(runs: Iterable[RunRecord]) -> None:
    """Checks that runs which a table would pool or compare saw the same images: one version of a data set at each scale.

    Raises:
        StorageError: two runs of one data set and scale on different images, such as a part of it and the whole.
    """
    firsts: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        first = firsts.setdefault((run.dataset, run.scale), run)
        both = " and ".join(f"{record.run_id} ({record.data['train_images']:,} train images)" for record in (first, run))
        problem = f"{both} use different images of {run.dataset}, so no table may mix them"
        same = run.data["fingerprint"] == first.data["fingerprint"]
        require(same, f"{problem}; keep the runs on one of them in another results folder", StorageError)


def list_scores(stages: Iterable[Mapping[str, Any]], selected_on: str) -> list[tuple[int, int, str, float]]:
    """Returns the accuracies (%) of scored iterates: stage from 1, iteration of the stage, "validation" or "test", accuracy.

    Args:
        stages: with `scores`, of the images that iterates are selected on, and perhaps `test_scores`.
        selected_on: these images.
    """
    return [
        (k, iteration, images, accuracy)
        for k, stage in enumerate(stages, start=1)
        for images, name in ((selected_on, "scores"), ("test", "test_scores"))
        for iteration, accuracy in stage.get(name, [])
    ]


def _format_accuracy(accuracy: Mapping[str, Any]) -> str:
    return f"{format_mean(accuracy)} %, n = {accuracy['n']}{mark_failed(accuracy)}"


def fields_of(config: RunConfig, *names: str) -> dict[str, Any]:
    """Returns the fields that describe a configuration in a record: these attributes of it, all settings, the overrides."""
    return {
        "schema": SCHEMA,
        **{name: getattr(config, name) for name in names},
        "config": config.as_dict(),
        "overrides": overrides_of(config),
    }


def mark_failed(accuracy: Mapping[str, Any]) -> str:
    """Returns what stands behind an accuracy: nothing, or how many of its networks learned nothing."""
    return f" ({accuracy['not_learned']} learned nothing)" if "not_learned" in accuracy else ""
