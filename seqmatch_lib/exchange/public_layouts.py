"""The layouts that the public code of MTT, SeqMatch, DATM and IDC saves with `torch.save`.

Sources: `distill.py` of MTT, `distill_eval_new.py` of SeqMatch, `DATM.py`, `condense.py` of IDC, and `condense_new.py` of
SeqMatch-IDC.
"""

import sys
import warnings
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.multi_formation import Formation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.errors import DataError, StorageError, first_line, require
from seqmatch_lib.store.files import write_parts
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, spread_lrs

LR_FILES = ("best_lr.pt", "lr_best.pt")  # of SeqMatch and of DATM
MAX_OUTSIDE = 0.1  # of colours from [0, 1], on average: distilled ones have 0.01 and less, normalised ones 0.25 and more
SUM_TOLERANCE = 0.01  # of probabilities, from 1: those of bfloat16 sum to no better
_NUMPY = ("numpy.", "_codecs.encode")  # what pickled arrays ask for
IDC_FILES = ("data_com_best.pt", "data_best.pt", "data.pt")  # all subsets of SeqMatch-IDC; the best and the last of IDC


def write_mtt(sequence: SubsetSequence, folder: Path, *_: Any) -> list[Path]:
    """Writes the layout of MTT and SeqMatch; `export_sequence` says what goes where, here and in the functions below."""
    return [path for subset, where in _places(sequence, folder) for path in _write_pt_subset(subset, where, LR_FILES[0])]


def write_datm(sequence: SubsetSequence, folder: Path, *_: Any) -> list[Path]:
    """Writes the layout of DATM, whose soft labels are logits."""
    other = "parquet" if sequence.subsets[0].labels.is_floating_point() else "mtt"
    problem = "format 'datm' holds probabilities, as logits, and the labels of this set are no probabilities"
    require(holds_probabilities(sequence), f"{problem}; use {other!r}")
    written = []
    for subset, where in _places(sequence, folder):
        logits = subset.labels.clamp_min(torch.finfo(subset.labels.dtype).tiny).log()
        written += _write_pt_subset(replace(subset, labels=logits), where, LR_FILES[1])
    return written


def holds_probabilities(sequence: SubsetSequence) -> bool:
    """Whether all labels are rows of probabilities, as those of DATM are and those that krr learns are not."""
    rows = [subset.labels for subset in sequence.subsets]
    return all(row.is_floating_point() and bool((row >= 0).all() and (row.sum(1) - 1).abs().max() < 1e-4) for row in rows)


def write_idc(sequence: SubsetSequence, folder: Path, preprocessing: Preprocessing, *_: Any) -> list[Path]:
    """Writes the layout of IDC, or of SeqMatch-IDC where there are several subsets: colours, tiles as they are stored."""
    images = torch.cat([preprocessing.inverse(subset.images) for subset in sequence.subsets])
    labels = torch.cat([subset.labels.cpu() for subset in sequence.subsets])
    return [_write_pt(folder / (IDC_FILES[0] if len(sequence) > 1 else IDC_FILES[-1]), [images, labels])]


def _places(sequence: SubsetSequence, folder: Path) -> list[tuple[SyntheticSubset, Path]]:
    if len(sequence) == 1:
        return [(sequence.subsets[0], folder)]
    return [(subset, folder / f"S_{k}") for k, subset in enumerate(sequence.subsets, start=1)]


def _write_pt_subset(subset: SyntheticSubset, folder: Path, lr_name: str) -> list[Path]:
    images, labels = subset.formation(subset.images, subset.labels)
    values = {"images_best.pt": images.cpu(), "labels_best.pt": labels.cpu(), lr_name: torch.tensor(subset.lr)}
    return [_write_pt(folder / name, value) for name, value in values.items()]


def _write_pt(path: Path, value: Any) -> Path:
    buffer = BytesIO()
    torch.save(value, buffer)  # which would tell of a full disk by an error of its own kind
    write_parts(path, buffer.getbuffer())
    return path


def read_pt(paths: Sequence[Path], soft: bool, lrs: Sequence[float], exported: Collection[Path]) -> list[SyntheticSubset]:
    """Reads what MTT and SeqMatch save, or DATM if `soft`; step sizes given go before those found.

    The subsets lie in the folders given, or in `S_1`, `S_2`, … in the only one given. The pixels of files that we `exported`
    are taken as they are; others are refused if they do not look like what the format stores. `read_idc` does the same.
    """
    folders = list(paths)
    if len(paths) == 1 and (paths[0] / "S_1").is_dir():
        count = len([path for path in paths[0].glob("S_*") if path.is_dir()])
        folders = [paths[0] / f"S_{k}" for k in range(1, count + 1)]
    step_sizes = spread_lrs(lrs, len(folders), ", ".join(map(str, folders))) if lrs else [None] * len(folders)
    return [_read_pt_subset(folder, soft, lr, exported) for folder, lr in zip(folders, step_sizes, strict=True)]


