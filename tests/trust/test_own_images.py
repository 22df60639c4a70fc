"""Folders and files as people have them: pictures of all kinds, odd names, the arrangements of other codes."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_engine import limits
from helpers import encode, write_class_folders
from PIL import Image
from test_cli import fails_in_one_line
from test_data import random_pixels

from seqmatch_lib.__main__ import main
from seqmatch_lib.data import datasets as data
from seqmatch_lib.data.datasets import DATASETS, DatasetSpec, ImageDataset, load_dataset
from seqmatch_lib.data.readers import IMAGE_FORMATS, list_images, read_header, read_image_files
from seqmatch_lib.errors import DataError

ORIENTATION = 0x0112  # the tag of EXIF
QUICK = ["--scale", "smoke", "--set", "training.epochs=1", "--set", "evaluation.num_networks=1"]
RUN = ["run", "cifar10-ipc10-random", *QUICK, "--set", "ipc=1", "--set", "subset_ipcs=[1]"]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Data sets that a test registers end with it."""
    monkeypatch.setattr(data, "DATASETS", dict(DATASETS))
    monkeypatch.setattr("seqmatch_lib.__main__.DATASETS", data.DATASETS)


def write_pictures(root: Path, count: int = 4, classes=("cats", "dogs"), splits=("train", "test"), suffix=".png") -> None:
    """Writes that many random pictures of 8x8 a class."""
    pictures = {name: random_pixels(count, 8, seed=number) for number, name in enumerate(classes)}
    write_class_folders(root, pictures, splits, suffix)


def read(root: Path) -> ImageDataset:
    return load_dataset(DatasetSpec.from_folder(root, name="own"))


# --- which files are pictures


@pytest.mark.parametrize(
    ("suffix", "exact"),
    [(".tif", True), (".TIFF", True), (".gif", False), (".ppm", True), (".pgm", True), (".jp2", True), (".avif", False)],
)
def test_every_usual_format_is_read_beside_others(tmp_path, suffix, exact):
    write_pictures(tmp_path)
    image = Image.fromarray(random_pixels(1, 8)[0]).convert("L" if suffix == ".pgm" else "RGB")
    for i in range(3):
        image.save(tmp_path / "train" / "cats" / f"x{i}{suffix}")
    dataset = read(tmp_path)
    assert dataset.train.labels.tolist() == [0] * 7 + [1] * 4
    if exact:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(dataset.train.images[4].numpy(), expected)
    assert not dataset.notices


def test_what_is_left_out_is_said_in_numbers(tmp_path, capsys):
    write_pictures(tmp_path)
    write_pictures(tmp_path, 3, ("dogs",), ("train",), ".tga")
    (tmp_path / "train" / "cats" / "notes.txt").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "loose.png")
    dataset = read(tmp_path)
    (notice,) = dataset.notices
    assert f"{tmp_path / 'train'}: files left out: 5 (3 .tga, 1 .png, 1 .txt)" in notice
    assert notice in capsys.readouterr().err
    assert len(dataset.train) == 8


def test_a_class_of_which_nothing_can_be_read_is_named_with_what_can(tmp_path):
    write_pictures(tmp_path)
    for path in (tmp_path / "train" / "dogs").iterdir():
        path.rename(path.with_suffix(".tga"))
    with pytest.raises(DataError, match=r"train/dogs holds no images that can be read \(PNG, JPEG, .*; add some or remove"):
        read(tmp_path)


def test_hidden_files_and_folders_are_skipped(tmp_path):
    write_pictures(tmp_path)
    write_pictures(tmp_path, 1, (".ipynb_checkpoints", "cats/.thumbnails"))
    for split in ("train", "test"):
        (tmp_path / split / "cats" / "._000.png").write_bytes(b"\0\5\x16\7 of a Mac")
    dataset = read(tmp_path)
    assert dataset.class_names == ("cats", "dogs")
    assert len(dataset.train) == len(dataset.test) == 8
    assert not dataset.notices


def test_folders_below_a_class_belong_to_it_and_links_end(tmp_path):
    write_pictures(tmp_path)
    write_pictures(tmp_path, 2, ("cats/more",), ("train",))
    for name in ("one", "two"):
        (tmp_path / "train" / "cats" / "more" / name).symlink_to(tmp_path / "train" / "cats")
    with limits():
        found = list_images(tmp_path / "train" / "cats")
    assert [str(path.relative_to(tmp_path / "train" / "cats")) for path in found] == [
        *(f"{i}.png" for i in range(4)),
        "more/0.png",
        "more/1.png",
    ]
    assert len(read(tmp_path).train) == 10


