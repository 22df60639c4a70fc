"""Figures of the notebooks: distilled images, loss curves, accuracy bars, and the sketch of the method."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from math import ceil, log
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from seqmatch_lib.data.datasets import ImageDataset
from seqmatch_lib.data.labels import image_classes
from seqmatch_lib.engine.evaluation import format_mean
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.report.controls import ONE_SET, RANDOM, STAGED
from seqmatch_lib.report.looks import PALETTE, look_of
from seqmatch_lib.report.texts import name_of
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX
from seqmatch_lib.runs.records import RunRecord

WHITE_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a text, so that no grid crosses it
PANELS_IN_ROW = 3
LEGEND_ROWS = 6  # for which the figures with a legend below have room
SPREAD = "error bars: standard deviation over seeds, or over networks of one seed"


def set_style() -> None:
    """Sets seaborn's style for all figures: white ground, colours that colour-blind readers can tell apart."""
    options = {"figure.dpi": 110, "savefig.dpi": 200, "figure.titlesize": 12}
    options["svg.hashsalt"] = "seqmatch"  # without salt, ids in SVG files are random
    sns.set_theme(style="whitegrid", context="notebook", palette=PALETTE, rc=options)


def save_figure(figure: Figure, stem: Path, kinds: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Writes a figure as `stem` with each of these endings and returns the paths; equal figures become equal files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in kinds]
    for path in paths:
        figure.savefig(path, metadata={"Date": None})  # the time of writing is no part of the figure
    return paths


