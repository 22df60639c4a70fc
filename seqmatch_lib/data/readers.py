"""Readers of image files: parquet shards, folders of images. Whatever is damaged is named; hidden files are no images."""

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from seqmatch_lib.errors import DataError, first_line, require

# Nothing else is opened: Pillow gives PostScript to a program of its own, and takes nearly anything for a TGA file.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
READABLE = ", ".join(IMAGE_FORMATS)  # for messages
MAX_PIXELS = 2**26  # of one image: a file of some kilobytes can claim to hold any number
SHARD_BYTES, SHARD_PIXELS = 2**24, 2**28  # a shard may always unfold to this much …
SHARD_GROWTH = 100  # … and, where that is more, to this many times the size of its file
MODES_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", *MODES_OF_16_BITS)
SHARD_NAME = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?\.parquet$")
SHARD_FOLDERS = ("", "plain_text", "data", "default", "cropped_digits")  # below a data set's folder, as Hugging Face has them
IMAGE_COLUMNS, LABEL_COLUMNS = ("img", "image"), ("label", "fine_label")  # the first that is there


def find_shards(folder: Path, splits: tuple[str, ...]) -> list[Path]:
    """Returns the shards `<split>-0000i-of-0000n.parquet` of the first split name that has any, in order.

    Args:
        folder: of the data set; the shards lie in it, or one folder deeper, as Hugging Face arranges them.
        splits: names of the split.
    """
    for deeper in (*SHARD_FOLDERS, folder.name):
        for split in splits:
            shards = sorted(path for path in (folder / deeper).glob(f"{split}-*.parquet") if SHARD_NAME.search(path.name))
            if shards:
                return shards
    return []


def count_shards(shards: list[Path]) -> int:
    """Returns how many shards the names say the whole split has.

    Raises:
        DataError: the names speak of different numbers, or two are the same shard.
    """
    names = [SHARD_NAME.search(path.name) for path in shards]
    totals = {int(name[2]) for name in names}
    require(len(totals) == 1, f"{shards[0].parent} mixes shards of {sorted(totals)} parts; keep one kind", DataError)
    twice = [path.name for path, name, after in zip(shards, names, names[1:], strict=False) if name[1] == after[1]]
    require(not twice, f"{shards[0].parent} holds {twice[:1]} a second time under another name; keep one of them", DataError)
    return totals.pop()


def read_shards(shards: list[Path], shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Reads Hugging Face style parquet: columns `img` or `image` (struct with encoded `bytes`), `label` or `fine_label`.

    Returns:
        (N, C, H, W) uint8 images, (N,) int64 labels, and the class names in the schema's metadata, if any.

    Raises:
        DataError: a damaged shard, a missing column, an undecodable image or one of another size.
    """
    images, labels, names = [], [], ()
    for path in shards:
        shard_images, shard_labels, table, metadata = read_rows(path, shape)
        images.append(shard_images)
        labels.append(shard_labels)
        try:
            found = _class_names(metadata, _find_column(table, LABEL_COLUMNS))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} has damaged class names ({first_line(error)}); get the file again") from error
        names = agree_on_names(names, found, path)
    return torch.cat(images), torch.cat(labels), names


def agree_on_names(names: tuple[str, ...], found: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Returns those of two lists of class names that are known; raises DataError, which names a file, if they differ."""
    agree = not names or not found or names == found
    problem = f"{path} calls the classes {', '.join(found):.80}, but others call them {', '.join(names):.80}"
    require(agree, f"{problem}; get all files of one version", DataError)
    return names or found


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...]:
    """Returns the names in our metadata, else in those of Hugging Face, else none; errors are Python's own."""
    if b"huggingface" in metadata and b"class_names" not in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return tuple(map(str, features.get(label, {}).get("names", [])))
    return tuple(map(str, json.loads(metadata.get(b"class_names", b"[]"))))


def read_rows(path: Path, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, Any, dict[bytes, bytes]]:
    """Reads one shard: (N, C, H, W) uint8 images, (N,) int64 labels, the whole table, and its schema's metadata.

    Raises:
        DataError: as `read_shards`.
    """
    import pyarrow as pa

    require(path.is_file(), f"{path} is no file; get the file again", DataError)
    try:
        table = _read_table(path, math.prod(shape))
        encoded = [row["bytes"] for row in table[_find_column(table, IMAGE_COLUMNS)].to_pylist()]
        labels = torch.from_numpy(whole_numbers(table, _find_column(table, LABEL_COLUMNS)))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged or not an image shard ({first_line(error)}); get the file again") from error
    require(len(encoded) > 0, f"{path} has no rows; get the file again", DataError)
    images = decode_images(encoded, [f"image {row} of {path}" for row in range(len(encoded))], shape)
    return images, labels, table, table.schema.metadata or {}


