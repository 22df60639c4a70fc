"""The tables of the paper, every cell with the published number and ours, and the README's one table; all from records."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from seqmatch_lib.data.datasets import PAPER_DATASETS
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.report.controls import comparison
from seqmatch_lib.report.evidence import PUBLISHED_SETTINGS, Evidence, iterations_of, runs_of
from seqmatch_lib.report.numbers import mean_and_std
from seqmatch_lib.report.texts import format_frame, format_range, label_scale, name_ipc, name_of, name_runs
from seqmatch_lib.runs.config import REFERENCES, RunConfig, preset_names
from seqmatch_lib.runs.records import RunRecord, check_same_images
from seqmatch_lib.store.files import write_text

COLUMNS = (  # of `build_table`
    "preset", "ipc", "method", "published", "published_std", "mark", "augmented", "ours", "ours_std", "selected",
    "selected_std", "random", "random_std", "scale", "iterations", "teachers", "seeds", "n", "train_images", "core_hours",
    "device", "mirrored",
)  # fmt: skip
PUBLISHED_TEXTS = ("dataset", "method", "source", "check")  # columns of published accuracies
PUBLISHED_NUMBERS = ("ipc", "mean", "std")
UNVERIFIED, DOUBTFUL = "unverified", "doubtful"  # in the column "check" of published accuracies
DAGGER = "†"  # stands beside them
SPREAD = "± is the standard deviation over seeds of distillation where there are several (of their means), else over networks"
NOTE = f"""Test accuracy in per cent. {SPREAD}.

- `ours`: the last iterate.
- `selected`: the iterate that was best on validation images (at scale `paper` on test images, as in the papers).
- `random`: as many random real images, same training. There is one draw for each seed, and draws differ by points.
- `iterations`: of all subsets together.
- `teachers`: of each stage.
- `n`: number of networks.
- `core hours`: threads times time on the clock, for all seeds. Each run counts its teachers, also those that it shares with
  others. Other machines, and other work on them, change the hours by up to three times, so do not compare rows."""
SETTINGS_NOTE = f"""- `difference`: ours minus the published mean. Random real images are compared with the published baseline
  with augmentation where there is one, since ours are augmented, too.
- Scale `paper` has the published settings; of SeqMatch only those of CIFAR-10 with 50 images per class are known. Scale
  `short` has fewer teachers and iterations, runs in bfloat16, and holds out a tenth of the training images. A cell has a row
  there for each number of teachers that it was run with.
- Earlier subsets of a sequence are always the selected iterates. So at scale `paper` test images have
  influenced `ours` of a sequence, but not `ours` of its base method.
- {DAGGER}: written down from memory and not checked. doubtful: the same number is printed for another method."""
README_NOTE = (
    "Presets that were run at scales `paper` and `short`; rehearsals are in `10_tables`, runs with changed settings in "
    "`90_report`. Accuracies are in per cent, on test images. `ours` is after the last iteration, `selected` after the one "
    "that was best on validation images. Published numbers of MTT are the best of all evaluations on test images. "
    f"{SPREAD}. {DAGGER}: published number written down from memory, not checked. `random real` are as many real images, one "
    "draw for each seed; two numbers are published for them, and our networks are trained with augmentation. `teachers` are "
    "those of each stage, `iterations` those of all subsets together. Scale `short` holds out a tenth of the training images, "
    "and computes in bfloat16."
)
COMPARISON_NOTE = (
    "`iterations` are those of distillation, `epochs` those of training, both over all subsets. `difference` is the sequence "
    "in stages minus the row, over the seeds that both have. *Both by selected iterates*: set and sequence are those of the "
    "iteration that was best on validation images; all other rows are after the last iteration."
)
REHEARSAL_NOTE = (
    "Smaller networks, fewer steps and other learning rates, for two CPU cores. Do not compare these accuracies with "
    "published ones."
)


def published_path(results_dir: Path | str) -> Path:
    """Returns where the published accuracies are in the results folder of the repository, and in others if they have any."""
    return Path(results_dir) / "published" / "accuracy.csv"


def load_published(results_dir: Path | str = "paper_results") -> pd.DataFrame:
    """Reads the published accuracies: dataset, ipc (0 for all images), method, mean, std, source, check.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = published_path(results_dir)
    remedy = "it belongs to the repository: use its paper_results folder"
    require(path.is_file(), f"{path} is missing; {remedy}", StorageError)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(PUBLISHED_NUMBERS, float) | dict.fromkeys(PUBLISHED_TEXTS, str))
    except (ValueError, OverflowError) as error:
        raise StorageError(f"{path} is damaged ({error}); {remedy}") from error
    wrong = sorted(set(PUBLISHED_TEXTS).union(PUBLISHED_NUMBERS) - set(table.columns))
    require(not wrong, f"{path} has no columns {wrong}; {remedy}", StorageError)
    whole = table["ipc"] == table["ipc"].clip(0, 10**6).round()  # NaN equals nothing
    require(bool(whole.all()), f"{path} has an ipc that is no number of images; {remedy}", StorageError)
    return table.astype({"ipc": int}).fillna(dict.fromkeys(PUBLISHED_TEXTS, ""))


