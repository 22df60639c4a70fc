"""The tables of the paper, every cell with the published number and ours, made from records alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.runs.config import REFERENCES, RunConfig, preset_names
from seqmatch_lib.runs.records import RunRecord, check_same_images, load_runs
from seqmatch_lib.store.files import write_atomically

DATASETS = ("svhn", "cifar10", "cifar100", "tiny_imagenet")  # with published numbers, in the order of the paper
COLUMNS = {
    "ipc": "ipc",
    "method": "method",
    "published": "published",
    "last": "ours",
    "selected": "ours, selected",
    "difference": "difference",
    "random": "random real",
    "n": "n",
    "seeds": "seeds",
    "scale": "scale",
    "iterations": "iterations",
    "teachers": "teachers",
    "images": "train images",
    "minutes": "minutes",
    "device": "device",
}
PUBLISHED_TEXTS = ("dataset", "method", "source", "check")  # columns of published accuracies
PUBLISHED_NUMBERS = ("ipc", "mean", "std")
NOT_RUN = "not run"
UNVERIFIED = "unverified"  # in the column "check" of published accuracies
DAGGER = "†"  # stands beside them


def load_published(results_dir: Path | str = "paper_results") -> pd.DataFrame:
    """Reads the published accuracies: dataset, ipc (0 for all images), method, mean, std, source, check.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = Path(results_dir) / "published" / "accuracy.csv"
    remedy = "it belongs to the repository: use its paper_results folder"
    require(path.is_file(), f"{path} is missing; {remedy}", StorageError)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(PUBLISHED_NUMBERS, float))
    except (ValueError, OverflowError) as error:
        raise StorageError(f"{path} is damaged ({error}); {remedy}") from error
    wrong = sorted(set(PUBLISHED_TEXTS).union(PUBLISHED_NUMBERS) - set(table.columns))
    require(not wrong, f"{path} has no columns {wrong}; {remedy}", StorageError)
    whole = table["ipc"] == table["ipc"].clip(0, 10**6).round()  # NaN equals nothing
    require(bool(whole.all()), f"{path} has an ipc that is no number of images; {remedy}", StorageError)
    return table.astype({"ipc": int})


def build_table(
    dataset: str, records: Sequence[RunRecord], published: pd.DataFrame, scales: Sequence[str] = ("reduced", "short", "paper")
) -> pd.DataFrame:
    """Returns one row for each cell of a data set's table and each scale it was run at; cells that were not run say so.

    Runs of one preset and scale that differ in the seed alone are pooled: mean and standard deviation are those of all
    their networks. `difference` is ours less the published mean, at the published settings only (scales "short" and "paper").
    Random real images are compared with the baseline that is trained with augmentation, as ours is, where one was published.

    Args:
        dataset: its name.
        records: of any data sets; the others, and those with changed settings, are left out.
        published: of `load_published`.
        scales: which to show; a cell that none of them has becomes one row of scale "paper".

    Raises:
        StorageError: runs of one scale on different images, such as a part of the data set and the whole.
    """
    check_same_images(record for record in records if record.dataset == dataset)
    known = published[published["dataset"] == dataset]
    rows = []
    for preset in _presets_of(dataset):
        config = RunConfig.from_preset(preset)
        printed = known[(known["ipc"] == config.ipc) & (known["method"] == config.method)]
        shown = _print_published(printed)
        augmented = known[(known["ipc"] == config.ipc) & (known["method"] == f"{config.method}_augmented")]
        if len(augmented):
            shown, printed = f"{shown}; augmented {_print_published(augmented)}", augmented
        row = {"ipc": config.ipc or "all", "method": config.method, "published": shown, "preset": preset}
        runs = [(scale, _runs_of(preset, scale, records)) for scale in scales]
        done = [(scale, found) for scale, found in runs if found]
        rows += [row | _summarise(found, scale, printed) for scale, found in done]
        if not done:
            command = f"python -m seqmatch_lib run {preset}"
            rows.append(row | {"last": NOT_RUN, "scale": "paper", "command": command})
    columns = [*COLUMNS, "command", "preset"]
    return pd.DataFrame([{column: str(row.get(column, "")) for column in columns} for row in rows])


