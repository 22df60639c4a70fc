"""Run records: one JSON file a run, with everything needed to understand and repeat it."""

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

import torch

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.store.files import read_json, write_json
from seqmatch_lib.subsets import format_html

if TYPE_CHECKING:  # the library runs without the notebook packages; order.py imports this file
    from pandas import DataFrame

    from seqmatch_lib.runs.order import OrderRecord

SCHEMA = 1
VOLATILE = ("seconds", "peak_memory_mb", "started_at")  # differ between two runs that are otherwise equal
ACCURACY = {"mean": float, "std": float, "n": int, "values": list[float]}  # what an accuracy holds, beside `by_network`


@dataclass(frozen=True, repr=False)
class RunRecord:
    """What a finished run leaves behind.

    Accuracies are in per cent, as `{mean, std, n, values}` of the first evaluation architecture, with
    `by_network` beneath for all of them; std is the sample standard deviation over networks.

    Args:
        schema: version of this format.
        run_id: names the run; see `RunConfig.run_id`.
        table: the table of the paper that the run belongs to: the data set.
        preset: and `scale`, `dataset`, `method`, `ipc`, `num_subsets`, `seed`, `config`: see `RunConfig`.
        config_hash: sha256 of `config`.
        accuracy_last: of the set after the last iteration, trained on stage by stage.
        accuracy_selected: of the iterate that scored best on the images named in `selected_on`.
        selected_on: "validation", "test" or "none" (then the last iterate stands for the selected one).
        accuracy_joint: of the last set with all subsets trained on at once; None where K = 1.
        random_baseline: random real images, same ipc, stages and training protocol; None where all images were used.
        stages: per subset: ipc, step size, number of iterations, losses, (iteration, accuracy) of scored iterates.
        data: fingerprint, numbers of images, preprocessing, notices about missing parts.
        seconds: by phase; "teachers" is what training them took, whoever did it.
        peak_memory_mb: by phase, of the process, or of the GPU where there is one.
        device: "cpu" or "cuda"; `device_name`, `threads`: which one, and how many threads torch had.
        torch: its version, and `python`: that of Python.
        git_commit: of the code at the start, and `dirty`: whether files differed from it.
        synthetic_sha256: of the last set.
        started_at: UTC, ISO 8601.
    """

    schema: int
    run_id: str
    table: str
    preset: str
    scale: str
    dataset: str
    method: str
    ipc: int
    num_subsets: int
    seed: int
    config: dict[str, Any]
    config_hash: str
    accuracy_last: dict[str, Any]
    accuracy_selected: dict[str, Any]
    selected_on: str
    accuracy_joint: dict[str, Any] | None
    random_baseline: dict[str, Any] | None
    stages: list[dict[str, Any]]
    data: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_mb: dict[str, float]
    device: str
    device_name: str
    threads: int
    torch: str
    python: str
    git_commit: str
    dirty: bool
    synthetic_sha256: str
    started_at: str

    def __repr__(self) -> str:
        return f"RunRecord({self.run_id}, scale {self.scale}: {_format_accuracy(self.accuracy_last)})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: accuracies, changed settings, time and code, a row each."""
        accuracies = {
            "last": self.accuracy_last, "selected": self.accuracy_selected, "joint": self.accuracy_joint,
            "random real": self.random_baseline,
        }  # fmt: skip
        rows = {"scale": self.scale}
        rows |= {f"accuracy, {name}": _format_accuracy(found) for name, found in accuracies.items() if found is not None}
        changes = ", ".join(f"{key} = {value}" for key, value in changes_of(self).items())
        rows["changed from the preset"] = changes or "nothing"
        rows["minutes"] = f"{sum(self.seconds.values()) / 60:.1f} on {self.device_name}"
        rows["code"] = self.git_commit[:8] + (" and uncommitted changes" if self.dirty else "")
        return format_html(self.run_id, rows)

    def comparable(self) -> dict[str, Any]:
        """Returns what must be equal between two runs of one configuration on one machine."""
        return {name: value for name, value in asdict(self).items() if name not in VOLATILE}

    def save(self, path: Path) -> None:
        """Writes the record atomically, with a checksum."""
        write_json(path, asdict(self))