def whole_ticks(axes: Iterable[Axes]) -> None:
    """Puts ticks at whole numbers on the x axis, for counts such as epochs, stages and images."""
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def legend_below(figure: Figure, axes: Iterable[Axes], title: str, note: str = "") -> None:
    """Puts one legend for all axes below them, with a note on how to read it, and a title above."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles = dict(sorted(handles.items(), key=lambda one: isinstance(one[1], Line2D)))  # points first, then lines
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.7 + 0.085 * max(map(len, handles))))))
    more = max(0, ceil(len(handles) / columns) + len(note.splitlines()) - LEGEND_ROWS)
    figure.set_figheight(figure.get_figheight() + 0.25 * more)  # a long legend takes no height from the panels
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.06)
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(handles.values(), handles.keys(), title=note, title_fontsize="medium", **place)
    figure.suptitle(title)


def show_examples(
    dataset: ImageDataset, read: Callable[[torch.Tensor], str] | None = None, rows: Sequence[str] = ()
) -> Figure:
    """Draws the first training image of every class; where every pixel has a label, the labels below it, ignored ones white.

    Args:
        dataset: whose images are drawn.
        read: image -> what stands in it, for the title.
        rows: names of the rows of pixels, from the top.
    """
    images, labels = dataset.train.images, dataset.train.labels
    classes = image_classes(labels)
    firsts = [int((classes == label).nonzero()[0]) for label in range(len(dataset.class_names))]
    dense = labels.dim() > 1
    height, width = images.shape[2:]
    size = (1.1 * len(firsts), (1 + dense) * (0.3 + (2.0 if rows else 1.1) * height / width))
    figure, axes = plt.subplots(1 + dense, len(firsts), figsize=size, squeeze=False)
    for column, (index, name) in enumerate(zip(firsts, dataset.class_names, strict=True)):
        pixels = images[index].movedim(0, -1).squeeze(-1)
        axes[0, column].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto" if rows else None)
        axes[0, column].set_title(f"{name}\n{read(images[index])}" if read else name, fontsize=9)
        if dense:
            known = np.ma.masked_less(labels[index].numpy(), 0)
            axes[1, column].imshow(known, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
    axes[0, 0].set_yticks(range(len(rows)), rows, fontsize=7)
    for axis, name in zip(axes[:, 0], ("image", "labels") if dense else (), strict=False):
        axis.set_ylabel(name)
    figure.tight_layout()
    return figure


def show_pictures(
    blocks: Mapping[str, torch.Tensor],
    class_names: Sequence[str],
    title: str = "",
    max_per_class: int = 10,
    classes: Sequence[int] | None = None,
) -> Figure:
    """Draws several sets of pictures side by side, a row for each class.

    Args:
        blocks: name -> (classes * ipc, C, H, W) pixels, sorted by class; they are clipped to [0, 1]. A line of the name ends
            at ", ", and a method is written as papers do.
        class_names: one a label.
        title: of the figure.
        max_per_class: images per class shown of each set.
        classes: labels to show, in this order; all by default.
    """
    shown = list(range(len(class_names)) if classes is None else classes)
    columns = [min(max_per_class, len(pixels) // len(class_names)) for pixels in blocks.values()]
    widths = [max(count, 3) for count in columns]  # room for the name of a block
    size = (0.45 * sum(widths) + 0.3 * len(widths) + 1.2, 0.45 * len(shown) + 0.9)
    figure, axes = plt.subplots(1, len(widths), figsize=size, squeeze=False, width_ratios=widths)
    for number, (axis, (name, pixels), count) in enumerate(zip(axes[0], blocks.items(), columns, strict=True)):
        by_class = pixels.clamp(0, 1).unflatten(0, (len(class_names), -1))[shown, :count]
        height = pixels.shape[2]
        gap = max(1, height // 16)  # white pixels between images
        tiles = torch.nn.functional.pad(by_class, (0, gap, 0, gap), value=1.0)  # (rows, columns, C, H, W)
        grid = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)[:-gap, :-gap].numpy()
        axis.imshow(grid.squeeze(-1) if grid.shape[2] == 1 else grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _draw_frames(axis, grid.shape, pixels.shape[2:], gap)
        names = [class_names[label] for label in shown] if number == 0 else []
        axis.set(xticks=[], yticks=[(height + gap) * row + height / 2 for row in range(len(names))], yticklabels=names)
        axis.grid(False)
        axis.tick_params(left=False)
        sns.despine(ax=axis, left=True, bottom=True)
        method, *more = name.split(", ")
        axis.set_title("\n".join([name_of(method), *more]), fontsize=10)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def _draw_frames(axis: Axes, shape: Sequence[int], size: Sequence[int], gap: int) -> None:
    """Draws a frame around each picture of a grid: without it, one that is white at its border looks cut off."""
    tops, lefts = (range(0, whole, one + gap) for whole, one in zip(shape, size, strict=False))
    frames = [Rectangle((left - 0.5, top - 0.5), size[1], size[0]) for top, left in product(tops, lefts)]
    axis.add_collection(PatchCollection(frames, facecolor="none", edgecolor="0.75", linewidth=0.6, clip_on=False))


def plot_losses(records: Mapping[str, RunRecord], window: int = 20, axis: Axes | None = None, title: str = "") -> Axes:
    """Draws the matching loss of every stage against the iterations of the run, smoothed.

    Args:
        records: label -> record of a distilled set.
        window: iterations over which the running mean is taken.
        axis: to draw into; a new one by default.
        title: of the axes.
    """
    axis = axis or plt.subplots(figsize=(7, 3.5))[1]
    for (label, record), color in zip(records.items(), sns.color_palette(PALETTE), strict=False):
        first = 0
        for k, losses in enumerate((stage["losses"] for stage in record.stages), start=1):
            width = min(window, len(losses))
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            name = label if len(record.stages) == 1 else f"{label}, $S_{k}$".lstrip(", ")
            style = ("-", "--", ":", "-.")[(k - 1) % 4]
            axis.plot(np.arange(len(smooth)) + first + width, smooth, style, color=color, label=name)
            first += len(losses)
    axis.set(xlabel="iteration", ylabel=f"matching loss\n(mean over {window} iterations)", title=title)
    axis.legend(frameon=False)
    return axis


def plot_accuracies(
    accuracies: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, float] | None = None,
    axis: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draws accuracies as points with their standard deviation and n, and a line for a reference.

    Args:
        accuracies: label -> `{mean, std, n}` in per cent, as records hold them.
        reference: the same for the whole data set.
        axis: to draw into; a new one by default.
        title: of the axes.
    """
    axis = axis or plt.subplots(figsize=(7, 3.5))[1]
    near = {"textcoords": "offset points", "fontsize": 9, "bbox": WHITE_BOX}
    for place, one in enumerate(accuracies.values()):
        axis.errorbar(place, one["mean"], one["std"], fmt="o", color="0.2", capsize=4)
        text = f"{format_mean(one)}\nn = {one['n']}"
        axis.annotate(text, (place, one["mean"]), xytext=(9, 0), va="center", **near)
    if reference is not None:
        axis.axhline(reference["mean"], color="black", linestyle="--", linewidth=1)
        axis.annotate(f"whole data set {reference['mean']:.1f} %", (-0.4, reference["mean"]), xytext=(0, 4), **near)
    places = range(len(accuracies))
    axis.set(ylabel="test accuracy, %", title=title, xlim=(-0.5, len(accuracies) - 0.3), xticks=places)
    axis.set_xticklabels(accuracies)
    axis.margins(y=0.2)
    axis.grid(axis="x", visible=False)
    return axis


