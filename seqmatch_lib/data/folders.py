"""How folders of images are arranged: one's own by split and class, and Tiny ImageNet's, also as public code rearranges it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from seqmatch_lib.data.labels import Split
from seqmatch_lib.data.readers import READABLE, list_files, list_images, read_image_files
from seqmatch_lib.errors import DataError, require

TEST_FOLDERS = ("test", "val", "valid", "validation")


def class_folders(folder: Path) -> list[Path]:
    """Returns the folders of a split's classes without hidden ones: by number if they are called 0, 1, 2, …, else by name.

    Raises:
        DataError: there are none, or two whose names look alike.
    """
    classes = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    require(bool(classes), f"{folder} has no class folders; put the images into {folder}/<class>/", DataError)
    looks = [_look(path.name) for path in classes]
    twins = [ascii(path.name) for path, look in zip(classes, looks, strict=True) if looks.count(look) > 1]
    require(not twins, f"{folder} has classes whose names look alike, {', '.join(twins)}; put them into one folder", DataError)
    if sorted(int(path.name) for path in classes if path.name.isdecimal()) == list(range(len(classes))):
        classes.sort(key=lambda path: int(path.name))  # they are the labels; the alphabet would make folder 10 class 2
    return classes


def _look(name: str) -> str:
    """Returns a name as one sees it: an é is one sign or two, by the system that wrote it."""
    return unicodedata.normalize("NFC", name)


def find_test_folders(folder: Path) -> list[Path]:
    """Returns the folders beside `train` that can be the test split, the one that is used first."""
    return [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]


def match_classes(folder: Path, classes: Sequence[str]) -> list[Path]:
    """Returns the folder of each class of `train` in another split, by what its name looks like.

    Raises:
        DataError: a class of that split is none of `train`, or has no folder there.
    """
    folder_of = {_look(path.name): path for path in class_folders(folder)}
    unknown = sorted(folder_of.keys() - set(map(_look, classes)))
    require(not unknown, f"{folder} has classes {unknown} that train has not; name both alike", DataError)
    missing = [name for name in classes if _look(name) not in folder_of]
    require(not missing, f"{folder} has no folders of the classes {missing}; add them, or remove them from train", DataError)
    return [folder_of[_look(name)] for name in classes]


def read_class_folders(folders: Sequence[Path], shape: tuple[int, int, int], resize: bool = False) -> Split:
    """Reads the images of each class, in the order of the file names.

    Args:
        folders: one a class; their order gives the labels.
        shape: (C, H, W) of the result; grey images become colour images and the other way round.
        resize: whether images of another size are scaled by the shorter side and cut to the middle.

    Raises:
        DataError: a class without images, an undecodable image, or one of another size without `resize`.
    """
    paths, labels = [], []
    for label, folder in enumerate(folders):
        files = list_images(folder)
        if not files:
            raise DataError(
                f"class folder {folder} holds no images that can be read ({READABLE}); add some or remove the class"
            )
        paths += files
        labels += [label] * len(files)
    return Split(read_image_files(paths, shape, resize), torch.tensor(labels))


def describe_left_out(folder: Path, used: Iterable[Path]) -> list[str]:
    """Returns a sentence on the files below a folder that were not used, with their numbers; none if all were.

    Args:
        folder: of a split.
        used: the folders of its classes, as `read_class_folders` read them.
    """
    images = {path for class_folder in used for path in list_images(class_folder)}
    left = Counter(path.suffix.lower() or path.name for path in list_files(folder, set()) if path not in images)
    if not left:
        return []
    kinds = [f"{count} {suffix}" for suffix, count in left.most_common(5)] + (["…"] if len(left) > 5 else [])
    return [f"{folder}: files left out: {left.total()} ({', '.join(kinds)}); what is read are {READABLE} in class folders"]


def read_tiny_imagenet(folder: Path, shape: tuple[int, int, int]) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads `train/<wnid>/images/*.JPEG`, and the validation images as the archive or public code arranges them.

    They lie in `val/images` with `val/val_annotations.txt`, or in a folder for each class, in `val/images` or `val`. Either
    way they come in the order of their numbers, which is that of the annotations.

    Args:
        folder: `tiny-imagenet-200`, the unpacked archive.
        shape: (C, H, W) of an image.

    Returns:
        The training images, the validation images, and the wnids.

    Raises:
        DataError: classes or annotations that are missing, or an image that is missing or damaged.
    """
    folders = class_folders(folder / "train")
    wnids = tuple(path.name for path in folders)
    for val in (folder / "val" / "images", folder / "val"):
        if (val / wnids[0]).is_dir():
            files = [(file, label) for label, wnid in enumerate(wnids) for file in list_images(val / wnid)]
            files.sort(key=lambda item: [int(number) for number in re.findall(r"\d+", item[0].stem)[-1:]])
            break
    else:
        files = _read_annotations(val, wnids)
    require(bool(files), f"{val} holds no images, or none that its annotations name; unpack the archive again", DataError)
    validation = Split(read_image_files([file for file, _ in files], shape), torch.tensor([label for _, label in files]))
    return read_class_folders(folders, shape), validation, wnids


def _read_annotations(val: Path, wnids: Sequence[str]) -> list[tuple[Path, int]]:
    """Returns the files that the annotations name, with their labels."""
    path = val / "val_annotations.txt"
    try:
        rows = [line.split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines()]
        outside = [file for file, _ in rows if Path(file).name != file]
        files = [(val / "images" / file, wnids.index(wnid)) for file, wnid in rows]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); unpack the archive again") from error
    require(not outside, f"{path} names {outside[:1]} outside its folder; unpack the archive again", DataError)
    return files
