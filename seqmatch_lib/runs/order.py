"""The ablation of order and division: sets of equal size that are divided or not, in sequence or not; one record per seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.data.datasets import load_dataset
from seqmatch_lib.errors import require
from seqmatch_lib.methods import BaseMethod, MethodState, Stage, Trainable, get_method
from seqmatch_lib.runs.config import RunConfig, config_of_subsets
from seqmatch_lib.runs.distillation import distill_stage
from seqmatch_lib.runs.evaluation import evaluate_sets, state_folder
from seqmatch_lib.runs.experiment import open_run, run_experiment
from seqmatch_lib.runs.overrides import flatten_settings, overrides_of
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.real_data import RealData
from seqmatch_lib.runs.records import OrderRecord, fields_of, find_earlier, name_on, order_path
from seqmatch_lib.runs.stages import StageCheckpoint
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import remove_leftovers
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, load_sequence, sample_real_sequence, set_path

OTHER_SEED = 1000  # what is added to a run's seed for the second of the independent parts, twice that for the third, …
DIVISION = ("ipc", "subset_ipcs", "intervals")  # settings that say how a set is divided
IMAGES = ("zca", "select_on", "network")  # settings that presets of one cell may differ in, and all sets must have in common
PARTS = {  # of the ablation -> its sets, beside those that runs have records of
    "sequence": ("SeqMatch, $S_2$ first", "SeqMatch, $S_2$ undistilled", "SeqMatch, $S_1$ twice"),
    "halves": ("divided, staged", "divided, joint", "divided, joint, as many epochs"),
    "one set": ("undivided, staged", "undivided, last"),
    "random real": ("random real",),
}


def runs_of_order(config: RunConfig) -> dict[str, RunConfig]:
    """Returns the runs that the ablation compares a sequence with.

    Returns:
        "one set": the base method on as many images, with the same changes to its preset, and the network and
        preprocessing of the sequence; "sequence": `config`; "part k" for k = 2 … K: independent subsets. Each has the size of
        S_k, is distilled as S_1 is, with another seed, and knows nothing of the others. Its step size begins where that of
        S_k does, so that S_k has no head start.

    Raises:
        ConfigError: `config` is no sequence of several subsets.
    """
    sizes, base = config.subset_ipcs, config.base_method
    problem = f"subset_ipcs {list(sizes)} of {config.method!r} do not describe a sequence of two or more subsets"
    require(config.is_sequential and len(sizes) > 1, f"{problem}; give a run of SeqMatch")
    plain = config_of_subsets(config.dataset, base, [config.ipc], config.scale, config.seed)
    changes = {key: value for key, value in overrides_of(config).items() if key not in DIVISION}
    settings = flatten_settings(config.as_dict())
    changes |= _under(settings, IMAGES)
    epochs = changes.get("teachers.epochs", plain.teachers.epochs)
    changes["intervals"] = [[min(epoch, epochs) for epoch in interval] for interval in plain.intervals]
    runs = {"one set": plain.changed(_of_one_stage(changes, base, 1)), "sequence": config}
    part = changes | _under(settings, (base, "teachers")) | {"intervals": [list(first) for first in config.intervals[:1]]}
    for k, size in enumerate(sizes[1:], start=2):
        part |= {"ipc": size, "subset_ipcs": [size], f"{base}.syn_lr": get_method(base)(config.options).initial_lr(k)}
        # where a setting has an entry for each stage, a part has that of S_k, in whose place it stands
        runs[f"part {k}"] = replace(plain.changed(_of_one_stage(part, base, k)), seed=config.seed + (k - 1) * OTHER_SEED)
    return runs


def one_set_for_longer(config: RunConfig, epochs: bool = False) -> RunConfig:
    """Returns the run of the base method on one set that has as many iterations in all as a sequence.

    Args:
        config: of the sequence.
        epochs: whether its networks are trained for as many epochs in all, too. For accuracies of both kinds of training,
            evaluate the set of the run without them under `training.epochs`.

    Raises:
        ConfigError: as `runs_of_order`.
    """
    base, count = config.base_method, config.num_subsets
    alone, method = runs_of_order(config)["one set"], get_method(base)(config.options)
    require(
        hasattr(config.options, "iterations"), f"method {base!r} has no setting iterations, of which one set could get more"
    )
    iterations = sum(method.num_iterations(k) for k in range(1, count + 1))
    is_list = isinstance(config.options.iterations, tuple)  # with an entry for each stage
    changes = {f"{base}.iterations": [iterations] if is_list else iterations}
    changes |= {"training.epochs": count * config.training.epochs} if epochs else {}
    return alone.changed(changes)


def parts_of_order(config: RunConfig) -> Sequence[str]:
    """Returns the parts of the ablation that a sequence has: all if it has two subsets of one size, else only some."""
    first, *others = config.subset_ipcs
    return tuple(PARTS) if others == [first] else ("halves", "random real")


def missing_parts(config: RunConfig, record: OrderRecord | None) -> list[str]:
    """Returns the parts of the ablation of which a record lacks sets; without a record, all that the sequence has."""
    known = {} if record is None else record.on()
    return [part for part in parts_of_order(config) if not known.keys() >= {*PARTS[part]}]


def independent_parts(config: RunConfig) -> list[RunConfig]:
    """Returns the runs of the independent subsets that stand in the places of S_2 … S_K."""
    return [run for name, run in runs_of_order(config).items() if name.startswith("part ")]


def with_independent_parts(config: RunConfig, sequence: SubsetSequence, results_dir: Path) -> SubsetSequence:
    """Returns a sequence with its independent parts, from where they were run, in the places of S_2 … S_K."""
    first = sequence.subsets[0]
    loaded = (load_sequence(set_path(results_dir, part.run_id)) for part in independent_parts(config))
    return SubsetSequence((first, *(part.to(first.images.device).subsets[0] for part in loaded)))


def with_first_repeated(sequence: SubsetSequence) -> SubsetSequence:
    """Returns a sequence with S_1 in the places of S_2 … S_K, where it has their step sizes."""
    first, *later = sequence.subsets
    return SubsetSequence((first, *(replace(first, lr=subset.lr) for subset in later)))


def needed_runs(config: RunConfig, parts: Sequence[str] | None = None) -> list[RunConfig]:
    """Returns the runs whose sets `measure_order` trains networks on, the sequence first."""
    parts = parts_of_order(config) if parts is None else parts
    one_set = [runs_of_order(config)["one set"]] if "one set" in parts else []
    return [config, *(independent_parts(config) if "halves" in parts else []), *one_set]


def _under(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the settings, by dotted keys, that these names are or have."""
    return {key: value for key, value in settings.items() if key.split(".")[0] in names}


