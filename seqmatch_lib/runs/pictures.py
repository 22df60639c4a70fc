"""The images of a distilled set as one looks at them."""

from pathlib import Path

import torch

from seqmatch_lib.data.datasets import ImageDataset, find_dataset, fit_preprocessing
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.store.sheets import read_sheet
from seqmatch_lib.subsets import load_sequence, set_path


def load_pictures(config: RunConfig, results_dir: Path, dataset: ImageDataset | None = None) -> list[torch.Tensor]:
    """Returns the images of each subset as (classes * ipc, C, H, W) pixels, sorted by class; those of real ones lie in [0, 1].

    Those of whitened images are read from the sheet beside the set; only where there is none, the data set is needed.

    Args:
        config: of the run.
        results_dir: that holds the distilled set.
        dataset: of the run; by default, what its name stands for.

    Raises:
        StorageError: the set or its sheet is missing or damaged.
        DataError: the data set is needed and not there.
    """
    spec = find_dataset(config.dataset) if dataset is None else dataset.spec
    path = set_path(results_dir, config.run_id)
    images, sheet = [subset.images for subset in load_sequence(path).subsets], path.with_suffix(".png")
    if config.zca and sheet.is_file():
        return read_sheet(sheet, config.subset_ipcs, spec.num_classes, tuple(images[0].shape[1:]))
    inverse = fit_preprocessing(spec, config.zca, dataset).inverse
    return [inverse(pixels) for pixels in images]
