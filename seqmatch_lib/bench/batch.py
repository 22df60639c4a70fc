"""A batch of runs: which there are, which are missing, and what each needs. The Snakefile and `plan` ask it.

A job of a batch is a run, named by its run id, or the teachers that several runs begin with, named by `teachers_of`.
"""

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, nan
from pathlib import Path
from typing import Any, NamedTuple

from seqmatch_lib.bench.cost import CostModel, Work, predict_work
from seqmatch_lib.data.datasets import PAPER_DATASETS, find_dataset
from seqmatch_lib.errors import ConfigError, require
from seqmatch_lib.runs.config import RunConfig, preset_names, require_known
from seqmatch_lib.runs.listing import format_columns
from seqmatch_lib.runs.records import record_path
from seqmatch_lib.store.files import digest_json, only_process

SETTINGS = ("scale", "datasets", "presets", "seeds", "results", "notebooks", "threads", "device", "slot", "memory")
MARGIN = 2.0  # 97 in 100 recorded runs of five minutes and more took less than twice what the others predict
START_MINUTES = 10.0  # on top: imports, data, compilation
DAY = 1440.0  # asked for where nothing is predicted and there is no slot
PROCESS_MEBIBYTES = 512  # Python and torch, beside what a phase holds
SPARE_MEBIBYTES = 3072  # on top of half as much again as predicted: no committed record took more than both together
SPARE_MEBIBYTES_GPU = 16384  # of the node: CUDA's libraries, data on their way, compiling processes; a guess, not measured


class Need(NamedTuple):
    """What a job takes.

    Args:
        minutes: None where no benchmark tells.
        mebibytes: of the largest phase.
        source: "measured", by a committed record of the same run, or "predicted".
    """

    minutes: float | None
    mebibytes: float
    source: str