def plot_transfer(frame: pd.DataFrame, title: str) -> Figure:
    """Draws a frame of `queries.transfer`: accuracies of several architectures, beside random real images."""
    names, methods = list(dict.fromkeys(frame["network"])), list(dict.fromkeys(frame["method"]))
    require(bool(methods), "no set was evaluated on two architectures; run the notebook with compute = True", StorageError)
    figure, axes = plt.subplots(1, len(methods), figsize=(2.2 + 2.8 * len(methods), 3.6), sharey=True, squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):
        rows = frame[frame["method"] == method].set_index("network").reindex(names)
        distilled = STAGED if method.startswith(SEQUENTIAL_PREFIX) else ONE_SET
        for kind, shift, label in (("accuracy", -0.08, distilled), ("random", 0.08, RANDOM)):
            places, spread = [place + shift for place in range(len(names))], rows[f"{kind}_std"].fillna(0)
            axis.errorbar(places, rows[kind], spread, capsize=2, label=label, **look_of(label) | {"linestyle": ""})
        axis.set(title=name_of(method), ylabel="test accuracy, %", xlim=(-0.5, len(names) - 0.5))
        axis.set_xticks(range(len(names)), map(name_of, names))
        axis.label_outer()
    legend_below(figure, axes.flat, title, SPREAD)
    return figure


def plot_gradients(frame: pd.DataFrame, title: str) -> Figure:
    """Draws a frame of `findings.list_gradients`: a row a quantity, a column a start epoch.

    Thick lines are means over the teachers at which the quantities were measured, thin ones these teachers.
    """
    looks = {name: look_of(name) for name in frame["images"].unique()}
    colors, markers = ({name: look[key] for name, look in looks.items()} for key in ("color", "marker"))
    common = {"x": "ipc", "y": "value", "hue": "images", "palette": colors}
    grid = sns.relplot(
        frame, row="quantity", col="start epoch", kind="line", style="images", markers=markers, dashes=False, errorbar=None,
        height=2.5, facet_kws={"sharey": "row"}, **common,
    )  # fmt: skip
    grid.set_titles("start epoch {col_name}").set_xlabels("images per class")
    for (quantity, epoch), axis in grid.axes_dict.items():
        cell = frame[(frame["quantity"] == quantity) & (frame["start epoch"] == epoch)]
        thin = {"units": "teacher", "estimator": None, "linewidth": 0.8, "alpha": 0.6}
        sns.lineplot(cell, **common, **thin, legend=False, ax=axis)
        axis.axhline(0.5 if quantity == "c(A|B)" else 0, color="black", linewidth=0.8)
    for axes, quantity in zip(grid.axes, dict.fromkeys(frame["quantity"]), strict=True):
        axes[0].set_ylabel(quantity)
    whole_ticks(grid.axes.flat)
    measured = frame["teacher"].nunique()
    grid.figure.suptitle(f"{title}; measured with {measured} teacher{'s' * (measured > 1)}", y=1.03)
    return grid.figure


def plot_image_losses(frame: pd.DataFrame, title: str, num_classes: int) -> Figure:
    """Draws a frame of `findings.list_losses`: a panel for each training, with a line for easy and one for hard real images.

    The black line is the loss of equal probabilities for all classes.
    """
    trainings, styles = list(dict.fromkeys(frame["training"])), {"easy": ("--", "white"), "hard": ("-", None)}
    rows, columns = ceil(len(trainings) / PANELS_IN_ROW), min(len(trainings), PANELS_IN_ROW)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.7 * rows + 0.8), sharey=True, squeeze=False)
    for place, (axis, training) in enumerate(zip(axes.flat, trainings, strict=False)):
        look = look_of(training)
        for images, curve in frame[frame["training"] == training].groupby("images"):
            line, face = styles[images]
            style = look | {"linestyle": line, "markerfacecolor": face or look["color"]}
            axis.plot(curve["step"], curve["loss"], **style)
        axis.axhline(log(num_classes), color="black", linewidth=0.8, zorder=1)
        axis.set(title=training, xlabel="stage of training" if place else "epoch of training")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean loss of real images")
    for axis in axes.flat[len(trainings) :]:
        axis.remove()
    for images, (line, face) in styles.items():
        axes[0, 0].plot([], [], line, marker="o", color="0.3", markerfacecolor=face or "0.3", label=f"{images} images")
    whole_ticks(axes.flat[: len(trainings)])
    legend_below(figure, axes.flat[:1], title)
    return figure