def build_table(
    dataset: str, records: Sequence[RunRecord], published: pd.DataFrame, scales: Sequence[str] = PUBLISHED_SETTINGS
) -> pd.DataFrame:
    """Returns one row for each cell of a data set's table and each of these scales that it was run at.

    Scale "short" leaves the number of teachers open, so a cell has a row there for each number, see `Evidence.parts`. A cell
    that was run at none of the scales has a row with 0 seeds. Without scales of published settings such a cell is left out,
    and so are the published numbers.

    Args:
        dataset: its name.
        records: of any data sets; the others, and those with changed settings, are left out, see `evidence.runs_of`.
        published: of `load_published`.
        scales: which to show, the leading one first.

    Returns:
        `COLUMNS`, and `difference`, ours minus published. `ipc` 0 means all images, `augmented` is the published random
        baseline with augmentation beside the one without, `mark` what stands beside a published number.

    Raises:
        StorageError: runs of one scale on different images, such as a part of the data set and the whole.
    """
    check_same_images(record for record in records if record.dataset == dataset)
    known = published[published["dataset"] == dataset].set_index(["ipc", "method"])
    printed, parts = bool({*PUBLISHED_SETTINGS} & {*scales}), Evidence(list(records)).parts_of(scales)
    rows = []
    for config in _cells_of(dataset):
        cell = {"preset": config.preset, "ipc": config.ipc, "method": config.method} | _published(known, config)
        found = ((scale, runs_of(config.preset, scale, part.runs)) for part, scale in parts)
        done = [cell | _summarise(runs, scale) for scale, runs in found if runs]
        rows += done or [cell | _summarise([], "paper")] * printed
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("iterations", "teachers", "train_images"), "Int64"))
    if not printed:
        return table.drop(columns=["published", "published_std", "augmented", "mark"])
    gap = table["ours"] - table["augmented"].fillna(table["published"])
    table.insert(table.columns.get_loc("selected"), "difference", gap)
    return table


@cache
def _cells_of(dataset: str) -> list[RunConfig]:
    """Returns the presets of a data set: by ipc, references first, a base method beside its sequential form."""
    cells = [RunConfig.from_preset(preset) for preset in preset_names() if preset.split("-")[0] == dataset]
    return sorted(
        cells, key=lambda cell: (cell.ipc or 10**9, cell.method not in REFERENCES, cell.base_method, cell.is_sequential)
    )


