"""What the valid files of the fuzzing hold: small sets, pictures, settings."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import CLASSES, SHAPE

from seqmatch_lib.data.preprocessing import Normalisation
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

ROOT = Path(__file__).parents[2]
PLAIN = Normalisation((0.5,), (0.25,))
LRS = (0.01, 0.02)
NAMES = ("airplane", "../../evil", "é")


def generator() -> torch.Generator:
    """Returns the same random numbers for all valid files."""
    return torch.Generator().manual_seed(0)


def pixels(count: int, *size: int) -> np.ndarray:
    """Returns random pixels."""
    return np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)


def make_set(shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES, soft: bool = False) -> SubsetSequence:
    """Returns a small distilled set of two subsets, whose colours lie between black and white."""
    subsets = []
    for ipc, lr in zip((2, 1), LRS, strict=True):
        labels = torch.arange(classes).repeat_interleave(ipc)
        images = PLAIN(255 * torch.rand(len(labels), *shape, generator=generator()))
        subsets.append(SyntheticSubset(images, torch.eye(classes)[labels].softmax(1) if soft else labels, lr))
    return SubsetSequence(tuple(subsets))


@cache
def settings_of(preset: str) -> dict[str, Any]:
    """Returns the settings of a preset at smoke scale."""
    return RunConfig.from_preset(preset, "smoke").as_dict()


@cache
def small_config(kind: str) -> RunConfig:
    """Returns the configuration that `make_set` is an instance of."""
    overrides = {"ipc": 3, "subset_ipcs": [2, 1]} | ({"idc.factor": 1} if kind == "idc" else {})
    return RunConfig.from_preset(f"digits-ipc10-seqmatch_{'idc' if kind == 'idc' else 'mtt'}", "smoke", overrides=overrides)
