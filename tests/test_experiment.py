"""Whole runs on the built-in digits: the record, locks, time budgets; `test_faults.py` kills them."""

import shutil
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import Impatient, change_a_pixel, finish_in_parts, flip, write_class_folders

from seqmatch_lib.data import datasets as data
from seqmatch_lib.data.datasets import DatasetSpec, load_dataset, register_dataset
from seqmatch_lib.engine import evaluation, memory
from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.errors import DataError, OutOfTime, StorageError
from seqmatch_lib.front import evaluate
from seqmatch_lib.methods import get_method
from seqmatch_lib.methods.mtt import MTT
from seqmatch_lib.methods.teachers import record_stage_teachers
from seqmatch_lib.runs import experiment
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.evaluation import evaluate_sets
from seqmatch_lib.runs.experiment import open_run, record_shared_teachers, run_experiment
from seqmatch_lib.runs.listing import format_records
from seqmatch_lib.runs.order import measure_order
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.runs.records import load_record, load_runs, record_path
from seqmatch_lib.runs.stages import read_progress
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import load_tensors, save_tensors
from seqmatch_lib.subsets import load_sequence, sample_real_sequence, set_path

PRESET = "digits-ipc10-seqmatch_mtt"
QUICK = {"training.epochs": 4, "evaluation.num_networks": 2}


