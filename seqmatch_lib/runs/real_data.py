"""The real images of a run: split, preprocessed, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seqmatch_lib.data.datasets import ImageDataset, Split, fit_preprocessing, split_validation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.engine.networks import NetworkConfig, check_networks
from seqmatch_lib.errors import DataError, require
from seqmatch_lib.subsets import SubsetSequence

VALIDATION_SHARE = 0.1  # of the training images, where iterates are selected on validation images
OLD_IMAGES = {  # source of the images that were found -> how to give those of a distilled set instead
    "image folder": "give --images a folder with the same pictures as then, or ",
    "arrays": "give the same dataset as then, or ",
    "built in": "",
}


@dataclass(frozen=True)
class RealData:
    """The real images of a run, preprocessed, on the device.

    Args:
        train: what teachers learn and synthetic images start from.
        selection: what iterates are selected on, or None.
        test: the whole test split.
        num_classes: number of classes.
        preprocessing: what was done to the pixels.
        identity: JSON values that decide `train`.
        summary: what the record says of the data.
        class_names: one a class.
    """

    train: Split
    selection: Split | None
    test: Split
    num_classes: int
    preprocessing: Preprocessing
    identity: dict[str, Any]
    summary: dict[str, Any]
    class_names: list[str]

    @property
    def has_pixel_labels(self) -> bool:
        """Whether labels are of pixels instead of images."""
        return self.test.labels.dim() > 1

    def check_networks(self, configs: Sequence[NetworkConfig]) -> None:
        """Raises ConfigError unless networks of these architectures map the images to logits for their kind of labels."""
        check_networks(configs, tuple(self.test.images.shape[1:]), self.num_classes, self.has_pixel_labels)


def prepare_data(dataset: ImageDataset, zca: bool, select_on: str, device: torch.device) -> RealData:
    """Splits and preprocesses a data set; ZCA is fitted on the whole training set, as in the public code."""
    preprocessing = fit_preprocessing(dataset.spec, zca, dataset)

    def ready(split: Split) -> Split:
        return Split(preprocessing(split.images).to(device), split.labels.to(device))

    train, selection = dataset.train, None
    if select_on == "validation":
        tested = dataset.holds_out_test
        train, validation = split_validation(train, VALIDATION_SHARE, dataset.class_names, tested, taken=int(tested))
        selection = ready(validation)
    test = ready(dataset.test)
    identity = {
        "dataset": dataset.spec.name,
        "fingerprint": dataset.fingerprint,
        "preprocessing": preprocessing.describe(),
        "held_out": len(dataset.train) - len(train),
    }
    summary = identity | {
        "source": dataset.source,
        "train_images": len(train),
        "test_images": len(dataset.test),
        "notices": list(dataset.notices),
    }
    selection = test if select_on == "test" else selection
    names = list(dataset.class_names)
    return RealData(ready(train), selection, test, dataset.spec.num_classes, preprocessing, identity, summary, names)


def check_origin(sequence: SubsetSequence, data: RealData) -> None:
    """Raises DataError unless a set was distilled from these images, preprocessed alike.

    A set from elsewhere does not say of which images it was made, and is let through.
    """
    then, now = sequence.metadata.get("data", data.summary), data.summary
    name = f"the set of {sequence.metadata['run_id']}" if "run_id" in sequence.metadata else "the set"
    before, found = (f"{part.get('train_images')} to train and {part.get('test_images')} to test" for part in (then, now))
    found = "the same numbers, but other images" if found == before else found
    remedy = OLD_IMAGES.get(now["source"], "set SEQMATCH_DATA to them, or ") + "distil these into another results folder"
    problem = f"was distilled from other {then.get('dataset', now['dataset'])} images ({before}) than those found ({found})"
    require(then["fingerprint"] == now["fingerprint"], f"{name} {problem}; {remedy}", DataError)
    before, found = (part.get("preprocessing", now["preprocessing"]) for part in (then, now))
    problem = f"was distilled from these images preprocessed with {before}, not with {found}"
    require(before == found, f"{name} {problem}; leave out `dataset`, so that they are read by their name", DataError)
