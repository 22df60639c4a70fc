"""Pictures of committed distilled sets, one image of every class in a row."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from seqmatch_lib.data.datasets import find_dataset, fit_preprocessing
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX
from seqmatch_lib.runs.records import changes_of, load_runs
from seqmatch_lib.subsets import load_sequence

GAP = 4  # white pixels between two images


def plot_distilled(results_dir: Path | str = "paper_results", dataset: str = "cifar10") -> Figure:
    """Draws the first image of every class of the distilled sets of a results folder, a row for each subset.

    Args:
        results_dir: folder of records and distilled sets; sets of whitened images and of changed presets are left out.
        dataset: that the sets were distilled from.

    Raises:
        StorageError: the folder has no such set.
    """
    rows = list(_rows(Path(results_dir), dataset))
    require(bool(rows), f"{Path(results_dir) / 'distilled'} has no set of {dataset} as its preset makes it", StorageError)
    names = next((names for _, _, names in rows if names), [str(label) for label in range(len(rows[0][1]))])
    side = rows[0][1].shape[2] + GAP
    grid = torch.ones(3, side * len(rows), side * len(names))
    for row, (_, pixels, _) in enumerate(rows):
        for column, image in enumerate(pixels):
            top, left = side * row + GAP // 2, side * column + GAP // 2
            grid[:, top : top + side - GAP, left : left + side - GAP] = image
    figure, axis = plt.subplots(figsize=(0.62 * len(names) + 2.2, 0.62 * len(rows) + 0.4))
    axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_xticks([side * (column + 0.5) for column in range(len(names))], names, fontsize=8)
    axis.set_yticks([side * (row + 0.5) for row in range(len(rows))], [label for label, _, _ in rows], fontsize=9)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.set_frame_on(False)
    figure.tight_layout()
    return figure


def _rows(results_dir: Path, dataset: str) -> Iterator[tuple[str, torch.Tensor, list[str]]]:
    """Yields label, (classes, C, H, W) pixels and class names, if the set has them, for each subset of each set."""
    runs = {run.run_id: run for run in load_runs(results_dir) if run.dataset == dataset and not changes_of(run)}
    spec = find_dataset(dataset)
    for path in sorted((results_dir / "distilled").glob(f"{dataset}-*.safetensors"), key=lambda path: path.stem.split("-")[1]):
        run, sequence = runs.get(path.stem), load_sequence(path)
        if run is None or run.config["zca"]:
            continue
        to_pixels = fit_preprocessing(spec, torch.empty(0), zca=False).inverse
        prefix = "SeqMatch-" if run.method.startswith(SEQUENTIAL_PREFIX) else ""
        label = f"{prefix}{run.method.removeprefix(SEQUENTIAL_PREFIX).upper()}, {run.accuracy_last['mean']:.1f} %"
        for k, subset in enumerate(sequence.subsets, start=1):
            first = to_pixels(subset.images.unflatten(0, (spec.num_classes, -1))[:, 0])
            subset_label = f"{label}, $S_{k}$" if len(sequence.subsets) > 1 else label
            yield subset_label, first.clamp(0, 1), sequence.metadata.get("class_names", [])
