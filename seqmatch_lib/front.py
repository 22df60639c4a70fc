"""The Python interface: one call each to run a preset, distil your own images, evaluate a set, and list records and presets.

>>> import seqmatch_lib as sm
>>> run = sm.run("digits-ipc10-seqmatch_mtt", scale="smoke", results_dir=folder)
>>> run
Run(digits-seqmatch_mtt-ipc10-k2-seed0-..., scale smoke: ... ± ... %, n = 2)
>>> list(run.losses.columns), len(run.losses)  # 8 iterations for each of two subsets
(['stage', 'iteration', 'loss'], 16)
>>> sorted(run.evaluate(joint=True).accuracy)
['convnet']
>>> len(sm.records(folder))  # the last, the selected, all subsets jointly and random images, two networks each
8
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from operator import index
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from seqmatch_lib.bench.cost import CostModel
from seqmatch_lib.data.arrays import Arrays, dataset_from_arrays
from seqmatch_lib.data.datasets import DATASETS, ImageDataset, find_dataset, load_dataset
from seqmatch_lib.errors import ConfigError, StorageError, require
from seqmatch_lib.methods import get_method
from seqmatch_lib.runs.config import SEQUENTIAL_PREFIX, RunConfig, as_overrides, config_asked_for, preset_names
from seqmatch_lib.runs.experiment import choose_device, run_experiment
from seqmatch_lib.runs.pictures import load_pictures
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.runs.records import Reevaluation, RunRecord, list_scores, load_reevaluations, load_runs
from seqmatch_lib.runs.reevaluation import reevaluate
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import SubsetSequence, load_sequence, set_path

if TYPE_CHECKING:  # the library runs without the notebook packages
    from matplotlib.figure import Figure
    from pandas import DataFrame

RESULTS = "paper_results"


def find_folder(name: Path | str = RESULTS) -> Path:
    """Returns a folder below the current directory, below one above it, or in the repository of this library.

    Raises:
        StorageError: the folder is in none of them.
    """
    folder = look_for(name)
    remedy = "work inside a checkout of the repository, or give results_dir the path of a folder of records"
    require(folder is not None, f"no folder {name} in {Path.cwd()} or above it; {remedy}", StorageError)
    return folder


def as_path(path: Path | str) -> Path:
    """Returns what a user gives as a path; raises ConfigError if it is none."""
    require(isinstance(path, PathLike | str), f"path {path!r:.120} must be a string or a Path, such as 'build/own'")
    return Path(path)


def look_for(name: Path | str, in_library: bool = True) -> Path | None:
    """Returns what `find_folder` does, but None if there is no such folder; `in_library`: also in the library's repository."""
    name, places = as_path(name), [Path.cwd(), *Path.cwd().parents, *([Path(__file__).parents[1]] if in_library else [])]
    return next((place / name for place in places if (place / name).is_dir()), None)


