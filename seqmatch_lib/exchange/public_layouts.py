"""The layouts that the public codes of MTT, SeqMatch, DATM and IDC save with `torch.save`.

Sources: `distill.py` of MTT, `distill_eval_new.py` of SeqMatch, `DATM.py`, `condense.py` of IDC, and `condense_new.py` of
SeqMatch-IDC.
"""

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.multi_formation import Formation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.errors import DataError, StorageError, require
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.store.files import write_parts
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, spread_lrs

LR_FILES = ("best_lr.pt", "lr_best.pt")  # of SeqMatch and of DATM
IDC_FILES = ("data_com_best.pt", "data_best.pt", "data.pt")  # all subsets of SeqMatch-IDC; the best and the last of IDC


def write_mtt(sequence: SubsetSequence, folder: Path) -> list[Path]:
    """Writes the layout of MTT and SeqMatch; `export_sequence` says what goes where, here and in the functions below."""
    _require_classes(sequence, "mtt", "datm")
    return [path for subset, where in _places(sequence, folder) for path in _write_pt_subset(subset, where, LR_FILES[0])]


def write_datm(sequence: SubsetSequence, folder: Path) -> list[Path]:
    """Writes the layout of DATM, whose soft labels are logits."""
    written = []
    for subset, where in _places(sequence, folder):
        labels = subset.labels
        probabilities = labels.is_floating_point() and bool((labels >= 0).all() and (labels.sum(1) - 1).abs().max() < 1e-4)
        require(probabilities, "format 'datm' holds soft labels that are probabilities, which this set has not; use 'mtt'")
        logits = labels.clamp_min(torch.finfo(labels.dtype).tiny).log()
        written += _write_pt_subset(replace(subset, labels=logits), where, LR_FILES[1])
    return written


def write_idc(sequence: SubsetSequence, folder: Path, preprocessing: Preprocessing) -> list[Path]:
    """Writes the layout of IDC, or of SeqMatch-IDC where there are several subsets: colours, tiles as they are stored."""
    _require_classes(sequence, "idc", "parquet")
    images = torch.cat([preprocessing.inverse(subset.images) for subset in sequence.subsets])
    labels = torch.cat([subset.labels.cpu() for subset in sequence.subsets])
    return [_write_pt(folder / (IDC_FILES[0] if len(sequence) > 1 else IDC_FILES[-1]), [images, labels])]


def _require_classes(sequence: SubsetSequence, kind: str, other: str) -> None:
    soft = sequence.subsets[0].labels.is_floating_point()
    require(not soft, f"format {kind!r} holds classes, but this set has soft labels; use {other!r}")


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


def subset_folders(paths: Sequence[Path]) -> list[Path]:
    """Returns the folders of the subsets: those given, or `S_1`, `S_2`, … in the only one given."""
    if len(paths) > 1 or not (paths[0] / "S_1").is_dir():
        return list(paths)
    count = len([path for path in paths[0].glob("S_*") if path.is_dir()])
    return [paths[0] / f"S_{k}" for k in range(1, count + 1)]


def match_lrs(folders: Sequence[Path], lrs: Sequence[float]) -> list[tuple[Path, float | None]]:
    """Returns each subset's folder with the step size the user gives for it, if any."""
    if not lrs:
        return [(folder, None) for folder in folders]
    return list(zip(folders, spread_lrs(lrs, len(folders), ", ".join(map(str, folders))), strict=True))


