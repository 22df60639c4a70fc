"""Real data in every layout we read, what happens when it is missing or damaged, and the four sets at hand."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SEED
from helpers import encode, flip, write_class_folders

from seqmatch_lib.data import datasets as data
from seqmatch_lib.data.datasets import (
    _BUILTIN,
    DATASETS,
    DatasetSpec,
    Split,
    fit_preprocessing,
    import_torchvision,
    load_dataset,
    register_dataset,
    split_validation,
)
from seqmatch_lib.data.preprocessing import ZCA_EPSILON, Normalisation, Whitening
from seqmatch_lib.errors import DataError
from seqmatch_lib.store.checksums import write_checksums

SHARED = Path(os.environ.get("SEQMATCH_DATA") or Path(__file__).parents[2] / "shared" / "data")


def write_shard(path: Path, images: list[bytes], labels: list[int], names: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": [{"bytes": image, "path": "x"} for image in images], "label": labels})
    if names is not None:
        table = table.replace_schema_metadata({"class_names": json.dumps(names)})
    pq.write_table(table, path)


def random_pixels(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def parquet_cifar(tmp_path):
    """Two of three train shards and a test shard of CIFAR-10, 2 images a class each."""
    pixels = random_pixels(20)
    labels = [i % 10 for i in range(20)]
    names = [f"name{i}" for i in range(10)]
    images = [encode(image) for image in pixels]
    for shard in range(2):
        write_shard(tmp_path / f"cifar10/train-0000{shard}-of-00003.parquet", images, labels, names)
    write_shard(tmp_path / "cifar10/test-00000-of-00001.parquet", images, labels, names)
    return tmp_path, pixels, labels


@pytest.mark.parametrize("file", ["train-00001-of-00003", "test-00000-of-00001"])
def test_class_names_are_those_of_any_shard_that_has_them_and_must_agree(parquet_cifar, file):
    root, pixels, labels = parquet_cifar
    path, images = root / f"cifar10/{file}.parquet", [encode(image) for image in pixels]
    write_shard(path, images, labels)
    assert load_dataset("cifar10", root).class_names[3] == "name3"
    write_shard(path, images, labels, list("abcdefghij"))
    with pytest.raises(DataError, match=f"{file}.parquet calls the classes a, b, .* others call them name0, .*one version"):
        load_dataset("cifar10", root)
    for shard in (root / "cifar10").iterdir():
        write_shard(shard, images, labels, ["only", "two"])
    with pytest.raises(DataError, match="names 2 classes, but the data set has 10"):
        load_dataset("cifar10", root)


def test_parquet_is_decoded_in_order_and_partial_sets_are_announced(parquet_cifar, capsys):
    root, pixels, labels = parquet_cifar
    dataset = load_dataset("cifar10", root)
    assert dataset.source == "parquet"
    assert dataset.train.images.shape == (40, 3, 32, 32)
    assert dataset.train.images.dtype == torch.uint8
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert dataset.test.labels.tolist() == labels
    assert dataset.class_names[3] == "name3"
    notice = "cifar10 train: 2 of 3 shards found, 40 of 50,000 images, 4 per class"
    assert dataset.notices[0] == notice
    assert notice in capsys.readouterr().err


def test_root_is_the_argument_then_the_environment(parquet_cifar, monkeypatch, tmp_path):
    root, _, _ = parquet_cifar
    monkeypatch.setenv("SEQMATCH_DATA", str(root))
    assert len(load_dataset("cifar10").train) == 40
    with pytest.raises(DataError, match="elsewhere"):
        load_dataset("cifar10", tmp_path / "elsewhere")


def test_fingerprint_follows_the_pixels(parquet_cifar):
    root, pixels, labels = parquet_cifar
    before = load_dataset("cifar10", root).fingerprint
    assert load_dataset("cifar10", root).fingerprint == before
    pixels[7, 3, 3, 1] ^= 1
    write_shard(root / "cifar10/test-00000-of-00001.parquet", [encode(image) for image in pixels], labels)
    assert load_dataset("cifar10", root).fingerprint != before


def test_grey_images_of_a_colour_set_become_colour_images(parquet_cifar):
    root, pixels, labels = parquet_cifar
    images = [encode(image[:, :, 0]) for image in pixels]
    write_shard(root / "cifar10/test-00000-of-00001.parquet", images, labels)
    loaded = load_dataset("cifar10", root).test.images
    assert torch.equal(loaded[:, 0], loaded[:, 2])
    assert torch.equal(loaded[:, 0], torch.from_numpy(pixels[:, :, :, 0]))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_shard_is_named(parquet_cifar, keep):
    root, _, _ = parquet_cifar
    path = root / "cifar10/train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet is damaged.*get the file again"):
        load_dataset("cifar10", root)


def test_a_damaged_image_in_a_shard_is_named(parquet_cifar):
    root, pixels, labels = parquet_cifar
    images = [encode(image) for image in pixels]
    images[5] = images[5][:60]
    write_shard(root / "cifar10/train-00001-of-00003.parquet", images, labels)
    with pytest.raises(DataError, match=r"image 5 of .*train-00001-of-00003\.parquet cannot be decoded"):
        load_dataset("cifar10", root)


@pytest.mark.parametrize(
    ("size", "labels", "names", "message"),
    [
        (16, [i % 10 for i in range(20)], None, "image 0 of .* is 16x16, but the data set has 32x32"),
        (32, [i % 10 - 1 for i in range(20)], None, "labels from -1 to 8, but they must lie in 0 … 9"),
        (32, [i % 11 for i in range(20)], None, "labels from 0 to 10"),
        (32, [i % 9 for i in range(20)], None, r"no images of classes \[9\]"),
        (32, [i % 10 for i in range(20)], ["only", "two"], "calls the classes only, two, but others call them name0, "),
    ],
)
def test_what_does_not_fit_the_data_set_is_named(parquet_cifar, size, labels, names, message):
    root, _, _ = parquet_cifar
    images = [encode(image) for image in random_pixels(20, size)]
    write_shard(root / "cifar10/test-00000-of-00001.parquet", images, labels, names)
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", root)


def test_a_shard_without_our_columns_is_named(parquet_cifar):
    root, _, _ = parquet_cifar
    pq.write_table(pa.table({"image": [1]}), root / "cifar10/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="test-00000-of-00001.parquet is damaged or not an image shard"):
        load_dataset("cifar10", root)


def test_shards_of_two_partitions_are_not_mixed(parquet_cifar):
    root, pixels, labels = parquet_cifar
    write_shard(root / "cifar10/train-00000-of-00007.parquet", [encode(image) for image in pixels], labels)
    with pytest.raises(DataError, match=r"mixes shards of \[3, 7\] parts"):
        load_dataset("cifar10", root)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in _BUILTIN])
def test_missing_data_names_the_places_and_the_remedy(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is neither in {tmp_path}.*SEQMATCH_DATA.*(--download|unpack)"):
        load_dataset(name, tmp_path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="'cifar11' is unknown; use one of digits, canvas_digits, place_names, cifar10"):
        load_dataset("cifar11")


def test_nothing_is_downloaded_unless_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(data._DOWNLOADS, "cifar10", asked.append)
    with pytest.raises(DataError):
        load_dataset("cifar10", tmp_path)
    assert asked == []
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        load_dataset("cifar10", tmp_path, download=True)
    assert asked == [tmp_path]


def write_cifar_batches(root: Path, monkeypatch) -> np.ndarray:
    """Writes the two-file form of torchvision's CIFAR-10 layout, and its checksums into torchvision."""
    import hashlib

    kind = import_torchvision().datasets.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(20)]
    contents = {"data_batch_1": {"data": pixels, "labels": labels}, "test_batch": {"data": pixels, "labels": labels}}
    contents["batches.meta"] = {"label_names": list("abcdefghij")}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    return pixels


