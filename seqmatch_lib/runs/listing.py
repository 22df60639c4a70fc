"""Records as plain-text tables: one run per line, or one re-evaluation and architecture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmatch_lib.engine.evaluation import format_mean
from seqmatch_lib.runs.overrides import changes_of
from seqmatch_lib.runs.records import ACCURACIES, Reevaluation, RunRecord, mark_failed


def format_records(records: Iterable[RunRecord]) -> str:
    """Returns a plain-text table of accuracies in per cent, one run per line, each with its scale and the end of its id.

    Where runs of one method and size differ in other settings than the seed, these stand at the end.
    """
    records = list(records)
    told_apart = _differing_changes(records)
    rows = [("dataset", "ipc", "method", "K", "scale", "seed", *ACCURACIES, "n", "run", "changed")]
    for record in records:
        names = (record.dataset, record.ipc or "all", record.method, record.num_subsets, record.scale, record.seed)
        cells = map(_format_accuracy, record.accuracies.values())
        changed = ", ".join(f"{key}={value}" for key, value in told_apart[record.run_id].items())
        rows.append((*names, *cells, record.accuracy_last["n"], record.config_hash[:8], changed))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return format_columns(rows, left=len(rows[0]))


def format_reevaluations(records: Iterable[Reevaluation]) -> str:
    """Returns a plain-text table of re-evaluations: accuracies in per cent, a line for each architecture of each set."""
    rows = [("set", "trained", "seed", "network", "accuracy", "random real", "n", "question")]
    for record in records:
        trained = ("jointly" if record.joint else "in stages") + ", selected iterate" * (record.iterate == "selected")
        question = record.path(Path()).stem.rpartition("-")[2]
        for network, accuracy in record.accuracy.items():
            random = (record.random_baseline or {}).get(network)
            cells = (_format_accuracy(accuracy), _format_accuracy(random), accuracy["n"], question)
            rows.append((record.run_id, trained, record.seed, network, *cells))
    return format_columns(rows, left=len(rows[0]))


def _format_accuracy(accuracy: Mapping[str, Any] | None) -> str:
    return "-" if accuracy is None else f"{format_mean(accuracy)}{mark_failed(accuracy)}"


def format_columns(rows: Sequence[Sequence[Any]], left: int) -> str:
    """Returns a plain-text table; the first row is its head, the first `left` columns are aligned left, the others right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        row[:left] = map(str.ljust, row[:left], widths)
        row[left:] = map(str.rjust, row[left:], widths[left:])
    head, *lines = ("  ".join(row).rstrip() for row in cells)
    return "\n".join([head, "-" * len(head), *lines])


def _differing_changes(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Returns run id -> the changes from its preset that not all runs of its data set, size, method, K and scale have."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        group = groups.setdefault((record.dataset, record.ipc, record.method, record.num_subsets, record.scale), {})
        group[record.run_id] = changes_of(record)
    varying: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        for run, changes in group.items():
            varying[run] = {
                key: value for key, value in changes.items() if any(other.get(key) != value for other in group.values())
            }
    return varying