def configure(preset=PRESET, seed=0, **overrides):
    quick = QUICK if preset.endswith("random") else QUICK | {"mtt.iterations": 4}
    return RunConfig.from_preset(preset, "smoke", seed, quick | overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return folder, run_experiment(configure(), folder)


def test_the_record_tells_what_was_run(finished):
    _folder, record = finished
    config = configure()
    assert record.run_id == config.run_id
    assert (record.dataset, record.method, record.ipc) == ("digits", "seqmatch_mtt", 10)
    assert (record.num_subsets, record.scale, record.seed) == (2, "smoke", 0)
    assert RunConfig.from_dict(record.config) == config
    assert [len(stage["losses"]) for stage in record.stages] == [4, 4]
    assert [stage["ipc"] for stage in record.stages] == [5, 5]
    assert [[point[0] for point in stage["scores"]] for stage in record.stages] == [[2, 4], [2, 4]]
    for accuracy in (record.accuracy_last, record.accuracy_selected, record.accuracy_joint, record.random_baseline):
        assert accuracy["n"] == 2
        assert 0 <= accuracy["mean"] <= 100
        assert accuracy["by_network"]["convnet"]["values"] == accuracy["values"]
    assert record.selected_on == "validation"
    assert record.seconds.keys() == {"teachers", "distillation", "selection", "evaluation"}
    assert record.peak_memory_mb.keys() == {"teachers", "distillation", "evaluation"}
    assert all(50 < value < 20_000 for value in record.peak_memory_mb.values())
    assert (record.torch, record.device) == (torch.__version__, "cpu" if not torch.cuda.is_available() else "cuda")
    assert record.data["train_images"] + record.data["held_out"] == 1347


def test_scores_on_test_images_stand_beside_those_that_select(tmp_path, finished):
    _folder, plain = finished
    config = configure().changed({"evaluation.score_test": True})
    record = run_experiment(config, tmp_path)
    for stage, other in zip(record.stages, plain.stages, strict=True):
        assert [point[0] for point in stage["test_scores"]] == [2, 4]
        assert (stage["scores"], stage["losses"]) == (other["scores"], other["losses"])  # they change nothing else
        assert "test_scores" not in other
    # the last score of S_K is that of the first network of the evaluation
    assert record.stages[-1]["test_scores"][-1][1] == record.accuracy_last["values"][0]


def test_the_record_is_on_disk_and_reads_back(finished):
    folder, record = finished
    assert load_runs(folder) == [record]
    assert load_record(folder / "runs" / "digits" / f"{record.run_id}.json") == record


def test_the_distilled_set_is_the_one_of_the_record(finished):
    folder, record = finished
    sequence = load_sequence(folder / "distilled" / f"{record.run_id}.safetensors")
    assert sequence.sha256() == record.synthetic_sha256
    assert [len(subset.images) for subset in sequence.subsets] == [50, 50]
    assert [subset.lr for subset in sequence.subsets] == [stage["lr"] for stage in record.stages]
    assert sequence.metadata["run_id"] == record.run_id


def test_the_selected_set_is_kept_and_made_again_from_the_state_if_it_is_lost(tmp_path, monkeypatch):
    scores = iter([80.0, 70.0, 60.0, 50.0])  # of both stages: the first iterate is best
    monkeypatch.setattr(EvaluationProtocol, "score", lambda *_: [next(scores)])
    record = run_experiment(configure(), tmp_path)
    last, path = (set_path(tmp_path, record.run_id, selected) for selected in (False, True))
    selected = load_sequence(path)
    assert selected.sha256() != record.synthetic_sha256
    assert selected.subsets[0].images.equal(load_sequence(last).subsets[0].images)
    again = evaluate(path).accuracy["convnet"]
    assert again["values"] == record.accuracy_selected["values"]
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(EvaluationProtocol, "evaluate", None)  # no network is trained again
    assert run_experiment(configure(), tmp_path) == record
    assert path.read_bytes() == kept
    shutil.rmtree(tmp_path / "state")  # as in a copy of the results, which is read as it is
    path.unlink()
    assert run_experiment(configure(), tmp_path) == record
    assert not path.exists()


def test_a_run_that_is_stopped_while_an_iterate_is_scored_goes_on_with_that_score(finished, tmp_path, monkeypatch):
    _, record = finished
    monkeypatch.setattr(Budget, "apart", lambda self: Impatient())
    found, stops = finish_in_parts(lambda: run_experiment(configure(), tmp_path))
    assert found.comparable() == record.comparable()
    scores = [point for stage in record.stages for point in stage["scores"]]
    assert stops >= len(scores) * record.config["training"]["epochs"]  # of training for one stage or two
    assert not list(tmp_path.rglob("scoring.safetensors"))


def test_runs_that_select_nothing_keep_one_set(tmp_path):
    record = run_experiment(configure(select_on="none"), tmp_path)
    assert set_path(tmp_path, record.run_id).is_file()
    assert not (tmp_path / "selected").exists()


def test_a_last_iterate_that_was_not_selected_needs_no_step_size(tmp_path, monkeypatch, capsys):
    step = MTT.step

    def pushed(self, prepared, trainable, frozen, generator):
        loss = step(self, prepared, trainable, frozen, generator)
        if len(frozen) == 0 and trainable.iteration == 3:  # the last one of S_1 ends with a step size below zero
            trainable.lr.grad.fill_(1e6)
        return loss

    monkeypatch.setattr(MTT, "step", pushed)
    record = run_experiment(configure(), tmp_path)
    assert "S_1 was not scored: the learned step size after 4 iterations is -" in capsys.readouterr().err
    assert [point[0] for point in record.stages[0]["scores"]] == [2]  # the iterate that the set has
    sequence = load_sequence(tmp_path / "distilled" / f"{record.run_id}.safetensors")
    assert [subset.lr for subset in sequence.subsets] == [stage["lr"] for stage in record.stages]


def test_a_finished_run_can_be_opened_with_its_stages_and_teachers(finished):
    folder, record = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "teachers").rglob("teacher-*.npy")}
    data, sequence, stages = open_run(configure(), folder)
    assert sequence.sha256() == record.synthetic_sha256
    assert [(stage.index, stage.ipc, stage.interval, len(stage.frozen)) for stage in stages] == [
        (1, 5, (0, 4), 0),
        (2, 5, (0, 4), 1),
    ]
    assert torch.equal(stages[1].frozen.subsets[0].images, sequence.subsets[0].images)
    assert len(data.test) == record.data["test_images"]
    for stage in stages:
        assert len(record_stage_teachers(stage)) == 2
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "teachers").rglob("teacher-*.npy")}
    with pytest.raises(StorageError, match=r"does not exist"):
        open_run(configure(seed=77), folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_what_begins_no_run_keeps_freed_memory_too(finished, monkeypatch):
    folder, record = finished
    asked = []
    libc = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda name, value: asked.append(name))
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda name: libc))
    evaluate(folder / "distilled" / f"{record.run_id}.safetensors")  # `python -m seqmatch_lib evaluate`
    assert set(asked) == {memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD}
    asked.clear()
    open_run(configure(), folder)  # as measurements of coupling do
    assert set(asked) == {memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD}


