"""Data sets: by name from torchvision's layouts or parquet shards, built in, or an image folder of one's own."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqmatch_lib.data.builtin import NAME_SHAPE, read_canvas_digits, read_digits, read_place_names
from seqmatch_lib.data.folders import (
    TEST_FOLDERS,
    class_folders,
    describe_left_out,
    find_test_folders,
    match_classes,
    read_class_folders,
    read_tiny_imagenet,
)
from seqmatch_lib.data.labels import IGNORED, Split, image_classes
from seqmatch_lib.data.preprocessing import Normalisation, Preprocessing, Whitening
from seqmatch_lib.data.readers import (
    READABLE,
    agree_on_names,
    count_shards,
    find_shards,
    list_images,
    read_header,
    read_shards,
)
from seqmatch_lib.errors import DataError, require
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.checksums import NAME as SHA256SUMS
from seqmatch_lib.store.checksums import check_files
from seqmatch_lib.store.settings import is_file_name

OWN_MEAN, OWN_STD = 0.5, 0.25  # of every channel of images of one's own
# what images are held out for, and how to have none held out
FOR_TESTING = "for testing (none if there is a test folder beside train)"
FOR_VALIDATION = "for validation (none with --set select_on=none)"


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before its files are read.

    Args:
        name: by which it is loaded.
        num_classes: labels are 0 … num_classes - 1.
        shape: (C, H, W) of an image.
        mean: and `std`: per channel, of pixels in [0, 1]; the field's customary values where there are any.
        train_size: and `test_size`: images of the whole splits; 0 where they are not known.
        folder: of an image folder of one's own; None for data sets found by their name.
        resize: whether the images of that folder are brought to the size of `shape`.
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int = 0
    test_size: int = 0
    folder: Path | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        if not is_file_name(self.name):  # it becomes part of the names of files
            raise DataError(
                f"data set name {self.name!r:.120} must consist of letters, digits, '_', '.' and '-', and of 100 at most; "
                "give another one (--name NAME on the command line)"
            )
        problem = f"data set {self.name!r} has {self.num_classes} class{'es' * (self.num_classes != 1)}"
        require(self.num_classes >= 2, f"{problem}; at least two are needed", DataError)

    @classmethod
    def from_folder(cls, path: Path | str, image_size: int | None = None, name: str | None = None) -> "DatasetSpec":
        """Describes `<path>/train/<class>/*` and, if there is one, `<path>/test/<class>/*`, or `val` in its place.

        Args:
            path: the folder; class names are those of the folders below `train`, in alphabetical order, or by number where
                they are called 0, 1, 2, …. Images are what `IMAGE_FORMATS` of `readers` names; hidden files and folders,
                whose names begin with a dot, are not read.
            image_size: side of the square that every image is scaled and cut to; None if all have one size already.
            name: of the data set in records; that of the folder by default.

        Raises:
            DataError: no class folders, no images, or one that cannot be read.
        """
        path = Path(path)
        require(image_size is None or image_size >= 1, f"image_size {image_size} must be at least 1", DataError)
        has_train = (path / "train").is_dir()
        require(has_train, f"{path} has no folder train; give the folder that holds train/<class>/ with the images", DataError)
        classes = class_folders(path / "train")
        files = [file for folder in classes for file in list_images(folder)]
        if not files:
            raise DataError(f"the class folders of {path / 'train'} hold no images that can be read ({READABLE}); add some")
        (width, height), grey = read_header(files[0], decode=True)
        if image_size is not None:
            width = height = image_size
        channels = 1 if grey and all(read_header(file)[1] for file in files) else 3  # one coloured image makes a coloured set
        mean_std = ((OWN_MEAN,) * channels, (OWN_STD,) * channels)
        shape = (channels, height, width)
        return cls(name or path.name, len(classes), shape, *mean_std, folder=path, resize=image_size is not None)


@dataclass(frozen=True)
class ImageDataset:
    """A loaded data set.

    Args:
        spec: its description.
        train: and `test`: the splits, whole or the part that was found.
        class_names: one a label; the label's number where the files have no names.
        source: "built in", "torchvision layout", "parquet", "image folder" or "arrays".
        fingerprint: sha256 over shapes, pixels and labels of both splits.
        notices: what the user must know, such as missing shards.
    """

    spec: DatasetSpec
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    fingerprint: str
    notices: tuple[str, ...]

    @property
    def holds_out_test(self) -> bool:
        """Whether the test images were held out of the training images, as they are where a folder has no others."""
        return self.spec.folder is not None and not find_test_folders(self.spec.folder)

    def describe_held_out(self, label: int, left: int) -> str:
        """Returns how many images of a class are held out, and how to hold out none; `left` of them remain to distil from."""
        total, test = (int((image_classes(split.labels) == label).sum()) for split in (self.train, self.test))
        parts = [f"{total - left} {FOR_VALIDATION}"] if total > left else []
        if self.holds_out_test:
            total += test
            parts.append(f"{test} {FOR_TESTING}")
        return f"of {total}, held out are {' and '.join(parts)}; " if parts else ""


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_SVHN_MEAN, _SVHN_STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
_TINY_MEAN, _TINY_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", 10, (1, 8, 8), (0.3058,), (0.3761,), 1_347, 450),
        DatasetSpec("canvas_digits", 10, (1, 16, 16), (0.0763,), (0.2298,), 1_347, 450),
        DatasetSpec("place_names", 8, (1, *NAME_SHAPE), (0.0208,), (0.1428,), 1_388, 463),
        DatasetSpec("cifar10", 10, (3, 32, 32), _CIFAR_MEAN, _CIFAR_STD, 50_000, 10_000),
        DatasetSpec("cifar100", 100, (3, 32, 32), _CIFAR_MEAN, _CIFAR_STD, 50_000, 10_000),
        DatasetSpec("svhn", 10, (3, 32, 32), _SVHN_MEAN, _SVHN_STD, 73_257, 26_032),
        DatasetSpec("tiny_imagenet", 200, (3, 64, 64), _TINY_MEAN, _TINY_STD, 100_000, 10_000),
        DatasetSpec("fashion_mnist", 10, (1, 28, 28), (0.2861,), (0.3530,), 60_000, 10_000),
    )
}
PAPER_DATASETS = ("svhn", "cifar10", "cifar100", "tiny_imagenet")  # with published numbers, in the order of the paper


def register_dataset(spec: DatasetSpec) -> None:
    """Makes an image folder of one's own available by its name; the same one may be registered twice.

    Raises:
        DataError: the name is taken.
    """
    if DATASETS.setdefault(spec.name, spec) != spec:
        remedy = "give this one another name (--name NAME on the command line)"
        raise DataError(f"another data set {spec.name!r} is registered already; {remedy}")


def find_dataset(name: str) -> DatasetSpec:
    """Returns the description of a data set.

    Raises:
        DataError: the name is not registered.
    """
    own = "for images of your own, give them again: --images FOLDER, in Python evaluate(…, dataset=(train, test))"
    remedy = f"use one of {', '.join(DATASETS)}; {own}"
    require(name in DATASETS, f"data set {name!r} is unknown; {remedy}", DataError)
    return DATASETS[name]


def load_dataset(dataset: str | DatasetSpec, root: Path | str | None = None, download: bool = False) -> ImageDataset:
    """Loads a data set: torchvision's own layout, else parquet shards, else, if asked for, torchvision's download.

    Args:
        dataset: a name of `DATASETS`, or a description.
        root: folder of the data sets; by default the environment variable SEQMATCH_DATA, else ./data.
        download: whether missing data may be downloaded into `root`.

    Raises:
        DataError: an unknown name; missing data, with the places looked at; a damaged file, by name; images of
            another size, labels out of range, or classes without images.
    """
    dataset = find_dataset(dataset) if isinstance(dataset, str) else dataset
    root = Path(root or os.environ.get("SEQMATCH_DATA") or "data")
    train, test, class_names, source, notices = _read(dataset, root, download)
    where = f"{source} in {dataset.folder or root}"
    for split, name, whole in ((train, "train", dataset.train_size), (test, "test", dataset.test_size)):
        check_split(split, name, dataset, where)
        if len(split) < whole and source != "parquet":  # where the shards are counted
            notices.append(_describe_part(split, name, dataset, whole))
    class_names = class_names or tuple(map(str, range(dataset.num_classes)))
    problem = f"names {len(class_names)} classes, but the data set has {dataset.num_classes}; get the files again"
    require(len(class_names) == dataset.num_classes, f"{dataset.name} ({where}) {problem}", DataError)
    for notice in notices:
        print(f"notice: {notice}", file=sys.stderr)
    return ImageDataset(dataset, train, test, class_names, source, fingerprint(train, test), tuple(notices))


def split_validation(
    split: Split, fraction: float, class_names: Sequence[str] = (), tested: bool = False, taken: int = 0
) -> tuple[Split, Split]:
    """Divides a split into a training and a validation part, class by class; the same for all runs, whatever their seed.

    Args:
        split: at least two images of each class.
        fraction: of each class that is held out, at least one image.
        class_names: what the classes are called in an error; their numbers by default.
        tested: whether test images are held out too, by this call or an earlier one: the error for a class that is too small
            then asks for enough images for both.
        taken: images of each class that an earlier call has held out; the error counts them.

    Raises:
        DataError: a class with fewer than two images.
    """
    generator = make_generator(0, "validation split")
    held_out = torch.zeros(len(split), dtype=torch.bool)
    classes = image_classes(split.labels)
    for label in classes.unique().tolist():
        members = (classes == label).nonzero().flatten()
        if len(members) < 2:
            name, found, needed = repr(class_names[label]) if class_names else label, len(members) + taken, 2 + tested
            parts = [FOR_TESTING, FOR_VALIDATION] if tested else [FOR_VALIDATION]
            held = ", ".join(f"1 held out {part}" for part in parts)
            problem = f"class {name} has {found} image{'s' * (found > 1)}, but needs at least {needed}"
            raise DataError(f"{problem}: {held}, and 1 to train on; add {needed - found}")
        count = max(1, round(fraction * len(members)))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return split.take((~held_out).nonzero().flatten()), split.take(held_out.nonzero().flatten())


def fit_preprocessing(spec: DatasetSpec, zca: bool, dataset: ImageDataset | None = None) -> Preprocessing:
    """Returns a data set's normalisation, or ZCA whitening fitted on its training images, which are loaded if not given."""
    return Whitening((dataset or load_dataset(spec)).train.images) if zca else Normalisation(spec.mean, spec.std)