def _published(known: pd.DataFrame, config: RunConfig) -> dict[str, Any]:
    cell, with_augmentation = (config.ipc, config.method), (config.ipc, f"{config.method}_augmented")
    augmented = known["mean"].get(with_augmentation, nan)
    if cell not in known.index and with_augmentation in known.index:
        mean, std, check = known.loc[with_augmentation, ["mean", "std", "check"]]
        return {"published": mean, "published_std": std, "mark": f"{mark_published(check)}, augmented", "augmented": nan}
    mean, std, check = known.loc[cell, ["mean", "std", "check"]] if cell in known.index else (nan, nan, "")
    return {"published": mean, "published_std": std, "mark": mark_published(check), "augmented": augmented}


def mark_published(check: str) -> str:
    """Returns what stands beside a published number, by how it was checked: nothing, or a dagger if it was not."""
    return DAGGER * (UNVERIFIED in check) + f" ({DOUBTFUL})" * (DOUBTFUL in check)


def _summarise(runs: Sequence[RunRecord], scale: str) -> dict[str, Any]:
    row: dict[str, Any] = {"scale": scale, "seeds": len(runs), "n": sum(run.accuracy_last["n"] for run in runs)}
    for name, kind in (("ours", "accuracy_last"), ("selected", "accuracy_selected"), ("random", "random_baseline")):
        row |= mean_and_std({run.seed: getattr(run, kind)["values"] for run in runs if getattr(run, kind)}, name)
    if not runs:
        return row
    config = RunConfig.from_dict(runs[0].config)
    return row | {
        "iterations": iterations_of(runs[0]) or None,
        "teachers": config.teachers.num_teachers if config.uses_teachers else None,
        "train_images": runs[0].data["train_images"],
        "core_hours": sum(run.threads * sum(run.seconds.values()) for run in runs) / 3600,
        "device": ", ".join(sorted({run.device_name for run in runs})),
        "mirrored": "flip" in config.training.augment,
    }