def load_record(path: Path) -> RunRecord:
    """Reads one record.

    Raises:
        StorageError: damaged, of another schema version, with keys missing or unknown, or with values of other types.
    """
    values = load_fields(RunRecord, path, SCHEMA, "run its preset again")
    names = ("accuracy_last", "accuracy_selected", "accuracy_joint", "random_baseline")
    found = {name: values[name] for name in names if values[name] is not None}
    wrong = [name for name, one in found.items() if not all(_fits(one.get(key), kind) for key, kind in ACCURACY.items())]
    require(not wrong, f"{path} is no valid record: {wrong} hold values of another type; run its preset again", StorageError)
    return RunRecord(**values)


def load_fields(kind: type, path: Path, schema: int, remedy: str) -> dict[str, Any]:
    """Reads the fields of a dataclass from a JSON file and checks their names and types.

    Args:
        kind: the dataclass; it has a field `schema`.
        path: of the file.
        schema: the version that is read.
        remedy: what makes the file anew, for the error.

    Raises:
        StorageError: damaged, of another schema version, with keys missing or unknown, or with values of other types.
    """
    values = read_json(path)
    require(
        values.get("schema") == schema,
        f"{path} has record schema {values.get('schema')!r:.40}, but this version reads {schema}; {remedy}",
        StorageError,
    )
    wrong = sorted({field.name for field in fields(kind)} ^ values.keys())
    require(not wrong, f"{path} is no valid record: keys {wrong} are missing or unknown; {remedy}", StorageError)
    wrong = [field.name for field in fields(kind) if not _fits(values[field.name], field.type)]
    require(not wrong, f"{path} is no valid record: {wrong} hold values of another type; {remedy}", StorageError)
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is one of a type; a whole number may stand for a float."""
    if kind is Any:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) != float("inf")
    return value is None if kind is NoneType else type(value) is kind


def load_runs(folder: Path) -> list[RunRecord]:
    """Reads all records below `folder/runs`, sorted by data set, ipc, scale and method."""
    records = [load_record(path) for path in sorted((folder / "runs").rglob("*.json"))]
    return sorted(records, key=lambda record: (record.table, record.ipc, record.scale, record.method, record.seed))


def check_same_images(runs: Iterable[RunRecord]) -> None:
    """Checks that runs which a table would pool or compare saw the same images: one version of a data set at each scale.

    Raises:
        StorageError: two runs of one data set and scale on different images, such as a part of it and the whole.
    """
    firsts: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        first = firsts.setdefault((run.dataset, run.scale), run)
        one, other = (f"{found.run_id} ({found.data['train_images']:,} train images)" for found in (first, run))
        require(
            run.data["fingerprint"] == first.data["fingerprint"],
            f"{one} and {other} are of different images of {run.dataset}, which no table may mix; keep the runs on one of "
            "them in another results folder",
            StorageError,
        )


def _format_accuracy(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.1f} ± {found['std']:.1f} %, n = {found['n']}"


def changes_of(record: "RunRecord | OrderRecord") -> dict[str, Any]:
    """Returns the settings in which a run differs from its preset; one interval for all subsets fits any number of them."""
    config = record.config
    return describe_changes(_preset_settings(config["preset"], record.scale, record.seed), _compared_settings(config))


@cache
def _preset_settings(preset: str, scale: str, seed: int) -> dict[str, Any]:
    """Flat settings of a preset; a report asks for the same ones many times."""
    return _compared_settings(RunConfig.from_preset(preset, scale, seed).as_dict())


def _compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = flatten_settings(config)
    if all(one == settings["intervals"][0] for one in settings["intervals"]):
        settings["intervals"] = settings["intervals"][:1]  # one that stands for all subsets
    return settings


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what flat settings have become that differ; one that is left out has its default."""
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: after.get(key, "default") for key in changed}