# --- pixels

STORED = {  # how an upright picture is stored, by the EXIF orientation
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: upright[::-1, ::-1],
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(tmp_path, kind, orientation):
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((8, 8), dtype=np.uint8))
    upright = np.stack([upright] * 3, axis=2)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    picture.save(tmp_path / "picture", kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert read_header(tmp_path / "picture", decode=True)[0] == (24, 16)
    found = read_image_files([tmp_path / "picture"], (3, 16, 24))[0].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - upright).max() <= (12 if kind in ("JPEG", "AVIF") else 0)


def test_damaged_exif_data_say_nothing(tmp_path):
    image = Image.fromarray(random_pixels(1, 8)[0])
    image.save(tmp_path / "picture.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff and so on")
    assert np.array_equal(read_image_files([tmp_path / "picture.png"], (3, 8, 8))[0].permute(1, 2, 0), np.asarray(image))


def test_pixels_of_16_bits_are_divided_and_those_of_32_are_refused(tmp_path):
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    for name in ("deep.tif", "deep.pgm"):
        Image.fromarray(deep).save(tmp_path / name)
        found = read_image_files([tmp_path / name], (1, 8, 8))[0, 0].numpy()
        assert np.array_equal(found, deep >> 8)
    Image.fromarray(deep.astype(np.float32) / 65536).save(tmp_path / "float.tif")
    with pytest.raises(
        DataError, match=r"float\.tif cannot be decoded \(it has 32 bits a pixel, of which no value is known to be white"
    ):
        read_image_files([tmp_path / "float.tif"], (1, 8, 8))


@pytest.mark.parametrize(("content", "words"), [(b"", "it is empty"), (b"no picture", "it is none of PNG, JPEG")])
def test_what_is_no_picture_is_told_without_addresses(tmp_path, content, words):
    (tmp_path / "picture.png").write_bytes(content)
    for reader in (read_header, lambda path: read_image_files([path], (3, 8, 8))):
        with pytest.raises(DataError, match=rf"picture\.png cannot be decoded \({words}") as raised:
            reader(tmp_path / "picture.png")
        assert "0x" not in str(raised.value)
    assert len(IMAGE_FORMATS) == len(set(IMAGE_FORMATS))


# --- splits and classes


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_stands_in_for_a_test_folder_and_says_so(tmp_path, name):
    write_pictures(tmp_path, splits=("train", name))
    dataset = read(tmp_path)
    assert len(dataset.train) == len(dataset.test) == 8
    assert dataset.notices == (f"{tmp_path} has no test folder: its {name} folder is the test split",)


def test_a_validation_folder_beside_a_test_folder_is_not_read_and_that_is_said(tmp_path):
    write_pictures(tmp_path)
    write_pictures(tmp_path, 1, splits=("val",))
    dataset = read(tmp_path)
    assert len(dataset.test) == 8
    assert dataset.notices == (f"{tmp_path / 'val'} is not read: test is the test split",)


def test_names_of_classes_that_look_alike_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_pictures(tmp_path, classes=(composed, "tea"), splits=("train",))
    write_pictures(tmp_path, classes=(apart, "tea"), splits=("test",))
    dataset = read(tmp_path)
    assert dataset.class_names == (composed, "tea")
    assert dataset.test.labels.tolist() == dataset.train.labels.tolist()
    write_pictures(tmp_path, classes=(apart,), splits=("train",))
    with pytest.raises(DataError, match=r"names look alike, 'cafe\\u0301', 'caf\\xe9'; put them into one folder"):
        read(tmp_path)


def test_too_few_images_of_a_class_are_told_with_where_the_others_are(tmp_path, capsys):
    write_pictures(tmp_path / "pets", 10, splits=("train",))
    command = ["run", "cifar10-ipc10-random", *QUICK, "--set", "ipc=8", "--set", "subset_ipcs=[8]"]
    command += ["--images", str(tmp_path / "pets"), "--results", str(tmp_path / "results")]
    main(command)
    error = capsys.readouterr().err
    assert "class 'cats' has 7 real images, fewer than ipc 8; of 10, held out are 1 for validation (none with --set" in error
    assert "select_on=none) and 2 for testing (none if there is a test folder beside train)" in error
    assert main([*command, "--set", "select_on=none"]) == 0  # the first remedy
    write_pictures(tmp_path / "pets", 1, splits=("test",))
    assert main(command) == 0  # the second


