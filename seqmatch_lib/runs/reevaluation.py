"""Re-evaluation of a finished set: by other networks, after other training, jointly, without augmentation."""

from dataclasses import replace
from pathlib import Path

from seqmatch_lib.engine.step_functions import UNCOMPILED
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.evaluation import check_same_data, evaluate_sets, state_folder
from seqmatch_lib.runs.overrides import describe_changes, flatten_settings
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.real_data import RealData, check_origin
from seqmatch_lib.runs.records import SCHEMA, Reevaluation, find_earlier, name_reevaluation, reevaluation_path
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import SubsetSequence, check_sequence, sample_real_sequence


def reevaluate(
    sequence: SubsetSequence,
    config: RunConfig,
    data: RealData,
    joint: bool = False,
    seed: int = 0,
    with_random: bool = False,
    results_dir: Path | None = None,
    budget: Budget | None = None,
) -> Reevaluation:
    """Trains fresh networks on a set and tests them.

    Args:
        sequence: the set. Its metadata say of which run it is, and, as `last_sha256`, whether it has the selected iterate.
        config: its own, with the changes in question; only networks, training and evaluation matter.
        data: its real data, on the device that is to be used.
        joint: whether to train on all subsets at once, with the last step size.
        seed: of the networks and of the random real images.
        with_random: whether networks are trained on as many random real images, too, divided alike. If not, an earlier
            record with the same settings in `results_dir` keeps its accuracies of them.
        results_dir: where the record, and the state from which a killed process goes on, are kept; nowhere by default.
        budget: says when to save, and when to stop.

    Raises:
        DataError: the set does not fit the data.
        StorageError: another process is at the same re-evaluation, or `results_dir` holds one of the set on other real data.
        OutOfTime: the budget is spent; the state is saved in `results_dir`.
    """
    check_sequence(sequence, "the set", tuple(data.test.images.shape[1:]), data.num_classes)
    check_origin(sequence, data)
    run_id, digest, last = sequence.metadata.get("run_id", "imported"), sequence.sha256(), sequence.metadata.get("last_sha256")
    own = sequence.metadata.get("config")
    name = name_reevaluation(run_id, digest, joint, seed, config.as_dict())
    if results_dir is not None:  # neither its name nor its file's says on which real data
        path = reevaluation_path(results_dir, config.dataset, name)
        earlier = find_earlier(Reevaluation, path)
        check_same_data(earlier is None or earlier.data == data.identity["fingerprint"], path, data)
    device = data.test.images.device
    sets = {"accuracy": sequence}
    if with_random:
        ipcs = [len(subset.images) // data.num_classes for subset in sequence.subsets]
        sets["random_baseline"] = sample_real_sequence(data.train, data.num_classes, ipcs, config.evaluation.real_lr, seed)
    sets = {key: (trained_on.joint() if joint else trained_on).to(device) for key, trained_on in sets.items()}
    UNCOMPILED.clear()
    with state_folder(results_dir, name, data) as folder:
        accuracies, seconds = evaluate_sets(sets, replace(config, seed=seed), data, folder, budget or Budget())
        record = Reevaluation(
            schema=SCHEMA,
            run_id=run_id,
            synthetic_sha256=digest,
            joint=joint,
            seed=seed,
            config=config.as_dict(),
            accuracy=accuracies["accuracy"],
            random_baseline=accuracies.get("random_baseline"),
            data=data.identity["fingerprint"],
            seconds=round(seconds, 1),
            last_sha256=None if last == digest else last,
            overrides=own and describe_changes(flatten_settings(own), flatten_settings(config.as_dict())),
            **describe_provenance(device),
        )
        if results_dir is not None:
            earlier = find_earlier(Reevaluation, path)
            if record.random_baseline is None and earlier is not None:
                record = replace(record, random_baseline=earlier.random_baseline)
            record.save(results_dir)
    return record