def readme_table(evidence: Evidence, published: pd.DataFrame) -> str:
    """Returns the README's table of results as Markdown: every cell that was run at scale "paper" or "short"."""
    cells = pd.concat(build_table(name, evidence.runs, published).assign(dataset=name) for name in PAPER_DATASETS)
    shown = format_table(cells[cells["seeds"] > 0]).replace("", "-")
    shown["seeds"] = [f"{seeds} ({n})" for seeds, n in zip(shown["seeds"], shown["n"], strict=True)]
    names = {"dataset": "data set", "random": "random real", "seeds": "seeds (networks)"}
    columns = [
        "dataset", "ipc", "method", "published", "ours", "selected", "random", "scale", "teachers", "iterations", "seeds",
    ]  # fmt: skip
    return f"{to_markdown(shown[columns].rename(columns=names))}\n\n{README_NOTE}\n"


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of `build_table` as texts, published numbers as printed, with a dagger where they were not checked."""
    shown = format_frame(table.drop(columns=["mark", "augmented", "preset", "mirrored"], errors="ignore"))
    shown["ours"] = [text or "not run" for text in shown["ours"]]
    shown["scale"] = [label_scale(scale) for scale in table["scale"]]
    shown.loc[(table["seeds"] == 0).to_numpy(), ["scale", "seeds", "n"]] = ""
    if "published" in table:
        known = zip(shown["published"], table["mark"], table["augmented"], strict=True)
        shown["published"] = [
            text + mark + ("" if pd.isna(augmented) else f"; augmented {augmented:.1f}") for text, mark, augmented in known
        ]
    return shown


def to_markdown(shown: pd.DataFrame) -> str:
    """Returns a frame of texts as a Markdown table."""
    return shown.to_markdown(index=False, disable_numparse=True)


def describe_table(settings: pd.DataFrame, rehearsal: pd.DataFrame) -> str:
    """Returns what tables of `build_table` say, of scales "paper" and "short" and of rehearsals: sentences, as Markdown."""
    printed, run = settings[settings["published"].notna()], settings[settings["seeds"] > 0]
    compared = run[run["published"].notna()]
    gaps = "".join(
        f"\n- {name_of(row.method)} at ipc {name_ipc(row.ipc)}, {row.scale}"
        + ("" if pd.isna(row.teachers) else f", {row.teachers} teachers")
        + f": {row.ours:.1f} ({row.difference:+.1f})"
        + ("" if pd.isna(row.iterations) else f", selected iterate {row.selected:.1f}")
        for row in compared.itertuples()
    )
    cells = compared.groupby("scale")["preset"].nunique()
    counts = " and ".join(f"{cells.get(scale, 0)} of them at scale `{scale}`" for scale in PUBLISHED_SETTINGS)
    published, rehearsed = (format_range(rows["seeds"]) if len(rows) else "0" for rows in (run, rehearsal))
    return (
        f"**What we find.** {printed['preset'].nunique()} cells have a published number. We ran {counts} (fewer teachers and "
        f"iterations). {rehearsal['preset'].nunique()} cells were rehearsed, with smaller networks and fewer steps."
        + (f" Our last iterates, and in brackets the distance from the published number in points:\n{gaps}" if gaps else "")
        + "\n\n"
        f"**How sure.** Seeds of distillation a cell: {published} at scales `paper` and `short`, {rehearsed} in rehearsals, "
        "which decide nothing about published numbers. "
        + _describe_mirrored(rehearsal)
        + "A lead of the sequence counts only if it remains over the controls, which stand below."
    )


def _describe_mirrored(rehearsal: pd.DataFrame) -> str:
    """Returns a sentence where networks were trained on mirrored images for some methods alone, else nothing."""
    of_kind = [rehearsal[rehearsal["mirrored"] == kind]["method"].map(name_of) for kind in (True, False)]
    mirrored = [", ".join(dict.fromkeys(methods)) for methods in of_kind]
    mixed = "In rehearsals networks are trained on mirrored images, too, for {}, and not for {}: do not compare across them. "
    return mixed.format(*mirrored) if all(mirrored) else ""


def list_missing(table: pd.DataFrame, scale: str = "paper") -> pd.DataFrame:
    """Returns the cells of `build_table` that were not run: `ipc`, `method` and the `command` that runs them."""
    rows = table[table["seeds"] == 0]
    sizes = [name_ipc(ipc) for ipc in rows["ipc"]]
    return rows[["ipc", "method"]].assign(
        ipc=sizes, command="python -m seqmatch_lib run " + rows["preset"] + f" --scale {scale}"
    )


def write_tables(evidence: Evidence, published: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Writes the tables of every data set, at scales "paper" and "short" and rehearsals, as Markdown and LaTeX.

    Returns the files, below `out_dir/tables`.
    """
    paths = []
    for dataset in PAPER_DATASETS:
        settings = build_table(dataset, evidence.runs, published)
        rehearsal = build_table(dataset, evidence.runs, published, ("reduced",))
        parts = [("Scales paper and short", settings, SETTINGS_NOTE), ("Rehearsal (scale reduced)", rehearsal, REHEARSAL_NOTE)]
        shown = [(title, format_table(table), note) for title, table, note in parts if len(table)]
        for (part, scale), ipc in product(evidence.parts_of((*PUBLISHED_SETTINGS, "reduced")), (10, 50)):
            if len(compared := comparison(part, dataset, ipc, scale)):
                title = f"The sequence and its controls: {name_runs(part, dataset, ipc, scale)}"
                shown.append((title, format_frame(compared), COMPARISON_NOTE))
        missing = list_missing(settings)["command"]
        pending = f"Cells that were not run: `{missing.iloc[0]}`, and so on.\n" if len(missing) else ""
        texts = {
            "md": f"# {name_of(dataset)}\n\n{NOTE}\n\n"
            + "".join(f"## {title}\n\n{note}\n\n{to_markdown(table)}\n\n" for title, table, note in shown) + pending,
            "tex": "".join(f"% {title}\n{table.to_latex(index=False, escape=True)}" for title, table, _ in shown),
        }  # fmt: skip
        for kind, text in texts.items():
            path = out_dir / "tables" / f"{dataset}.{kind}"
            write_text(path, text)
            paths.append(path)
    return paths
