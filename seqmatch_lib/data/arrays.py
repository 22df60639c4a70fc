"""Images that lie in memory, as a data set: tensors, numpy arrays, or a `torch.utils.data.Dataset`."""

import random
from operator import index
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from seqmatch_lib.data.datasets import OWN_MEAN, OWN_STD, DatasetSpec, ImageDataset, Split, fingerprint
from seqmatch_lib.data.readers import GREY, convert
from seqmatch_lib.errors import DataError, first_line, require

Arrays = tuple[Any, Any]  # images and labels, tensors or numpy arrays


def dataset_from_arrays(train: Arrays | Dataset, test: Arrays | Dataset) -> ImageDataset:
    """Makes a data set of images in memory; it is called "arrays", and its classes by the numbers of their labels.

    Args:
        train: (images, labels): (N, C, H, W) uint8 in 0 … 255, or floats in [0, 1], which are rounded to 8 bits; (N,) whole
            numbers. uint8 images whose largest value is 1 are refused: 1 is probably meant as white, but 255 is white.
            Or a `torch.utils.data.Dataset` of pairs of an image, an array (C, H, W) or a picture of Pillow's, and a class.
        test: the same; its images have the shape of those of `train`.

    Raises:
        DataError: another shape or type than those, pixels beyond their range, labels that are no whole numbers from 0 up.
    """
    train, test = _to_split(train, "train"), _to_split(test, "test")
    num_classes = len(train.labels.unique())  # the largest label may be of any size
    _check_classes(train.labels, "train", num_classes)
    _check_classes(test.labels, "test", num_classes)
    shape, test_shape = (tuple(part.images.shape[1:]) for part in (train, test))
    require(test_shape == shape, f"test has images of shape {test_shape}, train of {shape}; bring them to one", DataError)
    mean_std = ((OWN_MEAN,) * shape[0], (OWN_STD,) * shape[0])
    spec = DatasetSpec("arrays", num_classes, shape, *mean_std, len(train), len(test))
    names = tuple(map(str, range(num_classes)))
    return ImageDataset(spec, train, test, names, "arrays", fingerprint(train, test), ())


def _to_split(part: Arrays | Dataset, which: str) -> Split:
    try:
        images, labels = _to_tensors(part)
    except (TypeError, ValueError, RuntimeError) as error:  # whatever numpy, torch and Pillow make of what is no array
        rule = "must be a pair (images, labels) of arrays of numbers, or a Dataset of pairs (image, class number)"
        raise DataError(f"{which} {rule} with images of one size, but is not: {first_line(error)}") from error
    shape = tuple(images.shape)
    require(0 not in shape, f"{which} has images of shape {shape}, so none; give at least one of each class", DataError)
    if len(shape) != 4 or shape[1] not in (1, 3):
        rule = "they must be (N, C, H, W) with 1 or 3 channels C"
        remedy = "; add the channels with images[:, None]" if len(shape) == 3 else ""
        if shape[3:] in ((1,), (3,)):
            remedy = "; put the channels first with torch.as_tensor(images).permute(0, 3, 1, 2)"
        raise DataError(f"{which} has images of shape {shape}; {rule}{remedy}")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool)
    if not (labels.dim() == 1 and whole and len(labels) > 0):
        description = f"{labels.dtype} and shape {tuple(labels.shape)}"
        remedy = "; if they are class numbers, take torch.as_tensor(labels).long()" if labels.dim() == 1 else ""
        if labels.dim() == 2:
            remedy = "; take labels[:, 0]" if labels.shape[1] == 1 else "; take labels.argmax(1) of one-hot rows"
        raise DataError(f"{which} has labels of {description}; they must be (N,) whole numbers{remedy}")
    counts = f"{which} has {len(images)} images and {len(labels)} labels"
    require(len(images) == len(labels), f"{counts}; give each image one label", DataError)
    # clones: what was made in torch's inference mode cannot take part in training
    return Split(_to_bytes(images, which), labels.long().cpu().clone())