def test_torchvision_layout_of_cifar(tmp_path, monkeypatch):
    pixels = write_cifar_batches(tmp_path, monkeypatch)
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.source == "torchvision layout"
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels).view(20, 3, 32, 32))
    assert dataset.class_names == tuple("abcdefghij")
    sizes = (("train", "50,000"), ("test", "10,000"))
    assert dataset.notices == tuple(f"cifar10 {split}: 20 of {whole} images, 2 per class" for split, whole in sizes)


def test_a_changed_cifar_batch_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    write_cifar_batches(tmp_path, monkeypatch)

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match="data_batch_1 is damaged: its md5 is"):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "executed").exists()


def test_torchvision_layout_of_svhn(tmp_path, monkeypatch):
    import hashlib

    import scipy.io

    kind = import_torchvision().datasets.SVHN
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.array([[i % 10 + 1] for i in range(20)], dtype=np.uint8)  # the original writes 10 for the digit 0
    lists = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels, "y": labels})
        lists[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(kind, "split_list", lists)
    dataset = load_dataset("svhn", tmp_path)
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels).permute(3, 2, 0, 1))
    assert dataset.train.labels.tolist() == [(i + 1) % 10 for i in range(20)]
    path.write_bytes(b"no mat file")
    with pytest.raises(DataError, match=r"test_32x32\.mat is damaged"):
        load_dataset("svhn", tmp_path)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def test_torchvision_layout_of_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    dataset = load_dataset("fashion_mnist", tmp_path)
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(pixels))
    assert dataset.class_names[0] == "T-shirt/top"
    write_idx(raw / "t10k-images-idx3-ubyte", pixels[:3, :5])
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\10\3")
    with pytest.raises(DataError, match="raw is damaged or incomplete"):
        load_dataset("fashion_mnist", tmp_path)