def test_a_run_is_not_opened_with_other_images_than_it_had(finished, monkeypatch):
    folder, record = finished
    before = set(folder.rglob("*"))
    change_a_pixel(monkeypatch)
    with pytest.raises(DataError) as error:
        open_run(configure(), folder)
    assert str(error.value) == (
        f"the set of {record.run_id} was distilled from other digits images (1211 to train and 450 to test) than those found "
        "(the same numbers, but other images); distil these into another results folder"
    )
    with pytest.raises(StorageError, match=f"{record.run_id}.json belongs to other images of digits"):
        measure_order(configure(), folder, ["halves"])
    assert set(folder.rglob("*")) == before  # nothing was distilled from them


def test_a_finished_run_is_read_not_repeated_unless_forced(finished, monkeypatch):
    folder, record = finished
    repeated = []
    monkeypatch.setattr(experiment, "prepare_data", lambda *rest: repeated.append(rest) or prepare_data(*rest))
    assert run_experiment(configure(), folder) == record
    assert not repeated
    assert run_experiment(configure(), folder, force=True).comparable() == record.comparable()
    assert len(repeated) == 1


def test_accuracies_are_of_the_sets_that_they_are_called_by(tmp_path, monkeypatch):
    """Where the first of two scored iterates of each stage is ahead."""
    sets, scores = {}, iter((60.0, 50.0) * 2)

    def note(sequences, *rest):
        sets.update(sequences)
        return evaluate_sets(sequences, *rest)

    monkeypatch.setattr(experiment, "evaluate_sets", note)
    monkeypatch.setattr(EvaluationProtocol, "score", lambda *_: [next(scores)])
    record = run_experiment(configure(), tmp_path)
    last, selected = sets["accuracy_last"], sets["accuracy_selected"]
    assert (last.sha256(), sets["accuracy_joint"].sha256()) == (record.synthetic_sha256, last.joint().sha256())
    state = tmp_path / "state" / record.run_id
    best = [load_tensors(state / f"stage-{k}.safetensors")[0]["best.images"] for k in (1, 2)]
    assert all(torch.equal(subset.images, images) for subset, images in zip(selected.subsets, best, strict=True))
    assert [torch.equal(subset.images, images) for subset, images in zip(last.subsets, best, strict=True)] == [True, False]


def test_architectures_whose_names_begin_alike_are_told_apart(tmp_path, monkeypatch):
    def evaluate(self, sequence, test, network, indices, checkpoint):
        return [float(len(network.name))] * len(indices), [True] * len(indices)

    monkeypatch.setattr(EvaluationProtocol, "evaluate", evaluate)
    config = configure("digits-ipc10-random", **{"evaluation.networks": ["resnet18", "resnet18_ap"]})
    found = run_experiment(config, tmp_path).accuracy_last["by_network"]
    assert {name: one["values"] for name, one in found.items()} == {"resnet18": [8.0] * 2, "resnet18_ap": [11.0] * 2}


def test_a_forced_run_goes_on_until_it_has_a_record(tmp_path, monkeypatch, capsys):
    config = RunConfig.from_preset("digits-whole", "smoke", 0, QUICK | {"training.epochs": 3})
    record = run_experiment(config, tmp_path)
    state = tmp_path / "state" / config.run_id

    def force():
        return run_experiment(config, tmp_path, max_minutes=1e-9, force=True)

    capsys.readouterr()
    again, parts = finish_in_parts(force)
    assert parts == 2 * (3 + 1)  # as without force: after each epoch of each network, and when one is tested
    assert again.comparable() == record.comparable()
    assert capsys.readouterr().err.count(f"an unfinished run goes on; to begin it afresh, delete {state}\n") == parts
    with pytest.raises(OutOfTime):  # the record is there, so nothing is left of that run
        force()
    assert not record.path(tmp_path).exists()
    shutil.rmtree(state)  # what the notice says
    assert finish_in_parts(force)[1] == parts


