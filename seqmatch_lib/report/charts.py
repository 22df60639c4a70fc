"""Figures of what the records say: a function a question, each beside the query of `queries` that has its numbers."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seqmatch_lib.data.datasets import PAPER_DATASETS, DatasetSpec, find_dataset
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import method_names
from seqmatch_lib.report import controls, queries
from seqmatch_lib.report.controls import JOINTLY, ONE_SET, RANDOM, SELECTED, SETS, STAGED
from seqmatch_lib.report.evidence import PUBLISHED_SETTINGS, Evidence, runs_of
from seqmatch_lib.report.figures import (
    SPREAD,
    WHITE_BOX,
    legend_below,
    save_figure,
    set_style,
    show_pictures,
    whole_ticks,
)
from seqmatch_lib.report.looks import PALETTE, look_of
from seqmatch_lib.report.numbers import of_common_seeds
from seqmatch_lib.report.tables import UNVERIFIED, build_table
from seqmatch_lib.report.texts import (
    count_seeds,
    format_range,
    label_scale,
    name_cell,
    name_of,
    name_runs,
    name_scale,
    name_scale_of,
    name_set,
    name_setting,
)
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX, RunConfig
from seqmatch_lib.runs.pictures import load_pictures
from seqmatch_lib.runs.records import RunRecord, load_runs
from seqmatch_lib.subsets import load_sequence, set_path


class NothingToDraw(StorageError):
    """No record is there for a figure."""


def plot_table(published: pd.DataFrame, records: Sequence[RunRecord], dataset: str) -> Figure:
    """Draws published accuracies of a data set as bars, ours at scales "paper" and "short" as points, and rehearsals below.

    Args:
        published: of `tables.load_published`.
        records: those of other data sets and with settings changed from their preset are left out, and those of scale "smoke"
            if there are any of scale "reduced".
        dataset: its name.

    Raises:
        NothingToDraw: nothing was published or run.
    """
    known = published[(published["dataset"] == dataset) & published["ipc"].isin([1, 10, 50])]
    built = [build_table(dataset, records, published, scales) for scales in (PUBLISHED_SETTINGS, ("reduced",), ("smoke",))]
    ours, *rehearsals = (table[table["ipc"].isin([1, 10, 50]) & (table["seeds"] > 0)] for table in built)
    ours = ours.assign(method=ours["method"] + np.where(ours["augmented"].notna(), "_augmented", ""))  # as ours are trained
    rehearsal = next((table for table in rehearsals if len(table)), rehearsals[0])
    ipcs = sorted({*known["ipc"], *ours["ipc"], *rehearsal["ipc"]})
    problem = f"{name_of(dataset)} has no published accuracies and no records at 1, 10 or 50 images per class"
    require(bool(ipcs), problem, NothingToDraw)
    scales = "".join(f"{label_scale(scale)}\n" for scale in rehearsal["scale"].unique())
    rows = [  # methods, how they are drawn, with which tables, how titles begin
        (_by_accuracy(known, "mean", ours["method"]), _draw_published, (known, ours), ""),
        (_by_accuracy(rehearsal, "ours"), _draw_rehearsal, (rehearsal,), scales),
    ]
    rows = [row for row in rows if row[0]]
    heights = [0.24 * len(methods) + 0.9 for methods, *_ in rows]
    grid = {"sharex": True, "sharey": "row", "squeeze": False, "height_ratios": heights}
    figure, axes = plt.subplots(len(rows), len(ipcs), figsize=(max(6.0, 3.6 * len(ipcs)), sum(heights) + 0.8), **grid)
    for line, (methods, draw, tables, prefix) in zip(axes, rows, strict=True):
        for axis, ipc in zip(line, ipcs, strict=True):
            draw(axis, methods, *(table[table["ipc"] == ipc] for table in tables))
            axis.set(xlabel="test accuracy, %", yticks=range(len(methods)), yticklabels=map(name_of, methods))
            axis.set_title(f"{prefix}{ipc} image{'s' if ipc > 1 else ''} per class", fontsize=10)
            axis.grid(axis="y", visible=False)
            axis.label_outer()
    axes[0, 0].set_xlim(left=0)  # and that of all others
    legend_below(figure, axes.flat, name_of(dataset), "\n".join([SPREAD, *_note_efforts(ours)]))
    return figure


def _draw_published(axis: Axes, methods: Sequence[str], known: pd.DataFrame, ours: pd.DataFrame) -> None:
    for label, check, hatch in (("published", "read in", None), ("published, not checked", UNVERIFIED, "///")):
        bars = known[known["check"].str.contains(check)].set_index("method")["mean"].reindex(methods)
        axis.barh(range(len(methods)), bars.fillna(0), color="0.8", edgecolor="white", hatch=hatch, label=label)
    color = sns.color_palette(PALETTE)[3]
    for scale, face, note in zip(PUBLISHED_SETTINGS, (color, "white"), ("", ", few teachers and iterations"), strict=True):
        rows = ours[ours["scale"] == scale].sort_values(["method", "teachers"])
        shifts = _shift_apart(rows["method"])
        _draw_means(axis, methods, rows, "ours", color, "o", f"ours, scale {scale}{note}", face, shifts)
        beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        for row, shift in zip(rows.itertuples(), shifts, strict=True):
            if scale == "short" and pd.notna(row.teachers):
                axis.annotate(row.teachers, (row.ours, methods.index(row.method) + shift), **beside)


def _shift_apart(names: pd.Series) -> pd.Series:
    """Returns how far up each row is drawn, so that none hides another one of the same name: the first is the highest."""
    group = names.groupby(names)
    return 0.25 * (group.transform("size") - 1 - 2 * group.cumcount()) / (group.transform("size") - 1).clip(lower=1)


def _note_efforts(ours: pd.DataFrame) -> list[str]:
    """Returns lines that say what the circles of scale "short" took: one for each size and method."""
    short = ours[(ours["scale"] == "short") & ours["iterations"].notna()].sort_values("teachers")
    if not short["teachers"].notna().any():
        return []
    lines = ["scale short: numbers beside circles are teachers; compare circles of as many teachers"]
    for (ipc, method), rows in short.groupby(["ipc", "method"]):
        teachers = ["" if pd.isna(count) else f"{count} teachers, " for count in rows["teachers"]]
        took = [f"{each}{count:,} iterations" for each, count in zip(teachers, rows["iterations"], strict=True)]
        lines.append(f"{ipc} image{'s' * (ipc > 1)} per class, {name_of(method)}: {'; '.join(took)}")
    return lines


def _draw_rehearsal(axis: Axes, methods: Sequence[str], rehearsal: pd.DataFrame) -> None:
    _draw_means(axis, methods, rehearsal, "random", "0.5", "|", "random real, same training")
    _draw_means(axis, methods, rehearsal, "ours", sns.color_palette(PALETTE)[3], "D", "ours, rehearsal")
    axis.set(ylim=(-0.6, len(methods) - 0.4))
    if rehearsal.empty:
        axis.text(0.5, 0.5, "not run", ha="center", va="center", color="0.4", transform=axis.transAxes)


def _by_accuracy(table: pd.DataFrame, column: str, also: Sequence[str] = ()) -> list[str]:
    """Returns the methods of a table from the least to the most accurate; those without a number come first.

    It goes by the mean rank at the sizes that a method has, so that one without the smallest is not ahead by that alone.
    """
    ranks = table.groupby("ipc")[column].rank(pct=True).groupby(table["method"]).mean()
    return sorted({*table["method"], *also}, key=lambda method: (ranks.get(method, float("-inf")), method))


def _draw_means(
    axis: Axes,
    methods: Sequence[str],
    table: pd.DataFrame,
    column: str,
    color: Any,
    marker: str,
    label: str,
    face: Any = None,
    shifts: pd.Series | float = 0.0,
) -> None:
    if len(table):
        places, spread = shifts + table["method"].map(methods.index), table[f"{column}_std"].fillna(0)
        axis.errorbar(table[column], places, xerr=spread, fmt=marker, color=color, mfc=face, capsize=2, label=label)


def plot_comparison(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws every base method, its sequence and its controls: one panel per method, a point for each seed."""
    frame, title = _in_panels(controls.comparison, evidence, dataset, ipc, scale)
    names = [name for name in SETS if name in set(frame["set"]) - set(SELECTED.values())]  # these have other sequences
    return _plot_seeds(frame[frame["set"].isin(names)], names, title)