def _results_folder(path: Path | str, in_library: bool = True) -> Path:
    """Returns a results folder as it was given; the default one is looked for, so that it is found from folders below, too."""
    path = as_path(path)
    return (look_for(path, in_library) or path) if path == Path(RESULTS) else path


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its record, its distilled set, and methods to show and evaluate them.

    Args:
        config: settings of the run.
        record: accuracies, losses, seconds, versions; see `RunRecord`.
        results_dir: folder with its record and set.
        dataset: the real images if they were given as arrays; None if the data set has a name.
    """

    config: RunConfig
    record: RunRecord
    results_dir: Path
    dataset: ImageDataset | None = None

    def __repr__(self) -> str:
        return repr(self.record).replace("RunRecord", "Run", 1)

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the record."""
        return self.record._repr_html_()

    @cached_property
    def distilled(self) -> SubsetSequence:
        """The distilled set, S_1 … S_K.

        Raises:
            StorageError: there is a record and no set: most committed records come without their sets, and a run on a whole
                data set has none.
        """
        return load_sequence(self._find_set())

    @cached_property
    def selected(self) -> SubsetSequence:
        """The set with the iterate of S_K that scored best; the distilled set itself if that is the last one.

        Raises:
            StorageError: there is none, as in `distilled`; runs of older versions did not keep it.
        """
        if self.record.selects_last:
            return self.distilled
        selected = load_sequence(self._find_set(selected=True))  # files of older versions do not say that they are selected
        return replace(selected, metadata=selected.metadata | {"last_sha256": self.record.synthetic_sha256})

    @property
    def has_selected(self) -> bool:
        """Whether the selected iterate is not the last one, and its set was kept."""
        return not self.record.selects_last and set_path(self.results_dir, self.record.run_id, selected=True).is_file()

    def _find_set(self, selected: bool = False) -> Path:
        """Returns where the distilled set, or the selected one, is; raises StorageError if there is none."""
        all_real = f"{self.record.run_id} has no distilled set, because method 'whole' trains on all real images"
        require(self.config.method != "whole", f"{all_real}; take the run of another method, such as mtt", StorageError)
        path = set_path(self.results_dir, self.record.run_id, selected)
        remedy = f"{'run' if self.dataset is None else 'distill'}(…, force=True)"
        message = f"{path} is not there, although the run has a record; give {remedy} to distil it again"
        require(path.is_file(), message, StorageError)
        return path

    @property
    def losses(self) -> "DataFrame":
        """The loss of every iteration, in columns `stage`, `iteration` (both counted from 1) and `loss`."""
        from pandas import DataFrame

        rows = [
            (k, iteration, loss)
            for k, stage in enumerate(self.record.stages, start=1)
            for iteration, loss in enumerate(stage["losses"], start=1)
        ]
        return DataFrame(rows, columns=["stage", "iteration", "loss"])

    @property
    def scores(self) -> "DataFrame":
        """Accuracies (%) of scored iterates, in columns `stage`, `iteration`, `images` ("validation", "test"), `accuracy`."""
        from pandas import DataFrame

        rows = list_scores(self.record.stages, self.record.selected_on)
        return DataFrame(rows, columns=["stage", "iteration", "images", "accuracy"])

    def show(self, max_per_class: int = 10, classes: Sequence[int] | None = None) -> "Figure":
        """Draws the distilled images, a row for each class and a block of columns for each subset."""
        from seqmatch_lib.report.figures import show_pictures

        names = self.class_names
        _check_count("max_per_class", max_per_class)
        is_list = classes is None or isinstance(classes, Sequence)
        known = range(len(names))
        unknown = [one for one in classes or () if isinstance(one, bool) or one not in known] if is_list else classes
        require(is_list and not unknown, f"classes {unknown!r:.120} are unknown; give a list of some of 0 … {len(names) - 1}")
        steps = [f", step size {subset.lr:.3g}" for subset in self.distilled.subsets]
        blocks = {f"{name}{step}": pixels for (name, pixels), step in zip(self.pictures().items(), steps, strict=True)}
        return _close(show_pictures(blocks, names, self.record.run_id, max_per_class, classes))

    def pictures(self) -> dict[str, torch.Tensor]:
        """Returns name of subset -> its images as (classes * ipc, C, H, W) pixels; pixels of real images lie in [0, 1].

        To show whitened images, the data set is needed if no sheet of their pictures was kept; see `load_pictures`.
        """
        self._find_set()
        pictures = load_pictures(self.config, self.results_dir, self.dataset)
        several = len(pictures) > 1
        names = [f"{self.config.method}{f', $S_{k}$' if several else ''}" for k in range(1, len(pictures) + 1)]
        return dict(zip(names, pictures, strict=True))

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in order; numbers if the set does not hold names."""
        spec = find_dataset(self.config.dataset) if self.dataset is None else self.dataset.spec
        return self.distilled.metadata.get("class_names") or [str(label) for label in range(spec.num_classes)]

    def plot_losses(self, window: int = 20) -> "Figure":
        """Draws the matching loss of every stage, as a running mean over `window` iterations."""
        from seqmatch_lib.report.figures import plot_losses

        _check_count("window", window)
        return _close(plot_losses({self.config.method: self.record}, window).figure)

    def evaluate(
        self,
        networks: Sequence[str] | None = None,
        joint: bool = False,
        random: bool = False,
        seed: int = 0,
        set: Mapping[str, Any] | None = None,
        results_dir: Path | str | None = None,
        selected: bool = False,
        max_minutes: float | None = None,
    ) -> Reevaluation:
        """Trains fresh networks on the distilled set, or the `selected` one, and tests them; arguments as in `evaluate`."""
        sequence = self.selected if selected else self.distilled
        return evaluate(sequence, networks, joint, random, seed, set, self.dataset, results_dir, max_minutes)


def _check_count(name: str, value: Any) -> None:
    is_count = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
    require(is_count, f"{name} {value!r:.120} must be a whole number of at least 1")


def _close(figure: "Figure") -> "Figure":
    """Returns a figure, closed, so that a notebook draws it once: open figures are drawn again at the end of a cell."""
    from matplotlib.pyplot import close

    close(figure)
    return figure


@contextmanager
def _usual_torch() -> Iterator[None]:
    """Suspends the caller's modes of torch (inference, no_grad, autocast), which would stop gradients or change results.

    Raises:
        ConfigError: torch's default dtype or device was changed. They hold for all threads, so they are not set back here.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    require(dtype is torch.float32, f"torch's default dtype is {dtype}; call torch.set_default_dtype(torch.float32) first")
    remedy = "call torch.set_default_device('cpu') first; a GPU is found without it"
    require(device.type == "cpu", f"torch's default device is {device}; {remedy}")
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(choose_device().type, enabled=False):
        yield


