"""Everything a run makes lies on the device that was asked for: a pretended GPU, which refuses tensors of the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.devices

METHODS = ("mtt", "seqmatch_mtt", "seqmatch_idc", "seqmatch_dm", "seqmatch_krr")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `device_runs.py` prints, from a process of its own: the device is registered for a whole process."""
    script = Path(__file__).with_name("device_runs.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("devices"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_there_is_the_run_on_the_cpu(results, method):
    """A GPU trains networks stacked, so that sums are rounded otherwise; LAMB's relative steps make most of it, in KRR."""
    here, there = results[method]["cpu"], results[method]["pretended"]
    tolerance = 5e-3 if method == "seqmatch_krr" else 1e-5
    assert len(here["losses"]) == (2 if method.startswith("seqmatch") else 1)
    for mine, other in zip(here["losses"] + here["images"], there["losses"] + there["images"], strict=True):
        torch.testing.assert_close(torch.tensor(other), torch.tensor(mine), rtol=tolerance, atol=tolerance)
    few = 300 / 450 + 1e-6  # three of 450 test images may fall on the other side
    torch.testing.assert_close(torch.tensor(there["accuracy"]), torch.tensor(here["accuracy"]), rtol=0, atol=few)


@pytest.mark.parametrize("method", ["seqmatch_mtt", "seqmatch_idc", "seqmatch_krr"])
def test_a_run_there_was_stopped_at_its_checkpoints(results, method):
    assert results[method]["cpu"]["parts"] == 1
    assert results[method]["pretended"]["parts"] > 4


@pytest.mark.parametrize("question", ["reevaluated", "coupling", "order", "tables"])
def test_questions_to_a_set_are_answered_alike(results, question):
    here, there = results["seqmatch_mtt"]["cpu"], results["seqmatch_mtt"]["pretended"]
    assert here[question]
    assert there[question] == here[question]


def test_the_pretended_gpu_refuses_what_a_gpu_would(results):
    answers = results["refusals"]
    assert answers.pop("none") == "pretended"  # a single number of the CPU may take part
    for mistake in ("rows", "addend", "stack"):
        assert "both devices" in answers.pop(mistake)
    assert "generator" in answers.pop("generator")
    assert "numpy" in answers.pop("numpy")
    assert not answers
