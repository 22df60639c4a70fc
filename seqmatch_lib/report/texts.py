"""Numbers and settings as readers see them: names of cells and scales, and frames as texts."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from seqmatch_lib.methods import method_names
from seqmatch_lib.report.evidence import Evidence, runs_of
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX, RunConfig
from seqmatch_lib.runs.records import RunRecord
from seqmatch_lib.store.files import digest_json

NAMES = {  # id -> as papers write it
    "svhn": "SVHN", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny ImageNet",
    "canvas_digits": "digits on a canvas", "place_names": "place names",
    "random": "random real", "random_augmented": "random real, augmented", "whole": "whole data set",
    "convnet": "ConvNet", "fcn": "fully convolutional network", "alexnet": "AlexNet", "vgg11": "VGG-11", "vit": "ViT",
    "resnet18": "ResNet-18", "resnet18_ap": "ResNet-18, average pooling",
    **{name: name.upper() for name in ("datm", "dc", "dm", "dsa", "ftd", "idc", "krr", "mtt", "ncfm", "pad", "tesla")},
}  # fmt: skip
NAMED = ("dataset", "method", "base", "network")  # columns of ids
SIGNED = ("difference", "gain")  # columns that are shown with a sign
SHORT_TEXT, LONG_TEXT = 24, 55  # characters: shown on one line; shown in a column that is not too narrow


def label_scale(scale: str) -> str:
    """Returns the name of a scale, with what a reader must know about it."""
    return {"reduced": "rehearsal (reduced)", "smoke": "smoke: means nothing"}.get(scale, scale)


def name_of(identifier: str) -> str:
    """Returns a data set, method or network as papers write it: "seqmatch_mtt" -> "SeqMatch-MTT"; others keep their id."""
    base = identifier.removeprefix(SEQUENTIAL_PREFIX)
    return "SeqMatch-" * (base != identifier) + NAMES.get(base, base)


def name_cell(dataset: str, ipc: int | None) -> str:
    """Returns the name of a data set with the size of a set; `ipc` is None for several sizes, 0 for all images."""
    size = {None: "", 0: "all images", 1: "1 image per class"}.get(ipc, f"{ipc} images per class")
    return ", ".join(filter(None, (name_of(dataset), size)))


def name_ipc(ipc: int) -> str:
    """Returns images per class as tables write them; 0 stands for all real images."""
    return f"{ipc:,}" if ipc else "all"


def name_setting(dataset: str, ipc: int | None, scale: str) -> str:
    """Returns the heading of runs: data set, size and scale; `ipc` as in `name_cell`."""
    return f"{name_cell(dataset, ipc)}, {label_scale(scale)}"


def name_runs(evidence: Evidence, dataset: str, ipc: int | None, scale: str, bases: Collection[str] = ()) -> str:
    """Returns the heading of the runs that stand for presets, by default of all base methods; `ipc` as in `name_cell`."""
    return f"{name_cell(dataset, ipc)}, {name_scale(evidence, dataset, ipc, scale, bases)}"


def name_run(run: RunRecord) -> str:
    """Returns the heading of one run."""
    return f"{name_cell(run.dataset, run.ipc)}, {name_scale_of([run], run.scale)}"


def name_scale(evidence: Evidence, dataset: str, ipc: int | None, scale: str, bases: Collection[str] = ()) -> str:
    """Returns the name of a scale; at scale "short", which leaves the number of teachers open, with that number."""
    if ipc is None:
        return name_scale_of([run for run in evidence.runs if (run.dataset, run.scale) == (dataset, scale)], scale)
    presets = [f"{dataset}-ipc{ipc}-{prefix}{base}" for base in bases or method_names() for prefix in ("", SEQUENTIAL_PREFIX)]
    return name_scale_of([run for preset in presets for run in runs_of(preset, scale, evidence.runs)[:1]], scale)


def name_scale_of(runs: Sequence[RunRecord], scale: str) -> str:
    """Returns the name of the scale of some runs, as `name_scale` does."""
    configs = [RunConfig.from_dict(run.config) for run in runs]
    counts = pd.Series([config.teachers.num_teachers for config in configs if config.uses_teachers])
    each = " per stage" * any(config.is_sequential for config in configs)
    return label_scale(scale) + (f", {format_range(counts)} teachers{each}" if scale == "short" and len(counts) else "")


def name_set(name: str, num_subsets: int) -> str:
    """Returns a set of `controls.comparison` as it is called for this K: independent subsets are halves only where K is 2."""
    return name.replace("halves", "parts") if num_subsets > 2 else name


def count_seeds(count: int) -> str:
    """Returns a number of seeds in words: "1 seed", "3 seeds"."""
    return "1 seed" if count == 1 else f"{count} seeds"


def format_range(counts: pd.Series) -> str:
    """Returns numbers of seeds as "3", or as "1 to 3" where they differ."""
    return " to ".join(map(str, sorted({counts.min(), counts.max()})))


def format_gap(value: float, low: float, high: float) -> str:
    """Returns a difference, and its interval if there is one: "+1.1 [+0.1, +2.2]"; an end near 0 has two digits."""
    ends = ", ".join(f"{end:+.2f}" if abs(end) < 0.05 else f"{end:+.1f}" for end in (low, high))
    return f"{value:+z.1f}" + ("" if pd.isna(low) else f" [{ends}]")  # z: no -0.0


def format_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame as texts: `x` and `x_std` as "47.2 ± 0.6", `x` with its interval as "+1.1 [+0.1, +2.2]"."""
    rows, kept = frame.to_dict("records"), [name for name in frame if not name.endswith(("_std", "_low", "_high", "_seeds"))]
    shown = {name.replace("_", " "): [_format_cell(row, name) for row in rows] for name in kept}
    if "seeds" in frame and "accuracy" in frame:
        shown["accuracy"] = [text or "not run" for text in shown["accuracy"]]
    return pd.DataFrame(shown)


