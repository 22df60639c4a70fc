"""Distilled sets: a sequence of subsets S_1 … S_K, each with its images, labels and step size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.datasets import ImageDataset, Split
from seqmatch_lib.data.labels import image_classes, rows_by_class
from seqmatch_lib.data.multi_formation import AS_STORED, Formation
from seqmatch_lib.errors import DataError, StorageError, require
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.files import digest_tensors, load_tensors, save_tensors
from seqmatch_lib.store.settings import is_file_name

SET_FOLDERS = ("distilled", "selected")  # of a results folder: sets with the last, and with the selected iterate of S_K


@dataclass(frozen=True, repr=False)
class SyntheticSubset:
    """One subset S_k.

    Args:
        images: (classes * ipc, C, H, W) float32, normalised like the real data, sorted by class.
        labels: (classes * ipc,) int64, or (classes * ipc, classes) float32 probabilities or targets, or
            (classes * ipc, H, W) int64 classes of pixels.
        lr: step size for training on the subset, learned or given.
        formation: how the stored images become training images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    lr: float
    formation: Formation = AS_STORED

    def __repr__(self) -> str:
        return f"SyntheticSubset({self.describe()})"

    def describe(self) -> str:
        """Returns number, shape, tiles, labels and step size in words."""
        tiles = f", {self.formation.factor}² tiles each" if self.formation.factor > 1 else ""
        soft = ", soft labels" if self.labels.is_floating_point() else ""
        shape = " × ".join(map(str, self.images.shape[1:]))
        return f"{len(self.images)} images of {shape}{tiles}{soft}, step size {self.lr:.3g}"

    def to(self, device: torch.device | str) -> "SyntheticSubset":
        """Returns the subset on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def of_class(self, label: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the stored images and labels of one class."""
        ipc = len(self.images) // num_classes
        rows = slice(label * ipc, (label + 1) * ipc)
        return self.images[rows], self.labels[rows]


@dataclass(frozen=True, repr=False)
class SubsetSequence:
    """The subsets in the order of distillation and training.

    Args:
        subsets: S_1 … S_K; empty before the first stage.
        metadata: JSON values on the origin of the set (data set, preprocessing, preset, seed).
    """

    subsets: tuple[SyntheticSubset, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subsets)

    def __repr__(self) -> str:
        name = [self.metadata["run_id"]] if "run_id" in self.metadata else []
        parts = [f"S_{k}: {subset.describe()}" for k, subset in enumerate(self.subsets, start=1)]
        return f"SubsetSequence({'; '.join(name + parts)})"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: a row for each subset."""
        rows = {f"S_{k}": subset.describe() for k, subset in enumerate(self.subsets, start=1)}
        return format_html(self.metadata.get("run_id", "distilled set"), rows)

    def then(self, subset: SyntheticSubset) -> "SubsetSequence":
        """Returns the sequence with one more subset at the end."""
        return SubsetSequence((*self.subsets, subset), self.metadata)

    def to(self, device: torch.device | str) -> "SubsetSequence":
        """Returns the sequence on a device."""
        return SubsetSequence(tuple(subset.to(device) for subset in self.subsets), self.metadata)

    def union(self, stages: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns training images (tiles decoded) and labels of S_1 ∪ … ∪ S_stages, by default of all subsets."""
        decoded = [subset.formation(subset.images, subset.labels) for subset in self.subsets[:stages]]
        return torch.cat([images for images, _ in decoded]), torch.cat([labels for _, labels in decoded])

    def joint(self) -> "SubsetSequence":
        """Returns all images as one subset with the step size of S_K; that of a sequence was learned on the union."""
        images, labels = self.union()
        return SubsetSequence((SyntheticSubset(images, labels, self.subsets[-1].lr),), self.metadata)

    def sha256(self) -> str:
        """Returns the digest of all subsets, by which records and folders of teachers name the set."""
        return digest_tensors(_as_tensors(self))

    def save(self, path: Path | str) -> None:
        """Writes the set as one safetensors file, atomically; `load_sequence` reads it."""
        header: dict[str, Any] = {"num_subsets": len(self)}
        if any(subset.formation != AS_STORED for subset in self.subsets):
            header["formations"] = [asdict(subset.formation) for subset in self.subsets]
        save_tensors(Path(path), _as_tensors(self), header | self.metadata)