def format_records(records: Iterable[RunRecord]) -> str:
    """Returns a plain-text table of accuracies in per cent, one run a line, each with its scale and the end of its id.

    Where runs of one method and size differ in other settings than the seed, these stand at the end.
    """
    records = list(records)
    told_apart = _differing_changes(records)
    rows = [
        ("dataset", "ipc", "method", "K", "scale", "seed", "last", "selected", "joint", "random real", "n", "run", "changed")
    ]
    for record in records:
        accuracies = (record.accuracy_last, record.accuracy_selected, record.accuracy_joint, record.random_baseline)
        cells = ["-" if one is None else f"{one['mean']:.1f} ± {one['std']:.1f}" for one in accuracies]
        names = (record.dataset, record.ipc or "all", record.method, record.num_subsets, record.scale, record.seed)
        changed = ", ".join(f"{key}={value}" for key, value in told_apart[record.run_id].items())
        rows.append((*map(str, names), *cells, str(record.accuracy_last["n"]), record.config_hash[:8], changed))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _differing_changes(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Returns run id -> the changes from its preset that not all runs of its data set, size, method, K and scale have."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for one in records:
        group = groups.setdefault((one.dataset, one.ipc, one.method, one.num_subsets, one.scale), {})
        group[one.run_id] = changes_of(one)
    told: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        settings = {(key, str(value)) for changes in group.values() for key, value in changes.items()}
        common = {key for key, text in settings if all(str(changes.get(key)) == text for changes in group.values())}
        told |= {run: {key: value for key, value in one.items() if key not in common} for run, one in group.items()}
    return told


def tabulate_accuracies(records: Mapping[Any, Sequence[RunRecord]], names: str | Sequence[str]) -> "DataFrame":
    """Returns one row for each network of each evaluation, for figures and statistics.

    Args:
        records: what is compared -> its runs, which differ in the seed.
        names: of the columns that hold the key: one, or as many as its parts.

    Returns:
        The key's columns, seed, training ("last", "selected", "joint" or "random"), network, accuracy in per cent.
    """
    from pandas import DataFrame

    columns = [names] if isinstance(names, str) else list(names)
    rows = []
    for key, runs in records.items():
        parts = dict(zip(columns, [key] if isinstance(names, str) else key, strict=True))
        for run in runs:
            kinds = {"last": run.accuracy_last, "selected": run.accuracy_selected, "joint": run.accuracy_joint}
            for training, accuracy in (kinds | {"random": run.random_baseline}).items():
                for network, found in (accuracy or {"by_network": {}})["by_network"].items():
                    common = parts | {"seed": run.seed, "training": training, "network": network}
                    rows += [common | {"accuracy": value} for value in found["values"]]
    return DataFrame(rows)


def compare_runs(first: RunRecord, second: RunRecord) -> "DataFrame":
    """Returns two runs side by side: what differs in their settings, their accuracies, seconds and memory.

    Args:
        first: a record.
        second: another one.

    Returns:
        Columns `first`, `second` and `difference` (second - first, of numbers), one row a quantity or differing setting.
    """
    from pandas import DataFrame

    rows = {}
    settings = [flatten_settings(run.config) for run in (first, second)]
    for key in sorted({*settings[0], *settings[1]}):
        values = [one.get(key, "-") for one in settings]
        if values[0] != values[1]:
            rows[key] = [*map(str, values), ""]
    for name in ("accuracy_last", "accuracy_selected", "accuracy_joint", "random_baseline"):
        found = [getattr(run, name) for run in (first, second)]
        shown = ["-" if one is None else f"{one['mean']:.1f} ± {one['std']:.1f} (n = {one['n']})" for one in found]
        rows[name] = [*shown, "" if None in found else f"{found[1]['mean'] - found[0]['mean']:+.1f}"]
    for name, unit in (("seconds", "s"), ("peak_memory_mb", "MiB")):
        for phase in sorted({*getattr(first, name), *getattr(second, name)}):
            values = [getattr(run, name).get(phase, 0.0) for run in (first, second)]
            rows[f"{phase}, {unit}"] = [*(f"{value:.0f}" for value in values), f"{values[1] - values[0]:+.0f}"]
    return DataFrame.from_dict(rows, orient="index", columns=["first", "second", "difference"])


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings under dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Returns what the numbers of a run may depend on besides its configuration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    """Returns the processor's name where Linux tells it, or the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe_code() -> tuple[str, bool]:
    """Returns the git commit of this package's checkout and whether files differ from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
