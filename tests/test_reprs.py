"""What a person sees of records, runs and sets in a shell and in a notebook."""

from dataclasses import replace
from pathlib import Path

from made_records import make_run

from seqmatch_lib.front import Run, load
from seqmatch_lib.results import Results
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.listing import format_records
from seqmatch_lib.runs.records import load_reevaluations, load_runs

RESULTS = Path(__file__).parents[1] / "paper_results"
NAME = "cifar10-seqmatch_mtt-ipc10-k2-seed0-0818608f"
RECORDS = {one.run_id: one for one in load_runs(RESULTS)}


def test_all_of_them_are_short():
    record, sequence = RECORDS[NAME], load(RESULTS / "distilled" / f"{NAME}.safetensors")
    run = Run(RunConfig.from_dict(record.config), record, RESULTS)
    assert repr(record) == f"RunRecord({NAME}, scale reduced: 46.8 ± 0.7 %, n = 5)"
    assert repr(run) == f"Run({NAME}, scale reduced: 46.8 ± 0.7 %, n = 5)"
    one, other = (f"50 images of 3 × 32 × 32, step size {lr}" for lr in ("0.0256", "0.0115"))
    assert repr(sequence) == f"SubsetSequence({NAME}; S_1: {one}; S_2: {other})"
    assert repr(sequence.subsets[0]) == f"SyntheticSubset({one})"
    assert run._repr_html_() == record._repr_html_()


def test_in_a_notebook_they_are_tables_of_text_without_markup():
    record = Results.open(RESULTS).open_run(RECORDS[NAME]).record
    assert "<td>46.8 ± 0.7 %, n = 5</td>" in record._repr_html_()
    sequence = load(RESULTS / "distilled" / f"{NAME}.safetensors")
    assert sequence._repr_html_().count("<tr>") == 2
    sequence.metadata["run_id"] = "<script>"
    assert "<script>" not in sequence._repr_html_()


def test_a_reevaluation_says_what_was_asked_and_found():
    joint = "cifar10-seqmatch_mtt-ipc10-k2-seed0-178da106"
    again = next(one for one in load_reevaluations(RESULTS) if one.run_id == joint and one.joint)
    assert repr(again) == f"Reevaluation({joint}, jointly: convnet 52.7 ± 0.4 %, n = 3)"
    assert f"{joint}, jointly" in again._repr_html_()
    with_random = next(one for one in load_reevaluations(RESULTS) if "vit" in one.accuracy)
    assert "vit, random real" in with_random._repr_html_()
    assert repr(with_random).count(" %, n = ") == len(with_random.accuracy)


def test_runs_of_one_method_and_size_are_told_apart_by_what_they_changed():
    alike = [
        one for one in RECORDS.values() if (one.dataset, one.ipc, one.method, one.scale) == ("cifar10", 10, "idc", "reduced")
    ]
    lines = {
        one.config_hash[:8]: line
        for one in alike
        for line in format_records(alike).splitlines()
        if one.config_hash[:8] in line
    }
    assert lines["19eb25da"].endswith("19eb25da  idc.iterations=[600]")
    assert lines["5ade43bf"].endswith("5ade43bf")
    same = [RECORDS[one] for one in RECORDS if one.startswith("cifar10-mtt-ipc50")]
    assert "changed" not in format_records(same)


def test_networks_that_learned_nothing_are_named_wherever_an_accuracy_is():
    run = make_run("cifar10-ipc10-mtt")
    failed = replace(run, accuracy_last=run.accuracy_last | {"not_learned": 2})
    assert "learned nothing" not in repr(run)
    for text in (repr(failed), failed._repr_html_()):
        assert "(2 learned nothing)" in text
