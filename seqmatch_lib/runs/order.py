"""The ablation of order and division: sets of equal size that are divided or not, in sequence or not; a record a seed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.errors import require
from seqmatch_lib.methods import BaseMethod, Stage, get_method
from seqmatch_lib.runs.config import RunConfig, config_of_subsets
from seqmatch_lib.runs.experiment import open_run, run_experiment
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.records import SCHEMA, OrderRecord, overrides_of
from seqmatch_lib.seqmatch import iterate
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, sample_real_sequence

OTHER_SEED = 1000  # what is added to a run's seed for the second of two independent halves


def runs_of_order(config: RunConfig) -> dict[str, RunConfig]:
    """Returns the runs that the ablation compares a sequence of two halves with.

    Returns:
        "one set": the base method on as many images; "sequence": `config`; "first half", "other half": the base method on
        half as many images, with two seeds.

    Raises:
        ConfigError: `config` is no sequence of two subsets of one size.
    """
    sizes = config.subset_ipcs
    require(
        config.is_sequential and len(sizes) == 2 and len(set(sizes)) == 1,
        f"subset_ipcs {list(sizes)} of {config.method!r} are not those of a sequence of two equal subsets; give such a one",
    )
    common = config.dataset, config.base_method
    halves = {
        name: config_of_subsets(*common, sizes[:1], config.scale, seed)
        for name, seed in (("first half", config.seed), ("other half", config.seed + OTHER_SEED))
    }
    return {"one set": config_of_subsets(*common, [config.ipc], config.scale, config.seed), "sequence": config} | halves


def measure_order(config: RunConfig, results_dir: Path | str, num_networks: int = 5) -> OrderRecord:
    """Distils what `runs_of_order` names, trains networks on sets made of it, and records what each set is worth.

    Args:
        config: of a SeqMatch run with two equal subsets.
        results_dir: of all runs, and of the record.
        num_networks: that are trained on each set.

    Raises:
        SeqMatchError: as `run_experiment`.
    """
    runs = runs_of_order(config)
    for one in runs.values():
        run_experiment(one, results_dir)
    data, plain, (stage,) = open_run(runs["one set"], results_dir)
    _, sequence, stages = open_run(config, results_dir)
    halves = tuple(open_run(runs[name], results_dir)[1].subsets[0] for name in ("first half", "other half"))
    sets = {config.base_method.upper(): plain} | _reordered(sequence, stages, get_method(config.base_method)(config.options))
    divided = SubsetSequence(halves)
    sets |= {"divided, staged": divided, "divided, joint": divided.joint()}
    again = distil_again(get_method(config.base_method)(runs["one set"].options), stage, stages[1].interval, plain)
    sets |= {"undivided, staged": plain.then(again), "undivided, last": SubsetSequence((again,))}
    lr = config.evaluation.real_lr
    sets["random real"] = sample_real_sequence(data.train, data.num_classes, config.subset_ipcs, lr, config.seed)
    protocol = EvaluationProtocol(data.num_classes, config.training, config.seed)
    accuracy = {
        name: protocol.accuracies(sequence, data.test, config.network, range(num_networks)) for name, sequence in sets.items()
    }
    record = OrderRecord(
        schema=SCHEMA,
        dataset=config.dataset,
        ipc=config.ipc,
        scale=config.scale,
        seed=config.seed,
        config=config.as_dict(),
        overrides=overrides_of(config),
        accuracy={name: [round(value, 4) for value in values] for name, values in accuracy.items()},
        **describe_provenance(data.test.images.device),
    )
    record.save(Path(results_dir))
    return record


def _reordered(sequence: SubsetSequence, stages: Sequence[Stage], method: BaseMethod) -> dict[str, SubsetSequence]:
    """Returns the sequence itself, trained on at once and backwards, and with something else in the place of S_2.

    What stands there are the real images that S_2 began as, or S_1 once more; both with the step size of S_2.
    """
    first, second = sequence.subsets
    begun = method.initialise(stages[1]).freeze()
    return {
        "SeqMatch": sequence,
        "SeqMatch, joint": sequence.joint(),
        "SeqMatch, $S_2$ first": SubsetSequence((second, first)),
        "SeqMatch, $S_2$ undistilled": SubsetSequence((first, replace(begun, lr=second.lr))),
        "SeqMatch, $S_1$ twice": SubsetSequence((first, replace(first, lr=second.lr))),
    }


def distil_again(
    method: BaseMethod, stage: Stage, interval: tuple[int, int] | None, finished: SubsetSequence
) -> SyntheticSubset:
    """Goes on with a finished set of one subset, for networks that were trained on it: a sequence without division.

    Args:
        method: the base method.
        stage: the first one, in which the set was distilled.
        interval: teacher epochs of the second turn; None for methods without teachers.
        finished: the set.

    Returns:
        The set after as many iterations as a second subset takes; its step size begins as that of a second subset does.
    """
    prepared = method.prepare(replace(stage, index=2, interval=interval, frozen=finished))
    trainable = method.initialise(stage)
    (subset,) = finished.subsets
    labels = subset.labels.log() if trainable.logits else subset.labels
    start = {"images": subset.images, "labels": labels, "lr": torch.tensor(method.initial_lr(2))}
    trainable.load_state({name: start[name].to(leaf.dtype) for name, leaf in trainable.leaves.items()}, [])
    alone = replace(stage, index=2, interval=interval)  # nothing stands beside the set itself
    for _ in iterate(method, alone, prepared, trainable):
        pass
    return trainable.freeze()
