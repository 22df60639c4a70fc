"""Readers of image files: parquet shards, folders of images. Whatever is damaged is named, nothing is skipped."""

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seqmatch_lib.errors import DataError, require

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # nothing else is opened: Pillow gives PostScript to a program of its own
MAX_PIXELS = 2**26  # of one image: a file of some kilobytes can claim to hold any number
SHARD_BYTES, SHARD_PIXELS = 2**24, 2**28  # that a shard may always unfold to, however small its file is …
SHARD_GROWTH = 100  # … and how many times the size of its file
MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SHARD_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def find_shards(folder: Path, splits: tuple[str, ...]) -> list[Path]:
    """Returns the shards `<split>-0000i-of-0000n.parquet` of the first split name that has any, in order."""
    for split in splits:
        shards = sorted(path for path in folder.glob(f"{split}-*.parquet") if SHARD_NAME.search(path.name))
        if shards:
            return shards
    return []


def count_shards(shards: list[Path]) -> int:
    """Returns how many shards the names say the whole split has.

    Raises:
        DataError: the names speak of different numbers.
    """
    totals = {int(SHARD_NAME.search(path.name)[2]) for path in shards}
    require(len(totals) == 1, f"{shards[0].parent} mixes shards of {sorted(totals)} parts; keep one kind", DataError)
    return totals.pop()


def read_shards(shards: list[Path], shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Reads Hugging Face style parquet: columns `img` (struct with encoded `bytes`) and `label`.

    Returns:
        (N, C, H, W) uint8 images, (N,) int64 labels, and the class names in the schema's metadata, if any.

    Raises:
        DataError: a damaged shard, a missing column, an undecodable image or one of another size.
    """
    images, labels, names = [], [], ()
    for path in shards:
        shard_images, shard_labels, _, metadata = read_rows(path, shape)
        images.append(shard_images)
        labels.append(shard_labels)
        try:
            names = tuple(map(str, json.loads(metadata.get(b"class_names", b"[]"))))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path} has damaged class names ({_first_line(error)}); get the file again") from error
    return torch.cat(images), torch.cat(labels), names


def read_rows(path: Path, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, Any, dict[bytes, bytes]]:
    """Reads one shard: (N, C, H, W) uint8 images, (N,) int64 labels, the whole table, and its schema's metadata.

    Raises:
        DataError: as `read_shards`.
    """
    import pyarrow as pa

    require(path.is_file(), f"{path} is no file; get the file again", DataError)
    try:
        table = _read_table(path, math.prod(shape))
        encoded = [row["bytes"] for row in table["img"].to_pylist()]
        labels = torch.from_numpy(whole_numbers(table, "label"))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged or not an image shard ({_first_line(error)}); get the file again") from error
    require(len(encoded) > 0, f"{path} has no rows; get the file again", DataError)
    origins = [f"image {row} of {path}" for row in range(len(encoded))]
    images = decode_images(encoded, origins, shape)
    return images, labels, table, table.schema.metadata or {}


def _read_table(path: Path, pixels: int) -> Any:
    """Reads parquet piece by piece, as equal rows take no room in a file: one of kilobytes can unfold to any size.

    Raises:
        Exception: of pyarrow, or a ValueError: it unfolds to more than there is a reason for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, rows, batches = path.stat().st_size, 0, []
    room = max(SHARD_BYTES, SHARD_GROWTH * size)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=256):
            room -= batch.nbytes
            rows += len(batch)
            if room < 0 or rows * pixels > max(SHARD_PIXELS, SHARD_GROWTH * size):
                raise ValueError(f"its {size:,} bytes unfold to more than {rows:,} images")
            batches.append(batch)
        return pa.Table.from_batches(batches, schema=file.schema_arrow)


def whole_numbers(table: Any, name: str) -> np.ndarray:
    """Returns a column of a table as (N,) int64.

    Raises:
        KeyError: there is no such column, or more than one.
        ValueError: it holds anything but whole numbers, or leaves some out.
    """
    import pyarrow as pa

    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"column {name!r} holds {column.type} with {column.null_count} missing instead of whole numbers")
    return column.cast(pa.int64()).to_numpy().copy()  # a view of a table cannot be written to, which torch warns of


