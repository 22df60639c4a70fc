"""What notebooks read: finished runs of a results folder. With `compute` missing runs are run ("allowed" below)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pandas import DataFrame

from seqmatch_lib.bench.cost import CostModel
from seqmatch_lib.data.builtin import OF_PIXELS
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.front import RESULTS, Run, as_path, find_folder, look_for
from seqmatch_lib.report.evidence import Evidence, runs_of
from seqmatch_lib.report.texts import name_run
from seqmatch_lib.runs.config import SCALES, RunConfig, config_of_subsets, even_subsets, preset_names
from seqmatch_lib.runs.coupling_measurements import TABLES, find_table, load_coupling, measure_coupling
from seqmatch_lib.runs.experiment import run_experiment
from seqmatch_lib.runs.order import independent_parts, measure_order, missing_parts, needed_runs, one_set_for_longer
from seqmatch_lib.runs.records import RunRecord, load_record, load_runs, order_path, record_path
from seqmatch_lib.store.files import digest_json, write_parts
from seqmatch_lib.subsets import set_path

COMPUTED = "build/results"  # of the repository: where notebooks put what they compute
ANNOUNCED_MINUTES = 2.0  # what takes longer is announced


def list_configs(
    dataset: str, bases: Sequence[str], divisions: Sequence[Sequence[int]], scale: str, seeds: Sequence[int] | int
) -> list[RunConfig]:
    """Returns the runs of several base methods on sets that are divided in several ways, for several seeds.

    Args:
        dataset: of the presets.
        bases: base methods.
        divisions: a list for each set, with the images per class of its subsets; a single number is the base method alone.
        scale: of the runs.
        seeds: one seed, or several.

    Raises:
        ConfigError: an unknown preset or scale, seeds that are no whole numbers, or no lists of base methods and divisions.
    """
    seeds = _read_seeds(seeds)
    require(isinstance(bases, list | tuple), f"bases {bases!r:.120} must be a list of base methods, such as ['mtt']")
    are_lists = isinstance(divisions, list | tuple) and all(isinstance(sizes, list | tuple) and sizes for sizes in divisions)
    require(are_lists, f"divisions {divisions!r:.120} must be a list of lists of images per class, such as [[10], [5, 5]]")
    return [config_of_subsets(dataset, base, sizes, scale, seed) for base in bases for sizes in divisions for seed in seeds]


def list_presets(dataset: str, scale: str, seeds: Sequence[int] | int) -> list[RunConfig]:
    """Returns the runs of all presets of a data set, for several seeds.

    Raises:
        ConfigError: the data set has no presets, the scale is unknown, or seeds are no whole numbers.
    """
    names = [name for name in preset_names() if name.split("-")[0] == dataset]
    known = ", ".join(dict.fromkeys(name.split("-")[0] for name in preset_names()))
    require(bool(names), f"data set {dataset!r:.120} has no presets; use one of {known}")
    return [RunConfig.from_preset(name, scale, seed) for name in names for seed in _read_seeds(seeds)]


def _read_seeds(seeds: Sequence[int] | int) -> list[int]:
    seeds = list(seeds) if isinstance(seeds, list | tuple) else [seeds]
    require(all(type(seed) is int for seed in seeds), f"seeds {seeds} must be whole numbers, such as [0, 1, 2]")
    return seeds


@dataclass(frozen=True)
class Results:
    """Finished runs of one or two results folders.

    Args:
        folders: where records are looked for, in this order.
        work_dir: where missing runs are run; None: a missing run is an error.
    """

    folders: tuple[Path, ...]
    work_dir: Path | None = None

    @classmethod
    def open(cls, results_dir: Path | str = RESULTS, compute: bool = False) -> "Results":
        """Opens the results of a notebook, from any working directory.

        Args:
            results_dir: folder of records; the committed ones by default. A relative path is looked for as in `find_folder`.
            compute: whether missing runs are run. They go into `results_dir`; if that is the committed folder, they go into
                `build/results` of the repository. Committed records are read first. A relative path starts at the current
                directory if it exists there or leads upwards, and at the repository otherwise. Outside a checkout, the
                current directory stands for the repository.

        Raises:
            StorageError: there is no such folder, and `compute` was not asked for.
        """
        require(isinstance(compute, bool), f"compute {compute!r:.120} must be True or False")
        results_dir = as_path(results_dir)
        if not compute:
            return cls((find_folder(results_dir),))
        here, committed = Path.cwd(), look_for(RESULTS)
        home = here if committed is None else committed.parent
        is_from_here = (here / results_dir).is_dir() or ".." in results_dir.parts
        work_dir = ((here if is_from_here else home) / results_dir).resolve()
        if work_dir == (home / RESULTS).resolve():
            work_dir = home / COMPUTED
        return cls((work_dir,) if committed is None else (committed, work_dir), work_dir)

    def records(self) -> list[RunRecord]:
        """Returns the records of all folders; a run that is in two of them is returned once."""
        runs = [run for folder in reversed(self.folders) for run in load_runs(folder)]
        return list({run.run_id: run for run in runs}.values())

    def evidence(self) -> Evidence:
        """Returns the records of all folders together, as `Evidence.load` does, for the queries and figures of `report`."""
        return Evidence.load(*self.folders)

    def run(self, configs: Sequence[RunConfig], with_sets: bool = False) -> list[Run]:
        """Returns finished runs, in this order. Runs those that are missing, and first says how long that will take.

        Args:
            configs: what to look for.
            with_sets: whether a run counts as missing if its distilled set is missing; few runs are committed with theirs.

        Raises:
            StorageError: runs are missing, and `compute` was not asked for.
            SeqMatchError: as from `run_experiment`, for example because the data set is not there.
        """
        runs = {config.run_id: self._find(config, with_sets) for config in configs}
        missing = list({config.run_id: config for config in configs if runs[config.run_id] is None}.values())
        if missing:
            if self.work_dir is None:
                self._refuse(missing, len(runs), "distilled set" if with_sets else "record")
            minutes, unknown = self._predict(missing)
            if minutes > ANNOUNCED_MINUTES or unknown:
                print(f"{len(missing)} of {len(runs)} runs are missing and are run now, {_duration(minutes, unknown)}.")
        for config in missing:
            record = run_experiment(config, self.work_dir)
            has_set = config.method == "whole" or set_path(self.work_dir, config.run_id).is_file()
            if with_sets and not has_set:  # an old record, and nothing is left of which the set could be made again
                record = run_experiment(config, self.work_dir, force=True)
            runs[config.run_id] = Run(config, record, self.work_dir)
        return [runs[config.run_id] for config in configs]

    def available(self, configs: Mapping[str, RunConfig]) -> dict[str, Run]:
        """Returns name -> finished run. Missing runs are run if that is allowed, and left out otherwise."""
        if self.work_dir is not None:
            self.run(list(configs.values()))
        return {name: run for name, config in configs.items() if (run := self._find(config, False)) is not None}

    def prepare(self, configs: Sequence[RunConfig]) -> Evidence:
        """Runs what is missing, if that is allowed, and returns the records of all folders together.

        Raises:
            StorageError: it is not allowed, and none of these runs has a record.
        """
        if self.work_dir is not None or not any(self._find(config, False) for config in configs):
            self.run(configs)
        return self.evidence()

    def measure_orders(self, configs: Sequence[RunConfig]) -> Evidence:
        """Makes missing ablations of order and division of SeqMatch runs, and returns the records of all folders together.

        Raises:
            StorageError: making them is not allowed, and there is none of them.
        """
        known = {digest_json(record.config): record for record in self.evidence().orders}
        missing = [(config, missing_parts(config, known.get(config.hash))) for config in configs]
        if self.work_dir is not None:
            for config, parts in missing:
                self._measure_order(config, parts)
        elif configs and not any(config.hash in known for config in configs):
            needed = [run for config, parts in missing for run in needed_runs(config, parts)]
            self._refuse(needed, len(needed), "distilled set")
        return self.evidence()

    def _measure_order(self, config: RunConfig, parts: Sequence[str], networks: Sequence[str] = ()) -> None:
        """Makes these parts of an ablation of order and division; does nothing without parts."""
        if parts:
            needed = needed_runs(config, parts)
            for run in needed:
                self._copy_to_work(run)
            Results((self.work_dir,), self.work_dir).run(needed, with_sets=True)  # few are committed with their sets
            measure_order(config, self.work_dir, parts, networks=networks)

    def _copy_to_work(self, config: RunConfig) -> None:
        """Copies a finished run with its set, and its ablation of order and division, to where missing runs are run."""
        run = self._find(config, True)
        if run is None or run.results_dir == self.work_dir or set_path(self.work_dir, config.run_id).is_file():
            return
        for path in (set_path(Path(), config.run_id), order_path(Path(), config.run_id), record_path(Path(), config)):
            if (run.results_dir / path).is_file():
                write_parts(self.work_dir / path, (run.results_dir / path).read_bytes())

    def measure_coupling(self, dataset: str, scale: str, seed: int = 0, ipc: int = 10) -> dict[str, dict[str, DataFrame]]:
        """Returns the coupling measurements of sequences of MTT that stand for their preset, published settings first.

        Args:
            dataset: of the runs.
            scale: missing measurements are made at this scale, if that is allowed.
            seed: of the runs.
            ipc: images per class of the sets, a size with presets of MTT and its sequence.

        Returns:
            Heading of a sequence, see `texts.name_run` -> its measurements, as `load_coupling` returns them.

        Raises:
            ConfigError: there are no presets of that size.
            StorageError: there are none at `scale`, and measuring is not allowed.
        """
        joint, sequential, divided = _runs_of_coupling(dataset, scale, seed, ipc)
        measured: dict[str, tuple[RunRecord, dict[str, DataFrame]]] = {}  # by run id
        for folder in reversed(self.folders):
            for part, of_scale in Evidence(load_runs(folder)).parts_of(SCALES):
                for run in part.runs:
                    wanted = (run.dataset, run.ipc, run.scale, run.seed) == (dataset, ipc, of_scale, seed)
                    has_tables = wanted and any(find_table(run, name, folder) for name in TABLES)
                    if has_tables and run in runs_of(run.preset, of_scale, part.runs):
                        measured[run.run_id] = run, load_coupling(run.run_id, folder)
        runs = [joint, sequential, divided, *independent_parts(sequential)]
        begun = self.work_dir is not None and (self.work_dir / "coupling" / sequential.run_id).is_dir()
        _, own = measured.get(sequential.run_id, (None, {}))
        is_known = scale in {run.scale for run, _ in measured.values()}
        if not is_known or (begun and len(own) < len(TABLES)):  # begun, and stopped before its end
            if self.work_dir is None:
                self._refuse(runs, len(runs), "coupling measurement")
            _, made, *_ = Results((self.work_dir,), self.work_dir).run(runs, with_sets=True)
            tables = measure_coupling(joint, sequential, [divided], self.work_dir)
            measured[sequential.run_id] = made.record, tables

        def rank(run: RunRecord) -> tuple[int, int]:
            return SCALES.index(run.scale), run.config["teachers"]["num_teachers"]

        shown = sorted(measured.values(), key=lambda found: rank(found[0]), reverse=True)
        return {name_run(run): tables for run, tables in shown}

    def reevaluate(self, runs: Sequence[Run], networks: Sequence[str], num_networks: int) -> Evidence:
        """Evaluates sets on more architectures, if that is allowed, and returns the records of all folders together.

        A set is not evaluated again on an architecture if accuracies of this many networks are known there, trained as in
        the run itself, together with those of random real images. The controls are evaluated, too: the sets with selected
        iterates, where these were kept; and of a sequence the base method's one set with as many iterations and epochs,
        which is distilled if it is missing, and independent halves, with as many networks as its run has.
        """
        if self.work_dir is None:
            return self.evidence()
        evidence = self.evidence()
        known = {network: evidence.on(network).accuracies for network in networks}
        for run in runs:
            epochs = run.config.num_subsets * run.config.training.epochs
            self._evaluate_missing(run, known, num_networks, ("last", "random"), epochs)
            if run.has_selected:
                self._evaluate_missing(run, known, num_networks, ("selected",), epochs)
            if run.config.num_subsets > 1:
                (longer,) = self.run([one_set_for_longer(run.config)], with_sets=True)
                self._evaluate_missing(longer, known, num_networks, ("last",), epochs)
                orders = [record for record in evidence.orders if digest_json(record.config) == run.config.hash]
                missing = [name for name in networks if not any("divided, staged" in record.on(name) for record in orders)]
                self._measure_order(run.config, ["halves"] if missing else [], missing)
        return self.evidence()

    def _evaluate_missing(
        self, run: Run, known: Mapping[str, DataFrame], num_networks: int, kinds: Sequence[str], epochs: int
    ) -> None:
        """Evaluates a set of a run on the architectures where accuracies of these kinds, after these epochs, are not known.

        `known` has the accuracies by architecture. Epochs are those of all stages. Networks are trained on random real images,
        too, if these are among the kinds.
        """
        missing, asked = [], {"evaluation.num_networks": num_networks}
        if epochs != run.config.num_subsets * run.config.training.epochs:
            asked["training.epochs"] = epochs // run.config.num_subsets
        for network, rows in known.items():
            rows = rows[(rows["record"] == run.record.config_hash[:8]) & (rows["epochs"] == epochs)]
            alike = rows["asked"].map(lambda changes: changes.keys() <= {"training.epochs"})
            enough = rows["values"].map(len) >= num_networks
            if not {kind.split()[0] for kind in rows[alike & enough]["kind"]}.issuperset(kinds):
                missing.append(network)
        if missing:
            of_random, of_selected = "random" in kinds, "selected" in kinds
            run.evaluate(missing, random=of_random, set=asked, results_dir=self.work_dir, selected=of_selected)

    def has_set(self, record: RunRecord) -> bool:
        """Returns whether the distilled set of a finished run was kept beside its record."""
        return record.method != "whole" and self._find(RunConfig.from_dict(record.config), True) is not None

    def open_run(self, record: RunRecord) -> Run:
        """Returns a finished run, if possible from a folder that has its distilled set."""
        config = RunConfig.from_dict(record.config)
        run = self._find(config, self.has_set(record))
        where = " or ".join(map(str, self.folders))
        require(run is not None, f"{record.run_id} has no record in {where}; open the folder it was run in", StorageError)
        return run

    def _find(self, config: RunConfig, with_set: bool) -> Run | None:
        """Returns a finished run, or None."""
        for folder in self.folders:
            path = record_path(folder, config)
            if path.is_file() and (not with_set or config.method == "whole" or set_path(folder, config.run_id).is_file()):
                return Run(config, load_record(path), folder)
        return None

    def _refuse(self, missing: Sequence[RunConfig], total: int, what: str) -> NoReturn:
        """Raises the error for missing runs, which says which they are and how to make them."""
        first, others = missing[0], len(missing) - 1
        raise StorageError(
            f"{len(missing)} of {total} runs have no {what} in {self.folders[0]}: "
            f"{first.run_id} (preset {first.preset}, scale {first.scale}){f' and {others} more' if others else ''}; "
            f"set compute = True to run what is missing, {_duration(*self._predict(missing))}"
        )

    def _predict(self, configs: Sequence[RunConfig]) -> tuple[float, int]:
        """Returns the minutes that runs will take, and for how many runs they are not known.

        They are those of a run with equal settings and another seed, if there is one, else predicted by a committed benchmark.
        """
        committed = look_for(RESULTS)
        if committed is None or not any((committed / "benchmarks").glob("*.json")):
            return 0.0, len(configs)
        model = replace(CostModel.load(committed), records=self.records())
        minutes = [model.minutes(config) for config in configs]
        return sum(value or 0.0 for value in minutes), sum(value is None for value in minutes)


def _runs_of_coupling(dataset: str, scale: str, seed: int, ipc: int) -> tuple[RunConfig, RunConfig, RunConfig]:
    """Returns the runs whose coupling is measured: MTT on one set, its sequence, and a sequence of five subsets."""
    start, end, names = f"{dataset}-ipc", "-seqmatch_mtt", preset_names()
    sizes = [name[len(start) : -len(end)] for name in names if name.startswith(start) and name.endswith(end)]
    sizes = [int(size) for size in sizes if f"{start}{size}-mtt" in names]
    known = f"use {', '.join(map(str, sizes))}" if sizes else "take another data set"
    require(ipc in sizes, f"ipc {ipc!r:.40}: {dataset!r:.120} has no presets of MTT and its sequence of this size; {known}")
    problem = f"{dataset!r} has labels of pixels, and the coupling is measured by images, easy and hard"
    require(dataset not in OF_PIXELS, f"{problem}; take another data set")
    joint, divided = list_configs(dataset, ["mtt"], [[ipc], even_subsets(ipc, 5)], scale, seed)
    return joint, RunConfig.from_preset(f"{start}{ipc}{end}", scale, seed), divided


def _duration(minutes: float, unknown: int) -> str:
    """Returns how long runs take, in words; for some or all of them this may be unknown."""
    if unknown and not minutes:
        return "for an unknown time, since no benchmark covers them"
    known = f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
    return known if not unknown else f"{known}, and longer because of {unknown} of them that no benchmark covers"