_Parts = tuple[Split, Split, tuple[str, ...], str, list[str]]


def _read(spec: DatasetSpec, root: Path, download: bool) -> _Parts:
    """Returns train, test, class names, source and notices from the first place that has the data set."""
    if spec.folder is not None:
        return _read_own_folder(spec)
    if spec.name in _BUILTIN:
        images, labels, class_names = _BUILTIN[spec.name]()
        train, test = split_validation(Split(images, labels), fraction=0.25)
        return train, test, class_names, "built in", []
    layout, marker = _LAYOUTS.get(spec.name, (None, None))  # one of your own, without a folder, is read from shards alone
    if marker is not None and (root / marker).exists():
        return (*layout(spec, root), "torchvision layout", [])
    shards = [find_shards(root / spec.name, names) for names in (("train",), TEST_FOLDERS)]
    if all(shards):
        return _read_parquet(spec, root, *shards)
    if download and spec.name in _DOWNLOADS:
        root.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):
            _DOWNLOADS[spec.name](root)
        return (*layout(spec, root), "torchvision layout", [])
    how = "; there is no automatic download"
    if spec.name in _DOWNLOADS:
        how = ", or allow the download (run --download, or load_dataset(…, download=True))"
    elif spec.name == "tiny_imagenet":
        how += ": unpack tiny-imagenet-200.zip there"
    shards = f"in {root / spec.name}/{{train,test}}-*.parquet"
    places = f"not {shards}" if marker is None else f"neither in {root / marker} nor {shards}"
    raise DataError(f"{spec.name} is {places}; set SEQMATCH_DATA to the folder that holds it{how}")