def test_runs_share_teachers_of_the_first_stage(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "teachers").rglob("teacher-*.npy")}
    run_experiment(configure("digits-ipc10-mtt", seed=1), folder)
    after = {path: path.stat().st_mtime_ns for path in (folder / "teachers").rglob("teacher-*.npy")}
    assert after == before


def test_teachers_of_images_that_were_whitened_or_held_out_are_others(tmp_path):
    changes = ({"select_on": "none"}, {"select_on": "none", "zca": True}, {"select_on": "validation"})
    configs = [configure("digits-ipc10-mtt", **{"teachers.num_teachers": 1, **more}) for more in changes]
    assert len({record_shared_teachers(config, tmp_path) for config in configs}) == 3


@pytest.mark.parametrize("base", ["mtt", "idc", "dm", "krr"])
def test_seqmatch_with_one_subset_is_the_base_method_bit_for_bit(tmp_path, base):
    plain = RunConfig.from_preset(f"digits-ipc10-{base}", "smoke", overrides=QUICK)
    single = RunConfig.from_preset(f"digits-ipc10-{base}", "smoke", overrides=QUICK | {"method": f"seqmatch_{base}"})
    sets = []
    for config in (plain, single):
        record = run_experiment(config, tmp_path)
        sets.append((record, load_sequence(tmp_path / "distilled" / f"{config.run_id}.safetensors")))
    (first, a), (second, b) = sets
    assert first.run_id != second.run_id
    assert a.subsets[0].images.numpy().tobytes() == b.subsets[0].images.numpy().tobytes()
    assert a.subsets[0].lr == b.subsets[0].lr
    assert first.accuracy_last == second.accuracy_last


@pytest.mark.parametrize(("base", "images"), [("idc", 40), ("dm", 10), ("krr", 10)])
def test_other_base_methods_leave_whole_records(tmp_path, monkeypatch, base, images):
    seen = []
    train = evaluation.train_stage
    monkeypatch.setattr(
        evaluation, "train_stage", lambda networks, x, y, *rest: seen.append(y) or train(networks, x, y, *rest)
    )
    config = RunConfig.from_preset(f"digits-ipc10-seqmatch_{base}", "smoke", overrides=QUICK)
    record = run_experiment(config, tmp_path)
    assert (record.method, record.num_subsets, record.selected_on) == (f"seqmatch_{base}", 2, "validation")
    assert [len(stage["losses"]) for stage in record.stages] == [
        get_method(base)(config.options).num_iterations(k) for k in (1, 2)
    ]
    assert RunConfig.from_dict(record.config) == config
    left = [path for path in (tmp_path / "teachers").rglob("*") if path.is_file()]
    assert not left, "no teachers, and no state of networks that S_2 started from"
    # the last evaluations: S_1 ∪ S_2 as it is trained on, tiles apart, and as many random real images
    assert {len(labels) for labels in seen} >= {images * 10, images * 5, 100}
    for labels in seen:
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        assert len(torch.bincount(hard, minlength=10).unique()) == 1
    assert run_experiment(config, tmp_path, force=True).comparable() == record.comparable()


def test_another_seed_makes_another_set(tmp_path, finished):
    _, record = finished
    assert run_experiment(configure(seed=1), tmp_path).synthetic_sha256 != record.synthetic_sha256


def test_random_is_the_baseline_of_the_others(tmp_path):
    random = run_experiment(configure("digits-ipc10-random"), tmp_path)
    distilled = run_experiment(configure("digits-ipc10-mtt"), tmp_path)
    assert random.accuracy_last == random.random_baseline == distilled.random_baseline
    assert random.stages == []
    assert random.selected_on == "none"