def test_a_run_made_again_with_a_damaged_picture_loses_no_record(tmp_path, capsys):
    write_pictures(tmp_path / "pets")
    arguments = [*RUN, "--images", str(tmp_path / "pets"), "--results", str(tmp_path / "results")]
    assert main(arguments) == 0
    (tmp_path / "pets" / "train" / "cats" / "9.png").write_bytes(b"")
    capsys.readouterr()
    assert "9.png cannot be decoded (it is empty)" in fails_in_one_line(capsys, *arguments, "--force")
    assert len(list((tmp_path / "results" / "runs" / "pets").iterdir())) == 1


# --- names


@pytest.mark.parametrize("name", ["my images", "cifar10"])
def test_a_folder_of_any_name_can_be_given_another(tmp_path, capsys, name):
    write_pictures(tmp_path / name)
    arguments = [*RUN, "--images", str(tmp_path / name), "--results", str(tmp_path / "results")]
    assert "--name NAME" in fails_in_one_line(capsys, *arguments)
    assert main([*arguments, "--name", "mine"]) == 0
    assert [path.name for path in (tmp_path / "results" / "runs").iterdir()] == ["mine"]


def test_what_is_asked_for_beside_images_is_not_lost(tmp_path, capsys):
    write_pictures(tmp_path / "pets")
    arguments = [*RUN, "--images", str(tmp_path / "pets"), "--results", str(tmp_path / "results")]
    assert "--name" in fails_in_one_line(capsys, *arguments, "--set", "dataset=svhn")
    for size in ("8", "0"):
        assert "give --images too" in fails_in_one_line(capsys, *RUN, "--image-size", size)
    assert "give --images too" in fails_in_one_line(capsys, *RUN, "--name", "pets")
    assert main([*arguments, "--set", "zca=true"]) == 0
    (record,) = (tmp_path / "results" / "runs" / "pets").iterdir()
    assert json.loads(record.read_text(encoding="utf-8"))["config"]["zca"] is True


