"""A tiny problem that every part of the library accepts, 6x6 noise with a class-dependent mean; files; waiting."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call

from seqmatch_lib.data import datasets
from seqmatch_lib.data.preprocessing import Normalisation
from seqmatch_lib.engine.networks import NetworkConfig
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import OutOfTime
from seqmatch_lib.methods import Stage
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.runs.stages import StageCheckpoint
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import SubsetSequence

SHAPE, CLASSES = (1, 6, 6), 3
NETWORK = NetworkConfig(width=4, depth=1)
EAGER = {"engine": "eager", "precision": "float32"}  # compiling takes longer than the tests
HIGHER = EAGER | {"engine": "higher"}  # the same for the inner loop of MTT
RECIPE = TrainingRecipe(epochs=6, **EAGER)
TEACHERS = TeacherConfig(num_teachers=2, epochs=4, later_epochs=3, lr=0.05, batch_size=16, **EAGER)


class Impatient(Budget):
    """A budget that is spent as soon as anything can be saved."""

    def wants_save(self) -> bool:
        return True

    def saved(self) -> None:
        raise OutOfTime


def change_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the digits other images, as many."""
    images, labels, names = datasets._BUILTIN["digits"]()
    images[0, 0, 0, 0] += 1
    monkeypatch.setitem(datasets._BUILTIN, "digits", lambda: (images, labels, names))


def finish_in_parts(run: Callable[[], Any]) -> tuple[Any, int]:
    """Calls what may be out of time until it is not; returns its result, and how often it was stopped before."""
    for stops in range(1000):
        with suppress(OutOfTime):
            return run(), stops
    raise AssertionError("it makes no progress")


def make_images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (count, 1, 6, 6) images that a small network can tell apart, and their (count,) labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    patterns = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(99))
    return patterns[labels] + 0.7 * torch.randn(count, *SHAPE, generator=generator), labels


def make_stage(folder: Path, seed: int = 3) -> Stage:
    """Returns a first stage on 60 images; the seed is not that of its teachers."""
    images, labels = make_images(60)
    return Stage(
        index=1,
        ipc=2,
        interval=(0, 4),
        frozen=SubsetSequence(),
        images=images,
        labels=labels,
        num_classes=CLASSES,
        preprocessing=Normalisation((0.5,), (0.25,)),
        data_identity={"name": "test"},
        network=NETWORK,
        teachers=TEACHERS,
        recipe=RECIPE,
        seed=seed,
        folder=folder / "teachers",
        budget=Budget(),
    )


def call_flat(network: torch.nn.Module, theta: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Returns a network's logits with the parameters of a flat vector, by torch alone."""
    named = dict(network.named_parameters())
    parts = theta.split([parameter.numel() for parameter in named.values()])
    parameters = {name: part.view(named[name].shape) for name, part in zip(named, parts, strict=True)}
    return functional_call(network, parameters, (images,))


def checkpoints(folder: Path, owner: str = "test"):
    """Returns what `distill_stages` asks for: stage index -> its checkpoint."""
    return lambda index: StageCheckpoint(folder / f"stage-{index}.safetensors", owner)


def flip(content: bytes, position: int, bit: int = 0) -> bytes:
    """Returns the content of a file with one bit changed."""
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Returns the content of an image file: (H, W) or (H, W, 3) uint8 pixels in a format of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_class_folders(
    root: Path, classes: Mapping[str, Sequence[np.ndarray]], splits: Sequence[str] = ("train",), suffix: str = ".png"
) -> None:
    """Writes an image folder: (H, W) or (H, W, 3) uint8 pictures of each class, numbered, the same in each split."""
    for split, (name, pictures) in product(splits, classes.items()):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{number}{suffix}")


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits for something that other processes do; returns the first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {seconds} seconds")
        time.sleep(0.1)
    return value


def write_notebook(path: Path, *cells: str) -> None:
    """Writes a notebook of code, the first cell of which holds the parameters."""
    import nbformat  # here, since the checks for a GPU run without the notebook packages

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)), metadata={"kernelspec": kernel})
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