def plot_errors(frame: pd.DataFrame, title: str) -> Figure:
    """Draws a frame of `findings.list_errors`: distilled images, and on axes of their own random real ones and real training.

    Bands span the teachers. At an error of 1, the grey line, a student does not move.
    """
    names = {"random real": "random real images", "real training": "real training, other batches"}
    kinds = frame["set"].map(lambda name: next((kind for part, kind in names.items() if part in name), "distilled images"))
    panels = dict(iter(frame.groupby(kinds, sort=False)))
    width = 9.6 if len(panels) > 1 else 6.0
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 4.6), squeeze=False)
    for axis, (kind, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axhline(1, color="0.5", linewidth=0.8, zorder=1)  # below a set that lies on it
        for name, rows in panel.groupby("set", sort=False):
            errors, look = rows.groupby("epoch")["error"].agg(["mean", "min", "max"]), look_of(name)
            axis.plot(errors.index, errors["mean"], label=name, **look)
            axis.fill_between(errors.index, errors["min"], errors["max"], color=look["color"], alpha=0.15, linewidth=0)
        axis.set(title=kind, xlabel="start epoch of the teacher", xticks=sorted(set(frame["epoch"])))
    axes[0, 0].set_ylabel("matching error (1: not moved)")
    legend_below(figure, axes[0], title)
    return figure


def plot_deciles(frame: pd.DataFrame, title: str) -> Figure:
    """Draws a frame of `findings.list_deciles`: a line for each training. Bands are the standard deviation over networks."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    for name, rows in frame.groupby("training", sort=False):
        gains, look = rows.groupby("decile")["gain"].agg(["mean", "std"]).fillna(0), look_of(name)
        axis.plot(gains.index, gains["mean"], label=name, **look)
        band = gains["mean"] - gains["std"], gains["mean"] + gains["std"]
        axis.fill_between(gains.index, *band, color=look["color"], alpha=0.15, linewidth=0)
    axis.axhline(0, color="black", linewidth=0.8, zorder=1)
    axis.set(xlabel="difficulty of test images (0: the easiest tenth)", ylabel="points more than after stage 1")
    axis.set_xticks(sorted(set(frame["decile"])))
    legend_below(figure, [axis], title)
    return figure


def plot_benchmark(result: Mapping[str, Any]) -> Figure:
    """Draws time and memory of the inner loop against its steps and against ipc, for every variant that was measured.

    `result` is of `bench.run_benchmark`; the width with most sizes is drawn.
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
            axis, legend = axes[line, column], line == column == 0
            sns.lineplot(chosen, x=x, y=y, hue="variant", style="variant", markers=True, legend=legend, ax=axis)
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


def plot_idea() -> Figure:
    """Draws what joint and sequential matching do: one set against a whole training, or subsets against trainings in turn."""
    rows = (  # title, begin of the training, what is matched with it, what has its colour
        ("MTT: teachers begin untrained", 0.0, "$S$", ONE_SET),
        ("SeqMatch, first subset: teachers begin untrained", 0.0, "$S_1$", "$S_1$"),
        ("SeqMatch, second subset: teachers begin with what networks learn from $S_1$", 0.3, r"$S_1 \cup S_2$", STAGED),
    )
    figure, axes = plt.subplots(len(rows), 1, figsize=(7.5, 3.9), sharex=True)
    for axis, (title, begin, name, drawn_as) in zip(axes, rows, strict=True):
        bar = {"linewidth": 14, "color": look_of(drawn_as)["color"], "solid_capstyle": "butt", "alpha": 0.85}
        axis.annotate("", (1.03, 0), (begin, 0), arrowprops={"arrowstyle": "->", "color": "black"})
        axis.plot([begin + 0.01, 1.0], [0.5, 0.5], **bar)
        axis.annotate(name, ((begin + 1) / 2, 0.5), ha="center", va="center", color="black")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(xlim=(0, 1.05), ylim=(-0.2, 1))
        axis.set_axis_off()
    axes[-1].annotate("epochs of training on real data: networks learn easy, low-level features first, hard ones later",
                      (0.5, -0.5), xycoords="axes fraction", ha="center", fontsize=9)  # fmt: skip
    figure.tight_layout()
    return figure