def _format_cell(row: Mapping[str, Any], name: str) -> str:
    value, std = row[name], row.get(f"{name}_std")
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return name_ipc(value) if name == "ipc" else f"{value:,}"
    if name == "set":
        return name_set(value, row["num_subsets"])
    if not isinstance(value, float):
        return name_of(value) if name in NAMED else str(value)
    if f"{name}_low" in row:
        return format_gap(value, row[f"{name}_low"], row[f"{name}_high"])
    return f"{value:{'+' * (name in SIGNED)}.1f}" + ("" if pd.isna(std) else f" ± {std:.1f}")


def style_frame(shown: pd.DataFrame, caption: str = "") -> Styler:
    """Returns a frame of texts as notebooks show it: no index, text to the left, a line for each part between semicolons.

    The column `records` is the first to be wrapped, so that other columns have room.
    """
    named = shown.columns.intersection(["records"])
    wide = [name for name, texts in shown.drop(columns=named).items() if texts.map(len).max() > LONG_TEXT]  # else squeezed
    left = {"selector": "td, th", "props": "text-align: left; vertical-align: top"}
    bold = {"selector": "caption", "props": "text-align: left; font-weight: bold; white-space: nowrap"}
    name = digest_json([caption, shown.to_numpy().tolist()])[:8]  # by default a random one, so that equal pages would differ
    broken = shown.map(_break_lines).assign(**shown[named])
    styler = broken.style.hide().set_caption(caption).set_table_styles([left, bold]).set_uuid(name)
    return styler.set_properties(subset=wide, **{"min-width": "10.5em"})


def _break_lines(text: str) -> str:
    """Returns a text as HTML with a line for each part between semicolons; short parts are not wrapped."""
    parts = (part.replace(" ", "\u00a0") if len(part) < SHORT_TEXT else part for part in text.split("; "))
    return ";<br>".join(parts)
