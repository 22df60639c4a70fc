"""What notebooks read: records first, from any working directory; what is missing is named, or run where that is allowed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_order, make_reevaluation, make_run, make_sequence

from seqmatch_lib import front
from seqmatch_lib import results as results_module
from seqmatch_lib.errors import ConfigError, DataError, StorageError
from seqmatch_lib.front import Run
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.queries import transfer
from seqmatch_lib.results import Results, find_folder, list_configs
from seqmatch_lib.runs.config import RunConfig, config_of_subsets
from seqmatch_lib.runs.order import one_set_for_longer
from seqmatch_lib.runs.records import load_orders, load_reevaluations, load_runs
from seqmatch_lib.subsets import load_sequence, set_path

ROOT = Path(__file__).parents[1]
REDUCED = RunConfig.from_preset("cifar10-ipc10-mtt", "reduced")
SMOKE = RunConfig.from_preset("digits-ipc10-random", "smoke")


@pytest.mark.parametrize("place", [ROOT, ROOT / "notebooks", Path("/")])
def test_committed_records_are_found_from_any_folder(monkeypatch, place):
    monkeypatch.chdir(place)
    (run,) = Results.open().run([REDUCED])
    assert run.record.run_id == REDUCED.run_id
    assert run.distilled.subsets[0].images.shape == (100, 3, 32, 32)


def test_a_folder_above_is_found_before_the_one_of_the_library(monkeypatch, tmp_path):
    (tmp_path / "paper_results").mkdir()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert find_folder() == tmp_path / "paper_results"
    with pytest.raises(StorageError, match=r"no folder elsewhere in .*deep or above it; work inside a checkout"):
        Results.open("elsewhere")


@pytest.mark.parametrize(
    ("place", "name", "meant"),
    [
        ("notebooks", "../paper_results", "build/results"),
        ("notebooks", "paper_results", "build/results"),
        (".", "paper_results/", "build/results"),
        (".", "./paper_results", "build/results"),
        ("notebooks", "../mine", "mine"),
        ("notebooks", "mine", "mine"),
        ("notebooks", "own", "notebooks/own"),  # which is there
        ("notebooks", "build/results", "build/results"),
    ],
)
def test_what_is_computed_goes_into_the_folder_that_is_meant(monkeypatch, tmp_path, place, name, meant):
    for folder in ("paper_results", "notebooks/own"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / place)
    results = Results.open(name, compute=True)
    assert results.work_dir.resolve() == tmp_path / meant
    assert results.folders == (tmp_path / "paper_results", results.work_dir)


def test_outside_a_checkout_records_are_read_and_runs_are_made(monkeypatch, tmp_path):
    monkeypatch.setattr(front, "__file__", str(tmp_path / "site-packages" / "seqmatch_lib" / "front.py"))
    (tmp_path / "home").mkdir()
    (tmp_path / "records").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises(StorageError) as error:
        Results.open(tmp_path / "records").run([SMOKE])
    assert f"1 of 1 runs have no record in {tmp_path / 'records'}: {SMOKE.run_id} (preset" in str(error.value)
    assert "set compute = True to run what is missing, for an unknown time" in str(error.value)
    computed = Results.open(tmp_path / "records", compute=True)
    assert computed.folders == (tmp_path / "records",)
    assert computed.run([SMOKE])[0].results_dir == tmp_path / "records"
    assert Results.open(compute=True).work_dir == tmp_path / "home" / "build" / "results"
    assert Results.open("own", compute=True).work_dir == tmp_path / "home" / "own"
    with pytest.raises(StorageError, match="no folder paper_results in"):
        Results.open()


def test_what_is_missing_is_named_with_its_cost_and_nothing_is_run(monkeypatch):
    monkeypatch.delenv("SEQMATCH_DATA", raising=False)
    wanted = [REDUCED, RunConfig.from_preset("cifar10-ipc10-mtt", "reduced", seed=7), SMOKE]
    with pytest.raises(StorageError) as error:
        Results.open().run(wanted)
    assert f"2 of 3 runs have no record in {ROOT / 'paper_results'}: {wanted[1].run_id} (preset" in str(error.value)
    assert "and 1 more; set compute = True to run what is missing, about " in str(error.value)
    with pytest.raises(StorageError, match="1 of 1 runs have no distilled set"):
        Results.open().run([RunConfig.from_preset("cifar10-ipc50-mtt", "reduced")], with_sets=True)


def test_missing_runs_are_run_once_and_committed_ones_never(tmp_path, capsys):
    results = Results.open(tmp_path / "shared", compute=True)
    committed, made = results.run([REDUCED, SMOKE])
    assert (committed.results_dir, made.results_dir) == (ROOT / "paper_results", tmp_path / "shared")
    assert [run.run_id for run in load_runs(tmp_path / "shared")] == [SMOKE.run_id]
    assert SMOKE.run_id in {run.run_id for run in results.records()}
    shutil.rmtree(tmp_path / "shared" / "state")
    assert results.run([SMOKE])[0].record == made.record
    assert "missing" not in capsys.readouterr().out  # seconds are not announced


@pytest.mark.parametrize(
    ("load", "folder"), [(load_runs, "runs/digits"), (load_reevaluations, "reevaluations/cifar10"), (load_orders, "order")]
)
def test_copies_of_records_count_once(tmp_path, capsys, load, folder):
    home = tmp_path / folder
    shutil.copytree(ROOT / "paper_results" / folder, home)
    before, path = load(tmp_path), next(home.glob("*.json"))
    for copy in (".ipynb_checkpoints/x-checkpoint.json", "copy.json"):
        (home / copy).parent.mkdir(exist_ok=True)
        shutil.copy(path, home / copy)
    assert load(tmp_path) == before
    assert (
        capsys.readouterr().err
        == f"notice: left out: {home / 'copy.json'} is not {path}, where this record is kept; delete it\n"
    )
    path.unlink()
    assert len(load(tmp_path)) == len(before) - 1
    assert capsys.readouterr().err.endswith("move it there\n")
    (home / "copy.json").rename(path)
    assert load(tmp_path) == before


def test_a_run_whose_set_is_gone_is_run_again_where_the_set_is_asked_for(tmp_path):
    results = Results((tmp_path,), tmp_path)
    (made,) = results.run([SMOKE])
    assert set_path(tmp_path, SMOKE.run_id).is_file()
    set_path(tmp_path, SMOKE.run_id).unlink()
    shutil.rmtree(tmp_path / "state")  # of which it could be made again
    assert results.run([SMOKE])[0].record == made.record
    assert not set_path(tmp_path, SMOKE.run_id).is_file()
    (again,) = results.run([SMOKE], with_sets=True)
    assert again.distilled.sha256() == made.record.synthetic_sha256
    assert again.record.accuracy_last == made.record.accuracy_last
    whole = RunConfig.from_preset("digits-whole", "smoke", overrides={"training.epochs": 1, "network.depth": 1})
    assert results.run([whole], with_sets=True)[0].record.started_at  # which never has one


def test_a_set_counts_where_its_record_lies(tmp_path):
    both, bare, alone = (tmp_path / name for name in ("both", "bare", "alone"))
    (run,) = Results((both,), both).run([SMOKE])
    shutil.copytree(both / "runs", bare / "runs")
    shutil.copytree(both / "distilled", alone / "distilled")
    assert Results((bare, both)).has_set(run.record)
    assert Results((bare, both)).open_run(run.record).results_dir == both
    assert not Results((bare, alone)).has_set(run.record)
    assert Results((bare, alone)).open_run(run.record).results_dir == bare
    whole = next(one for one in load_runs(ROOT / "paper_results") if one.method == "whole")
    assert not Results.open().has_set(whole)


def test_hours_are_announced_before_the_data_set_is_missed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cifar10"):
        Results.open(tmp_path, compute=True).run([RunConfig.from_preset("cifar10-ipc50-idc", "reduced", seed=9)])
    assert "1 of 1 runs are missing and are run now, about " in capsys.readouterr().out


def test_one_subset_is_the_base_method_and_other_numbers_are_what_records_call_them():
    assert config_of_subsets("cifar10", "mtt", [10], "reduced") == REDUCED
    known = {run.run_id for run in load_runs(ROOT / "paper_results")}
    divisions = ([5, 5], [4, 3, 3], [3, 3, 2, 2], [2, 2, 2, 2, 1, 1])
    assert {config_of_subsets("cifar10", "mtt", sizes, "reduced").run_id for sizes in divisions} <= known
    assert config_of_subsets("cifar10", "idc", [25, 25], "reduced", 1).run_id in known
    assert config_of_subsets("cifar10", "krr", [4, 3, 3], "reduced").run_id in known


def test_coupling_is_shown_at_every_scale_that_was_measured_with_the_published_settings_first(tmp_path):
    short, reduced = (RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", scale) for scale in ("short", "reduced"))
    records = {run.run_id: run for run in load_runs(ROOT / "paper_results")}
    for run in (records[reduced.run_id], records[short.run_id]):
        run.save(tmp_path)
        folder = tmp_path / "coupling" / run.run_id
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "paper_results" / "coupling" / reduced.run_id / "losses.csv", folder)
    measured = Results.open(tmp_path).measure_coupling("cifar10", "reduced")
    cell = "CIFAR-10, 10 images per class"
    assert list(measured) == [f"{cell}, short, 5 teachers per stage", f"{cell}, rehearsal (reduced)"]
    assert [list(tables) for tables in measured.values()] == [["losses"], ["losses"]]
    with pytest.raises(StorageError, match="have no coupling measurement"):
        Results.open(tmp_path).measure_coupling("cifar10", "reduced", seed=7)


def test_coupling_is_asked_of_sets_of_every_size_that_has_presets(tmp_path):
    results = Results((tmp_path,))
    presets = [f"cifar10-ipc50-{name}" for name in ("mtt", "seqmatch_mtt")]
    joint, sequence = (RunConfig.from_preset(preset, "smoke") for preset in presets)
    with pytest.raises(StorageError, match=f"of 5 runs have no coupling measurement in .*{joint.run_id}"):
        results.measure_coupling("cifar10", "smoke", ipc=50)
    folder = tmp_path / "coupling" / sequence.run_id
    folder.mkdir(parents=True)
    measured = RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "reduced").run_id
    shutil.copy(ROOT / "paper_results" / "coupling" / measured / "losses.csv", folder)
    make_run(presets[1], iterations=(3, 3, 3), scale="smoke").save(tmp_path)
    assert list(results.measure_coupling("cifar10", "smoke", ipc=50)) == [
        "CIFAR-10, 50 images per class, smoke: means nothing"
    ]
    with pytest.raises(StorageError, match="have no coupling measurement"):
        results.measure_coupling("cifar10", "smoke")
    for ipc in (20, "10", [10]):
        with pytest.raises(ConfigError, match=r"'digits' has no presets of MTT and its sequence of this size; use 10"):
            results.measure_coupling("digits", "smoke", ipc=ipc)
    with pytest.raises(ConfigError, match="'canvas_digits' has labels of pixels, and the coupling .*; take another data set"):
        results.measure_coupling("canvas_digits", "smoke")
    with pytest.raises(ConfigError, match="'cifar11' has no presets of MTT .*; take another data set"):
        results.measure_coupling("cifar11", "smoke")


def test_only_an_answer_that_is_shown_spares_a_question(monkeypatch, tmp_path):
    """Jointly, after other training, without random images, for too few networks: none of these is what is asked."""
    results = Results((tmp_path,), tmp_path)
    (run,) = results.run([RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke")])
    found, asked, halves = run.evaluate(random=True), [], []
    epochs = 2 * run.config.training.epochs
    longer, now = [], {"selected": False}
    monkeypatch.setattr(Run, "has_selected", property(lambda run: now["selected"] and run.config.num_subsets > 1))

    def note(run, networks, **more):
        (asked if run.config.num_subsets > 1 else longer).append([*networks] + ["selected"] * more["selected"])
        if run.config.num_subsets == 1:
            assert more["set"] == {
                "evaluation.num_networks": more["set"]["evaluation.num_networks"],
                "training.epochs": epochs,
            }

    monkeypatch.setattr(Run, "evaluate", note)
    monkeypatch.setattr(Results, "_measure_order", lambda results, config, *more: halves.append(more))

    def answer(joint=False, random=True, count=2, **changes):
        """Keeps a record of another architecture, without the minutes that its training takes."""
        config = run.config.changed({"evaluation.networks": ["vit"], "evaluation.num_networks": count, **changes})
        accuracy = {"vit": found.accuracy["convnet"] | {"values": found.accuracy["convnet"]["values"][:count]}}
        baseline = accuracy if random else None
        given = {"accuracy": accuracy, "random_baseline": baseline, "overrides": None}
        replace(found, joint=joint, config=config.as_dict(), **given).save(tmp_path)

    answer(joint=True)
    answer(random=False)
    answer(count=1)
    answer(**{"training.epochs": 3})
    results.reevaluate([run], ["convnet", "vit"], 2)
    assert asked == [["vit"]]  # the run's own record has the other
    answer()
    evidence = results.reevaluate([run], ["vit"], 2)
    assert asked == [["vit"]]
    assert set(transfer(evidence, "digits", 10, "smoke")["network"]) == {"convnet", "vit"}
    results.reevaluate([run], ["vit"], 3)
    assert asked == [["vit"], ["vit"]]
    assert halves[0] == (["halves"], ["convnet", "vit"])
    accuracy = {"divided, staged": [50.0], "divided, staged (vit)": [40.0]}
    make_order(tmp_path, 0, accuracy, preset="digits-ipc10-seqmatch_dm", scale="smoke", sha256=run.record.synthetic_sha256)
    results.reevaluate([run], ["convnet", "vit"], 2)
    assert halves[-1] == ([], []), "halves that were evaluated on an architecture are not evaluated there again"
    one_set = one_set_for_longer(run.config)
    assert longer == [["convnet", "vit"], ["vit"], ["vit"], ["convnet", "vit"]]
    (equal,) = results.run([one_set])
    config = one_set.changed({"evaluation.networks": ["vit"], "training.epochs": epochs}).as_dict()
    changes = {"run_id": equal.record.run_id, "synthetic_sha256": equal.record.synthetic_sha256, "overrides": None}
    replace(found, config=config, accuracy={"vit": found.accuracy["convnet"]}, **changes).save(tmp_path)
    now["selected"] = True
    results.reevaluate([run], ["vit"], 2)
    assert len(longer) == 4, "one set of equal effort that was evaluated there is not evaluated there again"
    assert asked[2:] == [["vit", "selected"]]
    of_selected = {"synthetic_sha256": "f" * 64, "last_sha256": run.record.synthetic_sha256, "overrides": None}
    config = run.config.changed({"evaluation.networks": ["vit"]}).as_dict()
    replace(found, config=config, accuracy={"vit": found.accuracy["convnet"]}, **of_selected).save(tmp_path)
    results.reevaluate([run], ["vit"], 2)
    assert asked[2:] == [["vit", "selected"]]


def test_an_ablation_that_lacks_parts_is_completed(tmp_path, monkeypatch):
    asked, config = [], RunConfig.from_preset("cifar10-ipc10-seqmatch_mtt", "reduced")
    monkeypatch.setattr(Results, "_measure_order", lambda results, config, parts: asked.append(parts))
    known = ("divided, staged", "divided, joint", "divided, joint, as many epochs", "random real")
    make_order(tmp_path, 0, {name: [50.0] for name in known})
    Results((tmp_path,)).measure_orders([config, replace(config, seed=1)])  # one of them is enough to show
    assert asked == []
    with pytest.raises(StorageError, match="have no distilled set"):
        Results((tmp_path,)).measure_orders([replace(config, seed=1)])
    Results((tmp_path,), tmp_path).measure_orders([config])
    assert asked == [["sequence", "one set"]]


def test_committed_sets_are_not_distilled_again_for_an_ablation(tmp_path, monkeypatch):
    config, committed, work = RunConfig.from_preset("digits-ipc10-seqmatch_dm", "smoke"), tmp_path / "first", tmp_path / "work"
    (sequence,) = Results((committed,), committed).run([config])
    make_order(committed, 0, {"random real": [20.0]}, preset=config.preset, scale="smoke", sha256=sequence.distilled.sha256())
    distilled, real = [], results_module.run_experiment
    monkeypatch.setattr(results_module, "run_experiment", lambda run, *more: distilled.append(run.run_id) or real(run, *more))
    monkeypatch.setattr(results_module, "measure_order", lambda config, folder, parts, networks: None)
    results = Results((committed, work), work)
    results.measure_orders([config])
    assert len(distilled) == 2
    assert config.run_id not in distilled
    assert load_sequence(set_path(work, config.run_id)).sha256() == sequence.distilled.sha256()
    assert load_orders(work) == load_orders(committed)


def test_ablations_of_one_sequence_in_two_folders_are_one(tmp_path):
    for folder, names in (("first", ["divided, staged"]), ("second", ["divided, staged", "random real"])):
        make_order(tmp_path / folder, 0, {key: [float(len(names))] for key in names})
    (record,) = Evidence.load(tmp_path / "first", tmp_path / "second").orders
    assert record.accuracy == {"divided, staged": [1.0], "random real": [2.0]}


def test_seeds_are_one_number_or_several():
    one = list_configs("digits", ["mtt", "dm"], [[10], [5, 5]], "smoke", 3)
    assert [(config.base_method, config.num_subsets) for config in one] == [("mtt", 1), ("mtt", 2), ("dm", 1), ("dm", 2)]
    assert one == list_configs("digits", ["mtt", "dm"], [[10], [5, 5]], "smoke", [3])
    with pytest.raises(ConfigError, match=r"seeds \['0, 1'\] must be whole numbers, such as \[0, 1, 2\]"):
        list_configs("digits", ["mtt"], [[10]], "smoke", "0, 1")


def test_some_records_are_enough_to_show_and_none_are_an_error():
    some = list_configs("cifar10", ["mtt"], [[10], [9, 1]], "reduced", 0)
    assert REDUCED.run_id in {run.run_id for run in Results.open().prepare(some).runs}
    with pytest.raises(StorageError, match="1 of 1 runs have no record"):
        Results.open().prepare(some[1:])
    assert Results.open().measure_orders([]).orders  # no seeds are asked for: what there is


def test_two_folders_are_read_as_one(tmp_path):
    """What both hold counts once, and seeds of different images are not pooled."""
    record = next(run for run in load_runs(ROOT / "paper_results") if run.preset == "cifar10-ipc10-mtt")
    again = next(iter(load_reevaluations(ROOT / "paper_results")))
    folders = (tmp_path / "committed", tmp_path / "own")
    for folder in folders:
        record.save(folder)
        again.save(folder)
    evidence = Results(folders).evidence()
    assert (len(evidence.runs), len(evidence.reevaluations)) == (1, 1)
    other = replace(record, run_id="other", seed=7, data=record.data | {"fingerprint": "0"})
    other.save(folders[1])
    with pytest.raises(StorageError, match="use different images of cifar10, so no table may mix them"):
        Results(folders).evidence()


def test_parameters_of_notebooks_of_another_kind_are_named():
    with pytest.raises(ConfigError, match="compute 'False' must be True or False"):
        Results.open(compute="False")
    with pytest.raises(ConfigError, match="bases 'mtt' must be a list of base methods"):
        list_configs("digits", "mtt", [[10]], "smoke", 0)
    for divisions in (5, [5, 5], [[]]):
        with pytest.raises(ConfigError, match=r"must be a list of lists of images per class, such as \[\[10\], \[5, 5\]\]"):
            list_configs("digits", ["mtt"], divisions, "smoke", 0)


def test_of_a_run_that_was_made_twice_the_set_that_was_measured_is_shown_with_what_was_measured_on_it(tmp_path, capsys):
    """As where a committed record came without its set, and an ablation had to distil that again. Two sets are never mixed."""
    folders = tmp_path / "committed", tmp_path / "own"
    first, again = runs = [replace(make_sequence(), synthetic_sha256=letter * 64) for letter in "ab"]
    for run, folder in zip(runs, folders, strict=True):
        run.save(folder)
    results = Results(folders)
    assert results.evidence().runs == [first]
    make_reevaluation(again).save(folders[1])
    evidence = results.evidence()
    assert evidence.runs == [again]
    assert [one.synthetic_sha256 for one in evidence.reevaluations] == [again.synthetic_sha256]
    assert not capsys.readouterr().err
    make_reevaluation(first).save(folders[0])
    evidence = results.evidence()
    assert evidence.runs == [first]
    assert [one.synthetic_sha256 for one in evidence.reevaluations] == [first.synthetic_sha256]
    assert f"was measured on another set than that of {first.run_id} here" in capsys.readouterr().err