def _find_column(table: Any, names: Sequence[str]) -> str:
    """Returns the first of the names that a table has; without any, a DataError says which columns there are."""
    known = [name for name in names if name in table.column_names]
    require(bool(known), f"it has no column {' or '.join(names)}, but {', '.join(table.column_names)[:120]}", DataError)
    return known[0]


def _read_table(path: Path, pixels: int) -> Any:
    """Reads parquet in pieces, up to a limit: equal rows take no room, so a file of kilobytes can unfold to any size.

    Raises:
        Exception: of pyarrow, or a ValueError: it unfolds to more than the limit.
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


def list_images(folder: Path) -> list[Path]:
    """Returns the image files in a folder, sorted by name, and then those in the folders below it; none that is hidden."""
    return [path for path in list_files(folder, set()) if path.suffix.lower() in _image_suffixes()]


def list_files(folder: Path, seen: set[Path]) -> Iterable[Path]:
    """Yields every file, and every folder named like an image; follows links, but visits no folder twice."""
    seen.add(folder.resolve())
    below = []
    for path in sorted(folder.glob("[!.]*")):
        if path.is_dir() and path.suffix.lower() not in _image_suffixes():
            below.append(path)
        else:
            yield path
    for path in below:
        if path.resolve() not in seen:
            yield from list_files(path, seen)


@cache
def _image_suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS)


def read_header(path: Path, decode: bool = False) -> tuple[tuple[int, int], bool]:
    """Returns the (width, height) of an image file, upright if it is decoded, and whether it is grey.

    Raises:
        DataError: it is no image.
    """
    content = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open_image(content)
            return (convert(image, "L") if decode else image).size, image.mode in GREY
    except Exception as error:  # as in `decode_images`
        raise DataError(f"{path} cannot be decoded ({first_line(error)}); get the file again") from error


def read_image_files(paths: list[Path], shape: tuple[int, int, int], resize: bool = False) -> torch.Tensor:
    """Reads image files to (N, C, H, W) uint8; errors as in `decode_images`, and of a file that cannot be read."""
    return decode_images((_read_bytes(path) for path in paths), [str(path) for path in paths], shape, resize)


def _read_bytes(path: Path) -> bytes:
    try:
        is_file = path.is_file()  # reading a pipe would wait
        content = path.read_bytes() if is_file else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable, or get it again") from error
    require(is_file, f"{path} is no file, or a link to none; remove it, or get it again", DataError)
    return content


def _open_image(content: bytes) -> Image.Image:
    """Reads the header of an image file; decodes nothing, and refuses to if that would take too much memory.

    Raises:
        Exception: of nearly any kind, as Pillow's readers do on damaged files.
    """
    if not content:
        raise ValueError("it is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:  # whose own message names an address in memory
        raise ValueError(f"it is none of {READABLE}") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels: make it smaller")
    return image


def decode_images(
    encoded: Iterable[bytes], origins: list[str], shape: tuple[int, int, int], resize: bool = False
) -> torch.Tensor:
    """Decodes images of `IMAGE_FORMATS` on all cores, and turns them upright as their EXIF data say.

    Of 16 bits a colour the upper 8 are kept, and transparency is left out, as torchvision does; of an animation or of
    several pages the first is taken.

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
            image = convert(_open_image(content), "L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's readers end in all kinds of exceptions on damaged files
            raise DataError(f"{origin} cannot be decoded ({first_line(error)}); get the file again") from error
        remedy = "give image_size (--image-size PIXELS) if they are your own, or get the files again"
        found = f"{origin} is {image.width}x{image.height}, but the data set has {width}x{height} images"
        require(resize or image.size == (width, height), f"{found}; {remedy}", DataError)
        return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) if resize else image)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on what can be decoded all the same; for all threads, so set here
        pixels = np.stack(list(pool.map(decode, zip(encoded, origins, strict=True))))
    return torch.from_numpy(pixels).view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Returns a picture in mode "L" or "RGB", decoded to 8 bits a colour, upright; raises ValueError for 32 bits a pixel."""
    is_16_bits = image.mode in MODES_OF_16_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image.load()
    with suppress(Exception):  # damaged EXIF data say nothing, and the pixels may be whole
        image = ImageOps.exif_transpose(image)
    if is_16_bits:
        pixels = np.asarray(image) >> 8  # Pillow would cut them off at 255 instead of dividing them
        image = Image.fromarray(pixels.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel, of which no value is known to be white; save it with 8 or 16")
    return image.convert(mode)