def read_pt_subset(folder: Path, soft: bool, lr: float | None) -> SyntheticSubset:
    """Reads one subset of MTT and SeqMatch, or of DATM if `soft`; a step size given goes before one found."""
    images = _read_tensor(folder / "images_best.pt")
    labels = _read_tensor(folder / "labels_best.pt")
    require(
        soft == labels.is_floating_point(),
        f"{folder / 'labels_best.pt'} holds {'classes: import it as mtt' if soft else 'soft labels: import it as datm'}",
        DataError,
    )
    found = [folder / name for name in LR_FILES if (folder / name).is_file()]
    if lr is None:
        require(bool(found), f"{folder} holds no step size ({' or '.join(LR_FILES)}); give it with --lr")
        value = _read_tensor(found[0])
        require(value.numel() == 1, f"{found[0]} holds {value.numel()} values instead of a step size", StorageError)
        lr = value.item()
    return SyntheticSubset(images, labels.softmax(1) if soft and labels.dim() == 2 else labels, lr)


def read_idc(
    folder: Path, config: RunConfig, preprocessing: Preprocessing, shape: tuple[int, int, int], lrs: Sequence[float]
) -> list[SyntheticSubset]:
    """Reads what IDC and SeqMatch-IDC save; how it is divided and stored stands in their options, and here in the preset."""
    found = [folder / name for name in IDC_FILES if (folder / name).is_file()]
    require(bool(found), f"{folder} holds none of {', '.join(IDC_FILES)}; give the folder of a run of IDC", StorageError)
    value = _load_pt(found[0])
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    require(is_pair, f"{found[0]} does not hold a list of images and labels", StorageError)
    images, labels = (_plain(part, found[0]) for part in value)
    fits = tuple(images.shape[1:]) == shape and labels.dim() > 0
    require(fits, f"{found[0]} holds images and labels of {images.shape} and {labels.shape}, not images of {shape}", DataError)
    sizes = [len(images) * ipc // config.ipc for ipc in config.subset_ipcs]
    require(
        sum(sizes) == len(images) == len(labels),
        f"{found[0]} holds {len(images)} images and {len(labels)} labels, which subset_ipcs {list(config.subset_ipcs)} do not "
        "divide; set ipc and subset_ipcs",
    )
    formation = Formation(getattr(config.options, "factor", 1), getattr(config.options, "decode", "single"))
    known = lrs or [getattr(config.options, "syn_lr", config.evaluation.real_lr)]
    step_sizes = spread_lrs(known, len(sizes), str(found[0]))
    parts = zip(preprocessing(255 * images).split(sizes), labels.split(sizes), step_sizes, strict=True)
    return [SyntheticSubset(*part, formation) for part in parts]


def _read_tensor(path: Path) -> torch.Tensor:
    return _plain(_load_pt(path), path)


def _plain(value: Any, path: Path) -> torch.Tensor:
    """Returns a tensor of ordinary numbers, all of which are in the file: a view can claim to be of any size."""
    require(isinstance(value, torch.Tensor), f"{path} holds a {type(value).__name__} instead of a tensor", StorageError)
    ordinary = value.layout is torch.strided and value.device.type == "cpu" and not (value.is_quantized or value.is_complex())
    whole = ordinary and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    require(whole, f"{path} holds an unusual tensor ({value.dtype}, {value.layout}); save plain numbers", StorageError)
    value = value.detach()
    return value.float() if value.is_floating_point() else value.long()


def _load_pt(path: Path) -> Any:
    require(path.is_file(), f"{path} does not exist; give the folder of a finished run", StorageError)
    try:
        _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on pickles of a kind that it reads all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed or hostile pickle can end in any exception that its opcodes lead to
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if "weights_only" in reason:  # torch's advice to read it without the protection is nothing to pass on
            reason = "objects that only running code could make"
        raise StorageError(f"{path} is damaged or holds more than tensors ({reason}); it is not read") from error


def _check_stored(path: Path) -> None:
    """Raises ValueError for what torch reads without bounds.

    That is a compressed file (torch writes none, and one of kilobytes can unfold to any size), and one of the format before
    torch 1.6, a bare pickle, in which four bytes can ask for gigabytes. Torch tells the two apart by the first bytes alone.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("it is no file of torch 1.6 or newer; load it with the torch that wrote it, save it with a newer")
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise ValueError(f"its parts have {size:,} bytes, more than the file")