def read_image_folder(
    folder: Path, classes: tuple[str, ...], shape: tuple[int, int, int], resize: bool, subfolder: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads `<folder>/<class>/<subfolder>/*` for each class, in the order of the file names.

    Args:
        folder: of one split.
        classes: names of the class folders; their order gives the labels.
        shape: (C, H, W) of the result; grey images become colour images and the other way round.
        resize: whether images of another size are scaled by the shorter side and cut to the middle.
        subfolder: between the class folder and the images, as in Tiny ImageNet.

    Raises:
        DataError: a class without images, an undecodable image, or one of another size without `resize`.
    """
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = list_images(folder / name / subfolder)
        require(
            bool(found), f"class folder {folder / name / subfolder} holds no images; add some or remove the class", DataError
        )
        paths += found
        labels += [label] * len(found)
    return read_image_files(paths, shape, resize), torch.tensor(labels)


def list_images(folder: Path) -> list[Path]:
    """Returns the image files of a folder, sorted by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def read_header(path: Path) -> tuple[tuple[int, int], bool]:
    """Returns the (width, height) of an image file, and whether it is grey; decodes nothing.

    Raises:
        DataError: it is no image.
    """
    content = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open_image(content)
        return image.size, image.mode in ("1", "L", *MODES_OF_16_BITS)
    except Exception as error:  # as in `decode_images`
        raise DataError(f"{path} cannot be decoded ({_first_line(error)}); get the file again") from error


def read_image_files(paths: list[Path], shape: tuple[int, int, int], resize: bool = False) -> torch.Tensor:
    """Reads image files to (N, C, H, W) uint8; errors as in `read_image_folder`."""
    return decode_images((_read_bytes(path) for path in paths), [str(path) for path in paths], shape, resize)


def _read_bytes(path: Path) -> bytes:
    require(path.is_file(), f"{path} is no file, or a link to none; remove it, or get it again", DataError)  # a pipe waits
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable, or get it again") from error


def _open_image(content: bytes) -> Image.Image:
    """Reads the header of an image file; decodes nothing, and refuses to if that would take too much memory.

    Raises:
        Exception: of nearly any kind, as Pillow's readers do on damaged files.
    """
    image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels: make it smaller")
    return image


def decode_images(
    encoded: Iterable[bytes], origins: list[str], shape: tuple[int, int, int], resize: bool = False
) -> torch.Tensor:
    """Decodes images on all cores: PNG, JPEG, BMP and WebP.

    Of 16 bits a colour the upper 8 are kept, and transparency is left out, as torchvision does.

    Args:
        encoded: contents of image files.
        origins: what each is called in an error.
        shape: (C, H, W) that each must have; C is 1 or 3.
        resize: whether images of another size are scaled by the shorter side and cut to the middle.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        DataError: an image that cannot be decoded, is too large, or of another size without `resize`.
    """
    channels, height, width = shape

    def decode(item: tuple[bytes, str]) -> np.ndarray:
        content, origin = item
        try:
            image = _open_image(content)
            fits = resize or image.size == (width, height)
            image = _convert(image, "L" if channels == 1 else "RGB") if fits else image
        except Exception as error:  # Pillow's readers end in all kinds of exceptions on damaged files
            raise DataError(f"{origin} cannot be decoded ({_first_line(error)}); get the file again") from error
        require(
            fits,
            f"{origin} is {image.size[0]}x{image.size[1]}, but the data set has {width}x{height} images; give image_size",
            DataError,
        )
        return np.asarray(_cover(image, (height, width)) if resize else image)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on what can be decoded all the same; for all threads, so set here
        pixels = np.stack(list(pool.map(decode, zip(encoded, origins, strict=True))))
    return torch.from_numpy(pixels).view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in MODES_OF_16_BITS:  # which Pillow would cut off at 255 instead of dividing them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(mode)


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scales the middle of the image, as much as has the shape of (height, width), to that size.

    The whole image is never scaled: a strip of one pixel's width would become as long as it is narrow.
    """
    height, width = size
    scale = min(image.height / height, image.width / width)
    left, top = max(image.width - width * scale, 0) / 2, max(image.height - height * scale, 0) / 2
    return image.resize((width, height), Image.BICUBIC, box=(left, top, image.width - left, image.height - top))


def _first_line(error: Any) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