def _read_parquet(spec: DatasetSpec, root: Path, train_shards: list[Path], test_shards: list[Path]) -> _Parts:
    splits, notices, names = [], [], ()
    unchecked = check_files(root, [*train_shards, *test_shards])
    for split, shards, whole in (("train", train_shards, spec.train_size), ("test", test_shards, spec.test_size)):
        images, labels, found = read_shards(shards, spec.shape)
        names = agree_on_names(names, found, shards[0])
        splits.append(Split(images, labels))
        total = count_shards(shards)
        if len(images) < whole:
            notices.append(_describe_part(splits[-1], split, spec, whole, f"{len(shards)} of {total} shards found, "))
    if unchecked:
        notices.append(f"no {SHA256SUMS} lists all files of {spec.name}, so damage inside an image could go unnoticed")
    return splits[0], splits[1], names, "parquet", notices


def _describe_part(split: Split, name: str, spec: DatasetSpec, whole: int, shards: str = "") -> str:
    counts = torch.bincount(image_classes(split.labels).clamp(0), minlength=spec.num_classes)
    per_class = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    return f"{spec.name} {name}: {shards}{len(split):,} of {whole:,} images, {per_class} per class"


def _read_own_folder(spec: DatasetSpec) -> _Parts:
    folders = class_folders(spec.folder / "train")
    classes = tuple(folder.name for folder in folders)
    train = read_class_folders(folders, spec.shape, spec.resize)
    notices = describe_left_out(spec.folder / "train", folders)
    test_folder, *others = find_test_folders(spec.folder) or [None]
    if test_folder is None:
        train, test = split_validation(train, fraction=0.2, class_names=classes, tested=True)
        notices.append(f"{spec.folder} has no test folder: 20 % of each class is held out")
        return train, test, classes, "image folder", notices
    test_folders = match_classes(test_folder, classes)
    test = read_class_folders(test_folders, spec.shape, spec.resize)
    notices += describe_left_out(test_folder, test_folders)
    if test_folder.name != "test":
        notices.append(f"{spec.folder} has no test folder: its {test_folder.name} folder is the test split")
    notices += [f"{other} is not read: {test_folder.name} is the test split" for other in others]
    return train, test, classes, "image folder", notices


