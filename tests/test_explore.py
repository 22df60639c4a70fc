"""Looking into finished runs: what is shown of one, and menus that go with each other."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from seqmatch_lib.errors import ConfigError
from seqmatch_lib.explore import LEVELS, explore, find_runs, show_run
from seqmatch_lib.results import Results
from seqmatch_lib.runs.records import load_runs

RESULTS = Results.open(Path(__file__).parents[1] / "paper_results")


FIRST = find_runs(RESULTS, dataset="cifar10", method="seqmatch_mtt", ipc=10, scale="reduced")[0]


@pytest.fixture
def shown(monkeypatch):
    """What is shown: the alternative texts of figures."""
    texts = []
    monkeypatch.setattr("seqmatch_lib.explore.show", lambda figure, alt: texts.append(alt))
    return texts


def test_runs_with_their_sets_come_first():
    found = find_runs(RESULTS, dataset="cifar10", method="mtt", ipc=10, scale="reduced")
    assert RESULTS.has_set(found[0])
    assert not RESULTS.has_set(found[-1])
    assert {one.dataset for one in found} == {"cifar10"}


def test_a_method_that_distils_nothing_is_named():
    with pytest.raises(ConfigError, match="no record of a distilled set has dataset='cifar10' method='random'; take a method"):
        find_runs(RESULTS, dataset="cifar10", method="random")


def test_subsets_and_classes_that_there_are_not_are_named(shown):
    with pytest.raises(ConfigError, match="subset 9 is unknown; use one of all, 1, 2"):
        show_run(RESULTS, FIRST, 9)
    with pytest.raises(ConfigError, match="class 'zebra' is unknown; use one of all, airplane"):
        show_run(RESULTS, FIRST, label="zebra")
    assert not shown


def test_a_run_is_shown_with_and_without_its_images(shown, capsys):
    found = find_runs(RESULTS, dataset="cifar10", method="seqmatch_mtt", ipc=10, scale="reduced")
    show_run(RESULTS, found[0], 2, "frog")
    assert shown == [
        f"Distilled images of {found[0].run_id}, subset: 2, class: frog",
        f"Matching losses and accuracies of {found[0].run_id}",
    ]
    shown.clear()
    show_run(RESULTS, found[-1])
    assert len(shown) == 1
    assert f"The images of {found[-1].run_id} were not kept" in capsys.readouterr().out


def test_every_choice_of_the_menus_is_a_run(shown):
    pytest.importorskip("ipywidgets")
    above, below, _ = explore(RESULTS, FIRST).children
    menus = dict(zip((*LEVELS, "subset", "class"), (*above.children, *below.children), strict=True))
    assert menus["run_id"].value == FIRST.run_id
    menus["dataset"].value = "digits"
    menus["method"].value = "seqmatch_mtt"
    chosen = {one.run_id: one for one in load_runs(RESULTS.folders[0])}[menus["run_id"].value]
    assert (chosen.dataset, chosen.method, chosen.ipc) == ("digits", "seqmatch_mtt", menus["ipc"].value)
    assert menus["subset"].options == ("all", *range(1, chosen.num_subsets + 1))
    assert shown[-1].endswith(chosen.run_id)


def test_menus_show_pictures_without_redirecting_a_cell(monkeypatch):
    """An executor of notebooks may wait for ever on a widget that the outputs of a cell are redirected into."""
    pytest.importorskip("ipywidgets")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # if it is another environment's, the shell warns
    shell = InteractiveShell.instance()
    shell.kernel = SimpleNamespace(get_parent=lambda: {"header": {"msg_id": "of a cell"}})  # what can be redirected
    try:
        above, _, output = explore(RESULTS, FIRST).children
        redirected = []
        output.observe(redirected.append, "msg_id")
        alts = []
        for dataset in ("digits", "cifar10"):
            above.children[LEVELS.index("dataset")].value = dataset
            alts += [shown["metadata"]["image/png"]["alt"] for shown in output.outputs if "metadata" in shown]
    finally:
        shell.clear_instance()
    assert any("digits-" in alt for alt in alts)
    assert any("cifar10-" in alt for alt in alts)
    assert not redirected
