"""The distilled sets that are committed: whole, known to a record, and worth what the record says."""

import os
from pathlib import Path

import pytest

from seqmatch_lib.data.datasets import load_dataset
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import choose_device
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.runs.records import load_runs
from seqmatch_lib.runs.reevaluation import reevaluate
from seqmatch_lib.subsets import load_sequence, set_path

RESULTS = Path(__file__).parents[1] / "paper_results"
SETS = sorted((RESULTS / "distilled").glob("*.safetensors"))
SELECTED = sorted((RESULTS / "selected").glob("*.safetensors"))
RECORDS = {record.run_id: record for record in load_runs(RESULTS)}
SHARED = Path(os.environ.get("SEQMATCH_DATA") or Path(__file__).parents[2] / "shared" / "data")


def test_there_are_sets():
    assert len(SETS) >= 4
    assert sum(path.stat().st_size for path in (*SETS, *SELECTED)) < 12 * 2**20


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_committed_set_is_the_one_of_its_record(path):
    assert load_sequence(path).sha256() == RECORDS[path.stem].synthetic_sha256


@pytest.mark.parametrize("path", SELECTED, ids=lambda path: path.stem)
def test_a_committed_selected_set_has_the_earlier_subsets_of_its_run_and_another_last_one(path):
    *earlier, last = load_sequence(path).subsets
    *others, final = load_sequence(set_path(RESULTS, path.stem)).subsets
    assert all(one.images.equal(other.images) for one, other in zip(earlier, others, strict=True))
    assert not last.images.equal(final.images)
    assert RECORDS[path.stem].accuracy_selected != RECORDS[path.stem].accuracy_last


@pytest.mark.slow
@pytest.mark.parametrize("path", SETS + SELECTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_set_is_worth_what_its_record_says(path):
    """Trains all networks again, from the file: within two standard deviations of the record."""
    record = RECORDS[path.stem]
    expected = record.accuracy_selected if path in SELECTED else record.accuracy_last
    if not (SHARED / record.dataset).is_dir():
        pytest.skip(f"needs the real data set {record.dataset}; set SEQMATCH_DATA")
    sequence, config = load_sequence(path), RunConfig.from_dict(record.config)
    data = prepare_data(load_dataset(config.dataset, SHARED), config.zca, config.select_on, choose_device())
    found = reevaluate(sequence, config, data, seed=config.seed).accuracy["convnet"]
    assert abs(found["mean"] - expected["mean"]) <= 2 * expected["std"]