@_usual_torch()
def run(
    preset: str | RunConfig,
    scale: str = "paper",
    seed: int = 0,
    set: Mapping[str, Any] | None = None,
    results_dir: Path | str = RESULTS,
    max_minutes: float | None = None,
    force: bool = False,
    download: bool = False,
) -> Run:
    """Runs a preset, goes on with a stopped run of it, or reads the record of a finished one.

    Args:
        preset: a name from `presets()`; or a `RunConfig`, which has its own scale, seed and settings: then leave these out.
        scale: "smoke" (seconds, means nothing), "reduced" (a rehearsal, minutes), "short" (the published networks and
            training, fewer teachers and iterations; hours to days on a CPU) or "paper" (the published settings).
        seed: of initial images, batches and evaluation networks.
        set: settings that differ from the preset, by dotted keys: `{"mtt.syn_steps": 20, "subset_ipcs": [5, 5]}`.
        results_dir: folder of records and distilled sets. The default one may also lie above the current directory.
        max_minutes: stop at the first checkpoint after this time, with `OutOfTime`.
        force: discard the record, if there is one, and run again; an unfinished run goes on, see `run_experiment`.
        download: whether a missing data set may be downloaded.

    Raises:
        ConfigError: an unknown preset, scale or key, or a value out of range.
        DataError: the data set is not there.
    """
    if isinstance(preset, RunConfig):
        remedy = "leave these out, or make another one with RunConfig.from_preset(preset, scale, seed, settings)"
        alone = (scale, seed, set) == ("paper", 0, None)
        require(alone, f"a RunConfig has its own scale, seed and settings; {remedy}")
        config = preset
    else:
        config = config_asked_for(preset, scale, seed, as_overrides(set))
    folder = _results_folder(results_dir, in_library=False)
    record = run_experiment(config, folder, max_minutes=max_minutes, force=force, download=download)
    return Run(config, record, folder)


