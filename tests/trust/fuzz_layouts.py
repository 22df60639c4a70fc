"""Fuzzing of distilled sets in the layouts of others, and of shards with odd columns."""

import contextlib
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_data import SHARDS, fits_dataset
from fuzz_engine import TEXTS, VALUES, Target, file_target
from fuzz_samples import LRS, NAMES, PLAIN, make_set, pixels, small_config
from helpers import CLASSES, SHAPE, encode
from hypothesis import strategies as st

from seqmatch_lib.data.datasets import DATASETS, ImageDataset, load_dataset
from seqmatch_lib.exchange.formats import FORMATS, export_sequence, import_sequence
from seqmatch_lib.subsets import SubsetSequence


def read_layout(kind: str, folder: Path) -> SubsetSequence:
    """Imports the set."""
    lrs = LRS if kind in ("idc", "folder") else ()
    config, spec = small_config(kind), replace(DATASETS["digits"], shape=SHAPE, num_classes=CLASSES)
    return import_sequence([folder], kind, spec, PLAIN, config.subset_ipcs, config.as_dict(), lrs)


def fits_set(sequence: SubsetSequence) -> bool:
    """Whether a set is one that networks can be trained on; said independently of `check_sequence`."""
    sizes = [len(subset.images) for subset in sequence.subsets]
    return sizes == [2 * CLASSES, CLASSES] and all(
        subset.images.shape[1:] == SHAPE
        and subset.images.dtype is torch.float32
        and bool(subset.images.isfinite().all())
        and len(subset.labels) == len(subset.images)
        and (
            (
                subset.labels.dtype is torch.float32
                and subset.labels.shape[1:] == (CLASSES,)
                and bool(subset.labels.isfinite().all())
            )
            or (
                subset.labels.dtype is torch.int64
                and subset.labels.shape[1:] == ()
                and 0 <= subset.labels.min() <= subset.labels.max() < CLASSES
            )
        )
        and 0 < subset.lr < math.inf
        for subset in sequence.subsets
    )


def write_layout(kind: str, folder: Path) -> None:
    """Exports a set."""
    export_sequence(make_set(soft=kind == "datm"), kind, folder, PLAIN, NAMES)


def write_unsummed(kind: str, folder: Path) -> None:
    """Exports a set without its checksums."""
    write_layout(kind, folder)
    (folder / "SHA256SUMS").unlink()


def layout_targets(kind: str) -> list[Target]:
    """Returns the targets of one layout, with its checksums and without."""

    def read(folder: Path) -> SubsetSequence:
        sequence = read_layout(kind, folder)
        return replace(sequence, metadata={})  # it names the folder

    return [
        file_target(f"layout {kind}", partial(write_unsummed, kind), read, accepts=fits_set, share=1.5),
        file_target(f"layout {kind}, summed", partial(write_layout, kind), read, checksummed=True, share=0.7),
    ]


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn)  # fmt: skip
FILLS = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e18])
SIZES = st.one_of(
    st.sampled_from([(6, *SHAPE), (3, *SHAPE), (6,), (3,), (6, 6, 6), (6, 3), (3, 3), (), (0,), (0, *SHAPE), (6, 0)]),
    st.lists(st.integers(0, 7), max_size=5).map(tuple),
)