def _of_one_stage(settings: Mapping[str, Any], base: str, stage: int) -> dict[str, Any]:
    """Returns settings in which those of the base method with one entry for each stage have that of this stage alone."""
    lists = {key: value for key, value in _under(settings, [base]).items() if isinstance(value, list | tuple)}
    return settings | {key: value[:stage][-1:] for key, value in lists.items()}


def measure_order(
    config: RunConfig,
    results_dir: Path | str,
    parts: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    networks: Sequence[str] = (),
) -> OrderRecord:
    """Trains networks on sets that are divided and ordered differently, and records their accuracies.

    Distils what `needed_runs` names, where that is not done. A process that is killed goes on where it was.

    Args:
        config: of a SeqMatch run.
        results_dir: of all runs, and of the record.
        parts: which sets, by default all that `parts_of_order` names: "sequence": its subsets backwards, and something else
            in the place of S_2 (the accuracy of the sequence itself is in the record of its run); "halves": S_1 and the
            independent parts in the places of S_2 … S_K, in stages, jointly, and jointly for as many epochs as in stages;
            "one set": the base method's, and the same distilled once more; "random real". "sequence" and "one set" are of two
            subsets of one size. Other sets that were measured before stay in the record.
        device: defaults to the first GPU, or the CPU.
        networks: other architectures that are trained on the halves, too.

    Raises:
        SeqMatchError: as `run_experiment`.
    """
    results_dir, known = Path(results_dir), parts_of_order(config)
    parts = known if parts is None else parts
    unknown, sizes = [part for part in parts if part not in known], list(config.subset_ipcs)
    require(not unknown, f"parts {unknown} are unknown for subsets of {sizes}; use any of {', '.join(known)}")
    require(not networks or "halves" in parts, f"networks {list(networks)} are trained on halves; name 'halves' in parts, too")
    asked = {network: config.changed({"evaluation.networks": [network]}) for network in (config.network.name, *networks)}
    dataset = load_dataset(config.dataset)  # given, it is compared with that of finished runs before others are begun
    for run in needed_runs(config, parts):
        run_experiment(run, results_dir, device=device, dataset=dataset)
    data, sequence, _ = opened = open_run(config, results_dir, device)
    with state_folder(results_dir, f"{config.run_id}-order", data) as folder:
        sets = _sets_of(parts, config, opened, results_dir, folder)
        halves = {name: one for name, one in sets.items() if name in PARTS["halves"]}
        earlier = find_earlier(OrderRecord, order_path(results_dir, config.run_id))
        of_this_set = earlier is not None and earlier.synthetic_sha256 == sequence.sha256()
        if networks and of_this_set and "halves" not in missing_parts(config, earlier):  # only other networks are asked about
            sets = {name: one for name, one in sets.items() if name not in halves}
        on_own = asked.pop(config.network.name)
        accuracy = _evaluate(sets, on_own, data, folder) if sets else {}
        for network, changed in asked.items():
            found = _evaluate(halves, changed, data, folder / network)
            accuracy |= {name_on(name, network): values for name, values in found.items()}
        record = OrderRecord(
            **fields_of(config, "dataset", "ipc", "scale", "seed"),
            synthetic_sha256=sequence.sha256(),
            other_half=", ".join(run.run_id for run in independent_parts(config)) if halves else None,
            accuracy=accuracy,
            **describe_provenance(data.test.images.device),
        )
        record = record if earlier is None else record.joined_with(earlier)
        record.save(results_dir)
    return record