@_usual_torch()
def distill(
    train: Arrays | Dataset,
    test: Arrays | Dataset,
    method: str = "mtt",
    subset_ipcs: Sequence[int] = (10,),
    iterations: int | None = None,
    scale: str = "reduced",
    seed: int = 0,
    set: Mapping[str, Any] | None = None,
    results_dir: Path | str | None = None,
    force: bool = False,
    max_minutes: float | None = None,
) -> Run:
    """Distils images that are in memory, without a preset or a folder.

    Args:
        train: (images, labels): tensors or numpy arrays, (N, C, H, W) uint8, or floats in [0, 1], and (N,) whole numbers
            0 … classes - 1; or a `torch.utils.data.Dataset` of such pairs.
        test: the same for the test images.
        method: base method: "mtt", "idc", "dm", "krr", or a registered one of your own.
        subset_ipcs: images per class of S_1 … S_K; more than one makes it SeqMatch.
        iterations: for each subset; by default those of the preset that gives the other settings.
        scale: of the preset that gives all other settings: `cifar10-ipc10-<method>`, with several subsets
            `cifar10-ipc10-seqmatch_<method>`, for a method of your own `cifar10-ipc10-random` and the method's own defaults.
            They have, for example, a ConvNet of depth 3, which needs images of at least 8 pixels.
        seed: of initial images, batches and evaluation networks.
        set: settings that differ from that preset, by dotted keys.
        results_dir: folder that keeps everything, also teachers, so that the same call can go on from it. By default a
            temporary folder, which is removed when the call fails or the returned run is no longer used. Then
            `run.distilled.save(path)` keeps the set.
        force: discard the record, if there is one, and distil again; an unfinished run goes on, see `run_experiment`.
        max_minutes: stop at the first checkpoint after this time, with `OutOfTime`; it needs `results_dir`.

    Raises:
        DataError: images or labels do not have this form; the message says what was found.
        ConfigError: an unknown method, or a setting out of range.
    """
    _check_kept(max_minutes, results_dir)
    dataset, settings = dataset_from_arrays(train, test), as_overrides(set)
    named = f"dataset {settings.get('dataset')!r:.120} cannot be set, since the images are those given; leave it out"
    require("dataset" not in settings, named)
    require("method" not in settings, f"method cannot be set like a setting; give method={settings.get('method')!r:.120}")
    config = _config_of_arrays(dataset.spec.name, method, subset_ipcs, iterations, scale, seed, settings)
    with ExitStack() as stack:
        folder = as_path(results_dir or stack.enter_context(TemporaryDirectory(prefix="seqmatch-")))
        record = run_experiment(config, folder, force=force, dataset=dataset, max_minutes=max_minutes)
        run = Run(config, record, folder, dataset)
        weakref.finalize(run, stack.pop_all().close)  # from here on the folder lives as long as the run
    return run


def _config_of_arrays(
    dataset: str,
    method: str,
    subset_ipcs: Sequence[int],
    iterations: int | None,
    scale: str,
    seed: int,
    settings: Mapping[str, Any],
) -> RunConfig:
    """Returns the run that `distill` makes of images of this name; the other arguments are those of `distill`."""
    sizes = f"subset_ipcs {subset_ipcs!r:.120} must be a list of whole numbers of at least 1, such as [5, 5]"
    try:
        ipcs = [index(ipc) for ipc in subset_ipcs]
    except TypeError as error:
        raise ConfigError(sizes) from error
    require(bool(ipcs) and min(ipcs) >= 1, sizes)
    base = str(method).removeprefix(SEQUENTIAL_PREFIX)
    uses_teachers = get_method(base).uses_teachers
    method = f"{SEQUENTIAL_PREFIX}{base}" if len(ipcs) > 1 else base
    config = RunConfig.from_preset(_preset_of(method), scale, seed)
    config = replace(config, preset=_preset_of(base))  # under which earlier runs were recorded, so that their ids stay valid
    changes: dict[str, Any] = {
        "dataset": dataset,
        "zca": False,
        "method": method,
        "ipc": sum(ipcs),
        "subset_ipcs": ipcs,
        "intervals": [list(interval) for interval in config.intervals[:1]] if uses_teachers else [],
    }
    if iterations is not None:
        default = getattr(get_method(base).config_class, "iterations", None)
        changes[f"{base}.iterations"] = [iterations] if isinstance(default, tuple) else iterations
    return config.changed(changes | settings)


def _check_kept(max_minutes: float | None, results_dir: Path | str | None) -> None:
    """Raises ConfigError if work may stop where nothing is kept."""
    is_kept = max_minutes is None or results_dir is not None
    require(is_kept, "max_minutes needs a folder that keeps the state; give results_dir (on the command line --results DIR)")


def _preset_of(method: str) -> str:
    """Returns the preset that lends its settings to images in memory; that of random images for a method without one."""
    preset = f"cifar10-ipc10-{method}"
    return preset if preset in preset_names() else "cifar10-ipc10-random"


