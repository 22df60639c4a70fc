"""The README keeps its promises: its commands run, its numbers are those of committed records, its paths exist."""

import re
import shlex
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seqmatch_lib.__main__ import main
from seqmatch_lib.bench.report import format_benchmark, load_benchmark
from seqmatch_lib.data import datasets as data
from seqmatch_lib.runs.config import SCALES
from seqmatch_lib.runs.records import format_records, load_runs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python -m seqmatch_lib ")]
TABLES = re.findall(r"^<!-- records: (\w+) (\w+) -->\n```\n(.*?)\n```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")  # papermill's own
def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    assert any(" run " in command for command in COMMANDS)
    for folder in ("notebooks", "paper_results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    write_images(tmp_path / "my_images")
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))  # forget `my_images` afterwards
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        arguments = [one for word in shlex.split(command)[3:] for one in (sorted(glob(word)) or [word])]
        if "run" in arguments:
            assert "smoke" in arguments, f"{command!r} would take more than seconds"
        assert main(arguments) == 0, command


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


@pytest.mark.parametrize(("dataset", "scale", "text"), TABLES, ids=[" ".join(table[:2]) for table in TABLES])
def test_a_table_of_results_is_what_its_records_say(dataset, scale, text):
    assert scale in SCALES
    records = [one for one in load_runs(ROOT / "paper_results") if (one.dataset, one.scale) == (dataset, scale)]
    records = [one for one in records if not one.overrides]  # presets as they stand
    assert records
    assert text == format_records(records)


def test_ratios_are_those_of_the_newest_full_benchmark():
    (text,) = re.findall(r"^<!-- benchmark: cpu full -->\n```\n(.*?)\n```$", README, flags=re.MULTILINE | re.DOTALL)
    benchmarks = [load_benchmark(path) for path in (ROOT / "paper_results" / "benchmarks").glob("cpu-full-*.json")]
    newest = max(benchmarks, key=lambda result: result["measured_at"])
    measured = format_benchmark(newest).splitlines()
    assert len(text.splitlines()) >= 5
    assert set(text.splitlines()) <= set(measured)


def test_there_are_tables_and_no_other_accuracies():
    assert {table[:2] for table in TABLES} >= {("digits", "reduced"), ("place_names", "reduced")}
    assert "<!-- evidence: comparison cifar10 10 reduced -->" in README
    outside = README
    for table in TABLES:
        outside = outside.replace(table[2], "")
    shown = {f"{one['mean']:.1f}" for record in load_runs(ROOT / "paper_results") for one in accuracies(record)}
    for number in re.findall(r"(\d+\.\d) %", outside):
        assert number in shown, f"{number} % stands in no record"


def accuracies(record):
    kinds = (record.accuracy_last, record.accuracy_selected, record.accuracy_joint, record.random_baseline)
    return [one for one in kinds if one is not None]


def test_make_targets_and_paths_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`make (\w+)`|^make (\w+)$", README, flags=re.MULTILINE)
    assert len(targets) >= 3
    for target in (first or second for first, second in targets):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"`((?:seqmatch_lib|notebooks|tests|paper_results)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path
