"""Figures of the notebooks: distilled images, loss curves, accuracy bars, and the sketch of the method."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import method_names
from seqmatch_lib.report.evidence import Evidence, efforts, runs_by_size
from seqmatch_lib.report.tables import UNVERIFIED
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX, RunConfig
from seqmatch_lib.runs.records import RunRecord
from seqmatch_lib.runs.stages import read_progress
from seqmatch_lib.subsets import SubsetSequence

PALETTE = "colorblind"


def set_style() -> None:
    """Sets seaborn's style for all figures: white ground, colours that colour-blind readers can tell apart."""
    options = {"figure.dpi": 110, "savefig.dpi": 200, "svg.hashsalt": "seqmatch"}  # without salt, ids in SVG files are random
    sns.set_theme(style="whitegrid", context="notebook", palette=PALETTE, rc=options)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes a figure as SVG and PNG; equal figures become equal files.

    Args:
        figure: any.
        stem: path without its ending; its folder is made.

    Returns:
        The two files.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, metadata={"Date": None})  # the time of writing is no part of the figure
    return paths


def whole_ticks(axes: Iterable[Axes]) -> None:
    """Puts ticks at whole numbers on the x axis, for counts such as epochs, stages and images."""
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def show_images(
    sequence: SubsetSequence,
    to_pixels: Callable[[torch.Tensor], torch.Tensor],
    class_names: Sequence[str],
    title: str = "",
    max_per_class: int = 10,
    classes: Sequence[int] | None = None,
) -> Figure:
    """Draws the images, a row for each class and a block of columns for each subset.

    Args:
        sequence: S_1 … S_K; images are stored class by class. `SubsetSequence(sequence.subsets[1:2])` shows one of them.
        to_pixels: undoes the preprocessing, ZCA too; what it returns is clipped to [0, 1].
        class_names: one a label.
        title: of the figure.
        max_per_class: images per class shown of each subset.
        classes: labels to show, in this order; all by default.
    """
    shown = list(range(len(class_names)) if classes is None else classes)
    columns = [min(max_per_class, len(subset.images) // len(class_names)) for subset in sequence.subsets]
    size = (0.45 * sum(columns) + 0.3 * len(columns) + 1.2, 0.45 * len(shown) + 0.9)
    figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, width_ratios=columns)
    for k, (axis, subset, count) in enumerate(zip(axes[0], sequence.subsets, columns, strict=True), start=1):
        pixels = to_pixels(subset.images).clamp(0, 1)
        by_class = pixels.unflatten(0, (len(class_names), -1))
        rows = [torch.cat(list(by_class[label][:count]), dim=2) for label in shown]
        grid = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
        axis.imshow(grid.squeeze(-1) if grid.shape[2] == 1 else grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        side = pixels.shape[2]
        axis.set_xticks([])
        names = [class_names[label] for label in shown] if k == 1 else []
        axis.set_yticks([side * (row + 0.5) for row in range(len(names))], names)
        axis.grid(False)
        step_size = f"step size {subset.lr:.3g}"
        axis.set_title(f"$S_{k}$, {step_size}" if len(columns) > 1 else step_size, fontsize=10)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def plot_losses(records: Mapping[str, RunRecord], window: int = 20, axis: Axes | None = None) -> Axes:
    """Draws the matching loss of every stage against the iterations of the run, smoothed.

    Args:
        records: label -> record of a distilled set.
        window: iterations over which the running mean is taken.
        axis: to draw into; a new one by default.
    """
    axis = axis or plt.subplots(figsize=(7, 3.5))[1]
    for (label, record), color in zip(records.items(), sns.color_palette(PALETTE), strict=False):
        _draw_losses(axis, [stage["losses"] for stage in record.stages], label, color, window)
    axis.set(xlabel="iteration", ylabel="matching loss")
    axis.legend(frameon=False)
    return axis


def plot_progress(config: RunConfig, results_dir: Path | str = "paper_results", window: int = 20) -> Figure:
    """Draws the losses, and the validation accuracies if there are any, of a run that may still be going on.

    Args:
        config: of the run.
        results_dir: where it runs.
        window: iterations over which the running mean is taken.

    Raises:
        StorageError: it has not reached its first checkpoint there.
    """
    stages = read_progress(Path(results_dir) / "state" / config.run_id)
    require(bool(stages), f"{config.run_id} has no checkpoint in {results_dir}/state yet; look again later", StorageError)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    color = sns.color_palette(PALETTE)[0]
    _draw_losses(left, [stage["losses"] for stage in stages], "$S_1$" if len(stages) == 1 else "", color, window)
    left.set(xlabel="iteration", ylabel="matching loss")
    left.legend(frameon=False)
    for k, stage in enumerate(stages, start=1):
        if stage["scores"]:
            right.plot(*zip(*stage["scores"], strict=True), "o-", label=f"$S_{k}$")
    right.set(xlabel="iteration of the stage", ylabel="accuracy on selection images, %")
    if right.has_data():
        right.legend(frameon=False)
    figure.suptitle(f"{config.run_id}: {len(stages)} of {config.num_subsets} stages begun", fontsize=10)
    figure.tight_layout()
    return figure


def _draw_losses(axis: Axes, stages: Sequence[Sequence[float]], label: str, color: Any, window: int) -> None:
    """Draws one run's stages one after another, each in a style of its own."""
    first = 0
    for k, losses in enumerate(stages, start=1):
        width = min(window, len(losses))
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        name = label if len(stages) == 1 else f"{label}, $S_{k}$".lstrip(", ")
        style = ("-", "--", ":", "-.")[(k - 1) % 4]
        axis.plot(np.arange(len(smooth)) + first + width, smooth, style, color=color, label=name)
        first += len(losses)


def plot_accuracies(
    bars: Mapping[str, Mapping[str, float]], reference: Mapping[str, float] | None = None, axis: Axes | None = None
) -> Axes:
    """Draws accuracies as bars with their standard deviation and n, and a line for a reference.

    Args:
        bars: label -> `{mean, std, n}` in per cent, as records hold them.
        reference: the same for the whole data set.
        axis: to draw into; a new one by default.
    """
    axis = axis or plt.subplots(figsize=(7, 3.5))[1]
    colors = sns.color_palette(PALETTE, len(bars))
    means = [bar["mean"] for bar in bars.values()]
    axis.bar(list(bars), means, yerr=[bar["std"] for bar in bars.values()], color=colors, capsize=4)
    for position, bar in enumerate(bars.values()):
        text = f"{bar['mean']:.1f} ± {bar['std']:.1f}\nn = {bar['n']}"
        axis.annotate(text, (position, 0.5 * bar["mean"]), ha="center", va="center", fontsize=9, color="white")
    if reference is not None:
        axis.axhline(reference["mean"], color="black", linestyle="--", linewidth=1)
        axis.annotate(f"whole data set {reference['mean']:.1f} %", (0, reference["mean"]), xytext=(0, 3),
                      textcoords="offset points", fontsize=9)  # fmt: skip
    axis.set(ylabel="test accuracy, %", ylim=(0, 105))
    axis.grid(axis="x", visible=False)
    return axis


def plot_benchmark(result: Mapping[str, Any]) -> Figure:
    """Draws time and memory of the inner loop against its steps and against ipc, for every variant that was measured.

    Args:
        result: of `bench.run_benchmark`; the width with most sizes is drawn.
    """
    rows = pd.DataFrame(result["inner_steps"]).query("allocator == 'kept'")
    width = rows.groupby("width").size().idxmax()
    rows = rows[rows["width"] == width].assign(ipc=lambda row: row["batch"] // 10, ms=lambda row: 1000 * row["seconds"])
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    columns = (
        ("syn_steps", rows[rows["batch"] == 100], "inner steps (ipc 10)"),
        ("ipc", rows[rows["syn_steps"] == 10], "images per class (10 inner steps)"),
    )
    for column, (x, chosen, label) in enumerate(columns):
        for line, (y, unit) in enumerate((("ms", "ms per inner step"), ("memory_mb", "peak memory, MiB"))):
            first = line == column == 0
            axis = axes[line, column]
            sns.lineplot(chosen, x=x, y=y, hue="variant", style="variant", markers=True, legend=first, ax=axis)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel=unit)
            sizes = sorted(chosen[x].unique())
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        axes[0, 0].set(yscale="linear", ylim=(0, None))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].get_legend().remove()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"ConvNet-3, width {width}, {result['machine']['device_name']}, {result['machine']['threads']} threads")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def plot_table(published: pd.DataFrame, records: Sequence[RunRecord], dataset: str) -> Figure:
    """Draws the published accuracies of a data set as bars, by images per class, and ours as points beside them.

    Args:
        published: of `tables.load_published`.
        records: those of other data sets, of scale "smoke" and with settings changed from their preset are left out.
        dataset: its name.
    """
    known = published[(published["dataset"] == dataset) & published["ipc"].isin([1, 10, 50])]
    own = [one for one in records if one.dataset == dataset and one.scale != "smoke" and not one.overrides]
    own = [one for one in own if one.ipc in (1, 10, 50)]
    methods = {*known["method"], *(record.method for record in own)}
    methods = sorted(methods, key=lambda name: (_mean_of(known, name), name))  # those without a number have a fixed order too
    ipcs = sorted({*known["ipc"], *(record.ipc for record in own)})
    figure, axes = plt.subplots(1, len(ipcs), figsize=(3.6 * len(ipcs), 0.3 * len(methods) + 1.3), sharey=True, squeeze=False)
    for axis, ipc in zip(axes[0], ipcs, strict=True):
        here = known[known["ipc"] == ipc]
        for label, chosen, hatch in (("published", "read in", None), ("published, not checked", UNVERIFIED, "///")):
            bars = here[here["check"].str.contains(chosen)].set_index("method")["mean"].reindex(methods)
            axis.barh(methods, bars.fillna(0), color="0.8", edgecolor="white", hatch=hatch, label=label)
        for scale, face in (("reduced", "none"), ("paper", None)):
            shown = [record for record in own if (record.ipc, record.scale) == (ipc, scale)]
            means = [record.accuracy_last["mean"] for record in shown]
            color = sns.color_palette(PALETTE)[3]
            axis.scatter(means, [record.method for record in shown], zorder=3, edgecolors=[color], facecolors=face or [color],
                         label=f"ours, {scale}" if shown else None)  # fmt: skip
        axis.set(title=f"{ipc} image{'s' if ipc > 1 else ''} per class", xlabel="test accuracy, %", xlim=(0, 100))
        axis.grid(axis="y", visible=False)
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    figure.suptitle(dataset)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def plot_comparison(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws every base method alone and in sequence: for each seed of distillation the mean and spread of its networks.

    Args:
        evidence: the records; methods without both runs are left out.
        dataset: its name.
        ipc: images per class.
        scale: of the runs.
    """
    figure, axis = plt.subplots(figsize=(8, 3.4))
    names = ("random_baseline", "accuracy_last", "accuracy_last", "accuracy_joint")
    kinds = dict(zip(("random real", "alone", "in stages", "jointly"), names, strict=True))
    ticks, labels = [], []
    for base in method_names():
        alone, sequence = (evidence.of_preset(dataset, ipc, prefix + base, scale) for prefix in ("", SEQUENTIAL_PREFIX))
        if not (alone and sequence):
            continue
        for column, ((kind, name), color) in enumerate(zip(kinds.items(), sns.color_palette(PALETTE), strict=False)):
            runs = alone if column < 2 else sequence
            found = [getattr(run, name) for run in runs]
            places = len(ticks) + 0.18 * (column - 1.5) + 0.05 * (np.arange(len(runs)) - (len(runs) - 1) / 2)
            means, stds = [one["mean"] for one in found], [one["std"] for one in found]
            axis.errorbar(places, means, stds, fmt="o", color=color, capsize=2, markersize=5, label=None if ticks else kind)
        ticks.append(len(ticks))
        seeds = " and ".join(map(str, dict.fromkeys((len(alone), len(sequence)))))
        labels.append(f"{base}\nseeds: {seeds}")
    axis.set_xticks(ticks, labels)
    axis.set(ylabel="test accuracy, %", title=f"{dataset}, {ipc} images per class, scale {scale}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="networks trained on")
    axis.grid(axis="x", visible=False)
    figure.tight_layout()
    return figure


def plot_order(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws what sets of equal size are worth that are divided or not, in sequence or not: a point a seed of distillation.

    Args:
        evidence: with records of `21_ablation_order`; each base method has a panel.
        dataset: its name.
        ipc: images per class.
        scale: of the runs.
    """
    rows = {
        method: [(name, one.seed, values) for one in found for name, values in one.accuracy.items()]
        for method, found in evidence.orders_of(dataset, ipc, scale).items()
    }
    return _plot_seeds(rows, f"{dataset}, {ipc} images per class, scale {scale}")


def plot_subsets(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws accuracy against K, the number of equal subsets, at a fixed number of images: points are seeds, lines means.

    Args:
        evidence: the records; each base method that was run with two or more K has a panel, K = 1 is the method alone.
        dataset: its name.
        ipc: images per class, of all subsets together.
        scale: of the runs.
    """
    panels: dict[str, dict[int, list[RunRecord]]] = {}
    for (method, count), sizes in runs_by_size(evidence, dataset, scale).items():
        if ipc in sizes:
            panels.setdefault(method.removeprefix(SEQUENTIAL_PREFIX), {})[count] = sizes[ipc]
    panels = {base: dict(sorted(counts.items())) for base, counts in panels.items() if len(counts) > 1}
    size = (1 + 2.4 * len(panels), 3.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    kinds = {"random real, in stages": "random_baseline", "in stages": "accuracy_last", "jointly": "accuracy_joint"}
    for axis, (base, counts) in zip(axes[0], panels.items(), strict=True):
        for (kind, name), marker, color in zip(kinds.items(), "osD", sns.color_palette(PALETTE), strict=False):
            found = [(run.num_subsets, getattr(run, name) or run.accuracy_last) for runs in counts.values() for run in runs]
            points = pd.DataFrame([(count, one["mean"]) for count, one in found], columns=["K", "accuracy"])
            sns.lineplot(points, x="K", y="accuracy", errorbar=None, color=color, label=kind, legend=False, ax=axis)
            axis.scatter(points["K"], points["accuracy"], color=[color], marker=marker, s=16)
        axis.set(title=base, xlabel="K, number of subsets", ylabel="test accuracy, %")
        axis.label_outer()
    whole_ticks(axes[0])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{dataset}, {ipc} images per class, scale {scale}")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def plot_effort(evidence: Evidence, dataset: str, ipc: int, scale: str) -> Figure:
    """Draws accuracies with the iterations and epochs of training behind them, as `compute` lists them: a point a seed.

    Args:
        evidence: the records; each base method that was run in sequence has a panel.
        dataset: its name.
        ipc: images per class.
        scale: of the runs.
    """
    rows: dict[str, list[tuple[str, int, list[float]]]] = {}
    sequences = set()
    for effort, found in efforts(evidence, dataset, ipc, scale).items():
        sizes = " + ".join(map(str, effort.sizes))
        name = f"{sizes} {effort.trained}, {sum(effort.iterations)} iterations, {effort.epochs} epochs"
        rows.setdefault(effort.base, []).extend((name, seed, values) for seed, (_, values) in found.items())
        if len(effort.sizes) > 1:
            sequences.add(effort.base)
    return _plot_seeds({base: rows[base] for base in rows if base in sequences}, f"{dataset}, scale {scale}")


def _plot_seeds(panels: Mapping[str, Sequence[tuple[str, int, list[float]]]], title: str) -> Figure:
    """Draws panels of rows (name, seed of distillation, accuracies of its networks): the means of seeds, and theirs.

    Args:
        panels: base method -> rows.
        title: follows the method.
    """
    seeds = sorted({seed for rows in panels.values() for _, seed, _ in rows})
    colors = dict(zip(seeds, sns.color_palette(PALETTE), strict=False))
    counts = [len({name for name, _, _ in rows}) for rows in panels.values()]
    size = (9, sum(0.8 + 0.3 * count for count in counts))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, sharex=True, height_ratios=counts)
    for axis, (method, rows) in zip(axes[:, 0], panels.items(), strict=True):
        means = [(name, seed, float(np.mean(values))) for name, seed, values in rows]
        frame = pd.DataFrame(means, columns=["set", "seed", "accuracy"])
        sns.stripplot(frame, x="accuracy", y="set", hue="seed", palette=colors, size=7, jitter=False, ax=axis)
        middle = frame.groupby("set", sort=False)["accuracy"].mean()
        axis.plot(middle, middle.index, "|", color="0.3", markersize=14, label="mean")
        axis.set(xlabel="test accuracy, %", ylabel="", title=f"{method}, {title}", ylim=(len(middle) - 0.5, -0.5))
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="seed")
    figure.tight_layout()
    return figure


def plot_lead(evidence: Evidence, dataset: str, scale: str) -> Figure:
    """Draws what methods gain over as many random real images, by images per class: a point a seed, a line through the means.

    Methods that were run at one size are left out; sequences, dashed and hollow, have the K of their presets.

    Args:
        evidence: the records.
        dataset: its name.
        scale: of the runs.
    """
    leads: dict[str, dict[int, list[float]]] = {}
    for (method, count), sizes in runs_by_size(evidence, dataset, scale).items():
        for ipc, runs in sizes.items():
            kept = [run for run in runs if count == 1 or not run.overrides]
            gains = [run.accuracy_last["mean"] - run.random_baseline["mean"] for run in kept]
            if gains:
                leads.setdefault(method, {})[ipc] = gains
    colors = dict(zip(method_names(), sns.color_palette(PALETTE), strict=False))
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for method, sizes in leads.items():
        if len(sizes) > 1:
            line, face = ("--", "none") if method.startswith(SEQUENTIAL_PREFIX) else ("-", None)
            color = colors[method.removeprefix(SEQUENTIAL_PREFIX)]
            axis.plot(sorted(sizes), [np.mean(sizes[ipc]) for ipc in sorted(sizes)], line, color=color, label=method)
            points = [(ipc, gain) for ipc, gains in sizes.items() for gain in gains]
            axis.scatter(*zip(*points, strict=True), edgecolors=[color], facecolors=face or [color], s=28, zorder=3)
    axis.axhline(0, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="images per class", ylabel="points over random images", title=f"{dataset}, scale {scale}")
    ticks = sorted({ipc for sizes in leads.values() if len(sizes) > 1 for ipc in sizes})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def _mean_of(published: pd.DataFrame, method: str) -> float:
    mean = published[published["method"] == method]["mean"].mean()
    return float("-inf") if pd.isna(mean) else mean


def plot_idea() -> Figure:
    """Draws what joint and sequential matching do: one set against the whole of training, or subsets in turn."""
    figure, axes = plt.subplots(2, 1, figsize=(7.5, 3.6), sharex=True)
    colors = sns.color_palette(PALETTE)
    rows = (
        ("MTT: one set", [("$S$", 0.0, 1.0, colors[0])]),
        ("SeqMatch: one subset after another", [("$S_1$", 0.0, 0.5, colors[0]), ("$S_1 \\cup S_2$", 0.5, 1.0, colors[1])]),
    )
    for axis, (title, pieces) in zip(axes, rows, strict=True):
        axis.annotate("", (1.03, 0), (0, 0), arrowprops={"arrowstyle": "->", "color": "black"})
        for label, first, last, color in pieces:
            axis.plot([first + 0.01, last - 0.01], [0.5, 0.5], linewidth=14, color=color, solid_capstyle="butt", alpha=0.85)
            axis.annotate(label, ((first + last) / 2, 0.5), ha="center", va="center", color="white")
        axis.set(title=title, xlim=(0, 1.05), ylim=(-0.2, 1))
        axis.set_axis_off()
    axes[1].annotate("training of a network on real data: easy, low-level features first, hard ones later",
                     (0.5, -0.45), xycoords="axes fraction", ha="center", fontsize=9)  # fmt: skip
    figure.tight_layout()
    return figure
