"""Benchmarks on disk and as text: the JSON file, its tables, and the ratios that are its point."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from seqmatch_lib.bench.benchmark import KEEPS_NO_GRAPH, PUBLIC_VARIANTS, SCHEMA, Row
from seqmatch_lib.errors import require
from seqmatch_lib.runs.listing import format_columns
from seqmatch_lib.store.files import read_json, write_json

Benchmark = Mapping[str, Any]


def save_benchmark(result: dict[str, Any], folder: Path) -> Path:
    """Writes a benchmark to `folder/<device>-<quick or full>-<time>.json` and returns the path."""
    kind = "quick" if result["quick"] else "full"
    when = result["measured_at"][:19].replace(":", "")
    path = folder / f"{result['machine']['device']}-{kind}-{when}.json"
    write_json(path, result)
    return path


def load_benchmark(path: Path) -> dict[str, Any]:
    """Reads what `save_benchmark` wrote.

    Raises:
        ConfigError: missing, or of another schema.
        StorageError: damaged.
    """
    require(path.is_file(), f"{path} does not exist; measure one with `python -m seqmatch_lib bench`")
    result = read_json(path)
    valid = result.get("schema") == SCHEMA and isinstance(result.get("measured_at"), str)
    require(valid, f"{path} is no benchmark of schema {SCHEMA}; run `python -m seqmatch_lib bench`")
    return result


def newest_benchmark(folder: Path, device: str = "*") -> Path:
    """Returns the benchmark of a folder that was measured last, on "cpu" or "cuda" or any device.

    Raises:
        ConfigError: there is none.
    """
    paths = sorted(folder.glob(f"{device}-*.json"), key=lambda path: load_benchmark(path)["measured_at"])
    require(bool(paths), f"{folder} holds no benchmark; measure one with `python -m seqmatch_lib bench`")
    return paths[-1]


def format_row(table: str, row: Row) -> str:
    """Returns all that a row says in one line, for a log: of a benchmark that is killed no more is left."""
    cells = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    return f"{table}: {', '.join(cells)}"


def format_benchmark(result: Benchmark) -> str:
    """Returns the tables of a benchmark as text, and its ratios.

    "convolutions" and "memory" are the parts of a compiled inner step that its convolutions, and its passes over memory,
    would take alone.
    """
    machine = result["machine"]
    inner = [
        ("inner step", "width", "batch", "steps", "allocator", "ms/step", "convolutions", "memory", "MiB", "error", "first s")
    ]
    inner += [_inner_step_cells(row, result) for row in result["inner_steps"]]
    teachers = [("teachers", "width", "together", "allocator", "images/s")]
    teachers += [
        (row["variant"], row["width"], row["together"], row["allocator"], f"{row['images_per_second']:,.0f}")
        for row in result["teachers"]
    ]
    evaluation = [("5 networks, ipc 10", "width", "allocator", "ms/epoch")]
    evaluation += [
        (row["variant"], row["width"], row["allocator"], f"{1000 * row['seconds_per_epoch']:.0f}")
        for row in result["evaluation"]
    ]
    parts = [
        f"{machine['device_name']} ({' '.join(machine['extensions']) or 'no extensions known'}), "
        f"{machine['threads']} threads, torch {machine['torch']}",
        *(format_columns(rows, left=1) for rows in (inner, teachers, evaluation)),
        "\n".join(f"{name}: {value:.2f}x" for name, value in summarise_ratios(result).items()),
    ]
    return "\n\n".join(parts)


def summarise_ratios(result: Benchmark) -> dict[str, float]:
    """Returns how many times faster ours are at the largest width and batch 100, and how memory grows from 10 to 80 steps."""
    width = max(row["width"] for row in result["inner_steps"])
    ratios = _inner_step_ratios(result, width), _floor_ratios(result, width), _memory_ratios(result)
    return dict(chain(*ratios, _training_ratios(result, width)))


def _inner_step_ratios(result: Benchmark, width: int) -> Iterator[tuple[str, float]]:
    size = {"width": width, "batch": 100, "syn_steps": 2}
    for ours in _find(result, "inner_steps", allocator="kept", **size):
        if not ours["variant"].startswith("compiled"):
            continue
        for public in PUBLIC_VARIANTS:
            for theirs in _find(result, "inner_steps", variant=public, **size):
                name = f"inner step, speed of {ours['variant']} over {public} ({theirs['allocator']} allocator)"
                yield name, theirs["seconds"] / ours["seconds"]


def _floor_ratios(result: Benchmark, width: int) -> Iterator[tuple[str, float]]:
    for row in _find(result, "inner_steps", width=width, syn_steps=2, allocator="kept"):
        for floor in _floors_of(row, result):
            for part in ("convolutions", "memory"):
                yield f"inner step, time of {row['variant']} over its {part} alone", row["seconds"] / floor[part]


def _floors_of(row: Row, result: Benchmark) -> list[Row]:
    """Returns what was measured of the floors of a compiled inner step: one row, or none."""
    engine, _, precision = row["variant"].partition(" ")
    return _find(result, "floors", width=row["width"], batch=row["batch"], precision=precision) if engine == "compiled" else []


def _memory_ratios(result: Benchmark) -> Iterator[tuple[str, float]]:
    for width in (128, 32):
        for variant in (*PUBLIC_VARIANTS, *KEEPS_NO_GRAPH):
            size = {"variant": variant, "width": width, "batch": 100, "allocator": "kept"}
            short, long = (_find(result, "inner_steps", syn_steps=steps, **size) for steps in (10, 80))
            if short and long and short[0]["memory_mb"]:  # 0 where the peak cannot be reset and an earlier variant took more
                yield f"memory of 80 over 10 steps, width {width}, {variant}", long[0]["memory_mb"] / short[0]["memory_mb"]


def _training_ratios(result: Benchmark, width: int) -> Iterator[tuple[str, float]]:
    for table, public in (("teachers", "plain loop"), ("evaluation", "eager float32")):
        for theirs in _find(result, table, variant=public, width=width):
            for ours in _find(result, table, width=width, allocator="kept"):
                if ours["variant"].startswith("compiled"):
                    more = f", {ours['together']} together" if ours.get("together", 1) > 1 else ""
                    ratio = (ours["flops"] / ours["seconds"]) / (theirs["flops"] / theirs["seconds"])
                    yield f"{table}, speed of {ours['variant']}{more} over {public} ({theirs['allocator']} allocator)", ratio


def _find(result: Benchmark, table: str, **wanted: Any) -> list[Row]:
    return [row for row in result[table] if all(row[key] == value for key, value in wanted.items())]


def _inner_step_cells(row: Row, result: Benchmark) -> tuple[Any, ...]:
    floors = _floors_of(row, result)
    parts = [f"{floors[0][part] / row['seconds']:.0%}" if floors else "" for part in ("convolutions", "memory")]
    size = (row["variant"], row["width"], row["batch"], row["syn_steps"], row["allocator"], f"{1000 * row['seconds']:.1f}")
    return (*size, *parts, f"{row['memory_mb']:,.0f}", f"{row['error']:.0e}", f"{row['first_call']:.1f}")
