"""Layouts of pixels: a parquet shard and a folder of PNGs, which any program reads. Both hold 8 bits a colour."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqmatch_lib.data.datasets import DatasetSpec, load_dataset
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.data.readers import list_images, read_image_files, read_rows, whole_numbers
from seqmatch_lib.errors import DataError, StorageError, require
from seqmatch_lib.store.files import write_atomically, write_parts
from seqmatch_lib.store.sheets import as_picture
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, spread_lrs

SHARD = "train-00000-of-00001.parquet"
NUMBER_OF_FOLDER = re.compile(r"^(\d{1,9})(-.*)?$", re.ASCII | re.DOTALL)
SUBSET_OF_FILE = re.compile(r"^s(\d+)-")


def write_parquet(
    sequence: SubsetSequence, folder: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Path]:
    """Writes one shard in the style of Hugging Face, with a checksum in every page."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"img": [], "label": [], "subset": []}
    soft = sequence.subsets[0].labels.is_floating_point()
    for k, (pixels, labels) in enumerate(_pixels_of(sequence, preprocessing), start=1):
        files = [f"s{k}-{row:05d}.png" for row in range(len(pixels))]
        columns["img"] += [{"bytes": _encode(image), "path": name} for image, name in zip(pixels, files, strict=True)]
        columns["label"] += (labels.argmax(1) if soft else labels).tolist()
        columns["subset"] += [k] * len(pixels)
        if soft:
            columns.setdefault("soft_label", []).extend(labels.tolist())
    metadata = {"class_names": json.dumps(list(class_names)), "lrs": json.dumps([subset.lr for subset in sequence.subsets])}
    table = pa.table(columns).replace_schema_metadata(metadata)
    path = folder / SHARD
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))
    return [path]


def read_parquet(
    path: Path, preprocessing: Preprocessing, shape: tuple[int, int, int], lrs: Sequence[float]
) -> list[SyntheticSubset]:
    """Reads such a shard; those of others need no `subset` and no `soft_label`."""
    path = path / SHARD if path.is_dir() else path
    require(path.is_file(), f"{path} does not exist; give an exported parquet file or its folder", StorageError)
    images, labels, table, metadata = read_rows(path, shape)
    try:
        if "soft_label" in table.column_names:
            labels = torch.tensor(table["soft_label"].to_pylist(), dtype=torch.float32)
        subset_of = whole_numbers(table, "subset").tolist() if "subset" in table.column_names else [1] * len(images)
        stored = [float(lr) for lr in json.loads(metadata.get(b"lrs", b"[]"))]
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError) as error:  # torch and json tell in many ways
        raise StorageError(f"{path} is no distilled set ({error}); export it again") from error
    ready = preprocessing(images)
    return [SyntheticSubset(ready[rows], labels[rows], lr) for rows, lr in _divide(subset_of, lrs or stored, path)]


def _divide(subset_of: Sequence[int], lrs: Sequence[float], path: Path) -> list[tuple[list[int], float]]:
    """Returns the rows of each subset, in the order of the subsets' numbers, and its step size."""
    rows: dict[int, list[int]] = {number: [] for number in sorted(set(subset_of))}
    for row, number in enumerate(subset_of):
        rows[number].append(row)
    return list(zip(rows.values(), spread_lrs(lrs, len(rows), str(path)), strict=True))


def write_folder(
    sequence: SubsetSequence, folder: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Path]:
    """Writes one PNG an image, which `torchvision.datasets.ImageFolder` reads."""
    last = max(int(subset.labels.max()) for subset in sequence.subsets)
    require(last < len(class_names), f"{len(class_names)} class names are given, but the set has class {last}; name them all")
    names, written = _folder_names(class_names), []
    for k, (pixels, labels) in enumerate(_pixels_of(sequence, preprocessing), start=1):
        for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            path = folder / "train" / names[label] / f"s{k}-{number:05d}.png"
            write_parts(path, _encode(image))
            written.append(path)
    return written


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Returns names whose alphabetical order is that of the classes, and that name a folder in place, whatever they say."""
    width = len(str(len(class_names) - 1))
    return [f"{label:0{width}d}-{re.sub(r'[^A-Za-z0-9]+', '_', name)[:40]}" for label, name in enumerate(class_names)]


def read_folder(path: Path, preprocessing: Preprocessing, spec: DatasetSpec, lrs: Sequence[float]) -> list[SyntheticSubset]:
    """Reads such a folder; images of other names all belong to one subset.

    Class folders are called by their numbers, `3` or `3-cat`, or by the names of the classes, which only the data set knows.
    """
    train = path / "train"
    folders = sorted(folder for folder in train.glob("*") if folder.is_dir())
    labels = _match_classes([folder.name for folder in folders], spec, train)
    files = [(file, label) for label, folder in zip(labels, folders, strict=True) for file in list_images(folder)]
    require(bool(files), f"{train} holds no images; put them into {train}/<class>/*.png", DataError)
    matches = [SUBSET_OF_FILE.match(file.name) for file, _ in files]
    subsets = []
    for rows, lr in _divide([int(match[1]) if match else 1 for match in matches], lrs, path):
        images = read_image_files([files[row][0] for row in rows], spec.shape)
        subsets.append(SyntheticSubset(preprocessing(images), torch.tensor([files[row][1] for row in rows]), lr))
    return subsets


def _match_classes(folders: Sequence[str], spec: DatasetSpec, origin: Path) -> list[int]:
    """Returns the label of each folder, by its number or else by its name; never by its place in the alphabet.

    Raises:
        DataError: they are not all of the classes, each once, in one of the two ways.
    """
    require(bool(folders), f"{origin} holds no class folders; put the images into {origin}/<class>/*.png", DataError)
    numbers = [NUMBER_OF_FOLDER.match(folder) for folder in folders]
    labels = [int(match[1]) for match in numbers if match]
    known = list(range(spec.num_classes))
    if sorted(labels) == known and all(numbers):
        return labels
    names = load_dataset(spec).class_names
    label_of = {_simplify(name): label for label, name in enumerate(names)}
    labels = [label_of.get(_simplify(folder), -1) for folder in folders]
    neither = f"neither the numbers 0 … {known[-1]} nor the names of the classes, {_shorten(names)}, each once"
    message = f"{origin} has folders {_shorten(folders)}, which are {neither}; rename them to either"
    require(sorted(labels) == known, message, DataError)
    return labels


def _simplify(name: str) -> str:
    """Returns what is left of a name that has to serve as a folder, however it was written."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name:.40}" for name in map(ascii, names[:5]))
    return shown + (f", … ({len(names)})" if len(names) > 5 else "")


def _pixels_of(sequence: SubsetSequence, preprocessing: Preprocessing) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Returns each subset's training images as (N, H, W, C) uint8, and their labels; what 8 bits cannot hold is clipped."""
    pairs = []
    for subset in sequence.subsets:
        images, labels = subset.formation(subset.images, subset.labels)
        pixels = (preprocessing.inverse(images).clamp(0, 1) * 255).round().to(torch.uint8)
        pairs.append((pixels.permute(0, 2, 3, 1).numpy(), labels.cpu()))
    return pairs


def share_outside(sequence: SubsetSequence, preprocessing: Preprocessing) -> float:
    """Returns the share of the set's values that lie outside [0, 1] as colours, and that formats of 8 bits clip."""
    values = torch.cat([preprocessing.inverse(subset.images).flatten() for subset in sequence.subsets])
    return ((values < 0) | (values > 1)).float().mean().item()


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    as_picture(pixels).save(buffer, "PNG")
    return buffer.getvalue()