def _sets_of(
    parts: Sequence[str],
    config: RunConfig,
    opened: tuple[RealData, SubsetSequence, list[Stage]],
    results_dir: Path,
    folder: Path,
) -> dict[str, SubsetSequence]:
    """Returns the sets of these parts, by name.

    Args:
        parts: as in `measure_order`.
        config: of the sequence.
        opened: what `open_run` returned of it.
        results_dir: of the finished runs.
        folder: keeps the state of the second version of one set.
    """
    data, sequence, stages = opened
    sets, runs, method = {}, runs_of_order(config), get_method(config.base_method)(config.options)
    device = data.test.images.device
    if "one set" in parts:
        _, plain, (stage,) = open_run(runs["one set"], results_dir, device)
        sets |= {config.base_method.upper(): plain}
    if "sequence" in parts:
        sets |= _reordered(sequence, stages, method)
    if "halves" in parts:
        divided = with_independent_parts(config, sequence, results_dir)
        sets |= {"divided, staged": divided, "divided, joint": divided.joint()}
    if "one set" in parts:
        checkpoint = StageCheckpoint(folder / "second_version.safetensors", [runs["one set"].hash, plain.sha256()])
        again = distil_again(_for_second_turn(config, runs["one set"]), stage, stages[1].interval, plain, checkpoint)
        sets |= {"undivided, staged": plain.then(again), "undivided, last": SubsetSequence((again,))}
    if "random real" in parts:
        lr = config.evaluation.real_lr
        sets["random real"] = sample_real_sequence(data.train, data.num_classes, config.subset_ipcs, lr, config.seed)
    return sets


def _evaluate(sets: Mapping[str, SubsetSequence], config: RunConfig, data: RealData, folder: Path) -> dict[str, list[float]]:
    """Returns set -> accuracies of networks trained on it; on halves jointly, also for as many epochs as in stages."""
    (network,) = config.evaluation.networks
    remove_leftovers(folder)
    found, _ = evaluate_sets(sets, config, data, folder, Budget())
    if "divided, joint" in sets:  # joint training has the epochs of one stage
        longer = config.changed({"training.epochs": config.num_subsets * config.training.epochs})
        as_long = folder / "as-many-epochs"
        remove_leftovers(as_long)
        found |= evaluate_sets({"divided, joint, as many epochs": sets["divided, joint"]}, longer, data, as_long, Budget())[0]
    return {name: accuracies[network]["values"] for name, accuracies in found.items()}


def _for_second_turn(sequence: RunConfig, one_set: RunConfig) -> BaseMethod:
    """Returns the base method with the settings of one set, but where the sequence has an entry for each stage, with these."""
    of_stages = {name: value for name, value in vars(sequence.options).items() if isinstance(value, tuple)}
    return get_method(sequence.base_method)(replace(one_set.options, **of_stages))


def _reordered(sequence: SubsetSequence, stages: Sequence[Stage], method: BaseMethod) -> dict[str, SubsetSequence]:
    """Returns the sequence backwards, and with something else in the place of S_2.

    What stands there are the real images that S_2 began as, or S_1 once more; both with the step size of S_2.
    """
    first, second = sequence.subsets
    begun = method.initialise(stages[1]).freeze()
    return {
        "SeqMatch, $S_2$ first": SubsetSequence((second, first)),
        "SeqMatch, $S_2$ undistilled": SubsetSequence((first, replace(begun, lr=second.lr))),
        "SeqMatch, $S_1$ twice": with_first_repeated(sequence),
    }


def distil_again(
    method: BaseMethod,
    stage: Stage,
    interval: tuple[int, int] | None,
    finished: SubsetSequence,
    checkpoint: StageCheckpoint,
) -> SyntheticSubset:
    """Goes on with a finished set of one subset, for networks that were trained on it: a sequence without division.

    Args:
        method: the base method.
        stage: the first one, in which the set was distilled.
        interval: teacher epochs of the second turn; None for methods without teachers.
        finished: the set.
        checkpoint: from which a stopped process goes on.

    Returns:
        The set after as many iterations as a second subset takes; its step size begins as that of a second subset does.
    """
    (subset,) = finished.subsets

    class Again(type(method)):  # the same method, but for where networks and images begin
        def initialise(self, stage: Stage) -> Trainable:
            trainable = super().initialise(stage)
            labels = subset.labels.log() if trainable.logits else subset.labels
            start = {"images": subset.images, "labels": labels, "lr": torch.tensor(self.initial_lr(2))}
            trainable.load_state({name: start[name].to(leaf.dtype) for name, leaf in trainable.leaves.items()}, [])
            return trainable

        def prepare(self, stage: Stage) -> MethodState:
            return super().prepare(replace(stage, frozen=finished))

        def resume(self, stage: Stage, state: dict[str, torch.Tensor]) -> MethodState:
            return super().resume(replace(stage, frozen=finished), state)

    alone = replace(stage, index=2, interval=interval)  # nothing stands beside the set itself
    return distill_stage(Again(method.config), alone, checkpoint).last