def _read_cifar(spec: DatasetSpec, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    kind = getattr(import_torchvision().datasets, spec.name.upper())
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    for name, md5 in files:  # before anything is unpickled
        _check_md5(root / kind.base_folder / name, md5)
    splits = []
    for train in (True, False):
        loaded = kind(root, train=train)
        images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(images, torch.tensor(loaded.targets)))
    return splits[0], splits[1], tuple(loaded.classes)


def _read_svhn(spec: DatasetSpec, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    kind = import_torchvision().datasets.SVHN
    splits = []
    for name in ("train", "test"):
        _, file, md5 = kind.split_list[name]
        _check_md5(root / file, md5)
        loaded = kind(root, split=name)
        splits.append(Split(torch.from_numpy(np.ascontiguousarray(loaded.data)), torch.from_numpy(loaded.labels)))
    return splits[0], splits[1], tuple("0123456789")


def _read_fashion_mnist(spec: DatasetSpec, root: Path) -> tuple[Split, Split, tuple[str, ...]]:
    kind = import_torchvision().datasets.FashionMNIST
    splits = []
    for train in (True, False):
        try:
            loaded = kind(root, train=train)
        except Exception as error:  # whatever a damaged header leads torchvision to
            raise DataError(f"{root / 'FashionMNIST' / 'raw'} is damaged or incomplete ({error}); get it again") from error
        splits.append(Split(loaded.data[:, None].contiguous(), loaded.targets))
    return splits[0], splits[1], tuple(loaded.classes)


def _check_md5(path: Path, md5: str) -> None:
    require(path.is_file(), f"{path} is missing; get the data set again", DataError)
    actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    require(actual == md5, f"{path} is damaged: its md5 is {actual}, not {md5}; get the data set again", DataError)


def check_split(split: Split, name: str, spec: DatasetSpec, source: str) -> None:
    """Raises DataError unless a split has images of the data set's shape and labels of all its classes, and no others."""
    where = f"{spec.name} {name} ({source})"
    require(len(split) > 0, f"{where} has no images; get the files again", DataError)
    fits = len(split.labels) == len(split)
    require(fits, f"{where} has {len(split)} images and {len(split.labels)} labels; get the files again", DataError)
    shape = tuple(split.images.shape[1:])
    require(shape == spec.shape, f"{where} has images of shape {shape}, not {spec.shape}; get the files again", DataError)
    classes = split.labels[split.labels != IGNORED] if split.labels.dim() > 1 else split.labels
    low, high = int(classes.min()), int(classes.max())
    rule = f"but they must lie in 0 … {spec.num_classes - 1}; get the files again"
    require(low >= 0 and high < spec.num_classes, f"{where} has labels from {low} to {high}, {rule}", DataError)
    missing = (torch.bincount(image_classes(split.labels), minlength=spec.num_classes) == 0).nonzero().flatten().tolist()
    require(not missing, f"{where} has no images of classes {missing[:10]}; get the missing files", DataError)


def fingerprint(train: Split, test: Split) -> str:
    """Returns the sha256 over shapes, pixels and labels of both splits."""
    sha = hashlib.sha256()
    for split in (train, test):
        sha.update(str(tuple(split.images.shape)).encode())
        sha.update(split.images.contiguous().numpy())
        sha.update(split.labels.contiguous().numpy())
    return sha.hexdigest()


_TORCHVISION_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # must live as long as its operators


def import_torchvision() -> Any:
    """Imports torchvision, also beside a torch without CUDA, where its compiled operators cannot load.

    torchvision declares shapes for two of those operators at import and fails if they do not exist; declaring their
    schemas first makes data sets, models and transforms work.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _TORCHVISION_SCHEMAS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


_BUILTIN: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]]] = {
    "digits": read_digits,
    "canvas_digits": read_canvas_digits,
    "place_names": read_place_names,
}
_Reader = Callable[[DatasetSpec, Path], tuple[Split, Split, tuple[str, ...]]]
_LAYOUTS: dict[str, tuple[_Reader, str]] = {  # reader, and the file or folder that shows the layout is there
    "cifar10": (_read_cifar, "cifar-10-batches-py"),
    "cifar100": (_read_cifar, "cifar-100-python"),
    "svhn": (_read_svhn, "train_32x32.mat"),
    "tiny_imagenet": (lambda spec, root: read_tiny_imagenet(root / "tiny-imagenet-200", spec.shape), "tiny-imagenet-200"),
    "fashion_mnist": (_read_fashion_mnist, "FashionMNIST/raw"),
}
_DOWNLOADS: dict[str, Callable[[Path], Any]] = {
    "cifar10": lambda root: import_torchvision().datasets.CIFAR10(root, download=True),
    "cifar100": lambda root: import_torchvision().datasets.CIFAR100(root, download=True),
    "svhn": lambda root: [import_torchvision().datasets.SVHN(root, split, download=True) for split in ("train", "test")],
    "fashion_mnist": lambda root: import_torchvision().datasets.FashionMNIST(root, download=True),
}