def format_html(title: str, rows: Mapping[str, str]) -> str:
    """Returns a small table for notebooks."""
    row = "<tr><th style='text-align: left'>{}</th><td>{}</td></tr>"
    lines = [row.format(escape(name), escape(text)) for name, text in rows.items()]
    return f"<table><caption>{escape(title)}</caption>{''.join(lines)}</table>"


def load_sequence(path: Path) -> SubsetSequence:
    """Reads a distilled set; `check_sequence` checks that it can be trained on.

    Raises:
        StorageError: the file is missing, damaged, or not a distilled set.
    """
    again = "delete it to make it again" if path.parent.name in SET_FOLDERS else "copy it again"  # a run's, or anyone's
    tensors, metadata = load_tensors(path, f"{again}; a set in the layout of another code is read by the command `import`")
    try:
        _check_metadata(metadata, len(tensors))
        count = metadata.pop("num_subsets")
        formations = metadata.pop("formations", [{}] * count)
        subsets = tuple(
            SyntheticSubset(
                tensors[f"images.{k}"], tensors[f"labels.{k}"], float(tensors[f"lr.{k}"].item()), Formation(**formation)
            )
            for k, formation in enumerate(formations, start=1)
        )
    except KeyError as error:
        raise StorageError(f"{path} is not a distilled set: {error} is missing; give a file written by a run") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StorageError(f"{path} is not a distilled set: {error}; give a file written by a run") from error
    return SubsetSequence(subsets, metadata)


def _check_metadata(metadata: Any, most: int) -> None:
    """Raises an error of Python (not of this library) unless the metadata are valid; the run id becomes a file name."""
    count = metadata["num_subsets"]
    if type(count) is not int or not 1 <= count <= most:
        raise ValueError(f"num_subsets is {count!r:.40}")
    formations = metadata.get("formations", [{}] * count)
    if len(formations) != count or not all(type(formation.get("factor", 1)) is int for formation in formations):
        raise ValueError(f"formations are {formations!r:.80}")
    if not is_file_name(metadata.get("run_id", "imported"), longest=200):
        raise ValueError(f"run_id is {metadata['run_id']!r:.80}")
    if not isinstance(metadata.get("data", {"fingerprint": ""})["fingerprint"], str):
        raise ValueError("the fingerprint of its data is not a text")
    if not isinstance(metadata.get("last_sha256", ""), str):
        raise ValueError(f"last_sha256 is {metadata['last_sha256']!r:.80}")
    names = metadata.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are {names!r:.80}")


def set_path(results_dir: Path, run_id: str, selected: bool = False) -> Path:
    """Returns where the distilled set of a run is kept, or that with the selected iterate of its last subset."""
    return results_dir / SET_FOLDERS[selected] / f"{run_id}.safetensors"


def spread_lrs(lrs: Sequence[float], count: int, origin: str) -> list[float]:
    """Returns a step size for each of `count` subsets, from as many or from one for all; errors name the `origin`."""
    require(len(lrs) > 0, f"{origin} holds no step size; give it with --lr")
    message = f"{origin}: {len(lrs)} step sizes are given for {count} subsets; give --lr once, or once for each subset"
    require(len(lrs) in (1, count), message)
    return list(lrs) * (count if len(lrs) == 1 else 1)


