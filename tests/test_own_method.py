"""Adding a method: ten lines, alone and under SeqMatch, registered here or by the entry point of another package."""

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields, make_dataclass, replace
from types import ModuleType

import pytest
import torch
from helpers import CLASSES, NETWORK, RECIPE, Impatient, checkpoints, finish_in_parts, make_images, make_stage

import seqmatch_lib as sm
from seqmatch_lib import front
from seqmatch_lib.__main__ import main
from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.evaluation import EvaluationProtocol
from seqmatch_lib.engine.networks import NETWORKS
from seqmatch_lib.errors import ConfigError, StorageError
from seqmatch_lib.methods import BaseConfig, BaseMethod, MethodState, get_method, register_method
from seqmatch_lib.methods import base as registry
from seqmatch_lib.methods.idc import IDC
from seqmatch_lib.runs.config import REFERENCES, RunConfig
from seqmatch_lib.runs.distillation import distill_stages
from seqmatch_lib.runs.records import load_record, load_reevaluations
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import SubsetSequence


def class_means(images, labels):
    return torch.stack([images[labels == label].mean(0) for label in range(CLASSES)])


@dataclass(frozen=True)
class MeansConfig(BaseConfig):
    iterations: int = 30


@dataclass
class RealMeans(MethodState):
    means: torch.Tensor


class Means(BaseMethod):
    config_class = MeansConfig

    def prepare(self, stage):
        return RealMeans(0.0, class_means(stage.images, stage.labels))

    def step(self, prepared, trainable, frozen, generator):
        loss = (class_means(*frozen.then(trainable.freeze_view()).union()) - prepared.means).square().sum()
        loss.backward()
        return loss.detach()


class Fading(Means):
    """Of data with any number of classes, and quick."""

    def prepare(self, stage):
        return MethodState(0.0)

    def step(self, prepared, trainable, frozen, generator):
        loss = trainable.images.square().mean()
        loss.backward()
        return loss.detach()


def test_ten_lines_are_a_method_that_runs_under_seqmatch(tmp_path):
    stages = distill_stages(Means(MeansConfig()), make_stage(tmp_path), (1, 2), (None, None), checkpoints(tmp_path))
    assert [len(stage.last.images) for stage in stages] == [3, 6]
    for distilled in stages:
        assert distilled.trainable.losses[-1] < 1e-5
    sequence = SubsetSequence(tuple(distilled.last for distilled in stages))
    torch.testing.assert_close(class_means(*sequence.union()), class_means(*make_images(60)), atol=0.01, rtol=0)
    test = Split(*make_images(300, seed=5))
    (accuracy,) = EvaluationProtocol(CLASSES, RECIPE, seed=0).accuracies(sequence, test, NETWORK, [0])
    assert accuracy > 60  # chance is 33


def starts_with(rows):
    """Overrides `initialise`: the images and labels that it returns, in these rows."""

    def initialise(self, stage):
        trainable = BaseMethod.initialise(self, stage)
        images = trainable.images.detach()[rows].requires_grad_()
        return replace(
            trainable, images=images, labels=trainable.labels[rows], optimizers={"images": torch.optim.SGD([images])}
        )

    return {"initialise": initialise}


def black_images(self, stage):
    trainable = BaseMethod.initialise(self, stage)
    return replace(trainable, images=torch.zeros_like(trainable.images).requires_grad_())


class Counting(MethodState):
    def state(self):
        return {"count": torch.tensor(0)}