def _presets_of(dataset: str) -> list[str]:
    """Returns the presets of a data set: by ipc, references first, a base method beside its sequential form."""

    def place(preset: str) -> tuple[Any, ...]:
        config = RunConfig.from_preset(preset)
        return config.ipc or 10**9, config.method not in REFERENCES, config.base_method, config.is_sequential

    return sorted((preset for preset in preset_names() if preset.split("-")[0] == dataset), key=place)


def _runs_of(preset: str, scale: str, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns the runs of a preset as it stands, one a seed; a run with overrides is another experiment."""
    return [record for record in records if (record.preset, record.scale) == (preset, scale) and not record.overrides]


def _summarise(runs: Sequence[RunRecord], scale: str, printed: pd.DataFrame) -> dict[str, Any]:
    pooled = {
        column: [value for run in runs for value in (getattr(run, name) or {"values": []})["values"]]
        for column, name in (("last", "accuracy_last"), ("selected", "accuracy_selected"), ("random", "random_baseline"))
    }
    row = {column: _mean_and_std(values) for column, values in pooled.items() if values}
    if scale in ("short", "paper") and len(printed):
        row["difference"] = f"{fmean(pooled['last']) - printed['mean'].iloc[0]:+.1f}"
    return row | {
        "n": str(len(pooled["last"])),
        "seeds": str(len(runs)),
        "scale": scale,
        "iterations": " + ".join(str(stage["iterations"]) for stage in runs[0].stages),
        "teachers": str(_count_teachers(runs[0])),
        "images": ", ".join(sorted({f"{run.data['train_images']:,}" for run in runs})),
        "minutes": f"{sum(sum(run.seconds.values()) for run in runs) / 60:.0f}",
        "device": ", ".join(sorted({run.device_name for run in runs})),
    }


def _count_teachers(run: RunRecord) -> int | str:
    config = RunConfig.from_dict(run.config)
    return config.teachers.num_teachers if config.uses_teachers else ""


def _mean_and_std(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values) if len(values) > 1 else 0.0:.1f}"


def _print_published(printed: pd.DataFrame) -> str:
    """Returns a published accuracy as its paper prints it, with a dagger if nobody checked it."""
    if printed.empty:
        return ""
    (row,) = printed.to_dict("records")
    spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.1f}"
    return f"{row['mean']:.1f}{spread}{DAGGER if row['check'] == UNVERIFIED else ''}"


def format_markdown(table: pd.DataFrame) -> str:
    """Returns the columns of `COLUMNS` as a Markdown table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *table[list(COLUMNS)].to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def note_of(table: pd.DataFrame) -> str:
    """Returns what a reader of a table must know, and the command that runs its first missing cell."""
    text = (
        "Test accuracy in per cent, mean ± standard deviation over n networks. `ours` is the last iterate, `ours, selected` "
        "the one chosen on validation images (at paper scale on test images, as the papers do), `random real` as many random "
        "real images under the same training, `iterations` those of each subset, `train images` how many "
        "there were to distil from. `short` is the published setting with fewer teachers and iterations, `reduced` a smaller "
        f"setting for two CPU cores and not to be compared with published numbers. {DAGGER}: printed from memory, not checked."
    )
    commands = [command for command in table["command"] if command]
    return text + (f" Cells that were not run: `{commands[0]}`, and so on." if commands else "")


def write_tables(results_dir: Path | str = "paper_results", out_dir: Path | str | None = None) -> list[Path]:
    """Writes the table of every data set, from records and published numbers, as Markdown, HTML and LaTeX.

    Args:
        results_dir: folder of records and published numbers.
        out_dir: where the tables go; the same folder by default.

    Returns:
        The files, below `out_dir/tables`.
    """
    results_dir = Path(results_dir)
    records, published = load_runs(results_dir), load_published(results_dir)
    paths = []
    for dataset in DATASETS:
        table = build_table(dataset, records, published)
        shown = table[list(COLUMNS)].rename(columns=COLUMNS)
        texts = {
            "md": f"# {dataset}\n\n{format_markdown(table)}\n\n{note_of(table)}\n",
            "html": shown.to_html(index=False, border=0) + "\n",
            "tex": shown.to_latex(index=False, escape=True),
        }
        for kind, text in texts.items():
            path = Path(out_dir or results_dir) / "tables" / f"{dataset}.{kind}"
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
            paths.append(path)
    return paths