def test_layout_of_tiny_imagenet(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny_imagenet", DatasetSpec("tiny_imagenet", 2, (3, 64, 64), (0.5,) * 3, (0.5,) * 3))
    folder = tmp_path / "tiny-imagenet-200"
    pixels = random_pixels(4, 64)
    for wnid, chosen in (("n02", pixels[2:]), ("n01", pixels[:2])):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for i, image in enumerate(chosen):
            (folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(encode(image, "JPEG"))
    (folder / "val" / "images").mkdir(parents=True)
    for i, image in enumerate(pixels):
        (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(encode(image, "JPEG"))
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62" for i, wnid in enumerate(["n02", "n01", "n02", "n01"])]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows))
    dataset = load_dataset("tiny_imagenet", tmp_path)
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    assert dataset.test.labels.tolist() == [1, 0, 1, 0]
    assert dataset.class_names == ("n01", "n02")
    assert torch.equal(dataset.train.images, dataset.test.images)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03")
    with pytest.raises(DataError, match="val_annotations.txt is missing or damaged"):
        load_dataset("tiny_imagenet", tmp_path)


def write_own_folder(root: Path, sizes: tuple[tuple[int, int], ...] = ((12, 12),), splits=("train", "test")) -> None:
    classes = {
        name: [np.full((*sizes[i % len(sizes)], 3), 40 * i + label, dtype=np.uint8) for i in range(5)]
        for label, name in enumerate(("cats", "dogs"))
    }
    write_class_folders(root, classes, splits)


def test_own_image_folder(tmp_path):
    write_own_folder(tmp_path / "pets")
    spec = DatasetSpec.from_folder(tmp_path / "pets")
    dataset = load_dataset(spec)
    assert (spec.name, spec.num_classes, spec.shape) == ("pets", 2, (3, 12, 12))
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 1, 41, 81, 121, 161]
    assert not dataset.notices


def test_own_image_folder_without_test_split_holds_a_fifth_out(tmp_path):
    write_own_folder(tmp_path, splits=("train",))
    dataset = load_dataset(DatasetSpec.from_folder(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    assert "no test folder: 20 %" in dataset.notices[0]


def test_own_images_of_odd_sizes_need_an_image_size(tmp_path):
    write_own_folder(tmp_path, sizes=((12, 12), (20, 9)))
    with pytest.raises(DataError, match=r"1\.png is 9x20, but the data set has 12x12 images; give image_size"):
        load_dataset(DatasetSpec.from_folder(tmp_path))
    dataset = load_dataset(DatasetSpec.from_folder(tmp_path, image_size=16))
    assert dataset.train.images.shape[1:] == (3, 16, 16)
    assert dataset.train.images[1].unique().tolist() == [40]


def test_own_folder_errors(tmp_path):
    with pytest.raises(DataError, match="has no folder train; give the folder that holds train/<class>/"):
        DatasetSpec.from_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train has no class folders"):
        DatasetSpec.from_folder(tmp_path)
    write_own_folder(tmp_path)
    spec = DatasetSpec.from_folder(tmp_path)
    (tmp_path / "train" / "dogs" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png cannot be decoded"):
        load_dataset(spec)
    for path in (tmp_path / "train" / "dogs").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="dogs.* holds no images"):
        load_dataset(spec)


def test_a_registered_folder_loads_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", dict(DATASETS))
    write_own_folder(tmp_path)
    for _ in range(2):  # the same folder twice is no fault
        register_dataset(DatasetSpec.from_folder(tmp_path, name="pets"))
    assert len(load_dataset("pets").train) == 10
    with pytest.raises(DataError, match="'pets' is registered already"):
        register_dataset(DatasetSpec.from_folder(tmp_path, name="pets", image_size=4))


def test_a_data_set_of_ones_own_is_read_from_shards_by_its_name(parquet_cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", dict(DATASETS))
    register_dataset(replace(DATASETS["cifar10"], name="own"))
    with pytest.raises(DataError, match=r"own is not in .*own/\{train,test\}-\*.parquet; set SEQMATCH_DATA to the folder"):
        load_dataset("own", tmp_path)
    shutil.copytree(parquet_cifar[0] / "cifar10", tmp_path / "own")
    assert load_dataset("own", tmp_path).train.images.equal(load_dataset("cifar10", parquet_cifar[0]).train.images)


def test_digits_are_built_in():
    dataset = load_dataset("digits")
    spec = dataset.spec
    assert (len(dataset.train), len(dataset.test)) == (spec.train_size, spec.test_size)
    assert set(dataset.train.labels.tolist()) == set(range(10))
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)
    pixels = dataset.train.images.float() / 255
    assert spec.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert spec.std[0] == pytest.approx(pixels.std().item(), abs=1e-4)


def test_validation_split_is_stratified_disjoint_and_fixed():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    split = Split(torch.arange(84, dtype=torch.uint8).view(84, 1, 1, 1), labels)
    train, validation = split_validation(split, 0.1)
    assert torch.bincount(validation.labels).tolist() == [5, 3, 1]
    assert sorted(train.images.flatten().tolist() + validation.images.flatten().tolist()) == list(range(84))
    assert torch.equal(labels[validation.images.flatten().long()], validation.labels)
    assert torch.equal(split_validation(split, 0.1)[1].images, validation.images)
    with pytest.raises(DataError, match="class 0 has 1 image, but needs at least 2: 1 held out for validation"):
        split_validation(split.take(torch.tensor([0])), 0.1)


def test_normalisation_and_its_inverse(generator):
    images = torch.randint(256, (8, 3, 5, 4), dtype=torch.uint8, generator=generator)
    normalise = fit_preprocessing(DATASETS["cifar10"], zca=False)
    assert isinstance(normalise, Normalisation)
    x = normalise(images)
    expected = (images[2, 1, 3, 2].item() / 255 - 0.4822) / 0.1994
    assert x[2, 1, 3, 2].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)  # near the mean, float32 has few digits left
    torch.testing.assert_close(normalise.inverse(x), images / 255.0)
    json.dumps(normalise.describe())


def test_whitening_is_zca_and_its_inverse(generator):
    images = torch.randint(256, (200, 2, 3, 3), dtype=torch.uint8, generator=generator)
    images[:, 1] = (images[:, 0] * 0.7 + images[:, 1] * 0.3).byte()  # correlated
    whiten = Whitening(images)
    flat = images.double().flatten(1) / 255
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))
    expected = centred @ vectors @ torch.diag((values + ZCA_EPSILON).rsqrt()) @ vectors.T
    torch.testing.assert_close(whiten(images).flatten(1).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whiten.inverse(whiten(images)), images / 255.0, atol=1e-4, rtol=0)
    json.dumps(whiten.describe())


REAL = {  # images of train and test, and a class count of each, as the folder's README says
    "cifar10": (50_000, 10_000, [5_000] * 10, [1_000] * 10),
    "cifar100": (10_000, 10_000, [100] * 100, [100] * 100),
    "svhn": (
        4_434,
        1_952,
        [315, 871, 603, 507, 463, 428, 326, 321, 326, 274],
        [136, 366, 297, 233, 194, 169, 149, 151, 134, 123],
    ),
    "tiny_imagenet": (10_000, 10_000, [50] * 200, [50] * 200),
}
FIRST_NAME = {"cifar10": "airplane", "cifar100": "apple", "svhn": "0", "tiny_imagenet": "goldfish"}


@pytest.mark.parametrize("name", REAL)
def test_real_data_load_count_decode_and_normalise(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} in {SHARED}; set SEQMATCH_DATA to the folder that holds the parquet shards")
    train_size, test_size, train_counts, test_counts = REAL[name]
    dataset = load_dataset(name, SHARED)
    assert (len(dataset.train), len(dataset.test)) == (train_size, test_size)
    assert torch.bincount(dataset.train.labels).tolist() == train_counts
    assert torch.bincount(dataset.test.labels).tolist() == test_counts
    assert dataset.train.images.shape[1:] == dataset.spec.shape
    assert dataset.class_names[0].startswith(FIRST_NAME[name])
    assert any("train" in notice for notice in dataset.notices) == (name != "cifar10")
    x = fit_preprocessing(dataset.spec, zca=False)(dataset.train.images)
    assert x.isfinite().all()
    assert x.mean().abs() < 0.15  # the field's means; CIFAR-100 is normalised by CIFAR-10's, as in the public code
    assert 0.8 < x.std() < 1.4
    if name == "cifar10":
        pixels = dataset.train.images.double() / 255
        mean, std = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3), correction=0).tolist()
        assert mean == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
        assert std == pytest.approx([0.24703, 0.24349, 0.26159], abs=1e-5)
    if name == "tiny_imagenet":
        grey = (dataset.train.images[:, 0] == dataset.train.images[:, 1]).all(2).all(1)
        assert 194 <= grey.sum() < 260  # 194 greyscale files, and colour files of grey things