@st.composite
def odd_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draws a tensor of any dtype and shape."""
    size, dtype, fill = draw(SIZES), draw(st.sampled_from(DTYPES)), draw(FILLS)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full(size, fill, dtype=torch.float32).to(dtype)
    return torch.full(size, int(fill) if math.isfinite(fill) else 2**62, dtype=torch.int64).to(dtype)


@st.composite
def odd_objects(draw: st.DrawFn) -> Any:
    """Draws what `torch.save` might be given."""
    tensor = draw(odd_tensors())
    kind = draw(
        st.sampled_from(["plain", "expanded", "sparse", "list", "dict", "parameter", "view", "meta", "numbers", "deep"])
    )
    match kind:
        case "expanded":
            return torch.zeros(1).expand(draw(st.sampled_from([10**12, 10**6, 3])))
        case "sparse" if tensor.dim() and tensor.dtype is torch.float32:
            return tensor.to_sparse()
        case "list":
            return [tensor, draw(odd_tensors()), draw(odd_tensors())][: draw(st.integers(0, 3))]
        case "dict":
            return {"images": tensor, 1: [tensor]}
        case "parameter" if tensor.is_floating_point():
            return torch.nn.Parameter(tensor)
        case "view":
            return torch.stack([tensor, tensor])[1].transpose(0, -1) if tensor.dim() else tensor
        case "meta":
            return torch.empty(3, device="meta")
        case "numbers":
            return draw(st.one_of(st.integers(), st.floats(), st.text(), st.none()))
        case "deep":
            return [[[[tensor]]]] * 3
    return tensor


def read_odd_mtt(folder: Path, drawn: tuple[str, Any, bool]) -> SubsetSequence:
    """Puts an object in the place of one of the files, and imports the set."""
    name, value, zipped = drawn
    path = folder / "S_1" / name
    whole = path.read_bytes()
    try:
        save(value, path, zipped)
        return read_layout("mtt", folder)
    finally:
        path.write_bytes(whole)


def read_odd_idc(folder: Path, drawn: tuple[Any, Any, bool]) -> SubsetSequence:
    """The same with one or both of the pair that IDC saves; Ellipsis stands for the valid one."""
    sequence, pair = make_set(), list(drawn[:2])
    for place, parts in enumerate(zip(*((PLAIN.inverse(one.images), one.labels) for one in sequence.subsets), strict=True)):
        pair[place] = torch.cat(parts) if pair[place] is ... else pair[place]
    save(pair, folder / "data_com_best.pt", drawn[2])
    return read_layout("idc", folder)


def save(value: Any, path: Path, zipped: bool) -> None:
    """Saves an object as torch does now, or as it did before 2020."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # not every object fits the old format
        torch.save(value, path, _use_new_zipfile_serialization=zipped)


COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-2, 4)), min_size=9, max_size=9),
    st.lists(st.floats(width=32), min_size=9, max_size=9),
    st.lists(st.text(max_size=3), min_size=9, max_size=9),
    st.lists(st.lists(st.floats(width=32), max_size=4), min_size=9, max_size=9),
    st.lists(st.sampled_from([2**63 - 1, 2**40]), min_size=9, max_size=9),
    st.just([0, 0, 1, 1, 2, 2, 0, 1, 2]),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
JSON_TEXTS = st.one_of(VALUES.map(json.dumps), TEXTS, st.just("[" * 100_000), st.just("[0.01, 0.02]"))


@st.composite
def odd_tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Draws columns, and the metadata of their schema."""
    images = [{"bytes": encode(image[:, :, 0]), "path": "x"} for image in pixels(9, 6, 6, 3)]
    columns: dict[str, Any] = {"img": images, "label": [0, 0, 1, 1, 2, 2, 0, 1, 2], "subset": [1] * 6 + [2] * 3}
    for _ in range(draw(st.integers(0, 2))):
        columns[draw(st.sampled_from(["label", "subset", "soft_label", "img"]))] = draw(COLUMN)
    metadata = {"lrs": "[0.01, 0.02]", "class_names": '["a", "b", "c"]'}
    for name in draw(st.lists(st.sampled_from(["lrs", "class_names"]), max_size=2)):
        metadata[name] = draw(JSON_TEXTS)
    return columns, metadata


def write_table(path: Path, drawn: tuple[dict[str, list[Any]], dict[str, str]]) -> None:
    """Writes them as parquet."""
    columns, metadata = drawn
    encoded = {name: text.encode("utf-8", "surrogatepass") for name, text in metadata.items()}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(encoded), path)


def read_odd_layout(folder: Path, drawn: Any) -> SubsetSequence:
    """Imports a set from such a table."""
    write_table(folder / "train-00000-of-00001.parquet", drawn)
    return read_layout("parquet", folder)


def read_odd_shards(folder: Path, drawn: Any) -> ImageDataset:
    """Loads a data set from such tables."""
    for split in ("train", "test"):
        write_table(folder / "svhn" / f"{split}-00000-of-00001.parquet", drawn)
    return load_dataset(replace(SHARDS, num_classes=3), folder)


LAYOUTS = [
    *[target for kind in FORMATS for target in layout_targets(kind)],
    Target(
        "layout mtt, other values",
        st.tuples(st.sampled_from(["images_best.pt", "labels_best.pt", "best_lr.pt"]), odd_objects(), st.booleans()),
        read_odd_mtt,
        partial(write_unsummed, "mtt"),
        accepts=fits_set,
    ),
    Target(
        "layout idc, other values",
        st.tuples(st.one_of(st.just(...), odd_objects()), st.one_of(st.just(...), odd_objects()), st.booleans()),
        read_odd_idc,
        partial(write_unsummed, "idc"),
        accepts=fits_set,
    ),
    Target("layout parquet, other values", odd_tables(), read_odd_layout, accepts=fits_set),
    Target("shards, other values", odd_tables(), read_odd_shards, accepts=fits_dataset),
]
