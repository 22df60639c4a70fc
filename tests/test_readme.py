"""README and docs keep their promises: their code runs, their numbers are those of committed records, their paths exist."""

import csv
import re
import shlex
import tomllib
from glob import glob
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from seqmatch_lib.__main__ import main
from seqmatch_lib.bench.batch import Batch
from seqmatch_lib.bench.cost import trajectory_bytes
from seqmatch_lib.bench.report import format_benchmark, load_benchmark
from seqmatch_lib.data import datasets as data
from seqmatch_lib.engine.networks import NETWORKS
from seqmatch_lib.methods import base as registry
from seqmatch_lib.report import controls, findings, queries, texts
from seqmatch_lib.report.evidence import Evidence
from seqmatch_lib.report.tables import load_published, readme_table
from seqmatch_lib.report.verdicts import list_verdicts
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.coupling_measurements import load_coupling
from seqmatch_lib.runs.records import load_record, record_path

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES["README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMAND = "python -m seqmatch_lib "


def runnable_blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of a page that a reader would run here, as (language, text)."""
    blocks = [(language, text) for language, text in BLOCK.findall(page) if language == "python" or COMMAND in text]
    elsewhere = ("# plain torchvision", "#!/bin/bash")  # see test_exchange; a script for Slurm
    return [(language, text) for language, text in blocks if not text.startswith(elsewhere)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")  # papermill's own
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if runnable_blocks(page)])
def test_the_code_of_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    for folder in ("notebooks", "paper_results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    write_images(tmp_path / "my_images")
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))  # forget `my_images`, `means` and `perceptron` afterwards
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setitem(NETWORKS, "perceptron", None)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": name}
    for language, text in runnable_blocks(PAGES[name]):
        if language == "python":
            exec(compile(text, name, "exec"), names)
        else:
            for command in text.splitlines():
                run_command(command)
    plt.close("all")


def run_command(command: str) -> None:
    assert command.startswith(COMMAND), command
    arguments = [one for word in shlex.split(command)[3:] for one in (sorted(glob(word)) or [word])]
    if "run" in arguments:
        assert "smoke" in arguments, f"{command!r} would take more than seconds"
    assert main(arguments) == 0, command


def test_the_pages_have_code_and_the_readme_is_short():
    assert {"README.md", "runs.md", "data.md", "own_method.md", "exchange.md"} <= {
        name for name, page in PAGES.items() if runnable_blocks(page)
    }
    assert len(README.splitlines()) <= 130


def write_images(folder: Path) -> None:
    """Draws three classes of pictures, unequal in number, of odd sizes, some of them grey."""
    random = np.random.default_rng(0)
    for label, count in (("circle", 26), ("square", 19), ("triangle", 41)):
        (folder / "train" / label).mkdir(parents=True)
        for number in range(count):
            width, height = (int(side) for side in random.integers(30, 80, 2))
            picture = Image.new("RGB", (width, height), tuple(random.integers(0, 120, 3).tolist()))
            left, top, right, bottom = 4, 6, width - 5, height - 4
            corners = [(left, bottom), (right, bottom), (width // 2, top)]
            draw, colour = ImageDraw.Draw(picture), tuple(random.integers(130, 256, 3).tolist())
            if label == "circle":
                draw.ellipse([left, top, right, bottom], fill=colour)
            else:
                draw.polygon(corners if label == "triangle" else [*corners[:2], (right, top), (left, top)], fill=colour)
            picture.convert("L" if number % 5 == 0 else "RGB").save(folder / "train" / label / f"{number}.png")


def test_the_table_of_results_is_the_one_that_the_command_prints():
    table = readme_table(Evidence.load(ROOT / "paper_results"), load_published(ROOT / "paper_results"))
    assert table in README, "put there what `python -m seqmatch_lib tables --readme` prints"


def test_the_hours_of_the_verdict_are_those_predicted_and_recorded(tmp_path):
    """With the teachers of stage 1, which the two runs share, once."""
    presets = "cifar10-ipc10-mtt", "cifar10-ipc10-seqmatch_mtt"
    batch = Batch.read({"scale": "paper", "presets": ",".join(presets), "results": tmp_path, "threads": 1})
    predicted = sum(batch.need(job).minutes for job in (*batch.teachers, *batch.configs)) / 60
    (stated,) = re.findall(r"takes (\d+) hours of one\s+CPU core", README)
    assert float(stated) == pytest.approx(predicted, rel=0.15)
    configs = (RunConfig.from_preset(preset, "short") for preset in presets)
    alone, sequence = (load_record(record_path(ROOT / "paper_results", config)).seconds for config in configs)
    recorded = sum(alone.values()) + sum(sequence.values()) - alone["teachers"]
    assert re.findall(r"it\s+took\s+(\d+)\s+hours", README) == [f"{recorded / 3600:.0f}"]


def test_the_disk_that_teachers_take_is_what_they_are_made_of():
    (table,) = re.findall(r"^\| teachers, GiB \|.*?\n\n", PAGES["runs.md"], flags=re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    stated = [row[1:] for row in rows if row[0] in ("of the first subset", "of each later one")]
    found = []
    for datasets in rows[0][1:]:
        for name in datasets.lower().replace("-", "").replace(" imagenet", "_imagenet").split(", "):
            spec = data.find_dataset(name)
            plain, sequence = (RunConfig.from_preset(f"{name}-ipc10-{method}") for method in ("mtt", "seqmatch_mtt"))
            first, both = (trajectory_bytes(config, spec) / 2**30 for config in (plain, sequence))
        found.append([f"{first:.1f}", f"{both - first:.1f}"])
    assert [list(column) for column in zip(*stated, strict=True)] == found


def test_ratios_are_those_of_the_newest_full_benchmark():
    (text,) = re.findall(r"^<!-- benchmark: cpu full -->\n```\n(.*?)\n```$", PAGES["speed.md"], flags=re.MULTILINE | re.DOTALL)
    benchmarks = [load_benchmark(path) for path in (ROOT / "paper_results" / "benchmarks").glob("cpu-full-*.json")]
    newest = max(benchmarks, key=lambda result: result["measured_at"])
    assert len(text.splitlines()) >= 5
    assert set(text.splitlines()) <= set(format_benchmark(newest).splitlines())


def test_errors_of_the_compiled_step_are_those_that_were_measured():
    columns = ("gradient_error", "adjoint_images_error", "unrolled_50_steps_error")
    with (ROOT / "paper_results" / "precision" / "compiled_step.csv").open() as lines:
        rows = {row["precision"]: row for row in csv.DictReader(lines) if row["code"] == "after"}
    assert set(rows) == {"bfloat16", "float32"}
    for precision, row in rows.items():
        assert "| ".join([f"{precision} ", *(f"{row[column]} " for column in columns)]) in PAGES["speed.md"]


def test_faults_are_those_that_were_counted():
    counted = texts.format_frame(queries.trust(Evidence.load(ROOT / "paper_results")))
    (table,) = re.findall(r"^<!-- faults -->\n(.*?)\n<!-- end -->$", PAGES["faults.md"], flags=re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert rows[:1] + rows[2:] == [list(counted.columns), *counted.to_numpy().tolist()]


ONE_SETS = (
    controls.ONE_SET,
    controls.MORE_EPOCHS,
    controls.SELECTED[controls.ONE_SET],
)  # as the table of the verdict has them


def read_results():
    """All committed records, and the published accuracies."""
    return Evidence.load(ROOT / "paper_results"), load_published(ROOT / "paper_results")


def find_parts(evidence, *cell):
    """The records of five teachers, then those of two."""
    five, two = [part for part in evidence.parts("short") if len(controls.comparison(part, *cell))]
    return five, two


def test_accuracies_of_the_verdict_are_published_or_stand_in_a_record():
    """Of sets of five or ten images per class at scale short, of scored iterates, or by difficulty.

    A number with a sign is a difference.
    """
    cell, evidence, published = ("cifar10", 10, "short"), *read_results()
    rows = evidence.accuracies
    rows = rows[(rows["dataset"] == "cifar10") & rows["ipc"].isin([5, 10]) & (rows["scale"] == "short")]
    orders = [one for one in evidence.orders if (one.dataset, one.ipc, one.scale) == cell]
    known = [*map(fmean, rows["values"]), *(fmean(values) for one in orders for values in one.accuracy.values())]
    known += queries.curves(evidence, ROOT / "paper_results", *cell)["accuracy"].tolist()
    known += published[(published["dataset"] == "cifar10") & (published["ipc"] == 10)]["mean"].tolist()
    (five,) = [run for run in evidence.runs if run.run_id == "cifar10-seqmatch_mtt-ipc10-k2-seed0-dc0405d4"]
    by_difficulty = load_coupling(five.run_id, ROOT / "paper_results")
    rows = findings.list_accuracies(by_difficulty)
    known += [value for part in findings.TENTHS for value in findings.mean_on(part, rows, "accuracy").mean(axis=1)]
    (verdict,) = re.findall(r"^\*\*The verdict so far(.*?)^!\[", README, flags=re.MULTILINE | re.DOTALL)
    stated = re.findall(r"(?<![-+\d])\d+\.\d", verdict)
    assert len(stated) >= 5
    assert set(stated) <= {f"{accuracy:.1f}" for accuracy in known}


def test_every_cell_of_the_table_of_the_verdict_is_that_of_its_row_and_column():
    cell, evidence, published = ("cifar10", 10, "short"), *read_results()
    five, two = (controls.comparison(part, *cell).set_index("set") for part in find_parts(evidence, *cell))
    staged = evidence.accuracies.query("method == 'seqmatch_mtt' and ipc == 10 and scale == 'short' and is_first")
    by_seed = staged[staged["record"].isin(two.loc[controls.STAGED, "records"].split(", "))].query("kind == 'last'")
    selected = staged[staged["record"] == five.loc[controls.STAGED, "records"]].query("kind == 'selected'")
    means = published.query("dataset == 'cifar10' and ipc == 10").set_index("method")["mean"]
    expected = [
        [means["seqmatch_mtt"], *map(fmean, by_seed.sort_values("seed")["values"]), five.loc[controls.STAGED, "accuracy"],
         *map(fmean, selected["values"])],
        [means["mtt"], *two.loc[[controls.LONGER, controls.EQUAL], "accuracy"], *five.loc[[*ONE_SETS], "accuracy"]],
        [part.loc[controls.HALVES, "accuracy"] for part in (two, five)],
        [part.loc[name, "accuracy"] for part in (two, five) for name in (controls.HALVES_JOINTLY, controls.HALVES_LONGER)],
    ]  # fmt: skip
    rows = re.findall(r"^\| (?:SeqMatch-MTT, in stages|MTT, one set|independent halves).*$", README, flags=re.MULTILINE)
    assert [re.findall(r"\d+\.\d", row) for row in rows] == [[f"{value:.1f}" for value in row] for row in expected]


def test_differences_are_those_of_the_records():
    """In the verdict over one set and halves, in rehearsals over one set of equal effort; in the list those that it names."""
    evidence, cell = Evidence.load(ROOT / "paper_results"), ("cifar10", 10)
    five, short = find_parts(evidence, *cell, "short")

    def gap(part, dataset, ipc, scale, base, name, column="difference"):
        found = controls.comparison(part, dataset, ipc, scale, bases=[base]).set_index("set")
        return f"{found.loc[name, column]:+.1f}"

    of_idc = [
        gap(evidence, "cifar10", 50, "reduced", "idc", controls.EQUAL, f"difference{end}") for end in ("", "_low", "_high")
    ]
    stated = [gap(five, *cell, "short", "mtt", name) for name in (*ONE_SETS, controls.HALVES)]
    stated += [gap(evidence, *cell, "reduced", base, controls.EQUAL) for base in ("mtt", "idc")]
    stated += [*of_idc, gap(evidence, "cifar100", 10, "reduced", "mtt", controls.EQUAL)]
    stated.append(gap(evidence, *cell, "reduced", "krr", controls.EQUAL))
    (verdict,) = re.findall(r"^\*\*The verdict so far(.*?)^!\[", README, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?<!\d)[-+]\d+\.\d", verdict) == stated
    orders = [controls.order(part, *cell, "short").set_index("set")["difference"] for part in (short, five)]

    def of_order(name):
        return [f"{order[name]:+.1f}" for order in orders]

    vgg = queries.transfer(short, *cell, "short").set_index(["method", "network"]).loc["seqmatch_mtt", "vgg11"]
    again = queries.reevaluated(short, "cifar10").set_index(["scale", "method", "network", "changed"])["accuracy"]
    other_step = again.loc["short", "mtt", "vgg11", "training.lr = 0.01"]
    verdicts = (list_verdicts(part, load_published(ROOT / "paper_results"), ROOT / "paper_results") for part in (short, five))
    jointly = [one["control"].str.extract(r"both jointly (\S+);")[0].dropna().iloc[0] for one in verdicts]
    gains = queries.gains_at_several_sizes(evidence, "cifar10", "reduced").query("method == 'mtt'").set_index("ipc")["gain"]
    rows = {
        "21_ablation_order": [
            *of_order(controls.HALVES), *jointly, *of_order(controls.HALVES_LONGER), *of_order("sequence, S_2 first"),
        ],
        "23_cross_architecture": [f"{vgg['lead']:+.1f}", f"{vgg['accuracy'] - other_step.item():+.1f}"],
        "22_beyond_ipc_50": [f"{gains[ipc]:+.1f}" for ipc in (10, 50, 500)],
        "24_other_base_methods": [
            gap(evidence, *cell, "reduced", "krr", controls.ONE_SET), gap(evidence, *cell, "reduced", "krr", controls.HALVES),
            gap(evidence, *cell, "reduced", "dm", controls.ONE_SET),
        ],
    }  # fmt: skip
    for notebook, numbers in rows.items():
        (row,) = re.findall(rf"^\|.*`{notebook}`.*$", README, flags=re.MULTILINE)
        assert re.findall(r"(?<![\d.])\d+\.\d(?!\d)", row) == [number[1:] for number in numbers], notebook


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_paths_and_links_exist(name):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)|^make (\w+)$", PAGES[name], flags=re.MULTILINE):
        assert f"\n{target[0] or target[1]}:" in makefile
    for path in re.findall(r"`((?:seqmatch_lib|notebooks|tests|paper_results|docs)/[\w./]*)`", PAGES[name]):
        assert (ROOT / path).exists(), path
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\(([\w./]+)\)", PAGES[name]):
        assert (folder / link).exists(), link
    for notebook in re.findall(r"^\|[^|]*\| `(\d\w+)` \|", PAGES[name], flags=re.MULTILINE):
        assert (ROOT / "notebooks" / f"{notebook}.ipynb").is_file(), notebook


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    (paper,) = citation["references"]
    assert f"{{{paper['title']}}}" in README  # the title of the BibTeX entry
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]) in README