def _read_pt_subset(folder: Path, soft: bool, lr: float | None, exported: Collection[Path]) -> SyntheticSubset:
    path = folder / "images_best.pt"
    images = _read_images(_load_pt(path), path, "save (images.float() / 255 - mean) / std")
    if path not in exported and not (images < 0).any():
        raise DataError(
            f"{path} holds values from {images.min():.4g} to {images.max():.4g}, none negative, but this format stores images "
            "as networks see them, normalised to mean 0; save (images / 255 - mean) / std if they are pixels up to 255, or "
            "(images - mean) / std if they are colours up to 1"
        )
    path = folder / "labels_best.pt"
    labels = _plain(_load_pt(path), path)
    labels = _read_soft_labels(labels, path) if soft else _read_classes(labels, path, "import it as datm")
    return SyntheticSubset(images, labels, _read_lr(folder) if lr is None else lr)


def read_idc(
    folder: Path, subset_ipcs: Sequence[int], formation: Formation, preprocessing: Preprocessing,
    shape: tuple[int, int, int], lrs: Sequence[float], exported: Collection[Path],
) -> list[SyntheticSubset]:  # fmt: skip
    """Reads what IDC and SeqMatch-IDC save; how it is divided and stored stands in their options, and is given here."""
    path = next((folder / name for name in IDC_FILES if (folder / name).is_file()), None)
    require(path is not None, f"{folder} holds none of {', '.join(IDC_FILES)}; give the folder of a run of IDC", StorageError)
    value = _load_pt(path)
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    require(is_pair, f"{path} holds {_kind(value)} instead of a list of images and labels; save that", StorageError)
    images = _read_images(value[0], path, "save images.float() / 255")
    labels = _plain(value[1], path)
    fits = tuple(images.shape[1:]) == shape and labels.dim() > 0
    require(fits, f"{path} holds images and labels of {images.shape} and {labels.shape}, not images of {shape}", DataError)
    if path not in exported:
        _check_colours(images, path)
    labels = _read_classes(labels, path, "the format has none; save classes, one whole number an image")
    sizes = [len(images) * ipc // sum(subset_ipcs) for ipc in subset_ipcs]
    problem = f"{len(images)} images and {len(labels)} labels, which subset_ipcs {list(subset_ipcs)} do not divide"
    require(sum(sizes) == len(images) == len(labels), f"{path} holds {problem}; set ipc and subset_ipcs")
    step_sizes = spread_lrs(lrs, len(sizes), str(path))
    parts = zip(preprocessing(255 * images).split(sizes), labels.split(sizes), step_sizes, strict=True)
    return [SyntheticSubset(*part, formation) for part in parts]


def _read_images(value: Any, path: Path, remedy: str) -> torch.Tensor:
    images = _plain(value, path)
    require(images.is_floating_point(), f"{path} holds images of {images.dtype} instead of float32; {remedy}", DataError)
    require(images.numel() > 0, f"{path} holds no images (shape {tuple(images.shape)}); get the set again", DataError)
    require(bool(images.isfinite().all()), f"{path} holds pixels that are not finite; get the set again", DataError)
    return images


def _check_colours(images: torch.Tensor, path: Path) -> None:
    """Raises DataError unless images are colours in [0, 1], which distillation may have moved a little beyond."""
    low, high = images.min().item(), images.max().item()
    outside = (images - images.clamp(0, 1)).abs().mean().item()
    if not outside <= MAX_OUTSIDE:  # nor if that is not a number
        remedy = "save images / 255" if low >= 0 else "undo the normalisation: save images * std + mean"
        found = f"values from {low:.4g} to {high:.4g}, on average {outside:.2g} outside [0, 1]"
        raise DataError(f"{path} holds {found}, in which this format stores colours; {remedy}")


def _read_classes(labels: torch.Tensor, path: Path, remedy: str) -> torch.Tensor:
    """Returns int64 classes, (N,) or of pixels, from whole numbers of any dtype, or from one-hot rows.

    Raises:
        DataError: soft labels, for which `remedy` says what to do, or no whole numbers.
    """
    description = f"{path} holds labels of {labels.dtype} and shape {tuple(labels.shape)}"
    values = labels.double() if labels.is_floating_point() else labels.long()
    if values.dim() == 2 and values.shape[1] > 1:
        is_one_hot = bool(((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())
        require(is_one_hot or not labels.is_floating_point(), f"{description}, which are soft labels: {remedy}", DataError)
        values = values.argmax(1) if is_one_hot else values
    whole = values.dim() != 2 and bool((values.long() == values).all())
    require(whole, f"{description}, not one whole number an image; save labels.long() of shape (images,)", DataError)
    return values.long()


def _read_soft_labels(labels: torch.Tensor, path: Path) -> torch.Tensor:
    """Returns (N, classes) probabilities: rows that are probabilities already as they are, others by a softmax.

    DATM stores logits, but sets made otherwise hold probabilities, which a second softmax would flatten. A row is one of
    probabilities if no entry is negative and they sum to 1, which logits hardly ever do. All rows are, or none.
    """
    is_soft = labels.is_floating_point() and labels.dim() == 2
    description = f"{path} holds labels of {labels.dtype} and shape {tuple(labels.shape)}, not a row of logits an image"
    require(is_soft, f"{description}; if they are classes, import it as mtt", DataError)
    are_probabilities = (labels > -SUM_TOLERANCE).all(1) & ((labels.sum(1) - 1).abs() < SUM_TOLERANCE)
    count = int(are_probabilities.sum())
    found = f"{count} rows of probabilities (none negative, sum 1) among {len(labels)}, the others logits"
    require(count in (0, len(labels)), f"{path} holds {found}; save either for all images", DataError)
    if not count:
        return labels.softmax(1)
    print(f"notice: {path} holds probabilities, not logits (all rows sum to 1); they are taken as they are", file=sys.stderr)
    return labels


def _read_lr(folder: Path) -> float:
    """Returns the step size in a subset's folder: a tensor, a number, or a list of one."""
    path = next((folder / name for name in LR_FILES if (folder / name).is_file()), None)
    require(path is not None, f"{folder} holds no step size ({' or '.join(LR_FILES)}); give it with --lr")
    value = _load_pt(path)
    if isinstance(value, list | tuple) and len(value) == 1:
        (value,) = value
    if isinstance(value, torch.Tensor):
        value = _plain(value, path)
        value = value.item() if value.numel() == 1 else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number, f"{path} holds {_kind(value)} instead of one step size; give it with --lr", StorageError)
    return float(value)


def _kind(value: Any) -> str:
    """Returns what a file holds, in words."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple | dict) else "")


def _plain(value: Any, path: Path) -> torch.Tensor:
    """Returns a tensor of ordinary numbers, all of which are in the file: a view can claim to be of any size."""
    remedy = "save one plain tensor, torch.save(tensor, path)"
    require(isinstance(value, torch.Tensor), f"{path} holds {_kind(value)} instead of a tensor; {remedy}", StorageError)
    ordinary = value.layout is torch.strided and value.device.type == "cpu" and not (value.is_quantized or value.is_complex())
    whole = ordinary and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    require(whole, f"{path} holds an unusual tensor ({value.dtype}, {value.layout}); save plain numbers", StorageError)
    value = value.detach()
    return value.float() if value.is_floating_point() else value


def _load_pt(path: Path) -> Any:
    require(path.is_file(), f"{path} does not exist; give the folder of a finished run", StorageError)
    require(path.stat().st_size > 0, f"{path} is empty; copy it again", StorageError)
    try:
        _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on pickles of a kind that it reads all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise StorageError(f"{path} is cut off or damaged ({first_line(error)}); copy it again") from error
    except Exception as error:  # a malformed or hostile pickle can end in any exception that its opcodes lead to
        # pickle's error, by its name; torch's advice in it, to read the file without the protection, is not passed on
        reason = _describe_objects(path) if type(error).__name__ == "UnpicklingError" else first_line(error)
        raise StorageError(f"{path} is damaged or holds more than tensors ({reason}); it is not read") from error


def _describe_objects(path: Path) -> str:
    """Returns what a pickle asks for beside tensors, and what to do about it."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # as above
        names = []
    if any(name.startswith("numpy.") for name in names) and all(name.startswith(_NUMPY) for name in names):
        return (
            "it holds arrays of numpy; load it where it was saved, and save tensors: torch.save(torch.as_tensor(array), path)"
        )
    objects = ", ".join(f"{name:.60}" for name in map(ascii, names[:3]))
    return f"objects that only running code could make: {objects}" if names else "its list of objects cannot be read"


def _check_stored(path: Path) -> None:
    """Raises ValueError for what torch reads without bounds.

    That is a compressed file (torch writes none, and one of kilobytes can unfold to any size), and one of the format before
    torch 1.6, a bare pickle, in which four bytes can ask for gigabytes. Torch tells the two apart by the first bytes alone.
    """
    with path.open("rb") as file:
        first = file.read(6)
        if first == b"\x93NUMPY":
            raise ValueError("it is an array saved by numpy; save torch.as_tensor(numpy.load(path)) with torch.save")
        if not first.startswith(b"PK\x03\x04"):
            raise ValueError("it is no file of torch 1.6 or newer; load it with the torch that wrote it, save it with a newer")
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise ValueError(f"its parts have {size:,} bytes, more than the file")
