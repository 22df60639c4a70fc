"""Looking into finished runs: images, losses and accuracies of one, chosen by hand in JupyterLab."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from seqmatch_lib.errors import require
from seqmatch_lib.report.figures import plot_accuracies, plot_losses, show_pictures
from seqmatch_lib.report.notebooks import show
from seqmatch_lib.report.texts import label_scale, name_of
from seqmatch_lib.results import Results
from seqmatch_lib.runs.records import RunRecord

LEVELS = ("dataset", "scale", "ipc", "method", "run_id")  # of choice, each within the ones before
ALL = "all"


def find_runs(results: Results, **wanted: Any) -> list[RunRecord]:
    """Returns the records of distilled sets with these values of `LEVELS`; those whose set was kept come first."""
    records = _choose([record for record in results.records() if record.stages], **wanted)
    asked = "".join(f" {name}={value!r}" for name, value in wanted.items())
    require(bool(records), f"no record of a distilled set has{asked}; take a method that distils, or run it (compute=True)")
    return sorted(records, key=lambda record: not results.has_set(record))


def _choose(records: Sequence[RunRecord], **wanted: Any) -> list[RunRecord]:
    return [record for record in records if all(getattr(record, name) == value for name, value in wanted.items())]


def show_run(results: Results, record: RunRecord, subset: int | str = ALL, label: str = ALL) -> None:
    """Shows images, losses and accuracies of one run below a cell.

    Args:
        results: where it lies.
        record: of the run.
        subset: k of S_k, or "all".
        label: name of a class, or "all".
    """
    run = results.open_run(record)
    if results.has_set(record):
        blocks = list(run.pictures().items())
        subsets, labels = [ALL, *range(1, len(blocks) + 1)], [ALL, *run.class_names]
        for name, value, known in (("subset", subset, subsets), ("class", label, labels)):
            require(value in known, f"{name} {value!r:.120} is unknown; use one of {', '.join(map(str, known))}")
        chosen = dict(blocks if subset == ALL else blocks[subset - 1 : subset])
        classes = None if label == ALL else [run.class_names.index(label)]
        alt = f"Distilled images of {record.run_id}, subset: {subset}, class: {label}"
        show(show_pictures(chosen, run.class_names, record.run_id, classes=classes), alt)
    else:
        print(f"The images of {record.run_id} were not kept; its record has the losses and accuracies.")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    plot_losses({name_of(record.method): record}, axis=left, title=label_scale(record.scale))
    kinds = {"random real": record.random_baseline, "last iterate": record.accuracy_last, "jointly": record.accuracy_joint}
    plot_accuracies({name: accuracy for name, accuracy in kinds.items() if accuracy is not None}, axis=right)
    figure.tight_layout()
    show(figure, f"Matching losses and accuracies of {record.run_id}")


def explore(results: Results, first: RunRecord) -> Any:
    """Returns menus of data set, scale, images per class, method, run, subset and class, above what they choose.

    Args:
        results: whose runs can be chosen.
        first: record of the run that is chosen at first.
    """
    from IPython.utils.capture import capture_output
    from ipywidgets import Dropdown, HBox, Output, VBox

    records = sorted(find_runs(results), key=lambda record: record.run_id != first.run_id)
    menus = {name: Dropdown(description=name.replace("_", " ")) for name in (*LEVELS, "subset", "class")}
    output, busy = Output(), False

    def update(_: Any = None) -> None:
        """Fills each menu with what those before it leave, and shows what is chosen."""
        nonlocal busy
        if busy:  # a menu is being filled
            return
        busy, left = True, records
        for name in LEVELS:
            _offer(menus[name], [getattr(record, name) for record in left])
            left = _choose(left, **{name: menus[name].value})
        (record,) = left
        _offer(menus["subset"], [ALL, *range(1, record.num_subsets + 1)])
        _offer(menus["class"], [ALL, *(results.open_run(record).class_names if results.has_set(record) else [])])
        busy = False
        # not `with output`: papermill may then wait for ever, see https://github.com/jupyter/nbclient/issues/312
        with capture_output() as shown:
            show_run(results, record, menus["subset"].value, menus["class"].value)
        printed = [{"output_type": "stream", "name": "stdout", "text": shown.stdout}] if shown.stdout else []
        pictures = [{"output_type": "display_data", "data": one.data, "metadata": one.metadata} for one in shown.outputs]
        output.outputs = (*printed, *pictures)

    update()
    for menu in menus.values():
        menu.observe(update, "value")
    return VBox([HBox(list(menus.values())[:4]), HBox(list(menus.values())[4:]), output])


def _offer(menu: Any, values: Sequence[Any]) -> None:
    """Fills a menu with different values, and keeps its choice if that is still among them."""
    before, offered = menu.value, list(dict.fromkeys(values))
    menu.options = offered
    menu.value = before if before in offered else offered[0]