def test_checksums_beside_shards_notice_every_damaged_byte(parquet_cifar):
    root, *_ = parquet_cifar
    shards = sorted((root / "cifar10").glob("*.parquet"))
    assert any("no SHA256SUMS" in notice for notice in load_dataset("cifar10", root).notices)
    write_checksums(root, shards)
    assert not any("SHA256SUMS" in notice for notice in load_dataset("cifar10", root).notices)
    whole = shards[1].read_bytes()
    for position in np.random.default_rng(SEED).integers(0, len(whole), 20):
        shards[1].write_bytes(flip(whole, position))
        with pytest.raises(DataError, match=r"train-00000-of-00003.parquet does not match .*SHA256SUMS"):
            load_dataset("cifar10", root)
    shards[1].write_bytes(whole)
    (root / "SHA256SUMS").write_text("no checksum\n")
    with pytest.raises(DataError, match=r"SHA256SUMS has the line 'no checksum'"):
        load_dataset("cifar10", root)


def test_one_coloured_image_makes_a_coloured_set(tmp_path):
    grey, coloured = (np.full(size, 9, dtype=np.uint8) for size in ((4, 4), (4, 4, 3)))
    write_class_folders(tmp_path, {"grey": [grey] * 5, "mixed": [coloured, *[grey] * 4]})
    assert DatasetSpec.from_folder(tmp_path, name="some").shape == (3, 4, 4)
    (tmp_path / "train" / "mixed" / "0.png").unlink()
    assert DatasetSpec.from_folder(tmp_path, name="some").shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["../up", "a/b", "with space", "", ".hidden", "ünï"])
def test_a_name_must_be_fit_for_files(name):
    with pytest.raises(DataError, match=r"data set name .* must consist of letters"):
        DatasetSpec(name, 2, (1, 4, 4), (0.5,), (0.25,))