@_usual_torch()
def evaluate(
    distilled: SubsetSequence | Path | str,
    networks: Sequence[str] | None = None,
    joint: bool = False,
    random: bool = False,
    seed: int = 0,
    set: Mapping[str, Any] | None = None,
    dataset: ImageDataset | tuple[Arrays | Dataset, Arrays | Dataset] | None = None,
    results_dir: Path | str | None = None,
    max_minutes: float | None = None,
) -> Reevaluation:
    """Trains fresh networks on a distilled set and tests them.

    Args:
        distilled: the set, or its file.
        networks: architectures, for example ["convnet", "resnet18"]; by default those of the set's own run.
        joint: train on all subsets at once instead of stage by stage.
        random: also train on the same number of random real images.
        seed: of the networks and of these random images.
        set: settings that differ from those of the set's own run, by dotted keys: `{"training.epochs": 600}`.
        dataset: the real images, or (train, test) as `distill` takes them; by default the data set whose name the set holds.
        results_dir: folder that keeps the record, and the state, so that the same call can go on after it was stopped.
        max_minutes: stop at the first checkpoint after this time, with `OutOfTime`; it needs `results_dir`.

    Returns:
        `accuracy` and `random_baseline` in per cent, by architecture.

    Raises:
        ConfigError: the set does not say how it was made, `networks` is not a list of names, or `set` has a setting of
            distillation.
        DataError: the set was distilled from other images than those found.
        StorageError: `results_dir` holds the same evaluation of a set with other images.
    """
    is_list = networks is None or (isinstance(networks, Iterable) and not isinstance(networks, str))
    require(is_list, f"networks {networks!r:.120} must be a list of names, such as ['convnet', 'resnet18']")
    for name, flag in (("joint", joint), ("random", random)):
        require(isinstance(flag, bool), f"{name} {flag!r:.120} must be True or False")
    _check_kept(max_minutes, results_dir)
    sequence = distilled if isinstance(distilled, SubsetSequence) else load(distilled)
    changes = as_overrides(set) | ({} if networks is None else {"evaluation.networks": list(networks)})
    of_distillation = [key for key in changes if not str(key).startswith(("training.", "evaluation.", "network."))]
    rule = "of a finished set only settings of training, evaluation and network can be changed"
    require(not of_distillation, f"{rule}; leave out {', '.join(map(str, of_distillation))}, or distil another set with it")
    config = config_of(sequence, "the set" if sequence is distilled else distilled).changed(changes)
    seed = RunConfig.from_dict(config.as_dict() | {"seed": seed}).seed  # a whole number, or a ConfigError
    if dataset is not None and not isinstance(dataset, ImageDataset):
        pair = "give the pair (train, test) that `distill` was given"
        require(isinstance(dataset, tuple | list), f"dataset {dataset!r:.120} is not a pair; {pair}")
        require(len(dataset) == 2, f"dataset has {len(dataset)} parts; {pair}")
        dataset = dataset_from_arrays(*dataset)
    real = prepare_data(dataset or load_dataset(config.dataset), config.zca, config.select_on, choose_device())
    folder = None if results_dir is None else as_path(results_dir)
    return reevaluate(sequence, config, real, joint, seed, random, folder, Budget(max_minutes))


def config_of(sequence: SubsetSequence, origin: Path | str) -> RunConfig:
    """Returns the configuration that a set was made with. Raises ConfigError, which names the `origin`, if it has none."""
    remedy = "give a file written by `run`, or a SubsetSequence with metadata={'config': RunConfig.from_preset(…).as_dict()}"
    require("config" in sequence.metadata, f"{origin} does not say how it was made; {remedy}")
    return RunConfig.from_dict(sequence.metadata["config"])


def load(path: Path | str) -> SubsetSequence:
    """Reads a distilled set that was written by a run or by `SubsetSequence.save`.

    Raises:
        StorageError: the file is missing, damaged, or not a distilled set.
    """
    return load_sequence(as_path(path))