class Numbering(MethodState):
    def state(self):
        return {"count": 0}

    def load_state(self, state):
        pass


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_step_that_changes_frozen_subsets_is_refused(name, tmp_path):
    """As `images.mul_(0)` would: S_1 would be another in the set than the one that was distilled."""

    class Careless(Means):
        def step(self, prepared, trainable, frozen, generator):
            for subset in frozen.subsets:
                getattr(subset, name).mul_(0)
            return super().step(prepared, trainable, frozen, generator)

    arguments = make_stage(tmp_path), (1, 1), (None, None), checkpoints(tmp_path)
    with pytest.raises(ConfigError, match="step of Careless changed the frozen subsets; work on clones"):
        distill_stages(Careless(MeansConfig()), *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initialise": lambda self, stage: None}, "initialise of Changed returned a NoneType; return a Trainable"),
        (
            starts_with([0, 2, 1]),
            r"initialise of Changed returned images of classes \[0, 2, 1\], but stage 1 has 3 classes \* ipc 1 = 3 images, "
            "class by class; return stage.ipc of each class in the order of the classes, as super",
        ),
        (starts_with([0, 0, 1, 2]), r"returned images of shape \(4, 1, 6, 6\) with labels of shape \(4,\), but stage 1 has 3"),
        (
            {"initialise": black_images},
            r"initialise of Changed returned a Trainable whose images its optimiser does not change; make "
            r"trainable.optimizers\['images'\] anew, that of images with self.image_optimizer\(trainable.images\)",
        ),
        ({"step": lambda self, *_: torch.tensor(0.5)}, "step of Changed left no gradient of images; call loss.backward"),
        ({"step": lambda self, *_: 0.5}, "step of Changed returned 0.5; return the detached loss"),
        ({"step": lambda self, *_: None}, "step of Changed returned None; return the detached loss"),
        ({"step": lambda self, *_: torch.ones(2)}, r"step of Changed returned tensor\(\[1., 1.\]\); return the"),
        ({"prepare": lambda self, stage: Counting(0.0)}, "Counting has `state`, but no `load_state` .*; write both"),
        (
            {"prepare": lambda self, stage: Numbering(0.0)},
            "`state` of Numbering returned {'count': 0}; return a dictionary of",
        ),
        ({"prepare": lambda self, stage: None}, "prepare of Changed returned a NoneType; return a MethodState"),
    ],
)
def test_a_method_that_breaks_a_rule_is_told_which(change, message, tmp_path):
    method = type("Changed", (Means,), change)(MeansConfig())
    with pytest.raises(ConfigError, match=message):
        distill_stages(method, make_stage(tmp_path), (1,), (None,), checkpoints(tmp_path))