def test_random_real_images_are_disjoint_over_stages():
    data = prepare_data(load_dataset("digits"), zca=False, select_on="none", device=torch.device("cpu"))
    sequence = sample_real_sequence(data.train, data.num_classes, (3, 2), 0.01, seed=0)
    images, labels = sequence.union()
    assert torch.bincount(labels).tolist() == [5] * 10
    assert len({image.numpy().tobytes() for image in images}) == 50
    assert [len(subset.images) for subset in sequence.subsets] == [30, 20]


def test_validation_images_are_no_training_images():
    dataset = load_dataset("digits")
    data = prepare_data(dataset, zca=False, select_on="validation", device=torch.device("cpu"))
    train = {image.numpy().tobytes() for image in data.train.images}
    held_out = [image.numpy().tobytes() for image in data.selection.images]
    assert len(data.train) + len(held_out) == len(dataset.train)
    assert sum(image in train for image in held_out) <= 1  # the digits hold few exact doubles
    published = prepare_data(dataset, zca=False, select_on="test", device=torch.device("cpu"))
    assert published.selection is published.test
    assert len(published.train) == len(dataset.train)


def test_the_whole_data_set_is_a_reference(tmp_path):
    config = RunConfig.from_preset("digits-whole", "smoke", overrides={"network.width": 16, "training.epochs": 15})
    record = run_experiment(config, tmp_path)
    assert record.accuracy_last["mean"] > 75, "chance is 10"
    assert record.accuracy_last["n"] == 2
    assert (record.random_baseline, record.accuracy_joint, record.stages) == (None, None, [])
    assert (record.data["train_images"], record.data["held_out"]) == (1347, 0)
    assert not (tmp_path / "distilled").exists()
    assert format_records([record]).splitlines()[-1].split()[:3] == ["digits", "all", "whole"]


def test_a_budget_too_short_for_anything_still_brings_a_run_to_the_same_record(tmp_path, finished):
    _, expected = finished
    record, stops = finish_in_parts(lambda: run_experiment(configure(), tmp_path, max_minutes=1e-9))  # wherever it can
    assert stops > 50
    assert record.comparable() == expected.comparable()
    assert not list((tmp_path / "state").rglob("networks.safetensors"))


def test_too_few_real_images_are_told_before_anything_is_computed(tmp_path):
    config = configure(ipc=200, subset_ipcs=[100, 100])
    with pytest.raises(
        DataError,
        match=r"class '\d' has \d+ real images, fewer than ipc 200; of \d+, held out are \d+ for validation.*; lower ipc",
    ):
        run_experiment(config, tmp_path)
    assert not (tmp_path / "teachers").exists()