def records(results_dir: Path | str = RESULTS) -> "DataFrame":
    """Returns a row for each network of each run, with its accuracy in per cent.

    Args:
        results_dir: folder of records; by default the committed ones, found as in `find_folder`.

    Returns:
        Columns `dataset`, `ipc`, `method`, `num_subsets`, `scale`, `run_id`, `seed`, `training` ("last", "selected", "joint",
        or "random" for random real images), `network`, `accuracy`.

    Raises:
        ConfigError: the folder holds no records.
    """
    from pandas import DataFrame

    runs = load_runs(_results_folder(results_dir))
    require(bool(runs), f"{results_dir} holds no records; make one with `run(preset, results_dir=…)` or give another folder")
    names = ("dataset", "ipc", "method", "num_subsets", "scale", "run_id", "seed")
    rows = [
        (*(getattr(run, name) for name in names), kind.removesuffix(" real"), network, value)
        for run in runs
        for kind, accuracies in run.accuracies.items()
        if accuracies is not None
        for network, accuracy in accuracies["by_network"].items()
        for value in accuracy["values"]
    ]
    return DataFrame(rows, columns=[*names, "training", "network", "accuracy"])


def reevaluations(results_dir: Path | str = RESULTS) -> "DataFrame":
    """Returns a row for each network of each re-evaluation that `evaluate` has kept, with its accuracy in per cent.

    Args:
        results_dir: folder of records; by default the committed ones, found as in `find_folder`.

    Returns:
        Columns `dataset`, `run_id` (of the set; "imported" for one from elsewhere), `joint`, `seed`, `training` ("set",
        "selected set" for that with the selected iterate, or "random" for random real images), `network`, `accuracy`.

    Raises:
        ConfigError: the folder holds no re-evaluations.
    """
    from pandas import DataFrame

    found = load_reevaluations(_results_folder(results_dir))
    remedy = "make one with `evaluate(…, results_dir=…)` or give another folder"
    require(bool(found), f"{results_dir} holds no re-evaluations; {remedy}")
    set_names = {"last": "set", "selected": "selected set"}
    rows = [
        (again.config["dataset"], again.run_id, again.joint, again.seed, training, network, value)
        for again in found
        for training, accuracies in ((set_names[again.iterate], again.accuracy), ("random", again.random_baseline or {}))
        for network, accuracy in accuracies.items()
        for value in accuracy["values"]
    ]
    return DataFrame(rows, columns=["dataset", "run_id", "joint", "seed", "training", "network", "accuracy"])


def presets(dataset: str | None = None, scale: str = "paper", results_dir: Path | str = RESULTS) -> "DataFrame":
    """Returns the presets, with what was published for them and the minutes that a run takes.

    Args:
        dataset: return the presets of this data set only; by default all.
        scale: for which the minutes are given.
        results_dir: folder with published accuracies and benchmarks; without them these columns are empty.

    Returns:
        Columns `preset`, `ipc` (0: all images), `method`, `num_subsets`, `published` (per cent), `check` (how that number was
        checked; "unverified" ones were written down from memory) and `minutes`: measured where an equal run has a record, else
        predicted for as many threads as torch has here.
    """
    from pandas import DataFrame

    from seqmatch_lib.report.tables import load_published

    known = dataset is None or dataset in tuple(DATASETS)
    require(known, f"data set {dataset!r:.120} is unknown; use one of {', '.join(DATASETS)}")
    results_dir = _results_folder(results_dir)
    configs = [RunConfig.from_preset(name, scale) for name in preset_names()]
    configs = [config for config in configs if dataset in (None, config.dataset)]
    names, has_published = ("preset", "ipc", "method", "num_subsets"), (results_dir / "published").is_dir()
    rows = load_published(results_dir).itertuples() if has_published else ()
    published = {(row.dataset, row.ipc, row.method): (row.mean, row.check) for row in rows}
    has_benchmark = any((results_dir / "benchmarks").glob("*.json"))
    model = CostModel.load(results_dir) if has_benchmark else None
    frame = DataFrame([[getattr(config, name) for name in names] for config in configs], columns=names)
    cells = [published.get((config.dataset, config.ipc, config.method), (None, "")) for config in configs]
    frame["published"] = [mean for mean, _ in cells]
    frame["check"] = [check for _, check in cells]
    frame["minutes"] = [model and model.minutes(config) for config in configs]
    return frame
