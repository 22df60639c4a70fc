"""Evaluation of several sets by fresh networks, each kept as it is finished, so that a stopped evaluation goes on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqmatch_lib.engine.evaluation import EvaluationProtocol, summarise
from seqmatch_lib.engine.memory import keep_freed_memory
from seqmatch_lib.engine.networks import NetworkConfig, has_running_statistics
from seqmatch_lib.engine.training import TrainingCheckpoint
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import get_method, method_names
from seqmatch_lib.progress import progress_bar
from seqmatch_lib.runs.config import REFERENCES, RunConfig
from seqmatch_lib.runs.real_data import RealData
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import only_process, read_json, remove_file, remove_leftovers, write_json
from seqmatch_lib.subsets import SubsetSequence


def evaluate_sets(
    sequences: Mapping[str, SubsetSequence], config: RunConfig, data: RealData, folder: Path, budget: Budget
) -> tuple[dict[str, dict[str, dict[str, Any]]], float]:
    """Evaluates sets, equal ones once; goes on where a stopped process left it.

    Args:
        sequences: name -> set, on the device of the test images.
        config: says how networks are trained, how many of which architectures, and their seed.
        data: has the test images.
        folder: where finished accuracies, and networks in the middle of their training, are kept.
        budget: says when to save, and when to stop.

    Returns:
        Name -> architecture -> accuracies, and the seconds that they took, in this process and in those before.

    Raises:
        ConfigError: a network does not fit the images, or the training recipe their labels; then no network is trained.
        OutOfTime: the budget is spent; the state is saved.
    """
    keep_freed_memory()  # not every evaluation is the end of a run
    networks = check_fit(config, data)
    protocol = EvaluationProtocol(data.num_classes, config.training, config.seed)
    indices, together = range(config.evaluation.num_networks), config.training.engine == "compiled"
    path, unfinished = folder / "evaluation.json", folder / "networks.safetensors"
    finished: dict[str, list[Any]] = read_json(path) if path.is_file() else {}
    digests = {name: sequence.sha256() for name, sequence in sequences.items()}
    distinct = {digest: sequences[name] for name, digest in digests.items()}
    with progress_bar(len(distinct) * len(networks) * len(indices), "evaluate", "network") as bar:
        for (digest, sequence), network in product(distinct.items(), networks):
            missing = [index for index in indices if f"{digest}/{network.name}/{index}" not in finished]
            bar.update(len(indices) - len(missing))
            for chosen in [missing] if missing and together else [[index] for index in missing]:
                owner = {"set": digest, "network": network.name, "indices": chosen}
                checkpoint = TrainingCheckpoint(unfinished, owner, budget)
                found = protocol.evaluate(sequence, data.test, network, chosen, checkpoint)
                for index, accuracy, learned in zip(chosen, *found, strict=True):
                    finished[f"{digest}/{network.name}/{index}"] = [accuracy, checkpoint.seconds / len(chosen), learned]
                write_json(path, finished)
                bar.update(len(chosen))
                budget.check()
    remove_file(unfinished)
    accuracies = {
        name: {network.name: _accuracy(finished, f"{digest}/{network.name}/") for network in networks}
        for name, digest in digests.items()
    }
    return accuracies, sum(entry[1] for entry in finished.values())


def check_fit(config: RunConfig, data: RealData) -> list[NetworkConfig]:
    """Returns the evaluation's networks; raises ConfigError unless they, the method and training fit images and labels."""
    networks = [replace(config.network, name=name) for name in config.evaluation.networks]
    data.check_networks(networks)
    if config.training.engine == "compiled":
        shape = tuple(data.test.images.shape[1:])
        found = [network.name for network in networks if has_running_statistics(network, shape, data.num_classes)]
        problem = f"networks {', '.join(found)} have running statistics, which training.engine 'compiled' does not train"
        remedy = "set training.engine=eager and training.precision=float32, or take others, as with network.norm=instance"
        require(not found, f"{problem}; {remedy}")
    if data.has_pixel_labels:  # they fit some alone
        fitting = [name for name in method_names() if get_method(name).takes_pixel_labels]
        remedy = f"use {' or '.join(REFERENCES)}, or {', '.join(fitting)}"
        takes = config.base_method in (*REFERENCES, *fitting)
        require(takes, f"method {config.method!r} does not take labels of pixels; {remedy}")
        for name, fits in (("loss", "cross_entropy"), ("cutmix", 0)):
            value = getattr(config.training, name)
            require(value == fits, f"training.{name} {value!r} does not fit labels of pixels; set training.{name}={fits}")
    return networks


def _accuracy(finished: Mapping[str, list[Any]], prefix: str) -> dict[str, Any]:
    entries = [entry for key, entry in finished.items() if key.startswith(prefix)]
    not_learned = sum(entry[2:] == [False] for entry in entries)  # a file of an older version does not say
    return summarise([entry[0] for entry in entries], not_learned)


@contextmanager
def state_folder(results_dir: Path | None, name: str, data: RealData) -> Iterator[Path]:
    """Yields a folder for the state of a re-evaluation, and keeps others out of it; a temporary one without `results_dir`.

    Raises:
        StorageError: another process uses it, or its state is of other real data than these.
    """
    if results_dir is None:
        with TemporaryDirectory(prefix="seqmatch-") as folder:
            yield Path(folder)
        return
    folder = results_dir / "state" / name
    with only_process(folder.with_name(f"{name}.lock")):
        remove_leftovers(folder)
        _claim(folder, data)
        yield folder


def _claim(folder: Path, data: RealData) -> None:
    """Notes the real data that the state in a folder is of, or raises StorageError if it is of others."""
    claim = folder / "data.json"
    if not claim.is_file():
        for old in folder.glob("*"):  # of a version that took no note, so it may be of any data
            remove_file(old)
        write_json(claim, data.identity)
    check_same_data(read_json(claim) == data.identity, claim, data)


def check_same_data(same: bool, path: Path, data: RealData) -> None:
    """Raises StorageError, which names a file of an earlier re-evaluation, unless that was of the same real data."""
    name = data.identity["dataset"]
    problem = f"{path} belongs to other images of {name} than those found, or to the same images preprocessed differently"
    require(same, f"{problem}; use another results folder", StorageError)
