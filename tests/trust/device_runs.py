"""Runs on the CPU and on the pretended GPU; prints as JSON what came out. Started by `test_devices.py`."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pretended_gpu import pretended_gpu

from seqmatch_lib.coupling import MatchingLoss, coupling_of_subsets
from seqmatch_lib.data.datasets import load_dataset
from seqmatch_lib.engine.networks import make_network
from seqmatch_lib.engine.step_functions import _Compiled
from seqmatch_lib.errors import OutOfTime
from seqmatch_lib.methods import Stage
from seqmatch_lib.methods.teachers import TrajectorySet
from seqmatch_lib.runs import experiment
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.coupling_measurements import measure_coupling
from seqmatch_lib.runs.experiment import run_experiment
from seqmatch_lib.runs.order import measure_order, runs_of_order
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.runs.reevaluation import reevaluate
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.subsets import load_sequence, set_path

MOST_PARTS = 100  # of a run that is stopped at every checkpoint
# Every base method under SeqMatch. Trajectories by both engines; `compiled` on images as they are, because the pretended GPU
# keeps a CPU's memory formats, with which the forward mode of a group norm does not go for augmented images of one channel.
# KRR with a ridge that lets rounding be: 100 images in the 32 features of this scale make a singular kernel.
FLAT = {"mtt.engine": "compiled", "mtt.augment": "none"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mtt": ("digits-ipc10-mtt", {"teachers.engine": "compiled", "mtt.iterations": 3}),
    "seqmatch_mtt": ("digits-ipc10-seqmatch_mtt", FLAT | {"mtt.lr_label": 0.1, "mtt.iterations": 3}),
    "seqmatch_idc": ("digits-ipc10-seqmatch_idc", {"idc.iterations": [2]}),
    "seqmatch_dm": ("digits-ipc10-seqmatch_dm", {"training.engine": "compiled"}),
    "seqmatch_krr": ("digits-ipc10-seqmatch_krr", {"krr.iterations": 4, "krr.max_online_updates": 1, "krr.ridge": 0.01}),
}
SMALL = {"evaluation.num_selections": 1, "training.epochs": 3}
IN_PARTS = ("seqmatch_mtt", "seqmatch_idc", "seqmatch_krr")  # on the pretended GPU, from checkpoint to checkpoint


@contextmanager
def named(name: str) -> Iterator[torch.device]:
    """Gives a device by its name. Under the pretended GPU, forward mode through group norms fails on the CPU, too."""
    if name == "cpu":
        yield torch.device("cpu")
        return
    with pretended_gpu() as device, patch.object(Stage, "check_second_derivatives"):
        yield device


def distill(config: RunConfig, folder: Path, device: torch.device, in_parts: bool) -> dict[str, Any]:
    """Runs a configuration in one go, or in parts."""
    limit = 1e-6 if in_parts else None
    for parts in range(MOST_PARTS):
        with suppress(OutOfTime):
            record = run_experiment(config, folder, device=device, max_minutes=limit, save_seconds=0)
            subsets = load_sequence(set_path(folder, config.run_id)).subsets
            return {
                "accuracy": record.accuracy_last["values"] + record.random_baseline["values"],
                "losses": [stage["losses"] for stage in record.stages],
                "images": [subset.images.flatten().tolist() for subset in subsets],
                "parts": parts + 1,
            }
    raise RuntimeError(f"{config.run_id} made no progress in {MOST_PARTS} parts")


def look_at(config: RunConfig, folder: Path, device: torch.device) -> dict[str, Any]:
    """Judges a set jointly, and measures the coupling of its images; then all that notebooks measure of finished runs."""
    data = prepare_data(load_dataset("digits"), config.zca, config.select_on, device)
    sequence = load_sequence(set_path(folder, config.run_id))
    reevaluation = reevaluate(sequence, config, data, joint=True)
    first = sequence.subsets[0].to(device)
    network = make_network(config.network, (1, 8, 8), data.num_classes, make_generator(0)).to(device)
    (teachers,) = (folder / "teachers" / "digits").glob("*stage1*")
    segment = TrajectorySet(teachers, config.teachers.num_teachers).segment(0, 0, 1)
    match = MatchingLoss(network, segment, steps=2, lr=0.01)
    coupling = coupling_of_subsets([match], first.images, first.labels, data.num_classes, [2])
    order = measure_order(config, folder, device=device)
    with patch.object(experiment, "choose_device", return_value=device):  # what it opens runs on is not asked
        tables = measure_coupling(runs_of_order(config)["one set"], config, [], folder)
    return {
        "reevaluated": reevaluation.accuracy["convnet"]["values"],
        "coupling": coupling.to_dict("list"),
        "order": order.accuracy,
        "tables": {name: table.select_dtypes("number").fillna(0.0).to_dict("list") for name, table in tables.items()},
    }


def refusals() -> dict[str, str]:
    """Returns what the pretended GPU says to mistakes."""
    mistakes: dict[str, Callable[[torch.device], object]] = {
        "rows": lambda device: torch.ones(3, device=device)[torch.arange(2)],
        "addend": lambda device: torch.ones(3, device=device) + torch.ones(3),
        "stack": lambda device: torch.stack([torch.ones((), device=device), torch.ones(())]),
        "generator": lambda device: torch.rand(3, generator=torch.Generator(), device=device),
        "numpy": lambda device: torch.ones(3, device=device).numpy(),
        "none": lambda device: torch.tensor(2.0) * torch.ones(3, device=device),
    }
    answers = {}
    with pretended_gpu() as device:
        for name, mistake in mistakes.items():
            try:
                answers[name] = str(mistake(device).device.type)
            except (RuntimeError, TypeError) as error:
                answers[name] = f"{type(error).__name__}: {error}"
    return answers


def main(folder: Path) -> None:
    """Runs everything on both devices."""
    _Compiled.enabled = False
    torch.set_num_threads(1)
    results: dict[str, Any] = {"refusals": refusals()}
    for name, (preset, overrides) in RUNS.items():
        config = RunConfig.from_preset(preset, scale="smoke", overrides=SMALL | overrides)
        results[name] = {}
        for device_name in ("cpu", "pretended"):
            place = folder / name / device_name
            if device_name != "cpu" and name in IN_PARTS and config.base_method == "mtt":  # a part is no less than a teacher
                shutil.copytree(folder / name / "cpu" / "teachers", place / "teachers")
            with named(device_name) as device:
                result = distill(config, place, device, in_parts=device_name != "cpu" and name in IN_PARTS)
                if name == "seqmatch_mtt":
                    result |= look_at(config, place, device)
            results[name][device_name] = result
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
