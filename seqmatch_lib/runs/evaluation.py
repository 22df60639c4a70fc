"""Evaluation of several sets by fresh networks, each kept as it is finished, so that a stopped evaluation goes on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.evaluation import Accuracy, EvaluationProtocol
from seqmatch_lib.engine.networks import NetworkConfig, check_networks
from seqmatch_lib.engine.training import TrainingCheckpoint
from seqmatch_lib.progress import progress_bar
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import only_process, read_json, remove_file, remove_leftovers, write_json
from seqmatch_lib.subsets import SubsetSequence


@dataclass(frozen=True)
class ResumableEvaluation:
    """Evaluation of several sets on several networks, which goes on where a stopped process left it.

    Args:
        protocol: how networks are trained.
        networks: their architectures.
        num_networks: of each architecture.
        test: the test images.
        folder: where finished accuracies, and networks in the middle of their training, are kept.
        budget: says when to save, and when to stop.
    """

    protocol: EvaluationProtocol
    networks: tuple[NetworkConfig, ...]
    num_networks: int
    test: Split
    folder: Path
    budget: Budget

    def run(self, sequences: Mapping[str, SubsetSequence | None]) -> tuple[dict[str, dict[str, Accuracy] | None], float]:
        """Evaluates sets; equal ones once.

        Args:
            sequences: name -> set, on the device of the test images; None where there is none.

        Returns:
            Name -> architecture -> accuracies, and the seconds that they took, in this process and in those before.

        Raises:
            ConfigError: a network does not fit the images; none is trained then.
            OutOfTime: the budget is spent; the state is saved.
        """
        check_networks(self.networks, tuple(self.test.images.shape[1:]), self.protocol.num_classes)
        finished = _FinishedNetworks(self.folder / "evaluation.json")
        digests = {name: sequence.sha256() for name, sequence in sequences.items() if sequence is not None}
        distinct = {digest: sequences[name] for name, digest in digests.items()}
        total = len(distinct) * len(self.networks) * self.num_networks
        with progress_bar(total, "evaluate", "network") as bar:
            for digest, sequence in distinct.items():
                for network in self.networks:
                    self._evaluate_missing(sequence, digest, network, finished, bar)
        remove_file(self._networks_path)
        names = [network.name for network in self.networks]
        accuracies = {
            name: {network: finished.accuracy(digests[name], network) for network in names} if name in digests else None
            for name in sequences
        }
        return accuracies, finished.seconds

    @property
    def _networks_path(self) -> Path:
        return self.folder / "networks.safetensors"

    def _evaluate_missing(
        self, sequence: SubsetSequence, digest: str, network: NetworkConfig, finished: "_FinishedNetworks", bar: tqdm
    ) -> None:
        """Evaluates the networks of one architecture that are not finished: at once, or each for itself if one by one."""
        missing = [index for index in range(self.num_networks) if not finished.has(digest, network.name, index)]
        bar.update(self.num_networks - len(missing))
        together = self.protocol.recipe.engine == "compiled"
        for indices in [missing] if missing and together else [[index] for index in missing]:
            owner = {"set": digest, "network": network.name, "indices": indices}
            checkpoint = TrainingCheckpoint(self._networks_path, owner, self.budget)
            values, learned = self.protocol.evaluate(sequence, self.test, network, indices, checkpoint)
            finished.add(digest, network.name, indices, values, learned, checkpoint.seconds)
            bar.update(len(indices))
            self.budget.check()


class _FinishedNetworks:
    """The file of accuracies of the networks evaluated so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, list[Any]] = read_json(path) if path.is_file() else {}

    def has(self, digest: str, name: str, index: int) -> bool:
        return f"{digest}/{name}/{index}" in self._values

    def add(
        self, digest: str, name: str, indices: list[int], accuracies: list[float], learned: list[bool], seconds: float
    ) -> None:
        for index, accuracy, has_learned in zip(indices, accuracies, learned, strict=True):
            self._values[f"{digest}/{name}/{index}"] = [accuracy, seconds / len(indices), has_learned]
        write_json(self._path, self._values)

    @property
    def seconds(self) -> float:
        return sum(value[1] for value in self._values.values())

    def accuracy(self, digest: str, name: str) -> Accuracy:
        prefix = f"{digest}/{name}/"
        entries = [entry for key, entry in self._values.items() if key.startswith(prefix)]
        not_learned = sum(entry[2:] == [False] for entry in entries)  # a file of an older version does not say
        return Accuracy(tuple(entry[0] for entry in entries), not_learned)


@contextmanager
def state_folder(results_dir: Path | None, name: str) -> Iterator[Path]:
    """Yields the folder for the state of a re-evaluation, which no other process uses; one that goes away if none is kept."""
    if results_dir is None:
        with TemporaryDirectory(prefix="seqmatch-") as folder:
            yield Path(folder)
        return
    folder = results_dir / "state" / name
    with only_process(folder.with_name(f"{name}.lock")):
        remove_leftovers(folder)
        yield folder


def as_record(accuracies: Mapping[str, Accuracy] | None) -> dict[str, Any] | None:
    """Returns mean, std, n and values of the first architecture, and those of all beneath, as run records hold them."""
    if accuracies is None:
        return None
    by_network = {name: accuracy.as_dict() for name, accuracy in accuracies.items()}
    return next(iter(by_network.values())) | {"by_network": by_network}