def plot_order(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws accuracies of sets that are divided or not, in sequence or not; one panel per base method, one point per seed."""
    frame, title = _in_panels(controls.order, evidence, dataset, ipc, scale)
    names = sorted(dict.fromkeys(frame["set"]), key=lambda name: name == RANDOM)
    return _plot_seeds(frame, names, title)


def plot_effort(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws accuracies with the iterations and epochs of training behind them, as `controls.efforts` lists them.

    Each base method that was run in sequence has a panel; a point is a seed.
    """
    frame = controls.efforts(evidence, dataset, ipc, scale, by_seed=True)
    frame = frame[frame["base"].isin(frame[frame["num_subsets"] > 1]["base"])]
    sets = [f"{row.images} {row.trained}, {row.iterations:,} iterations, {row.epochs:,} epochs" for row in frame.itertuples()]
    return _plot_seeds(frame.assign(set=sets), None, name_runs(evidence, dataset, ipc, scale))


def _in_panels(
    query: Callable[..., pd.DataFrame], evidence: Evidence, dataset: str, ipc: int, scale: str
) -> tuple[pd.DataFrame, str]:
    """Returns what a query finds in each part of the records, see `Evidence.parts`, one row per seed, and a title.

    Where it finds something in several parts, the column `base` names them, so that each has panels of its own.
    """
    found = [(part, query(part, dataset, ipc, scale, by_seed=True)) for part in evidence.parts(scale)]
    found = [(part, frame) for part, frame in found if len(frame)] or found[:1]
    if len(found) == 1:
        return found[0][1], name_runs(found[0][0], dataset, ipc, scale)

    def name_panel(part: Evidence, base: str) -> str:
        return f"{name_of(base)}\n{name_scale(part, dataset, ipc, scale, [base]).removeprefix(f'{label_scale(scale)}, ')}"

    frames = [frame.assign(base=[name_panel(part, base) for base in frame["base"]]) for part, frame in found]
    return pd.concat(frames), name_setting(dataset, ipc, scale)


def _plot_seeds(frame: pd.DataFrame, names: list[str] | None, title: str) -> Figure:
    """Draws a panel for each base method: a row for each set, a point for each seed, a stroke at the mean of several.

    A point has the standard deviation over networks. Panels beside each other span as many points of accuracy. Dotted lines
    through a panel are at the accuracies of the sequence in stages, one a seed. Random real images are far off to the left, so
    their mean is written and not drawn.

    Args:
        frame: `base`, `set`, `seed`, `accuracy`, `accuracy_std`.
        names: rows, the same in all panels, which stand beside each other; None gives each its own, below each other.
        title: of the figure.
    """
    panels = dict(iter(frame.groupby("base", sort=False)))
    require(bool(panels), f"there are no records to draw of {title}", NothingToDraw)
    rows = [names or list(dict.fromkeys(panel["set"])) for panel in panels.values()]
    if names:
        size = (max(7.0, 3.2 + 2.1 * len(panels)), 1.6 + 0.3 * len(names))
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    else:
        size, heights = (9, 1.2 + sum(0.8 + 0.3 * len(own) for own in rows)), [len(own) + 1.5 for own in rows]
        figure, axes = plt.subplots(len(panels), figsize=size, squeeze=False, sharex=True, height_ratios=heights)
    seeds, note = sorted(set(frame["seed"])), f"error bars: standard deviation over {format_range(frame['n'])} networks"
    colors = dict(zip(seeds, sns.color_palette(PALETTE, len(seeds)), strict=True))
    for axis, own, (base, panel) in zip(axes.flat, rows, panels.items(), strict=True):
        means = panel.groupby("set")["accuracy"].mean().reindex(own)
        for seed, part in panel[panel["set"] != RANDOM].groupby("seed"):
            shift = 0.2 * (seeds.index(seed) - (len(seeds) - 1) / 2)  # so that bars of one row do not lie on each other
            places = [own.index(name) + shift for name in part["set"]]
            style = {"fmt": "o", "markersize": 5, "elinewidth": 1, "color": colors[seed]}
            axis.errorbar(part["accuracy"], places, xerr=part["accuracy_std"], label=f"seed {seed}", **style)
        if len(seeds) > 1:
            several = panel.groupby("set")["seed"].nunique().reindex(own) > 1
            drawn = means.where(several & (means.index != RANDOM))
            axis.plot(drawn, range(len(own)), "|", color="0.3", markersize=14, label="mean")
        if pd.notna(means.get(RANDOM)):
            place = (0.02, own.index(RANDOM))
            style = {"va": "center", "fontsize": 9, "bbox": WHITE_BOX, "zorder": 1.5}
            axis.annotate(f"← {means[RANDOM]:.1f}, off the axis", place, xycoords=axis.get_yaxis_transform(), **style)
        lines = panel[panel["set"] == STAGED]
        for row in lines.itertuples():  # a seed's points are to be compared with its own line
            axis.axvline(row.accuracy, color=colors[row.seed], linewidth=0.8, linestyle=":", zorder=1)  # below text
        if len(lines):
            axis.plot([], [], ":", color="0.3" if len(seeds) > 1 else colors[seeds[0]], linewidth=0.8, label=STAGED)
        labels = [name_set(name, panel["num_subsets"].max()) for name in own]
        axis.set(yticks=range(len(own)), yticklabels=labels, ylim=(len(own) - 0.5, -0.5), xlabel="test accuracy, %")
        axis.set_title(name_of(base))
        axis.tick_params(labelbottom=True)
    widest = max(right - left for left, right in (axis.get_xlim() for axis in axes.flat))
    for axis in axes.flat:
        centre = sum(axis.get_xlim()) / 2
        axis.set_xlim(centre - widest / 2, centre + widest / 2)
    legend_below(figure, axes.flat, title, note)
    return figure


def plot_subsets(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws accuracy against K, the number of equal subsets, at a fixed number of images: a point is a seed.

    Lines join the means over the seeds that the sequence has at every K; a set without them has points alone.

    K = 1 is the base method. Beside the sequence stands its control: the one set, trained on for as many epochs. Each base
    method that was run with two or more K has a panel.
    """
    frame = queries.subsets(evidence, dataset, ipc, scale, by_seed=True)
    frame = queries.of_one_interval(frame[frame["even"]])
    effort = controls.efforts(evidence, dataset, ipc, scale, by_seed=True)
    panels = {base: rows for base, rows in frame.groupby("base") if rows["num_subsets"].nunique() > 1}
    message = f"no base method was run with two numbers of subsets on {name_setting(dataset, ipc, scale)}"
    require(bool(panels), message, NothingToDraw)
    size = (max(6.0, 1.5 + 2.4 * len(panels)), 3.8)  # room for the title above one panel
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (base, rows) in zip(axes[0], panels.items(), strict=True):
        alone = effort[(effort["base"] == base) & (effort["num_subsets"] == 1)]
        alone = alone[alone["iterations"] == alone[alone["of_preset"]]["iterations"].min()]
        longer = alone.assign(num_subsets=alone["epochs"] / alone["epochs"].min())
        lines = {
            "random real, in stages": rows.assign(accuracy=rows["random"]),
            STAGED: rows,
            JOINTLY: rows.assign(accuracy=rows["joint"].fillna(rows["accuracy"])),
            "one set, as many epochs": longer[longer["num_subsets"].isin(rows["num_subsets"])],
        }
        seeds = set(of_common_seeds(rows, "num_subsets")["seed"])
        for kind, points in lines.items():
            look = look_of(kind)
            common = of_common_seeds(points, "num_subsets")
            means = common[common["seed"].isin(seeds)].groupby("num_subsets")["accuracy"].mean()
            axis.plot(means.index, means, label=kind, markersize=5, markevery=[], **look)
            axis.plot(points["num_subsets"], points["accuracy"], markersize=5, **look | {"linestyle": ""})
        axis.set(title=name_of(base), xlabel="K, number of subsets", ylabel="test accuracy, %")
        axis.label_outer()
    whole_ticks(axes[0])
    note = "points: seeds; lines: means over the seeds that were run at every K"
    legend_below(figure, axes[0], name_runs(evidence, dataset, ipc, scale), note)
    return figure


def plot_gain(evidence: Evidence, dataset: str, scale: str) -> Figure:
    """Draws what methods gain over as many random real images, by images per class: points are seeds, lines are means.

    Where several methods have a size, their points are shifted sideways, so that none hides another. Methods that were run
    at one size are left out; sequences are dashed and hollow.
    """
    frame = queries.gains_at_several_sizes(evidence, dataset, scale, by_seed=True)
    require(len(frame) > 0, f"no method was run at two sizes on {name_setting(dataset, None, scale)}", NothingToDraw)
    colors = dict(zip(method_names(), sns.color_palette(PALETTE), strict=False))
    figure, axis = plt.subplots(figsize=(7, 4.2))
    sharing = {ipc: list(dict.fromkeys(rows["method"])) for ipc, rows in frame.groupby("ipc")}
    for method, rows in frame.groupby("method"):
        line, face = ("--", "none") if method.startswith(SEQUENTIAL_PREFIX) else ("-", None)
        color = colors[method.removeprefix(SEQUENTIAL_PREFIX)]
        means = rows.groupby("ipc")["gain"].mean()
        places = {ipc: ipc * 1.03 ** (sharing[ipc].index(method) - (len(sharing[ipc]) - 1) / 2) for ipc in means.index}
        style = {"marker": "o", "markerfacecolor": face or color, "markevery": []}  # no markers but in the legend
        axis.plot(means.index.map(places), means, line, color=color, label=name_of(method), **style)
        axis.scatter(rows["ipc"].map(places), rows["gain"], edgecolors=[color], facecolors=face or [color], s=28, zorder=3)
    axis.axhline(0, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="images per class", ylabel="points over random real images")
    ticks = sorted(set(frame["ipc"]))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    legend_below(figure, [axis], name_runs(evidence, dataset, None, scale), "points: seeds; lines: means")
    return figure


def plot_curves(
    evidence: Evidence, published: pd.DataFrame, results_dir: Path, dataset: str, ipc: int, scale: str, base: str = "mtt"
) -> Figure:
    """Draws accuracy against iterations for a base method and its sequence, finished or not; published values are lines.

    Above, a line joins the scores of one network, in a panel for each number of teachers, since they differ in iterations. A
    stroke marks the last score of a subset that another one follows. Below are the evaluations after the last iteration, with
    their spread, see `_last_iterates`. They lie close together, so they have an axis of their own. Further seeds are paler.
    """
    frame = queries.curves(evidence, results_dir, dataset, ipc, scale, base)
    require(len(frame) > 0, f"{name_of(base)} has no scores on {name_cell(dataset, ipc)}, at scale {scale} yet", NothingToDraw)
    final = pd.concat([_last_iterates(part, dataset, ipc, scale, base) for part in evidence.parts(scale)], ignore_index=True)
    groups, seeds = dict(iter(frame.groupby("teachers"))), sorted(set(frame["seed"]))
    is_mixed = len({*groups, *(final["num_teachers"] if len(final) else ())}) > 1
    below = 0.26 * len(final) + 1.4
    figure = plt.figure(figsize=(9.5, 5 + below))
    parts = figure.subfigures(2, height_ratios=(3.4, below))  # so that long names below take no width from the panels above
    panels, ends = parts[0].subplots(1, len(groups), sharey=True, squeeze=False)[0], parts[1].subplots()
    known = published[(published["dataset"] == dataset) & (published["ipc"] == ipc)].set_index("method")
    for axis, (teachers, group) in zip(panels, groups.items(), strict=True):
        _draw_scores(axis, group, seeds)
        if scale in PUBLISHED_SETTINGS:
            _draw_published_lines(axis, known, base)
        each = " per stage" if group["subset"].max() > 1 else ""
        axis.set(xlabel="iteration, over all subsets", title=f"{teachers} teachers{each}" if is_mixed else "")
    whole_ticks(panels)
    panels[0].set_ylabel("accuracy, %")
    parts[0].suptitle("scores of one network")
    _draw_last_iterates(ends, final, is_mixed)
    title = name_setting(dataset, ipc, scale) if is_mixed else name_runs(evidence, dataset, ipc, scale, [base])
    legend_below(figure, panels, title)
    return figure


def _draw_published_lines(axis: Axes, known: pd.DataFrame, base: str) -> None:
    for method in known.index.intersection([base, SEQUENTIAL_PREFIX + base]):
        mean, std, color = *known.loc[method, ["mean", "std"]], _look_of_method(method)["color"]
        label = f"{name_of(method)}, published" + " (not checked)" * (UNVERIFIED in known.loc[method, "check"])
        axis.axhline(mean, color=color, linewidth=1, linestyle="--", label=label)
        axis.axhspan(mean - std, mean + std, color=color, alpha=0.1, linewidth=0)


def _look_of_method(method: str) -> dict[str, Any]:
    return look_of(STAGED if method.startswith(SEQUENTIAL_PREFIX) else ONE_SET)


def _draw_scores(axis: Axes, frame: pd.DataFrame, seeds: Sequence[int]) -> None:
    """Draws rows of `queries.curves`: a look for each method, a line style for test and for validation images.

    `seeds` are those of all panels.
    """
    styles = {"test": "-", "validation": ":"}
    stroke = {"marker": "|", "linestyle": "", "markersize": 18, "markeredgewidth": 2}
    for (method, seed, finished, _, images), curve in frame.groupby(["method", "seed", "finished", "run", "images"]):
        label = name_of(method) + f", seed {seed}" * (len(seeds) > 1) + ", not finished" * (not finished)
        look = _look_of_method(method) | {"alpha": 1 / (1 + seeds.index(seed))}
        axis.plot(curve["iteration"], curve["accuracy"], label=label, markersize=3, **look | {"linestyle": styles[images]})
        ends = curve[curve["subset"].diff(-1) < 0]
        if len(ends):
            axis.plot(ends["iteration"], ends["accuracy"], **look | stroke)
    for images in sorted(set(frame["images"])):
        axis.plot([], [], styles[images], color="0.3", label=f"{images} images")
    if frame["subset"].max() > 1:
        axis.plot([], [], color="0.3", label="end of a subset", **stroke)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _last_iterates(evidence: Evidence, dataset: str, ipc: int, scale: str, base: str) -> pd.DataFrame:
    """Returns rows of `controls.comparison`, then those of `queries.by_teachers` that it does not have.

    These have other numbers of iterations or seeds; without a sequence they are all rows. `set` is what is trained on,
    `seed_names` is missing in the rows of the comparison.
    """
    runs, sequence = queries.by_teachers(evidence, dataset, ipc, scale, base), SEQUENTIAL_PREFIX + base
    compared = controls.comparison(evidence, dataset, ipc, scale, bases=[base])
    compared = compared[(compared["seeds"] > 0) & ~compared["set"].isin([RANDOM, *SELECTED.values()])]
    if len(compared) and runs["of_preset"].any():
        compared = compared.assign(num_teachers=runs[runs["of_preset"]]["num_teachers"].iloc[0])
        known = set(", ".join(compared["records"]).split(", "))
        runs = runs[[not known.issuperset(records.split(", ")) for records in runs["records"]]]
    else:
        compared = compared[:0]
    runs, compared = runs.assign(set=runs["method"].map({base: ONE_SET, sequence: STAGED})), compared.assign(seed_names=None)
    return pd.concat([frame for frame in (compared, runs) if len(frame)] or [runs])


def _draw_last_iterates(axis: Axes, final: pd.DataFrame, name_teachers: bool) -> None:
    """Draws rows of `_last_iterates`: a line each, a point with its spread; what all rows share stands in the title."""
    names, costs, unequal = [], [], final[final["seed_names"].isna()]["seeds"].nunique() > 1
    for row in final.itertuples():
        look = look_of(row.set) | {"linestyle": ""}
        axis.errorbar(row.accuracy, len(names), xerr=row.accuracy_std, capsize=3, **look)
        is_compared = pd.isna(row.seed_names)
        costs.append(f", {row.num_teachers} teachers, {row.iterations:,} iterations" * (name_teachers or not is_compared))
        names.append([row.set, f", {count_seeds(row.seeds)}" * unequal if is_compared else f", seed {row.seed_names}"])
    shared = costs[0] if len(set(costs)) == 1 else ""
    names = [name + cost * (not shared) + seeds for (name, seeds), cost in zip(names, costs, strict=True)]
    networks = f", {format_range(final['n'])} networks" if len(final) else ""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlabel="test accuracy, %")
    fill = "filled: trained on in stages; open: jointly\n" * any("jointly" in name for name in final["set"])
    axis.figure.suptitle(f"last iterate{shared}{networks}\n{fill}{SPREAD}")  # wider than the panel


def plot_distilled(
    results_dir: Path | str, dataset: str = "cifar10", ipc: int = 10, scale: str = "short", bases: Collection[str] = ()
) -> Figure:
    """Draws the distilled sets of a results folder side by side, four images of every other class, a block for each subset.

    Args:
        results_dir: folder of records and sets.
        dataset: that the sets were distilled from.
        ipc: images per class.
        scale: of the runs; those that stand for presets are drawn, see `evidence.runs_of`, one a preset. Of several numbers of
            teachers, see `Evidence.parts`, the one with most sets is taken.
        bases: base methods; all by default.

    Raises:
        NothingToDraw: the folder has no such set.
        DataError: whitened images have no sheet beside the set, and the data set is not there.
    """
    results_dir, spec = Path(results_dir), find_dataset(dataset)
    methods = [prefix + base for base, prefix in product(bases or method_names(), ("", SEQUENTIAL_PREFIX))]

    def first_with_set(runs: Sequence[RunRecord]) -> RunRecord | None:
        return next((run for run in runs if set_path(results_dir, run.run_id).is_file()), None)

    parts = [
        [first_with_set(runs_of(f"{dataset}-ipc{ipc}-{method}", scale, part.runs)) for method in methods]
        for part in Evidence(load_runs(results_dir)).parts(scale)
    ]
    runs = max(([run for run in part if run] for part in parts), key=len)
    require(bool(runs), f"{results_dir / 'distilled'} has no set of {name_of(dataset)} as a preset makes it", NothingToDraw)
    blocks, names = {}, _class_names(results_dir / "distilled", spec)
    for run in runs:
        base = run.method.removeprefix(SEQUENTIAL_PREFIX)
        pictures = load_pictures(RunConfig.from_dict(run.config), results_dir)
        for k, pixels in enumerate(pictures, start=1):
            accuracy = f"{run.accuracy_last['mean']:.1f} %"
            shown = f"$S_{k}$" + f" (all: {accuracy})" * (k == len(pictures)) if run.method != base else accuracy
            blocks[f"{name_of(run.method)}\n{shown}"] = pixels
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    title = f"{name_cell(dataset, ipc)}, {name_scale_of(runs, scale)}, seed {seeds}"
    return show_pictures(blocks, names, title, max_per_class=4, classes=range(0, spec.num_classes, 2))


def _class_names(folder: Path, spec: DatasetSpec) -> list[str]:
    """Returns the names that some set of a data set knows; older sets know none."""
    known = (load_sequence(path).metadata.get("class_names") for path in sorted(folder.glob(f"{spec.name}-*.safetensors")))
    return next(filter(None, known), [str(label) for label in range(spec.num_classes)])


def write_figures(
    evidence: Evidence,
    published: pd.DataFrame,
    results_dir: Path,
    out_dir: Path | None = None,
) -> list[Path]:
    """Draws the figures of tables and report from all records; a figure that no record is for is left out.

    Args:
        evidence: the records in `results_dir`.
        published: of `load_published`.
        results_dir: folder of the distilled sets and of the checkpoints of unfinished runs.
        out_dir: the files, of kind SVG, go below `out_dir/figures`; by default `results_dir`.
    """
    set_style()
    folder, paths = (out_dir or results_dir) / "figures", []

    def draw(name: str, plot: Callable[..., Figure], *arguments: Any) -> None:
        with suppress(NothingToDraw):
            paths.extend(save_figure(plot(*arguments), folder / name, ["svg"]))
        plt.close("all")

    for ipc in (10, 50):
        draw(f"comparison_{ipc}", plot_comparison, evidence, "cifar10", ipc, "reduced")
        draw(f"effort_{ipc}", plot_effort, evidence, "cifar10", ipc, "reduced")
        draw(f"subsets_{ipc}", plot_subsets, evidence, "cifar10", ipc, "reduced")
    draw("comparison_10_short", plot_comparison, evidence, "cifar10", 10, "short")
    draw("order", plot_order, evidence, "cifar10", 10, "reduced")
    draw("gain", plot_gain, evidence, "cifar10", "reduced")
    for dataset in PAPER_DATASETS:
        draw(dataset, plot_table, published, evidence.runs, dataset)
    for ipc in (1, 10):
        draw(f"curves_{ipc}", plot_curves, evidence, published, results_dir, "cifar10", ipc, "short")
    draw("distilled", plot_distilled, results_dir)
    return paths
