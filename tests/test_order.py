"""The ablation of order and division: the sets it compares, and the second turn of a whole set."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Impatient, change_a_pixel, finish_in_parts
from made_records import make_order

from seqmatch_lib.errors import ConfigError, StorageError
from seqmatch_lib.methods import get_method
from seqmatch_lib.methods.mtt import MTT
from seqmatch_lib.methods.teachers import record_stage_teachers
from seqmatch_lib.runs import order
from seqmatch_lib.runs.config import RunConfig, config_of_subsets, preset_names
from seqmatch_lib.runs.experiment import open_run, run_experiment
from seqmatch_lib.runs.order import distil_again, measure_order, one_set_for_longer, runs_of_order
from seqmatch_lib.runs.records import load_orders, load_runs
from seqmatch_lib.runs.stages import StageCheckpoint
from seqmatch_lib.subsets import SubsetSequence, load_sequence, set_path

RESULTS = Path(__file__).parents[1] / "paper_results"
SETS = [
    "SeqMatch, $S_2$ first", "SeqMatch, $S_2$ undistilled", "SeqMatch, $S_1$ twice",
    "divided, staged", "divided, joint", "undivided, staged", "undivided, last", "random real",
    "divided, joint, as many epochs",
]  # fmt: skip


@pytest.fixture
def evaluations(monkeypatch):
    """Notes the sets, and for how many epochs a stage networks would be trained on them, instead of training them."""
    sets, epochs = {}, {}

    def note(found, config, *_):
        sets.update(found)
        epochs.update(dict.fromkeys(found, config.training.epochs))
        (network,) = config.evaluation.networks
        return {name: {network: {"values": [float(len(network))]}} for name in found}, 0.0

    monkeypatch.setattr(order, "evaluate_sets", note)
    return sets, epochs


def test_it_compares_runs_that_committed_records_name():
    known = {run.run_id for run in load_runs(RESULTS)}
    runs = runs_of_order(RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "reduced"))
    assert {one.run_id for one in runs.values()} <= known
    assert runs["part 2"].seed == 1000


def test_one_set_has_no_order():
    with pytest.raises(ConfigError, match=r"subset_ipcs \[10\] of 'dm' do not describe a sequence of two or more subsets"):
        runs_of_order(config_of_subsets("digits", "dm", [10], "smoke"))


def test_of_more_or_unequal_subsets_only_independent_parts_and_random_images_can_be_asked_about(tmp_path, evaluations):
    """Each part has the size of the subset in whose place it stands, and a seed of its own."""
    sets, epochs = evaluations
    config = config_of_subsets("digits", "dm", [5, 3, 2], "smoke", 7)
    runs = runs_of_order(config)
    assert [(runs[name].subset_ipcs, runs[name].seed) for name in ("part 2", "part 3")] == [((3,), 1007), ((2,), 2007)]
    with pytest.raises(
        ConfigError, match=r"parts \['sequence'\] are unknown for subsets of \[5, 3, 2\]; use any of halves, random"
    ):
        measure_order(config, tmp_path, ["sequence"])
    record = measure_order(config, tmp_path)
    assert list(record.accuracy) == ["divided, staged", "divided, joint", "random real", "divided, joint, as many epochs"]
    assert record.other_half == f"{runs['part 2'].run_id}, {runs['part 3'].run_id}"
    first, *_ = load_sequence(set_path(tmp_path, config.run_id)).subsets
    parts = [load_sequence(set_path(tmp_path, runs[name].run_id)).subsets[0] for name in ("part 2", "part 3")]
    assert sets["divided, staged"].sha256() == SubsetSequence((first, *parts)).sha256()
    assert epochs["divided, joint, as many epochs"] == 3 * epochs["divided, joint"] == 3 * config.training.epochs
    assert set(order.parts_of_order(config_of_subsets("digits", "dm", [3, 7], "smoke"))) == {"halves", "random real"}
    assert set(order.parts_of_order(config_of_subsets("digits", "dm", [5, 5], "smoke"))) == set(order.PARTS)
    assert runs["one set"] not in order.needed_runs(config), "no part of this ablation takes it"


def test_all_runs_have_what_was_changed_of_the_sequence_and_the_other_half_begins_with_the_step_size_of_the_second():
    changed = {"mtt.iterations": 7, "teachers.num_teachers": 2}
    config = RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "short", 3, changed)
    runs = runs_of_order(config)
    assert {(run.options.iterations, run.teachers.num_teachers) for run in runs.values()} == {(7, 2)}
    assert (runs["one set"].subset_ipcs, runs["part 2"].subset_ipcs) == ((10,), (5,))
    assert runs["one set"].intervals != config.intervals[:1] == runs["part 2"].intervals
    assert (runs["one set"].seed, runs["part 2"].seed) == (3, 1003)
    assert config.options.syn_lr != config.options.later_syn_lr
    own = {"ipc": 5, "subset_ipcs": [5], "intervals": [[0, 20]], "mtt.syn_lr": config.options.later_syn_lr}
    assert runs["part 2"] == RunConfig.from_preset("cifar10-ipc10-mtt", "short", 1003, own | changed)


def test_all_sets_have_the_preprocessing_of_the_sequence():
    """The published presets of one cell differ in it: MTT at 50 images per class is not whitened, SeqMatch-MTT is."""
    config = RunConfig.from_preset("cifar10-ipc50-seqmatch_mtt", "short", 0, {"subset_ipcs": [25, 25], "intervals": [[0, 20]]})
    assert (config.zca, RunConfig.from_preset("cifar10-ipc50-mtt", "short").zca) == (True, False)
    runs = runs_of_order(config)
    assert {run.zca for run in runs.values()} == {True}
    assert runs["part 2"].teachers == config.teachers


@pytest.mark.parametrize("scale", ["paper", "short", "reduced"])
def test_every_sequence_that_can_be_halved_has_its_controls(scale):
    names = [name for name in preset_names() if "seqmatch" in name]
    configs = [RunConfig.from_preset(name, scale) for name in names]
    halved = [config for config in configs if len(set(config.subset_ipcs)) == 1 and config.num_subsets == 2]
    assert len(halved) >= 20
    for config in halved:
        assert runs_of_order(config)["part 2"].subset_ipcs == config.subset_ipcs[:1]


def test_one_set_is_matched_with_no_epochs_that_teachers_do_not_have():
    changes = {"teachers.epochs": 5, "teachers.later_epochs": 3, "intervals": [[0, 3], [0, 3]]}
    runs = runs_of_order(RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "short", 0, changes))
    assert runs["part 2"].intervals == ((0, 3),)
    assert runs["one set"].intervals[0][1] <= 5


def test_some_of_the_sets_can_be_asked_about(tmp_path):
    config = RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke")
    assert measure_order(config, tmp_path, ["random real"]).other_half is None
    (tmp_path / "order" / f"{config.run_id}.json").unlink()
    halves = measure_order(config, tmp_path, ["halves"])
    of_halves = [name for name in SETS if name.startswith("divided")]
    assert list(halves.accuracy) == of_halves
    assert {run.run_id for run in load_runs(tmp_path)} == {config.run_id, halves.other_half}
    both = measure_order(config, tmp_path, ["random real"])
    assert both.other_half == halves.other_half
    assert list(both.accuracy) == [*of_halves, "random real"]  # what was measured before is kept
    assert load_orders(tmp_path) == [both]
    more = measure_order(config, tmp_path, ["sequence", "random real"])
    assert set(more.accuracy) == {*SETS[:3], "random real", *of_halves}
    assert {name: more.accuracy[name] for name in both.accuracy} == both.accuracy
    with pytest.raises(
        ConfigError, match=r"parts \['half'\] are unknown for subsets of \[5, 5\]; use any of sequence, halves"
    ):
        measure_order(config, tmp_path, ["half"])


def test_a_record_of_another_set_has_nothing_of_an_earlier_one(tmp_path):
    make_order(tmp_path, 0, {"SeqMatch": [40.0], "divided, staged": [30.0]})
    (earlier,) = load_orders(tmp_path)
    other = replace(earlier, synthetic_sha256="other", accuracy={"random real": [20.0]})
    assert other.joined_with(earlier) == other
    assert set(replace(earlier, accuracy={"random real": [20.0]}).joined_with(earlier).accuracy) == {
        "SeqMatch", "divided, staged", "random real",
    }  # fmt: skip


def test_what_was_measured_on_other_images_is_not_used(tmp_path, monkeypatch):
    config = RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke")
    measure_order(config, tmp_path, ["random real"])
    change_a_pixel(monkeypatch)
    run_experiment(config, tmp_path, force=True)
    with pytest.raises(
        StorageError, match=r"-order.data\.json belongs to other images of digits .*; use another results folder"
    ):
        measure_order(config, tmp_path, ["random real"])


def test_halves_are_evaluated_on_other_architectures_too(tmp_path, evaluations):
    config = RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke")
    of_halves = {name for name in SETS if name.startswith("divided")}
    record = measure_order(config, tmp_path, ["halves", "random real"], networks=["vit", "alexnet"])
    assert record.on() == record.on("convnet") == {key: [7.0] for key in [*of_halves, "random real"]}
    assert record.on("vit") == {key: [3.0] for key in of_halves}
    assert record.on("vgg11") == {}
    assert evaluations[1]["divided, joint, as many epochs"] == 2 * evaluations[1]["divided, joint"]
    assert measure_order(config, tmp_path, ["sequence"]).on("alexnet") == record.on("alexnet")  # what was measured is kept
    evaluations[0].clear()
    more = measure_order(config, tmp_path, ["halves"], networks=["vgg11"])
    assert more.on("vgg11").keys() == of_halves
    assert more.on().keys() == {*record.on(), *SETS[:3]}
    assert set(evaluations[0]) == of_halves, "only on the other architecture"
    with pytest.raises(ConfigError, match=r"networks \['vit'\] are trained on halves; name 'halves' in parts, too"):
        measure_order(config, tmp_path, ["random real"], networks=["vit"])
    with pytest.raises(ConfigError, match="vgg"):
        measure_order(config, tmp_path, ["halves"], networks=["vgg"])


def test_parts_that_a_record_lacks_are_found(tmp_path):
    config = RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "reduced")
    of_halves = ["divided, staged", "divided, joint", "divided, joint, as many epochs"]
    for names, missing in (
        ([f"{name} (vit)" for name in of_halves], ["sequence", "halves", "one set", "random real"]),
        ([*of_halves[:2], "random real"], ["sequence", "halves", "one set"]),  # as in records of before the third was measured
        ([*of_halves, "undivided, staged", "undivided, last"], ["sequence", "random real"]),
    ):
        make_order(tmp_path, 0, {name: [30.0] for name in names})
        (record,) = load_orders(tmp_path)
        assert order.missing_parts(config, record) == missing
    assert order.missing_parts(config, None) == list(order.PARTS)


def test_every_set_gets_its_accuracies_and_the_record_is_kept(tmp_path):
    config = RunConfig.from_preset("digits-ipc10-seqmatch_krr", "smoke")
    record = measure_order(config, tmp_path)
    assert list(record.accuracy) == ["KRR", *SETS]
    assert all(len(found) == 2 and all(0 <= value <= 100 for value in found) for found in record.accuracy.values())
    assert load_orders(tmp_path) == [record]
    assert record.config == config.as_dict()


def test_sets_are_what_they_are_called(tmp_path, evaluations):
    sets, epochs = evaluations
    config = RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke")
    assert list(measure_order(config, tmp_path).accuracy) == ["MTT", *SETS]
    (first, second), (plain,), (half,) = (
        load_sequence(set_path(tmp_path, run.run_id)).subsets
        for run in map(runs_of_order(config).get, ("sequence", "one set", "part 2"))
    )
    divided, (again,) = SubsetSequence((first, half)), sets["undivided, last"].subsets
    begun = get_method("mtt")(config.options).initialise(open_run(config, tmp_path)[2][1]).freeze()
    expected = {
        "MTT": SubsetSequence((plain,)),
        "SeqMatch, $S_2$ first": SubsetSequence((second, first)),
        "SeqMatch, $S_2$ undistilled": SubsetSequence((first, replace(begun, lr=second.lr))),
        "SeqMatch, $S_1$ twice": SubsetSequence((first, replace(first, lr=second.lr))),
        "divided, staged": divided,
        "divided, joint": divided.joint(),
        "divided, joint, as many epochs": divided.joint(),
        "undivided, staged": SubsetSequence((plain, again)),
    }
    assert {name: sets[name].sha256() for name in expected} == {name: one.sha256() for name, one in expected.items()}
    assert not torch.equal(again.images, plain.images)
    longer = {name for name, count in epochs.items() if count != config.training.epochs}
    assert longer == {"divided, joint, as many epochs"}
    assert {epochs[name] for name in longer} == {2 * config.training.epochs}, "as many as in two stages"


def test_the_second_turn_begins_with_the_finished_set_and_its_own_step_size(tmp_path, monkeypatch):
    step, beside = MTT.step, []
    monkeypatch.setattr(MTT, "step", lambda self, *rest: beside.append(len(rest[2])) or step(self, *rest))
    config = RunConfig.from_preset("digits-ipc10-mtt", "smoke")
    run_experiment(config, tmp_path)
    beside.clear()
    _, plain, (stage,) = open_run(config, tmp_path)
    still = replace(config.options, iterations=1, lr_img=1e-30, lr_lr=1e-30, later_syn_lr=0.013)
    first, second, third = (StageCheckpoint(tmp_path / f"{k}.safetensors", "test") for k in range(3))
    again = distil_again(get_method("mtt")(still), stage, stage.interval, plain, first)
    assert torch.equal(again.images, plain.subsets[0].images)
    assert again.lr == pytest.approx(0.013)
    assert beside == [0], "nothing stands beside the set itself"
    of_those_that_know_it = record_stage_teachers(replace(stage, index=2, frozen=plain)).folder
    assert list(stage.folder.glob("*-stage2-*")) == [of_those_that_know_it]
    method = get_method("mtt")(config.options)
    moved = distil_again(method, stage, stage.interval, plain, second)
    assert not torch.equal(moved.images, plain.subsets[0].images)
    stopped = replace(stage, budget=Impatient())  # at every save
    resumed, stops = finish_in_parts(lambda: distil_again(method, stopped, stage.interval, plain, third))
    assert stops >= config.options.iterations
    assert torch.equal(resumed.images, moved.images)
    assert resumed.lr == moved.lr


def test_each_independent_part_takes_what_its_own_subset_takes():
    loops = {"idc.inner_loop": [3, 4, 5], "subset_ipcs": [4, 3, 3]}
    config = RunConfig.from_preset("digits-ipc10-seqmatch_idc", "smoke", overrides=loops)
    assert [run.options.inner_loop for run in order.independent_parts(config)] == [(4,), (5,)]
    later = {"mtt.syn_lr": 0.1, "mtt.later_syn_lr": 0.02, "subset_ipcs": [4, 3, 3], "intervals": [[0, 3], [1, 4], [0, 4]]}
    parts = order.independent_parts(RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke", overrides=later))
    assert [(run.options.syn_lr, run.intervals) for run in parts] == [(0.02, ((0, 3),))] * 2, "distilled as S_1 is"


def test_the_other_half_of_idc_takes_what_its_second_subset_takes():
    """At published settings S_2 has twice the iterations of S_1, and an inner loop of its own."""
    for scale in ("paper", "short", "reduced"):
        config = RunConfig.from_preset("cifar10-ipc10-seqmatch_idc", scale)
        runs, sequence = runs_of_order(config), get_method("idc")(config.options)
        half, again = get_method("idc")(runs["part 2"].options), order._for_second_turn(config, runs["one set"])
        assert half.num_iterations(1) == again.num_iterations(2) == sequence.num_iterations(2)
        loops = config.options.inner_loop
        assert runs["part 2"].options.inner_loop == (loops[1:2] or loops)


@pytest.mark.parametrize(
    ("preset", "changes", "key", "iterations"),
    [
        ("cifar10-ipc10-seqmatch_mtt", {"mtt.syn_steps": 7}, "mtt.iterations", 600),
        ("cifar10-ipc10-seqmatch_mtt", {"subset_ipcs": [4, 3, 3]}, "mtt.iterations", 900),
        ("cifar10-ipc10-seqmatch_idc", {"idc.iterations": [100, 250]}, "idc.iterations", (350,)),
    ],
)
def test_one_set_has_as_many_iterations_and_epochs_as_a_sequence(preset, changes, key, iterations):
    sequence = RunConfig.from_preset(preset, "reduced", 3, changes)
    alone, longer, equal = runs_of_order(sequence)["one set"], one_set_for_longer(sequence), one_set_for_longer(sequence, True)
    assert longer.options.iterations == iterations
    assert longer == alone.changed({key: iterations})
    assert equal == longer.changed({"training.epochs": sequence.num_subsets * sequence.training.epochs})
    assert (equal.num_subsets, equal.ipc, equal.seed) == (1, 10, 3)


def test_committed_sets_with_as_many_iterations_are_those_of_their_sequences():
    known, changes = {run.run_id for run in load_runs(RESULTS)}, {"subset_ipcs": [25, 25]}
    sequences = [RunConfig.from_preset("cifar10-ipc50-seqmatch_idc", "reduced", seed, changes) for seed in range(3)]
    assert {one_set_for_longer(sequence).run_id for sequence in sequences} <= known
