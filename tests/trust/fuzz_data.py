"""Fuzzing of what data sets are read from: shards, pictures, the layouts of torchvision."""

import hashlib
import json
import pickle  # the format of CIFAR-10's originals
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_engine import Target, file_target
from fuzz_samples import pixels
from helpers import encode

from seqmatch_lib.data.datasets import DatasetSpec, ImageDataset, import_torchvision, load_dataset
from seqmatch_lib.data.readers import IMAGE_FORMATS, read_image_files
from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.store.checksums import check_files, write_checksums

SHARDS = DatasetSpec("svhn", 2, (3, 6, 6), (0.5,) * 3, (0.25,) * 3)
TINY = DatasetSpec("tiny_imagenet", 2, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
FASHION = DatasetSpec("fashion_mnist", 10, (1, 6, 6), (0.5,), (0.25,))
CIFAR = DatasetSpec("cifar10", 10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)


def write_shards(folder: Path) -> None:
    """Writes a data set as parquet."""
    for split in ("train", "test"):
        images = [{"bytes": encode(image), "path": f"{row}.png"} for row, image in enumerate(pixels(4, 6, 6, 3))]
        table = pa.table({"img": images, "label": [0, 1, 0, 1]}).replace_schema_metadata({"class_names": '["cat", "dog"]'})
        path = folder / "svhn" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)


