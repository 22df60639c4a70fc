"""The images of a distilled set as one looks at them."""

from pathlib import Path

import torch

from seqmatch_lib.data.datasets import DatasetSpec, ImageDataset, find_dataset, fit_preprocessing, load_dataset
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.real_data import check_origin, prepare_data
from seqmatch_lib.store.sheets import read_sheet
from seqmatch_lib.subsets import SubsetSequence, load_sequence, set_path


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
    sequence, sheet = load_sequence(path), path.with_suffix(".png")
    if config.zca and sheet.is_file():
        return read_sheet(sheet, config.subset_ipcs, spec.num_classes, tuple(sequence.subsets[0].images.shape[1:]))
    inverse = preprocessing_of(sequence, config, spec, dataset).inverse
    return [inverse(subset.images) for subset in sequence.subsets]


def preprocessing_of(
    sequence: SubsetSequence, config: RunConfig, spec: DatasetSpec, dataset: ImageDataset | None = None
) -> Preprocessing:
    """Returns what was done to the pixels of a set; only whitening needs the data set, which is loaded if it is not given.

    Raises:
        DataError: the data set is needed and not there, or the set was distilled from other images.
    """
    if not config.zca:
        return fit_preprocessing(spec, False)
    data = prepare_data(dataset or load_dataset(spec), config.zca, config.select_on, torch.device("cpu"))
    check_origin(sequence, data)  # whitening fitted on other images gives other colours
    return data.preprocessing
