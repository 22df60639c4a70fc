"""What notebooks read: finished runs of a results folder. Missing ones are run where that is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqmatch_lib.bench.report import load_benchmark, newest_benchmark
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.front import RESULTS, Run, predict_minutes
from seqmatch_lib.report.queries import Evidence
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import run_experiment
from seqmatch_lib.runs.records import RunRecord, load_record, load_runs
from seqmatch_lib.store.files import digest_json

COMPUTED = "build/results"  # of the repository: where notebooks put what they compute
ANNOUNCED_MINUTES = 2.0  # what takes longer is announced


def find_folder(name: Path | str = RESULTS) -> Path:
    """Returns a folder of the current directory, of one above it, or of the repository that this library lies in.

    Raises:
        StorageError: it is in none of them.
    """
    places = [Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]]
    found = next((place / name for place in places if (place / name).is_dir()), None)
    require(
        found is not None,
        f"no folder {name} in {Path.cwd()} or above it; work inside a checkout of the repository, or give results_dir the "
        "path of a folder of records",
        StorageError,
    )
    return found


@dataclass(frozen=True)
class Results:
    """Finished runs of one or two results folders.

    Args:
        folders: that records are looked for in, the first one first.
        work_dir: where missing runs are run; None: they are an error.
    """

    folders: tuple[Path, ...]
    work_dir: Path | None = None

    @classmethod
    def open(cls, results_dir: Path | str = RESULTS, compute: bool = False) -> "Results":
        """Opens the results of a notebook, from any working directory.

        Args:
            results_dir: folder of records; the committed ones by default. A relative path is looked for as in `find_folder`.
            compute: whether missing runs are run: into `results_dir`, or into `build/results` of the repository where that is
                the committed folder. The committed records are looked in first.

        Raises:
            StorageError: there is no such folder.
        """
        if not compute:
            return cls((find_folder(results_dir),))
        committed = find_folder()
        own = committed.parent / (COMPUTED if Path(results_dir) in (Path(RESULTS), committed) else results_dir)
        return cls((committed, own), own)

    @property
    def committed(self) -> Path:
        """The folder that is looked in first."""
        return self.folders[0]

    def records(self) -> list[RunRecord]:
        """Returns the records of all folders, each run once."""
        runs = [run for folder in reversed(self.folders) for run in load_runs(folder)]
        return list({run.run_id: run for run in runs}.values())

    def evidence(self) -> Evidence:
        """Returns what all folders hold, for the queries and figures of `report`."""
        parts = [Evidence.load(folder) for folder in self.folders]
        orders = {digest_json(one.config): one for part in reversed(parts) for one in part.orders}
        again = [one for part in parts for one in part.reevaluations]
        return Evidence(self.records(), again, list(orders.values()), parts[0].trust)

    def run(self, configs: Sequence[RunConfig], with_sets: bool = False) -> list[Run]:
        """Returns finished runs, in this order; runs those that are missing, and says before how long that will take.

        Args:
            configs: what to look for.
            with_sets: whether a run is missing, too, whose distilled set is: few are committed with their sets.

        Raises:
            StorageError: runs are missing, and `compute` was not asked for.
            SeqMatchError: as `run_experiment`, for example where the data set is not there.
        """
        found = {config.run_id: self._find(config, with_sets) for config in configs}
        missing = list({config.run_id: config for config in configs if found[config.run_id] is None}.values())
        if missing:
            require(self.work_dir is not None, self._describe_missing(missing, len(found), with_sets), StorageError)
            minutes, unknown = self._predict(missing)
            if minutes > ANNOUNCED_MINUTES or unknown:
                print(f"{len(missing)} of {len(found)} runs are missing and are run now, {_duration(minutes, unknown)}.")
        for config in missing:
            record = run_experiment(config, self.work_dir)
            found[config.run_id] = Run(config, record, self.work_dir)
        return [found[config.run_id] for config in configs]

    def _find(self, config: RunConfig, with_set: bool) -> Run | None:
        """Returns a finished run, or None."""
        for folder in self.folders:
            path = folder / "runs" / config.dataset / f"{config.run_id}.json"
            has_set = (folder / "distilled" / f"{config.run_id}.safetensors").is_file()
            if path.is_file() and (has_set or not with_set or config.method == "whole"):
                return Run(config, load_record(path), folder)
        return None

    def _describe_missing(self, missing: Sequence[RunConfig], total: int, with_sets: bool) -> str:
        """Returns the error for missing runs: which, and how to make them."""
        first, others = missing[0], len(missing) - 1
        return (
            f"{len(missing)} of {total} runs have no {'distilled set' if with_sets else 'record'} in {self.folders[0]}: "
            f"{first.run_id} (preset {first.preset}, scale {first.scale}){f' and {others} more' if others else ''}; "
            f"set compute = True to run what is missing, {_duration(*self._predict(missing))}"
        )

    def _predict(self, configs: Sequence[RunConfig]) -> tuple[float, int]:
        """Returns the minutes that runs will take, and of how many that is not known.

        What a run of equal settings and another seed took says more than a prediction.
        """
        measured = {_hash_without_seed(run.config): sum(run.seconds.values()) / 60 for run in self.records()}
        benchmark = load_benchmark(newest_benchmark(find_folder() / "benchmarks"))
        each = [measured.get(_hash_without_seed(one.as_dict())) or predict_minutes(one, benchmark) for one in configs]
        return sum(minutes or 0.0 for minutes in each), sum(minutes is None for minutes in each)


def _hash_without_seed(settings: Mapping[str, Any]) -> str:
    return digest_json({**settings, "seed": 0})


def _duration(minutes: float, unknown: int) -> str:
    """Returns how long runs take, in words; of some, nobody may know it."""
    known = f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
    return known if not unknown else f"{known}, and more for {unknown} of them, which no benchmark covers"