def write_hugging_face(folder: Path) -> None:
    """Writes a data set as parquet with the columns, metadata and names of files that Hugging Face gives it."""
    features = {"image": {"_type": "Image"}, "fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for split in ("train", "valid"):
        images = [{"bytes": encode(image), "path": f"{row}.png"} for row, image in enumerate(pixels(4, 6, 6, 3))]
        table = pa.table({"image": images, "fine_label": [0, 1, 0, 1], "coarse_label": [0, 0, 0, 0]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = folder / "svhn" / "plain_text" / f"{split}-00000-of-00001-0123456789abcdef.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def write_summed_shards(folder: Path) -> None:
    """Writes the same with its checksums."""
    write_shards(folder)
    write_checksums(folder, sorted(folder.rglob("*.parquet")))


def fits_dataset(dataset: ImageDataset) -> bool:
    """Whether a data set is one that can be trained on."""
    shape, classes = dataset.spec.shape, dataset.spec.num_classes
    return len(dataset.class_names) == classes and all(
        split.images.dtype is torch.uint8
        and split.images.shape == (len(split.labels), *shape)
        and split.labels.dtype is torch.int64
        and 0 <= split.labels.min() <= split.labels.max() < classes
        for split in (dataset.train, dataset.test)
    )


def contents_of(dataset: ImageDataset) -> Any:
    """Returns what a data set holds; its notices say more where a line of the checksums is lost."""
    return dataset.train, dataset.test, dataset.class_names, dataset.fingerprint


def write_summed_files(folder: Path) -> None:
    """Writes two files and their checksums."""
    (folder / "below").mkdir()
    paths = [folder / "one", folder / "below" / "two"]
    for path in paths:
        path.write_bytes(path.name.encode())
    write_checksums(folder, paths)


def read_summed_files(folder: Path) -> list[bytes]:
    """Reads them if their checksums are there and right."""
    paths = [folder / "one", folder / "below" / "two"]
    if not all(path.is_file() for path in paths) or check_files(folder, paths):
        raise SeqMatchError(f"{folder} holds files that nobody answers for")
    return [path.read_bytes() for path in paths]


def write_image(kind: str) -> Callable[[Path], None]:
    """Returns what writes an image file of 12 x 9 pixels."""
    return lambda folder: (folder / "image").write_bytes(encode(pixels(1, 9, 12, 3)[0], kind)) and None


def read_image(shape: tuple[int, int, int], resize: bool) -> Callable[[Path], Any]:
    """Returns what decodes it."""
    return lambda folder: read_image_files([folder / "image"], shape, resize)


def image_targets(kind: str) -> list[Target]:
    """Returns the targets of one image format: as it is, in colour, and brought to another size, in grey."""
    small = (1, 8, 8)
    return [
        file_target(
            kind, write_image(kind), read_image((3, 9, 12), False), accepts=lambda x: x.shape == (1, 3, 9, 12), share=2
        ),
        file_target(
            f"{kind}, resized", write_image(kind), read_image(small, True), accepts=lambda x: x.shape == (1, *small), share=2
        ),
    ]


def write_pictures(folder: Path) -> None:
    """Writes an image folder of two classes."""
    for split in ("train", "test"):
        for number, name in enumerate(("cats", "dogs")):
            (folder / split / name).mkdir(parents=True)
            for image, kind in zip(pixels(2, 6, 6, 3) // (number + 1), ("PNG", "BMP"), strict=True):
                (folder / split / name / f"{kind}.{kind.lower()}").write_bytes(encode(image, kind))


def write_tiny_by_class(folder: Path) -> None:
    """Writes the same with the validation images in folders of their classes."""
    write_tiny(folder)
    images = folder / "tiny-imagenet-200" / "val" / "images"
    for wnid in ("n01", "n02"):
        (images / wnid).mkdir()
        (images / f"{wnid}.JPEG").rename(images / wnid / f"{wnid}.JPEG")


def write_tiny(folder: Path) -> None:
    """Writes the layout of Tiny ImageNet's archive."""
    root, rows = folder / "tiny-imagenet-200", []
    images = [encode(image, "JPEG") for image in pixels(2, 8, 8, 3)]
    (root / "val" / "images").mkdir(parents=True)
    for wnid, image in zip(("n01", "n02"), images, strict=True):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / "images" / "0.JPEG").write_bytes(image)
        (root / "val" / "images" / f"{wnid}.JPEG").write_bytes(image)
        rows.append(f"{wnid}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))


def write_fashion(folder: Path) -> None:
    """Writes the files of Fashion-MNIST."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", pixels(10, 6, 6)), ("labels-idx1", np.arange(10, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


@cache
def cifar_files() -> dict[str, bytes]:
    """Returns the content of CIFAR-10's files, shortened."""
    batch = {"data": pixels(10, 3072), "labels": list(range(10))}
    files = {"data_batch_1": batch, "test_batch": batch, "batches.meta": {"label_names": list("abcdefghij")}}
    return {name: pickle.dumps(content) for name, content in files.items()}


def write_cifar(folder: Path) -> None:
    """Writes them."""
    for name, content in cifar_files().items():
        path = folder / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def read_cifar(folder: Path) -> Any:
    """Reads them, with their checksums in the place of the originals'."""
    kind = import_torchvision().datasets.CIFAR10
    sums = {name: hashlib.md5(content).hexdigest() for name, content in cifar_files().items()}
    lists = {"train_list": [["data_batch_1", sums["data_batch_1"]]], "test_list": [["test_batch", sums["test_batch"]]]}
    with patch.multiple(kind, **lists, meta=kind.meta | {"md5": sums["batches.meta"]}):
        return contents_of(load_dataset(CIFAR, folder))


DATA_FILES = [
    file_target("shards", write_shards, lambda folder: load_dataset(SHARDS, folder), accepts=fits_dataset, share=3),
    file_target(
        "shards of Hugging Face", write_hugging_face, lambda folder: load_dataset(SHARDS, folder), accepts=fits_dataset
    ),
    file_target(
        "shards, summed", write_summed_shards, lambda folder: contents_of(load_dataset(SHARDS, folder)), checksummed=True
    ),
    file_target(
        "SHA256SUMS",
        write_summed_files,
        read_summed_files,
        checksummed=True,
        share=2,
    ),
    *[target for kind in IMAGE_FORMATS for target in image_targets(kind)],
    file_target(
        "image folder",
        write_pictures,
        lambda folder: load_dataset(DatasetSpec.from_folder(folder, image_size=6)),
        accepts=fits_dataset,
    ),
    file_target(
        "image folder, own size",
        write_pictures,
        lambda folder: load_dataset(DatasetSpec.from_folder(folder)),
        accepts=fits_dataset,
    ),
    file_target(
        "Tiny ImageNet",
        write_tiny,
        lambda folder: load_dataset(TINY, folder),
        accepts=fits_dataset,
        names=("tiny-imagenet-200/val/val_annotations.txt", "tiny-imagenet-200/train/n01/images/0.JPEG"),
    ),
    file_target(
        "Tiny ImageNet, by class", write_tiny_by_class, lambda folder: load_dataset(TINY, folder), accepts=fits_dataset
    ),
    file_target("Fashion-MNIST", write_fashion, lambda folder: load_dataset(FASHION, folder), accepts=fits_dataset),
    file_target("CIFAR-10, pickled", write_cifar, read_cifar, checksummed=True, share=0.3),
]