def _check_classes(labels: torch.Tensor, which: str, num_classes: int) -> None:
    """Raises DataError unless the labels are 0 … num_classes - 1, each at least once."""
    found = labels.unique()
    first, last = found[[0, -1]].tolist()
    missing = [label for label in range(num_classes) if label not in found]
    remedy = "number the classes alike in train and test, without gaps, and give images of each in both"
    remedy = f"no image has label {missing[0]}: {remedy}" if missing else remedy
    if first < 0:
        remedy = f"leave out images without a class, or add {-first} to all of them"
    elif first > 0 and (found - first).equal(torch.arange(num_classes)):
        remedy = f"subtract {first} from all of them"
    rule = f"which must be 0 … {num_classes - 1}, each at least once"
    problem = f"{which} has labels from {first} to {last}, {rule}; {remedy}"
    require(found.equal(torch.arange(num_classes)), problem, DataError)


def _to_tensors(part: Arrays | Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images and labels; errors are those of Python and of other libraries."""
    if isinstance(part, Dataset):
        before = _random_states()
        pairs = [part[row] for row in range(len(part))]
        if before != _random_states():
            raise TypeError("it draws random numbers, so each reading has other images; leave out its random transforms")
        if any(isinstance(pair, dict) for pair in pairs[:1]):  # as those of Hugging Face
            raise TypeError(f"its items are dictionaries of {', '.join(map(str, pairs[0]))}; make pairs of them")
        part = torch.stack([_to_tensor(image) for image, _ in pairs]), torch.tensor([index(label) for _, label in pairs])
    if isinstance(part, DataLoader):
        raise TypeError("it is a DataLoader; give its `dataset`")
    images, labels = (array.detach() if torch.is_tensor(array) else _from_numpy(array) for array in part)
    return images, labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def _random_states() -> tuple[Any, ...]:
    """Returns the states of all generators that a transform can draw from unless it has its own."""
    _, keys, position, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), position


def _from_numpy(array: Any) -> torch.Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype.kind in "US":
        raise TypeError("it holds texts; number the classes with numpy.unique(labels, return_inverse=True)[1]")
    return torch.as_tensor(array)


def _to_tensor(image: Any) -> torch.Tensor:
    """Returns (C, H, W) of an array, or of a picture, whose channels come last."""
    if not isinstance(image, Image.Image):
        return image if torch.is_tensor(image) else torch.from_numpy(np.array(image))
    # the numbers of some modes are no colours, but places in a palette
    pixels = torch.from_numpy(np.array(convert(image, "L" if image.mode in GREY else "RGB")))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def _to_bytes(images: torch.Tensor, which: str) -> torch.Tensor:
    if images.dtype is torch.uint8:
        # all zeros are black in either range
        problem = f"{which} has uint8 pixels of 0 and 1 alone, which are all but black where white is 255"
        require(int(images.max()) != 1, f"{problem}; multiply them by 255, or give them as floats", DataError)
        return images.cpu().contiguous()
    if not images.is_floating_point():
        raise DataError(f"{which} has images of {images.dtype}; they must be uint8, or floats in [0, 1]")
    low, high = float(images.min()), float(images.max())
    count = int((~images.isfinite()).sum())
    require(count == 0, f"{which} has {count} values that are not finite (nan, inf); replace them", DataError)
    remedy = "floats must lie in [0, 1], so divide by 255, undo a normalisation, or give uint8"
    require(low >= 0 and high <= 1, f"{which} has pixels from {low:.4g} to {high:.4g}; {remedy}", DataError)
    pixels = (255 * images).round().to(torch.uint8)
    problem = f"{which} has pixels of at most {high:.4g}, which are all but black where white is 1"
    require(int(pixels.max()) != 1, f"{problem}; divide by 255 only once, or give uint8", DataError)
    return pixels.cpu().contiguous()
