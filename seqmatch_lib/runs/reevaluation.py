"""Re-evaluation of a finished set: by other networks, after other training, jointly, without augmentation; one record each."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqmatch_lib.engine.evaluation import Accuracy, evaluate_sequence
from seqmatch_lib.errors import DataError, require
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import RealData
from seqmatch_lib.runs.records import describe_code, describe_environment, load_fields
from seqmatch_lib.store.files import digest_json, write_json
from seqmatch_lib.subsets import SubsetSequence, check_sequence, sample_real_sequence

SCHEMA = 1


@dataclass(frozen=True)
class Reevaluation:
    """The record of one re-evaluation. Accuracies are in per cent: architecture -> `{mean, std, n, values}`.

    Args:
        schema: version of this format.
        run_id: of the run that made the set; "imported" for a set from elsewhere.
        synthetic_sha256: of the set.
        joint: whether networks were trained on all subsets at once instead of stage by stage.
        seed: of the networks and of the random real images.
        config: of the run, with the settings changed for this re-evaluation.
        accuracy: of networks trained on the set.
        random_baseline: of networks trained alike on as many random real images; None if nobody asked.
        data: fingerprint of the real data.
        seconds: for all networks.
        device: and all that follows: as in `RunRecord`.
    """

    schema: int
    run_id: str
    synthetic_sha256: str
    joint: bool
    seed: int
    config: dict[str, Any]
    accuracy: dict[str, dict[str, Any]]
    random_baseline: dict[str, dict[str, Any]] | None
    data: str
    seconds: float
    device: str
    device_name: str
    threads: int
    torch: str
    python: str
    git_commit: str
    dirty: bool


def reevaluate(
    sequence: SubsetSequence, config: RunConfig, data: RealData, joint: bool, seed: int, with_random: bool
) -> Reevaluation:
    """Trains fresh networks on a set and tests them.

    Args:
        sequence: the set.
        config: its own, with the changes in question; only networks, training and evaluation matter.
        data: its real data, on the device that is to be used.
        joint: whether to train on all subsets at once, with the last step size.
        seed: of the networks and of the random real images.
        with_random: whether as many random real images, divided alike, are evaluated beside it.

    Raises:
        DataError: the set does not fit the data.
    """
    began = time.perf_counter()
    _check(sequence, config, data)

    def measure(one: SubsetSequence) -> dict[str, Accuracy]:
        one = (one.joint() if joint else one).to(data.test[0].device)
        networks = [config.network.named(name) for name in config.evaluation.networks]
        return evaluate_sequence(
            one, *data.test, data.num_classes, networks, config.recipe, seed, config.evaluation.num_networks
        )

    accuracy, random = measure(sequence), None
    if with_random:
        ipcs = [len(subset.images) // data.num_classes for subset in sequence.subsets]
        random = measure(sample_real_sequence(*data.train, data.num_classes, ipcs, config.evaluation.real_lr, seed))
    commit, dirty = describe_code()
    return Reevaluation(
        schema=SCHEMA,
        run_id=sequence.metadata.get("run_id", "imported"),
        synthetic_sha256=sequence.sha256(),
        joint=joint,
        seed=seed,
        config=config.as_dict(),
        accuracy=_as_dicts(accuracy),
        random_baseline=None if random is None else _as_dicts(random),
        data=data.identity["fingerprint"],
        seconds=round(time.perf_counter() - began, 1),
        **describe_environment(data.test[0].device),
        git_commit=commit,
        dirty=dirty,
    )


def _check(sequence: SubsetSequence, config: RunConfig, data: RealData) -> None:
    distilled_from = sequence.metadata.get("data", data.identity)["fingerprint"]  # a set from elsewhere does not say
    require(
        data.identity["fingerprint"] == distilled_from,
        f"the set was distilled from other {config.dataset} images than those found; set SEQMATCH_DATA to them",
        DataError,
    )
    check_sequence(sequence, "the set", tuple(data.test[0].shape[1:]), data.num_classes)


def _as_dicts(accuracies: dict[str, Accuracy]) -> dict[str, dict[str, Any]]:
    return {name: accuracy.as_dict() for name, accuracy in accuracies.items()}


def save_reevaluation(reevaluation: Reevaluation, results_dir: Path) -> Path:
    """Writes `results_dir/reevaluations/<dataset>/<run id>-<8 hex of the question>.json`; returns the path."""
    question = [reevaluation.synthetic_sha256, reevaluation.joint, reevaluation.seed, reevaluation.config]
    name = f"{reevaluation.run_id}-{digest_json(question)[:8]}.json"
    path = results_dir / "reevaluations" / reevaluation.config["dataset"] / name
    write_json(path, asdict(reevaluation))
    return path


def load_reevaluations(results_dir: Path) -> list[Reevaluation]:
    """Reads all re-evaluations of a results folder, sorted by file name.

    Raises:
        StorageError: one is damaged, or of another schema version.
    """
    paths = sorted((results_dir / "reevaluations").rglob("*.json"))
    return [Reevaluation(**load_fields(Reevaluation, path, SCHEMA, "evaluate the set again")) for path in paths]