def check_sequence(sequence: SubsetSequence, origin: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises DataError, which names the `origin`, unless a set from a file can be trained on.

    Its images must have the shape (C, H, W), and all classes 0 … num_classes - 1 the same number of images.
    """
    require(len(sequence) > 0, f"{origin} has no subsets; get the set again", DataError)
    for k, subset in enumerate(sequence.subsets, start=1):
        name = f"{origin}: subset {k}"
        _check_images(subset.images, name, shape)
        require(0 < subset.lr < float("inf"), f"{name} has a step size of {subset.lr}, which must be positive", DataError)
        factor = subset.formation.factor
        require(factor <= min(shape[1:]), f"{name} has {factor} tiles a side, more than images of {shape} hold", DataError)
        _check_labels(subset.labels, len(subset.images), name, shape, num_classes)


def _check_images(images: torch.Tensor, name: str, shape: tuple[int, int, int]) -> None:
    """Raises DataError unless there are images, all finite, float32 and of this shape; errors begin with `name`."""
    size = tuple(images.shape[1:])
    remedy = "give its own preset, --images or --image-size"
    require(size == shape, f"{name} has images of shape {size}, but the data set has {shape}; {remedy}", DataError)
    require(len(images) > 0, f"{name} has no images; get the set again", DataError)
    require(images.dtype is torch.float32, f"{name} has images of {images.dtype} instead of float32", DataError)
    require(bool(images.isfinite().all()), f"{name} has pixels that are not finite; get the set again", DataError)


def _check_labels(labels: torch.Tensor, count: int, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises DataError unless the labels of `count` images are valid and all classes have the same number of images."""
    size = tuple(labels.shape)
    fits = size[:1] == (count,)
    require(fits, f"{name} has {count} images but labels of shape {size}; there must be one label for each image", DataError)
    if labels.is_floating_point():
        valid = size[1:] == (num_classes,) and labels.dtype is torch.float32 and bool(labels.isfinite().all())
        require(valid, f"{name} has soft labels that are not {num_classes} finite float32 numbers for each image", DataError)
        equal = count % num_classes == 0
        require(equal, f"{name} has {count} images for {num_classes} classes; all must have the same number", DataError)
        return
    valid = labels.dtype is torch.int64 and size[1:] in ((), shape[1:])
    require(valid, f"{name} has labels of {labels.dtype} and shape {size}, not one int64 class an image", DataError)
    low, high = (int(classes) for classes in image_classes(labels).aminmax())
    in_range = low >= 0 and high < num_classes
    require(in_range, f"{name} has labels from {low} to {high}, but they must lie in 0 … {num_classes - 1}", DataError)
    least, most = (int(number) for number in torch.bincount(image_classes(labels), minlength=num_classes).aminmax())
    equal = least == most
    require(equal, f"{name} has from {least} to {most} images per class; all classes must have the same number", DataError)


def check_class_sizes(labels: torch.Tensor, num_classes: int, ipc: int, dataset: ImageDataset | None = None) -> None:
    """Raises DataError unless every class has at least `ipc` real images; with a data set, it says where more are."""
    for label, count in enumerate(torch.bincount(image_classes(labels), minlength=num_classes).tolist()):
        if count < ipc:
            name, elsewhere = label, ""
            if dataset is not None:
                name, elsewhere = repr(dataset.class_names[label]), dataset.describe_held_out(label, count)
            raise DataError(
                f"class {name} has {count} real image{'s' * (count != 1)}, fewer than ipc {ipc}; {elsewhere}lower ipc or get "
                "more of the data set"
            )


def sample_real_subset(
    images: torch.Tensor, labels: torch.Tensor, num_classes: int, ipc: int, lr: float, seed: int, *purpose: str | int
) -> SyntheticSubset:
    """Draws real images without replacement: the initial images of a distillation, or the random baseline.

    Args:
        images: (N, C, H, W) normalised real images.
        labels: (N,) int64.
        num_classes: number of classes.
        ipc: images per class.
        lr: step size for training on the subset.
        seed: of the run.
        *purpose: of the draw, see `make_generator`.

    Raises:
        DataError: a class has fewer than `ipc` images.
    """
    check_class_sizes(labels, num_classes, ipc)
    generator, members = make_generator(seed, *purpose), rows_by_class(labels, num_classes)
    rows = torch.cat([own[torch.randperm(len(own), generator=generator)[:ipc].to(own.device)] for own in members])
    return SyntheticSubset(images[rows], labels[rows], lr)


def sample_real_sequence(real: Split, num_classes: int, ipcs: Sequence[int], lr: float, seed: int) -> SubsetSequence:
    """Draws disjoint subsets of real images: the random baseline of a sequence with subsets of these sizes."""
    union = sample_real_subset(real.images, real.labels, num_classes, sum(ipcs), lr, seed, "random real images")
    rows = torch.arange(len(union.images), device=union.images.device).view(num_classes, -1).split(list(ipcs), dim=1)
    parts = [own.flatten() for own in rows]
    return SubsetSequence(tuple(SyntheticSubset(union.images[part], union.labels[part], lr) for part in parts))


def _as_tensors(sequence: SubsetSequence) -> dict[str, torch.Tensor]:
    tensors = {}
    for k, subset in enumerate(sequence.subsets, start=1):
        lr = torch.tensor(subset.lr, dtype=torch.float64)
        tensors |= {f"images.{k}": subset.images, f"labels.{k}": subset.labels, f"lr.{k}": lr}
        if subset.formation != AS_STORED:
            tensors[f"factor.{k}"] = torch.tensor(subset.formation.factor)
        if subset.formation.decode != AS_STORED.decode:  # as text, so that digests of the others stay what they were
            tensors[f"decode.{k}"] = torch.tensor(list(subset.formation.decode.encode()), dtype=torch.uint8)
    return tensors