@dataclass(frozen=True)
class Batch:
    """Presets times seeds at one scale, in one folder of results.

    Args:
        scale: one of `SCALES`.
        presets: names of `preset_names()`.
        seeds: of each preset.
        results: the folder.
        threads: of a job.
        device: "cpu" or "cuda": the one whose benchmarks and records say what a job needs.
        slot: minutes of the longest job that is asked for; a longer run takes several, one after another. None: no limit.
        memory: MiB that are asked for at most. None: no limit.
        known: folder with the records and benchmarks that are known already.
    """

    scale: str
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    results: Path
    threads: int
    device: str = "cpu"
    slot: float | None = None
    memory: float | None = None
    known: Path = Path("paper_results")

    def __post_init__(self) -> None:
        require(self.device in ("cpu", "cuda"), f"device {self.device!r} is unknown; use cpu or cuda")

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Batch":
        """Returns the batch of some settings, such as Snakemake's `--config`; lists are separated by commas or spaces.

        Raises:
            ConfigError: an unknown setting or name, a number that is none, data sets and presets both given.
        """
        for key in settings:
            require_known("setting of a batch", key, SETTINGS)
        scale = str(settings.get("scale", "smoke"))
        presets = split_names(settings.get("presets"))
        datasets = split_names(settings.get("datasets"))
        require(not (presets and datasets), "datasets and presets are both given; give one of them")
        if not presets:
            known = dict.fromkeys(name.split("-")[0] for name in preset_names())
            for name in datasets:
                require_known("data set", name, known)
            datasets = datasets or (("digits",) if scale == "smoke" else ("digits", *PAPER_DATASETS))
            presets = tuple(name for name in preset_names() if name.split("-")[0] in datasets)
        seeds = tuple(_read_seed(seed) for seed in split_names(settings.get("seeds", 0)))
        require(bool(seeds), "seeds is empty; give at least one, such as seeds=0")
        batch = cls(
            scale=scale,
            presets=presets,
            seeds=seeds,
            results=Path(settings.get("results") or f"build/{scale}"),
            threads=ceil(_read_number("threads", settings.get("threads")) or os.cpu_count() or 1),
            device=str(settings.get("device", "cpu")),
            slot=_read_number("slot", settings.get("slot")),
            memory=_read_number("memory", settings.get("memory")),
        )
        _ = batch.configs  # an unknown scale or preset is told now
        return batch

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """The runs: run id -> configuration."""
        configs = [RunConfig.from_preset(preset, self.scale, seed) for preset in self.presets for seed in self.seeds]
        return {config.run_id: config for config in configs}

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets of the runs."""
        return tuple(dict.fromkeys(config.dataset for config in self.configs.values()))

    @cached_property
    def teachers(self) -> dict[str, str]:
        """Shared teachers -> the first run that begins with them."""
        first: dict[str, str] = {}
        for run in self.configs:
            if (name := self.teachers_of(run)) is not None:
                first.setdefault(name, run)
        return first

    def teachers_of(self, run: str) -> str | None:
        """Returns the name of the teachers that a run begins with; None where its method uses none.

        Teachers of stage 1 depend on the images, the network and how teachers are trained, on nothing else.
        """
        config = self.configs[run]
        if not config.uses_teachers:
            return None
        settings = config.as_dict()
        shared = {name: settings[name] for name in ("dataset", "zca", "select_on", "network", "teachers")}
        return f"{config.dataset}-{digest_json(shared)[:8]}"

    def record(self, run: str) -> str:
        """Returns the path of a run's record."""
        # put together as text, because Snakemake compares it with a pattern: "./runs" is not "runs" there
        return f"{self.results}/{record_path(Path(), self.configs[run])}"

    def recorded(self, teachers: str) -> str:
        """Returns the path of the empty file that says that shared teachers are recorded."""
        return f"{self.results}/teachers/{teachers}.recorded"

    def inputs(self, run: str) -> list[str]:
        """Returns the files that must be there before a run begins."""
        teachers = self.teachers_of(run)
        return [] if teachers is None else [self.recorded(teachers)]

    @property
    def missing(self) -> list[str]:
        """The runs without a record in the folder of results."""
        return [run for run in self.configs if not Path(self.record(run)).is_file()]

    def hold(self) -> AbstractContextManager[None]:
        """Takes the folder of results for this batch; the operating system gives it back when the process ends, however.

        Raises:
            StorageError: another batch holds it.
        """
        taken, remedy = f"another batch is at {self.results}", "wait for its end, or give another results=…"
        return only_process(self.results / "batch.lock", taken, remedy)

    def need(self, job: str) -> Need:
        """Returns what a job takes; that of a run is without the teachers it begins with, which are a job of their own."""
        config = self.configs[self.teachers.get(job, job)]
        work = predict_work(config, find_dataset(config.dataset))
        record = None if self.model is None else self.model.find_record(config)
        source, seconds = "predicted", None
        mebibytes = {phase: PROCESS_MEBIBYTES + part.bytes / 2**20 for phase, part in work.items()}
        if record is not None:
            source, mebibytes, seconds = "measured", record.peak_memory_mb, record.seconds
        elif self.model is not None:
            with suppress(ConfigError):  # no benchmark measured what the run would use
                seconds = self.model.predict(config, self.threads)
        peak = mebibytes["teachers"] if job in self.teachers else max(mebibytes.values())
        if seconds is None:
            return Need(None, peak, source)
        shared = seconds["teachers"] * _first_stage_share(config, work) if config.uses_teachers else 0.0
        return Need((shared if job in self.teachers else sum(seconds.values()) - shared) / 60, peak, source)

    @cached_property
    def model(self) -> CostModel | None:
        """What the known records and the newest known benchmark of this kind of device say; None without a benchmark."""
        try:
            return CostModel.load(self.known, device=self.device)
        except ConfigError:
            return None

    def minutes(self, job: str) -> float:
        """Returns the minutes that a job is given: its need with a margin, at most the slot."""
        need = self.need(job).minutes
        minutes = (self.slot or DAY) if need is None else MARGIN * need + START_MINUTES
        return min(minutes, self.slot or minutes)

    def runtime(self, job: str) -> int:
        """Returns the whole minutes that Snakemake asks a cluster for."""
        return ceil(self.minutes(job))

    def mem_mb(self, job: str) -> int:
        """Returns the MiB of the node that Snakemake asks a cluster for: the need with a margin, at most the limit."""
        mebibytes = (SPARE_MEBIBYTES_GPU if self.device == "cuda" else SPARE_MEBIBYTES) + 1.5 * self.need(job).mebibytes
        return ceil(min(mebibytes, self.memory or mebibytes))

    @property
    def largest(self) -> dict[str, int]:
        """What is asked for where nothing is predicted, as for notebooks: the slot and the memory."""
        return {"runtime": ceil(self.slot or DAY)} | ({"mem_mb": ceil(self.memory)} if self.memory else {})

    def arguments(self, job: str) -> str:
        """Returns the arguments of the command `run` or `teachers` for a job, quoted for a shell.

        Where there is a slot, the command stops at a checkpoint before the job's time is over: ten minutes, or a fifth.
        """
        config = self.configs[self.teachers.get(job, job)]
        words = [config.preset, "--scale", self.scale, "--seed", str(config.seed), "--results", str(self.results)]
        if self.slot is not None:
            minutes = self.minutes(job)
            words += ["--max-minutes", f"{minutes - min(10.0, minutes / 5):g}"]
        return shlex.join(words)

    def plan(self) -> str:
        """Returns the missing runs and the teachers they begin with as a table, longest first, with totals."""
        missing = self.missing
        names = {run: (self.configs[run].preset, str(self.configs[run].seed)) for run in missing}
        for teachers in dict.fromkeys(self.teachers_of(run) for run in missing):
            if teachers is not None and not Path(self.recorded(teachers)).is_file():
                names[teachers] = (f"teachers {teachers}", "")
        needs = {job: self.need(job) for job in names}
        order = sorted(names, key=lambda job: (-(needs[job].minutes or 0.0), names[job]))
        rows = [("run", "seed", "minutes", "MiB", "source")]
        for job in order:
            (name, seed), need = names[job], needs[job]
            minutes = "-" if need.minutes is None else f"{need.minutes:,.1f}"
            rows.append((name, seed, minutes, f"{need.mebibytes:,.0f}", need.source))
        lines = [format_columns(rows, left=1)]
        count = f"{len(missing)} of {len(self.configs)} runs at scale {self.scale} are missing from {self.results}"
        if not needs:
            return "\n".join([*lines, "", count])
        hours = sum(need.minutes or 0.0 for need in needs.values()) / 60
        memory = max(need.mebibytes for need in needs.values())
        lines += ["", f"{count}: {hours:,.1f} hours one after another, at most {memory:,.0f} MiB"]
        if self.model is not None:
            lines.append(f"predicted for {self.threads} threads of {self.model.machine}")
        if any(need.minutes is None for need in needs.values()):
            lines.append(f"-: no benchmark of a {self.device} device covers these; run `python -m seqmatch_lib bench` on one")
        return "\n".join(lines)


def split_names(given: Any) -> tuple[str, ...]:
    """Returns the names in a list, or in a text that separates them by commas or spaces; each once, none for None."""
    parts = given if isinstance(given, list | tuple) else [given]
    text = " ".join(str(part) for part in parts if part is not None)
    return tuple(dict.fromkeys(re.findall(r"[^,\s]+", text)))


def _first_stage_share(config: RunConfig, work: Mapping[str, Work]) -> float:
    """Returns how much of the work for a run's teachers is for those of its first stage."""
    plain = {"method": config.base_method, "subset_ipcs": [config.ipc], "intervals": [list(config.intervals[0])]}
    first = predict_work(config.changed(plain), find_dataset(config.dataset))
    return first["teachers"].flops / work["teachers"].flops


def _read_seed(text: str) -> int:
    require(text.isdecimal(), f"seed {text!r:.120} must be a whole number of at least 0; give for example 0,1,2")
    return int(text)


def _read_number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    require(0 < number < inf, f"{name} {value!r:.120} must be a number above 0")
    return number
