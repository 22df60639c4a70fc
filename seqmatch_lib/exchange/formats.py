"""Distilled sets in the layouts of other code: in, so that they can be evaluated here; out, so that ours serve anywhere.

| format    | files                                                             | pixels           | labels  | step sizes |
| --------- | ----------------------------------------------------------------- | ---------------- | ------- | ---------- |
| `mtt`     | `images_best.pt`, `labels_best.pt`, `best_lr.pt`                  | as networks see  | classes | yes        |
| `datm`    | `images_best.pt`, `labels_best.pt`, `lr_best.pt`                  | as networks see  | logits  | yes        |
| `idc`     | `data.pt`, or `data_com_best.pt` of several subsets               | colours in [0, 1]| classes | no         |
| `parquet` | `train-00000-of-00001.parquet`: `img`, `label`, `subset`          | 8 bits           | both    | yes        |
| `folder`  | `train/<class>/s<subset>-<number>.png`                            | 8 bits           | classes | no         |

Sets of others are read by what is in them, or refused: `datm` takes rows that sum to 1 for probabilities, not logits; `folder`
takes `<class>` for a class's number, `3` or `3-cat`, or its name, never for its place in the alphabet; pixels that do not look
like what the format stores are refused. Of files with checksums, as `export` writes them, any pixels are taken.

A sequence of K > 1 subsets has folders `S_1` … `S_K` in the first two. The stored images of a multi-formation set are written
as they are by `idc`, whose reader takes them apart, and taken apart by the others. Our own files, written by
`SubsetSequence.save`, are the only ones that keep everything.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.datasets import DatasetSpec
from seqmatch_lib.data.multi_formation import AS_STORED, Formation
from seqmatch_lib.data.preprocessing import Preprocessing
from seqmatch_lib.errors import ConfigError, StorageError, require
from seqmatch_lib.exchange.pixel_layouts import read_folder, read_parquet, write_folder, write_parquet
from seqmatch_lib.exchange.public_layouts import holds_probabilities, read_idc, read_pt, write_datm, write_idc, write_mtt
from seqmatch_lib.store.checksums import NAME, check_files, write_checksums
from seqmatch_lib.store.files import explain_refusal
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, check_sequence

WRITERS = {"mtt": write_mtt, "datm": write_datm, "idc": write_idc, "parquet": write_parquet, "folder": write_folder}
FORMATS = tuple(WRITERS)
PREPROCESSED = ("mtt", "datm")  # formats of images as networks see them, which do not say how they were preprocessed


def export_sequence(
    sequence: SubsetSequence, kind: str, folder: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> list[Path]:
    """Writes a distilled set in another layout.

    Args:
        sequence: the set.
        kind: one of `FORMATS`.
        folder: where the files go; made if missing, else empty.
        preprocessing: what was done to the pixels of the data set, undone by all formats but "mtt" and "datm".
        class_names: one a class; names of folders, and in the metadata of parquet.

    Returns:
        The files written.

    Raises:
        ConfigError: an unknown format, or labels that it cannot hold.
        StorageError: the folder holds files already, which would be read with those of the set, or in their place.
    """
    _check_kind(kind)
    labels = sequence.subsets[0].labels
    require(labels.dim() < 3, f"labels of pixels do not fit format {kind!r}; only our own files keep them")
    if labels.is_floating_point() and kind not in ("datm", "parquet"):
        other = "datm" if kind == "mtt" and holds_probabilities(sequence) else "parquet"
        raise ConfigError(f"format {kind!r} holds classes, but this set has soft labels; use {other!r}")
    with explain_refusal(folder):
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found:
        raise StorageError(f"{folder} is not empty (it holds {found[0]!r}); give an empty or a new folder")
    written = WRITERS[kind](sequence, folder, preprocessing, class_names)
    return [*written, write_checksums(folder, written)]


def import_sequence(
    paths: Sequence[Path], kind: str, spec: DatasetSpec, preprocessing: Preprocessing | None, subset_ipcs: Sequence[int],
    settings: dict[str, Any], lrs: Sequence[float] = (), formation: Formation = AS_STORED,
) -> SubsetSequence:  # fmt: skip
    """Reads a distilled set in another layout. Nothing in the files is run: pickles are read with `weights_only=True`.

    Args:
        paths: the folder that holds the set or its `S_1` … `S_K`; or one folder a subset, in order, as in SeqMatch's code.
        kind: one of `FORMATS`.
        spec: of the data set; it is loaded only where a folder calls classes by their names.
        preprocessing: of the data set; applied to what holds pixels, so not to the formats in `PREPROCESSED`.
        subset_ipcs: images per class of its subsets.
        settings: of a run that could have made the set; kept in its metadata, they say how networks are trained on it.
        lrs: step size of each subset, or one for all, for layouts that do not hold them.
        formation: of the images in "idc"; the other layouts hold training images.

    Raises:
        StorageError: a file is missing, damaged or hostile.
        DataError: images or labels that do not fit the data set, or a file that does not match the `SHA256SUMS` beside it.
        ConfigError: a division into other subsets than these, or no step size.
    """
    _check_kind(kind)
    exported: set[Path] = set()  # files with checksums, as we write them
    for path in paths:
        folder = path if path.is_dir() else path.parent
        if (folder / NAME).is_file():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            exported.update(set(files).difference(check_files(folder, files)))
    if kind in PREPROCESSED:
        subsets = read_pt(paths, kind == "datm", lrs, exported)
    else:
        require(len(paths) == 1, f"format {kind!r} has all subsets in one place; give one path instead of {len(paths)}")
        if kind == "idc":
            subsets = read_idc(paths[0], subset_ipcs, formation, preprocessing, spec.shape, lrs, exported)
        elif kind == "parquet":
            subsets = read_parquet(paths[0], preprocessing, spec.shape, lrs)
        else:
            subsets = read_folder(paths[0], preprocessing, spec, lrs)
    metadata = {"config": settings, "imported": {"format": kind, "paths": [path.name for path in paths]}}
    sequence = SubsetSequence(tuple(_sort_by_class(subset) for subset in subsets), metadata)
    origin = ", ".join(map(str, paths))
    check_sequence(sequence, origin, spec.shape, spec.num_classes)
    ipcs = [len(subset.images) // spec.num_classes for subset in sequence.subsets]
    problem = f"{origin} has subsets of {ipcs} images per class, but its preset of {list(subset_ipcs)}"
    require(ipcs == list(subset_ipcs), f"{problem}; add {_options_for(ipcs, settings)}")
    return sequence


def _options_for(ipcs: Sequence[int], settings: dict[str, Any]) -> str:
    """Returns the options of the command line that make the settings those of subsets of these sizes."""
    options = f"--set ipc={sum(ipcs)} --set subset_ipcs={json.dumps(ipcs, separators=(',', ':'))}"
    method = settings["method"]
    if len(ipcs) > 1 and method in settings:  # a base method: settings have a section of its name
        options += f" --set method=seqmatch_{method}"
        if settings["intervals"]:  # that of the one subset stands for all
            options += f" --set teachers.later_epochs={settings['teachers']['epochs']}"
    return options


def _check_kind(kind: str) -> None:
    require(kind in FORMATS, f"format {kind!r} is unknown; use one of {', '.join(FORMATS)}")


def _sort_by_class(subset: SyntheticSubset) -> SyntheticSubset:
    """Returns the subset with its stored images in the order of their classes, as all our sets have them."""
    if subset.labels.dim() != 1 or subset.labels.shape != subset.images.shape[:1]:
        return subset  # soft labels do not say which class an image was made for; `check_sequence` looks at the rest
    order = torch.sort(subset.labels, stable=True).indices
    return SyntheticSubset(subset.images[order], subset.labels[order], subset.lr, subset.formation)