def test_a_second_process_at_the_same_run_is_refused(tmp_path):
    path = tmp_path / "state" / f"{configure().run_id}.lock"
    path.parent.mkdir()
    with FileLock(path), pytest.raises(StorageError, match=r"another process works on this run.*another results folder"):
        run_experiment(configure(), tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path, finished):
    folder, record = finished
    state = tmp_path / "state" / record.run_id
    state.mkdir(parents=True)
    whole = (folder / "state" / record.run_id / "stage-1.safetensors").read_bytes()
    (state / "stage-1.safetensors").write_bytes(flip(whole, len(whole) // 2))
    with pytest.raises(StorageError, match=r"stage-1\.safetensors does not match its checksum.*delete it"):
        run_experiment(configure(), tmp_path)


def copy_with_another_stage(finished, folder, index):
    """Copies a finished run without its set, one stage of which has other images; returns its record."""
    old, record = finished
    shutil.copytree(old / "state" / record.run_id, folder / "state" / record.run_id)
    record.save(folder)
    path = folder / "state" / record.run_id / f"stage-{index}.safetensors"
    tensors, notes = load_tensors(path)
    changed = {name: tensors[name] + 1 for name in ("images", "best.images")}
    save_tensors(path, tensors | changed, notes)
    return record


def test_a_later_subset_is_not_put_beside_another_first_one(tmp_path, finished):
    """As where a damaged first stage was distilled again by another processor, which rounds differently."""
    record = copy_with_another_stage(finished, tmp_path, 1)
    with pytest.raises(StorageError, match=r"stage-2\.safetensors was distilled with other earlier subsets .* delete it"):
        run_experiment(configure(), tmp_path)
    (tmp_path / "state" / record.run_id / "stage-2.safetensors").unlink()
    with pytest.raises(StorageError, match="records another set"):  # but S_2 is distilled again
        run_experiment(configure(), tmp_path)


def test_a_record_is_not_given_for_another_set_than_its_own(tmp_path, finished):
    record = copy_with_another_stage(finished, tmp_path, 2)
    with pytest.raises(StorageError, match=rf"{record.run_id}.json records another set .* delete that record") as refused:
        run_experiment(configure(), tmp_path)
    assert str(record_path(tmp_path, record)) in str(refused.value)
    record_path(tmp_path, record).unlink()
    again = run_experiment(configure(), tmp_path)
    assert again.synthetic_sha256 == load_sequence(set_path(tmp_path, record.run_id)).sha256() != record.synthetic_sha256


def test_progress_of_ten_stages_and_more_is_in_their_order(tmp_path, finished):
    folder, record = finished
    first, second = (folder / "state" / record.run_id / f"stage-{k}.safetensors" for k in (1, 2))
    for k in range(1, 12):
        shutil.copy(second if k > 9 else first, tmp_path / f"stage-{k}.safetensors")
    losses = [stage["losses"] for stage in read_progress(tmp_path)]
    early, late = (read_progress(first.parent)[k]["losses"] for k in (0, 1))
    assert losses == [early] * 9 + [late] * 2


def test_a_deleted_set_is_made_again_from_what_made_it(tmp_path, finished):
    _, expected = finished
    record = run_experiment(configure(), tmp_path)
    path = tmp_path / "distilled" / f"{record.run_id}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    assert run_experiment(configure(), tmp_path) == record
    assert path.read_bytes() == whole
    path.unlink()
    shutil.rmtree(tmp_path / "state")  # as in a folder of records alone
    assert run_experiment(configure(), tmp_path) == record
    assert not path.exists()
    assert record.comparable() == expected.comparable()


def test_a_name_with_dots_has_a_lock_of_its_own(tmp_path, monkeypatch):
    config = configure()
    monkeypatch.setattr(RunConfig, "run_id", "digits.v2-seed0")
    (tmp_path / "state").mkdir()
    with FileLock(tmp_path / "state" / "digits.lock"):  # what a run with the id "digits" would hold
        run_experiment(config, tmp_path)
    assert (tmp_path / "state" / "digits.v2-seed0.lock").is_file()


def test_comparable_leaves_out_only_what_may_differ(finished):
    _, record = finished
    assert asdict(record).keys() - record.comparable().keys() == {"seconds", "peak_memory_mb", "started_at"}


def test_other_images_under_the_same_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))
    shades = np.arange(20, dtype=np.uint8).repeat(64).reshape(20, 8, 8)
    write_class_folders(tmp_path / "own", {"dark": 40 + shades, "light": 200 + shades})
    register_dataset(DatasetSpec.from_folder(tmp_path / "own"))
    config = configure("digits-ipc10-random", dataset="own", ipc=2, subset_ipcs=[2])
    record = run_experiment(config, tmp_path / "results")
    assert run_experiment(config, tmp_path / "results") == record
    write_class_folders(tmp_path / "own", {"light": shades[:1]})
    with pytest.raises(StorageError, match=r"own-random.*\.json belongs to other images of own.*--force"):
        run_experiment(config, tmp_path / "results")
    (tmp_path / "results" / "runs" / "own" / f"{record.run_id}.json").unlink()
    with pytest.raises(StorageError, match=r"data\.json belongs to other images of own.*--force"):
        run_experiment(config, tmp_path / "results")
    assert run_experiment(config, tmp_path / "results", force=True).data["fingerprint"] != record.data["fingerprint"]