def test_a_set_is_evaluated_and_exported_with_its_images_wherever_they_are(tmp_path, capsys):
    pets, moved, results = tmp_path / "pets", tmp_path / "old pets", tmp_path / "results"
    write_pictures(pets)
    assert main([*RUN, "--images", str(pets), "--image-size", "12", "--results", str(results)]) == 0
    (distilled,) = map(str, (results / "distilled").iterdir())
    pets.rename(moved)
    data.DATASETS.pop("pets")  # another process knows it not
    assert main(["evaluate", distilled, "--images", str(moved)]) == 0  # neither the name nor the size again
    assert main(["export", distilled, "--images", str(moved), "--to", "mtt", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    line = fails_in_one_line(capsys, "evaluate", distilled, "--images", str(moved), "--image-size", "9")
    assert "images of shape (3, 12, 12), but the data set has (3, 9, 9)" in line
    Image.new("RGB", (8, 8)).save(moved / "test" / "cats" / "added.png")
    line = fails_in_one_line(capsys, "evaluate", distilled, "--images", str(moved))
    assert "other pets images (6 to train and 8 to test) than those found (6 to train and 9 to test)" in line
    assert "give --images a folder with the same pictures" in line
    (moved / "test" / "cats" / "added.png").unlink()
    assert main(["evaluate", distilled, "--images", str(moved)]) == 0  # the remedy


def test_own_images_do_not_judge_a_set_of_other_data(tmp_path, capsys):
    assert main(["run", "digits-ipc10-random", "--scale", "smoke", "--results", str(tmp_path / "results")]) == 0
    capsys.readouterr()
    (distilled,) = (tmp_path / "results" / "distilled").iterdir()
    write_pictures(tmp_path / "pets")
    line = fails_in_one_line(capsys, "evaluate", str(distilled), "--images", str(tmp_path / "pets"))
    assert "was distilled from digits, not from images of your own; leave out --images" in line


# --- public data sets, as others arrange them


def write_hugging_face(path: Path, image: str, label: str, labels: list[int], names: list[str] | None, **more) -> None:
    """Writes a shard as `datasets` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [{"bytes": encode(pixels), "path": None} for pixels in random_pixels(len(labels))]
    table = pa.table({image: encoded, label: labels, **more})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("folder", "image", "label", "ending"),
    [
        ("plain_text", "img", "label", ""),
        ("cifar10", "img", "label", ""),
        ("data", "image", "label", "-1359597a978bc4fa"),
        ("", "image", "fine_label", "-4e4faae13a7a2f03"),
    ],
)
def test_shards_of_hugging_face_are_read_as_they_come(tmp_path, folder, image, label, ending):
    names, labels = [f"name{i}" for i in range(10)], [9, *range(10)]
    for split in ("train", "test"):
        path = tmp_path / "cifar10" / folder / f"{split}-00000-of-00001{ending}.parquet"
        write_hugging_face(path, image, label, labels, names, coarse_label=[0] * 11)
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.class_names == tuple(names)
    assert dataset.train.labels.tolist() == labels
    assert np.array_equal(dataset.test.images.permute(0, 2, 3, 1), random_pixels(11))


def test_shards_without_our_columns_say_which_they_have(tmp_path):
    for split in ("train", "test"):
        write_hugging_face(tmp_path / "svhn" / f"{split}-00000-of-00001.parquet", "image", "digits", list(range(10)), None)
    with pytest.raises(DataError, match="it has no column label or fine_label, but image, digits"):
        load_dataset("svhn", tmp_path)


def test_a_shard_that_is_there_twice_is_not_read_twice(tmp_path):
    for name in ("train-00000-of-00001", "train-00000-of-00001-0123456789abcdef", "test-00000-of-00001"):
        write_hugging_face(tmp_path / "cifar10" / f"{name}.parquet", "img", "label", list(range(10)), None)
    with pytest.raises(DataError, match="a second time under another name; keep one of them"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("kept", [True, False])
def test_tiny_imagenet_is_the_same_in_every_arrangement(tmp_path, kept):
    """Of twelve images, so that the order of the names is not that of the numbers."""
    spec = DatasetSpec("tiny_imagenet", 2, (3, 8, 8), (0.5,) * 3, (0.25,) * 3, train_size=1000)
    wnids = [("n02", "n01")[number % 2] for number in range(12)]
    datasets = []
    for arrangement in ("archive", "val/images/{wnid}", "val/{wnid}", "val/{wnid}/images"):
        root = tmp_path / arrangement.replace("/", "-") / "tiny-imagenet-200"
        inside = "{wnid}/images" if arrangement in ("archive", "val/{wnid}/images") else "{wnid}"
        for number, (wnid, image) in enumerate(zip(wnids, random_pixels(12, 8), strict=True)):
            place = "val/images" if arrangement == "archive" else arrangement.format(wnid=wnid)
            for folder, name in ((f"train/{inside.format(wnid=wnid)}", f"{wnid}_{number}"), (place, f"val_{number}")):
                (root / folder).mkdir(parents=True, exist_ok=True)
                (root / folder / f"{name}.JPEG").write_bytes(encode(image, "JPEG"))
            (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        (root / "val" / "images").mkdir(exist_ok=True)  # which codes leave behind, empty
        if kept or arrangement == "archive":
            rows = [f"val_{number}.JPEG\t{wnid}\t0\t0\t7\t7\n" for number, wnid in enumerate(wnids)]
            (root / "val" / "val_annotations.txt").write_text("".join(rows))
        datasets.append(load_dataset(spec, root.parent))
    assert datasets[0].test.labels.tolist() == [1, 0] * 6
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    assert datasets[0].notices == ("tiny_imagenet train: 12 of 1,000 images, 6 per class",)


@pytest.mark.parametrize("place", ["val/images/n01", "val/n01", "val"])
def test_tiny_imagenet_without_validation_images_is_told(tmp_path, place):
    for wnid in ("n01", "n02"):
        (tmp_path / "tiny-imagenet-200" / "train" / wnid).mkdir(parents=True)
    (tmp_path / "tiny-imagenet-200" / place).mkdir(parents=True)
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(DataError, match="holds no images, or none that its annotations name; unpack the archive again"):
        load_dataset("tiny_imagenet", tmp_path)