class Slowing(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["lr"] /= 3


def test_a_stopped_run_goes_on_with_the_learning_rate_that_its_optimiser_had(tmp_path):
    method = type("Slow", (Means,), {"image_optimizer": lambda self, images: Slowing([images], lr=0.5)})(MeansConfig())

    def distil(folder, budget):
        stage = replace(make_stage(tmp_path), budget=budget)
        return distill_stages(method, stage, (1,), (None,), checkpoints(folder))

    whole = distil(tmp_path / "whole", Budget())
    parts, stops = finish_in_parts(lambda: distil(tmp_path / "parts", Impatient()))
    assert stops > 1
    assert whole[0].trainable.losses == parts[0].trainable.losses


def test_names_are_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register_method("means")(Means)
    assert get_method("means") is Means
    with pytest.raises(ConfigError, match="a method 'means' is registered already; choose another name"):
        register_method("means")(Fading)
    assert get_method("means") is Means
    with pytest.raises(ConfigError, match="method 'mean' is unknown; use one of dm, idc, krr, means, mtt"):
        get_method("mean")


class Unfinished(BaseMethod):
    def prepare(self, stage):
        return MethodState(0.0)


@dataclass(frozen=True)
class BareConfig:
    iterations: int = 3


class Bare(Means):
    config_class = BareConfig


NAMES = ("my method", "a/b", "a.b", "", "training", "seqmatch_x", "random", "é", "x" * 61, 3)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [(name, Means, f"method name {name!r} must consist of letters") for name in NAMES]
    + [
        ("own", 3, r"method 'own' \(3\) is not a BaseMethod; name a subclass"),
        ("own", MeansConfig, "is not a BaseMethod; name a subclass"),
        ("own", Unfinished, "lacks step, config_class; define it"),
        (
            "own",
            Bare,
            "has a config_class without syn_lr, lr_img, momentum_img, which BaseMethod reads; make it a",
        ),
    ],
)
def test_what_cannot_be_a_method_is_refused_when_it_is_registered(name, method, message, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    with pytest.raises(ConfigError, match=message):
        register_method(name)(method)
    assert name not in registry._METHODS


def test_no_method_is_called_like_a_setting():
    assert {field.name for field in fields(RunConfig)} | set(REFERENCES) == set(registry.RESERVED)


def test_a_cell_that_registers_a_method_can_be_run_again(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    cell = "@register_method('again')\nclass Again(Fading):\n    number = {}"
    for number in (1, 2):
        names = {"register_method": register_method, "Fading": Fading, "__name__": "__main__"}
        exec(cell.format(number), names)
        assert get_method("again").number == number
    names["__name__"] = "elsewhere"
    with pytest.raises(ConfigError, match="a method 'again' is registered already"):
        exec(cell.format(3), names)


ODD_SETTINGS = """
{future}
from dataclasses import dataclass
from typing import Literal, Optional
from seqmatch_lib.methods import BaseConfig

@dataclass(frozen=True)
class OddConfig(BaseConfig):
    lr_img: float = 1.0
    decay: float | None = None
    rate: Optional[int] = None
    sizes: list[int] = None
    pair: tuple[int, float] = (1, 0.5)
    kind: Literal["mean", "max"] = "mean"
    table: dict[str, float] = None
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations"])
@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("lr_img", 0.7, 0.7),
        ("decay", 1, 1.0),
        ("decay", None, None),
        ("rate", 3, 3),
        ("sizes", (3, 4), [3, 4]),
        ("pair", [2, 3], (2, 3.0)),
        ("kind", "max", "max"),
        ("table", {"a": 0.5}, {"a": 0.5}),
        ("decay", "much", "means.decay = 'much' has the wrong type; it must be float | None"),
        ("lr_img", None, "means.lr_img = None has the wrong type; it must be float"),
        ("kind", "min", "means.kind = 'min' has the wrong type"),
        ("sizes", [0.5], "means.sizes = 0.5 has the wrong type"),
    ],
)
def test_settings_of_any_annotation_are_read(future, setting, value, expected, monkeypatch):
    module = ModuleType("odd")
    monkeypatch.setitem(sys.modules, "odd", module)
    exec(compile(ODD_SETTINGS.format(future=future), "odd", "exec", dont_inherit=True), vars(module))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register_method("means")(type("Odd", (Fading,), {"config_class": module.OddConfig}))
    overrides = {"method": "means", "intervals": [], f"means.{setting}": value}
    if isinstance(expected, str) and expected != value:
        with pytest.raises(ConfigError, match=re.escape(expected)):
            RunConfig.from_preset("digits-ipc10-random", "smoke", overrides=overrides)
        return
    found = getattr(RunConfig.from_preset("digits-ipc10-random", "smoke", overrides=overrides).options, setting)
    assert (found, type(found)) == (expected, type(expected))


PACKAGE = """
from dataclasses import dataclass
import torch
from seqmatch_lib.methods import BaseConfig, BaseMethod, MethodState

@dataclass(frozen=True)
class PullConfig(BaseConfig):
    iterations: int = 3
    strength: float = 0.1

class Pull(BaseMethod):
    config_class = PullConfig
    def prepare(self, stage):
        return MethodState(0.0)
    def step(self, prepared, trainable, frozen, generator):
        loss = self.config.strength * trainable.images.square().sum()
        loss.backward()
        return loss.detach()
"""

RUN = """
import sys
from seqmatch_lib.runs.config import REFERENCES, RunConfig
from seqmatch_lib.runs.experiment import run_experiment
settings = RunConfig.from_preset("digits-ipc10-random", "smoke").as_dict()
settings |= {"method": "seqmatch_pull", "subset_ipcs": [6, 4], "intervals": [], "pull": {"strength": 0.2, "iterations": 2}}
record = run_experiment(RunConfig.from_dict(settings), sys.argv[1])
print(record.method, [len(stage["losses"]) for stage in record.stages], record.config["pull"]["strength"])
"""


def install(folder, entry, name="pull"):
    """Lays a package and its metadata into a folder, as pip does."""
    (folder / "pull_package.py").write_text(PACKAGE)
    metadata = folder / "pull_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pull-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[seqmatch_lib.methods]\n{name} = {entry}\n")


def run_python(script, folder, *arguments):
    lines = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", lines, *arguments], capture_output=True, text=True, check=False)


def test_a_method_of_another_package_runs_by_its_entry_point(tmp_path):
    install(tmp_path, "pull_package:Pull")
    done = run_python(RUN, tmp_path, str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "seqmatch_pull [2, 2] 0.2"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("pull_package:PullConfig", "entry point 'pull' (pull_package:PullConfig) is not a BaseMethod"),
        (
            "gone:Pull",
            "method 'pull': its entry point gone:Pull cannot be loaded (No module named 'gone'); repair or reinstall",
        ),
        ("pull_package:Gone", "pull_package:Gone cannot be loaded (module 'pull_package' has no attribute 'Gone'); repair"),
    ],
)
def test_an_entry_point_that_is_no_method_is_named(tmp_path, entry, message):
    install(tmp_path, entry)
    script = "from seqmatch_lib.methods import get_method\ntry:\n  get_method('pull')\nexcept ValueError as e:\n  print(e)"
    done = run_python(script, tmp_path)
    assert message in done.stdout, done.stderr


def test_a_folder_with_records_of_an_unknown_method_is_read_without_them(tmp_path, monkeypatch, capsys):
    """They are whole, and count again once the module that registers the method is imported."""
    quick = {"training.epochs": 1, "evaluation.num_networks": 1}
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))
        register_method("means")(Fading)
        settings = {"method": "means", "means.iterations": 1, **quick}
        run = sm.run("digits-ipc10-random", "smoke", set=settings, results_dir=tmp_path)
        run.evaluate(results_dir=tmp_path)
    known = sm.run("digits-ipc10-random", "smoke", set=quick, results_dir=tmp_path)
    (path,) = tmp_path.glob("runs/digits/digits-means-*.json")
    remedy = "import the module that registers it, or install its package"
    assert set(sm.records(tmp_path)["run_id"]) == {known.record.run_id}
    assert load_reevaluations(tmp_path) == []
    assert main(["show", str(tmp_path)]) == 0
    notices = capsys.readouterr().err.splitlines()
    assert len([line for line in notices if line.startswith(f"notice: left out: {path}") and line.endswith(remedy)]) == 2
    with pytest.raises(StorageError, match=f"{path.name}.*method 'means' is unknown.*{remedy}$"):
        load_record(path)
    with pytest.raises(ConfigError, match=f"method 'means' is unknown.*{remedy}$"):
        sm.evaluate(tmp_path / "distilled" / f"{run.record.run_id}.safetensors")


def test_records_of_a_method_whose_settings_have_changed_are_left_out_with_a_notice(tmp_path, monkeypatch, capsys):
    """They are no damaged files, and those of other methods are listed."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register_method("means")(Fading)
    quick = {"training.epochs": 1, "evaluation.num_networks": 1}
    run = sm.run("digits-ipc10-random", "smoke", set={"method": "means", "means.iterations": 1, **quick}, results_dir=tmp_path)
    known = sm.run("digits-ipc10-random", "smoke", set=quick, results_dir=tmp_path)
    registry._METHODS["means"] = type("Fading", (Fading,), {"config_class": make_dataclass("C", ["fresh"])})
    assert set(sm.records(tmp_path)["run_id"]) == {known.record.run_id}
    assert re.search(
        rf"left out: .*{run.record.run_id}.json does not fit method 'means' as it is now: ", capsys.readouterr().err
    )


def test_records_of_a_network_that_is_not_entered_are_left_out_with_a_notice(tmp_path, monkeypatch, capsys):
    quick = {"training.epochs": 1, "evaluation.num_networks": 1}
    known = sm.run("digits-ipc10-random", "smoke", set=quick, results_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(NETWORKS, "own", NETWORKS["convnet"])
        sm.run("digits-ipc10-random", "smoke", set={**quick, "evaluation.networks": ["own"]}, results_dir=tmp_path)
        known.evaluate(networks=["own"], results_dir=tmp_path)
    assert set(sm.records(tmp_path)["run_id"]) == {known.record.run_id}
    assert load_reevaluations(tmp_path) == []
    notices = capsys.readouterr().err
    assert notices.count("unknown names ['own']; use any of convnet") == 2
    assert notices.count("enter one of your own in NETWORKS first") == 2


def test_a_method_that_extends_one_with_iterations_of_each_stage_takes_one_number_as_that_does(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(front, "run_experiment", lambda *_, **__: None)
    register_method("own_idc")(type("OwnIDC", (IDC,), {}))
    images = torch.zeros(9, 1, 6, 6), torch.arange(9) % CLASSES
    config = sm.distill(images, images, "own_idc", [1, 1], iterations=7, results_dir=tmp_path).config
    assert config.options.iterations == (7,)


def test_an_entry_point_whose_name_does_not_serve_is_named(tmp_path):
    install(tmp_path, "pull_package:Pull", "training")
    script = "from seqmatch_lib import method_names\ntry:\n  method_names()\nexcept ValueError as e:\n  print(e)"
    done = run_python(script, tmp_path)
    assert "method name 'training' (entry point pull_package:Pull) must" in done.stdout, done.stderr
