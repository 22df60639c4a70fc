"""The fault harness: what becomes of a run that is killed, refused disk space, damaged, doubled, or whose clock jumps.

    PYTHONPATH=tests python tests/trust/faults.py --moments 100 --flips 2000 --out faults.json

prints a table: for each kind of fault how often it was made, how often it ended as it must, and how often in a traceback,
in something finished being lost, or in a wrong result without an error. `test_faults.py` runs short forms of it.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from conftest import SEED
from fault_runs import (
    CASES,
    KILL_POINTS,
    MTT,
    NO_SPACE,
    WAIT,
    YEAR,
    Case,
    Ended,
    Hook,
    Process,
    Watch,
    age,
    find_phase,
    leftovers,
    phases,
    read_teachers,
    wipe,
)

from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.methods import get_method
from seqmatch_lib.runs.experiment import open_run
from seqmatch_lib.runs.listing import format_columns
from seqmatch_lib.runs.records import load_record
from seqmatch_lib.runs.stages import StageCheckpoint, read_progress
from seqmatch_lib.store.files import load_tensors, read_json, write_json
from seqmatch_lib.subsets import SET_FOLDERS, load_sequence

PAGE = 4096
DISK = "4m"
CRASH, LOSS, SILENT, OTHER = "crashes", "losses", "silent", "other"  # kinds of wrong outcomes
COUNTS = ("injected", "right", CRASH, LOSS, SILENT, OTHER)  # of each kind of fault: made, ended as it must, ended wrong
Problem = tuple[str, str]


@dataclass
class Table:
    """Counts by kind of fault, and a line for everything that went wrong."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, fault: str, problems: list[Problem]) -> None:
        """Counts one fault."""
        self.rows.setdefault(fault, Counter()).update({"injected", *({kind for kind, _ in problems} or {"right"})})
        self.problems += [f"{fault}: {kind}: {text}" for kind, text in problems]

    def merge(self, other: dict[str, Any]) -> None:
        """Adds another table, as `as_dict` gives it."""
        for fault, counts in other["rows"].items():
            self.rows.setdefault(fault, Counter()).update(counts)
        self.problems += other["problems"]

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts and the problems as JSON values."""
        rows = {fault: {name: row[name] for name in COUNTS} for fault, row in self.rows.items()}
        return {"rows": rows, "problems": self.problems}

    def __str__(self) -> str:
        rows = [*self.rows.items(), ("all", sum(self.rows.values(), Counter()))]
        cells = [("fault", *COUNTS), *((fault, *(row[name] for name in COUNTS)) for fault, row in rows)]
        return "\n".join([format_columns(cells, left=1), *self.problems])


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Args:
        folder: its results.
        outcome: what every other run must end with.
        durations: seconds of each phase.
        writes: the files written, in order, relative to the folder.
    """

    folder: Path
    outcome: tuple[dict[str, Any], bytes]
    durations: dict[str, float]
    writes: list[str]


class Harness:
    """Makes faults and counts what becomes of them.

    Args:
        folder: for everything it writes.
        seed: of all that is random in it.
        forkserver: see `fault_runs`.
    """

    def __init__(self, folder: Path, seed: int, forkserver: bool = True) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.table = Table()
        self._forkserver = forkserver
        self._references: dict[Case, Reference] = {}

    def reference(self, case: Case) -> Reference:
        """Returns the uninterrupted run of a case, made at the first call."""
        if case not in self._references:
            folder, journal = self.folder / "reference" / case.config.run_id, self.folder / f"{case.config.run_id}.writes"
            durations = dict.fromkeys(phases(case), 0.0)
            if not folder.is_dir():
                durations = self._time_phases(case, folder, Hook(journal=journal))
            writes = [str(Path(line.split(" ", 1)[1]).relative_to(folder)) for line in journal.read_text().splitlines()]
            self._references[case] = Reference(folder, case.outcome(folder), durations, writes)
        return self._references[case]

    def _time_phases(self, case: Case, folder: Path, hook: Hook) -> dict[str, float]:
        process = self._start(case, folder, hook)
        durations, before = dict.fromkeys(phases(case), 0.0), time.perf_counter()
        while process.running:
            time.sleep(0.002)
            phase, now = find_phase(case, folder), time.perf_counter()
            durations[phase] = durations.get(phase, 0.0) + now - before
            before = now
        ended = process.wait()
        assert ended.code == 0, ended
        return durations

    def _start(self, case: Case, results: Path, hook: Hook | None = None) -> Process:
        return Process(case, results, self.folder, hook, self._forkserver)

    def _stop_after(self, case: Case, results: Path, writes: int) -> None:
        """Lets a run make some writes and kills it."""
        if writes:
            self._start(case, results, Hook(KILL_POINTS[-1], writes)).wait()

    def _fresh(self, name: str = "results") -> Path:
        """Returns an empty results folder."""
        results = self.folder / name
        results.mkdir(exist_ok=True)
        wipe(results)
        return results

    def _finish(self, case: Case, results: Path, watch: Watch | None = None, hook: Hook | None = None) -> list[Problem]:
        """Gives the command again and returns what is wrong with its end."""
        return self._assess(case, results, self._start(case, results, hook).wait(), watch)

    def _assess(self, case: Case, results: Path, ended: Ended, watch: Watch | None = None) -> list[Problem]:
        """Returns what is wrong with a process that had to finish its run."""
        problems = _lost(watch)
        if ended.traceback:
            return [*problems, (CRASH, ended.traceback)]
        if ended.code != 0:
            return [*problems, (OTHER, f"exit code {ended.code}: {ended.errors}")]
        try:
            record, distilled = case.outcome(results)
        except (SeqMatchError, OSError) as error:
            return [*problems, (LOSS, str(error))]
        expected_record, expected_set = self.reference(case).outcome
        different = [name for name, value in record.items() if value != expected_record[name]]
        problems += [(SILENT, f"the record differs in {name}") for name in different]
        problems += [(SILENT, "the distilled set differs")] * (distilled != expected_set)
        return problems + [(OTHER, f"{path} is left over") for path in leftovers(results)]

    # --- kills

    def kill_at_random_moments(self, case: Case, moments: int) -> None:
        """Kills a run again and again, and the one that goes on with it, at least so often, and as often in each phase."""
        order = phases(case)
        wanted = [order[index % len(order)] for index in range(moments)]
        self.random.shuffle(wanted)
        for _ in range(3 * moments):
            if not wanted:
                return
            results = self._fresh()
            watch = Watch(case, results)
            for phase in sorted(wanted[:6], key=order.index):
                hit = self._kill_once(case, results, phase, watch)
                if hit in wanted:
                    wanted.remove(hit)
                if hit and hit != phase:  # too late for it: the machine is faster than when the phases were timed
                    self.reference(case).durations[phase] *= 0.8
            self.table.add("killed at random: goes on to its end", self._finish(case, results, watch))
        self.table.add("killed at random", [(OTHER, f"no moment fell into {wanted}")])

    def _kill_once(self, case: Case, results: Path, phase: str, watch: Watch) -> str:
        """Kills a run at a random moment of a phase and returns which it hit; does nothing if the run is further already."""
        if _is_before(phase, find_phase(case, results), case):
            return ""
        process = self._start(case, results)
        while process.running and _is_before(find_phase(case, results), phase, case):
            time.sleep(0.003)
        time.sleep(self.random.uniform(0, self.reference(case).durations[phase]))
        ended, hit = process.kill(), find_phase(case, results)
        if ended.code == 0:
            return ""
        self.table.add(f"killed at random: {hit}", _not_killed(ended) + _lost(watch))
        return hit

    def kill_at_writes(self, case: Case, sample: int | None = None) -> None:
        """Kills a run at each of its writes, in four ways; or at a random sample of them."""
        numbers = range(1, len(self.reference(case).writes) + 1)
        kills = [(number, point) for number in numbers for point in KILL_POINTS]
        if sample is not None:
            kills = [(self.random.choice(numbers), KILL_POINTS[index % len(KILL_POINTS)]) for index in range(sample)]
        for number, point in kills:
            results = self._fresh()
            watch = Watch(case, results)
            ended = self._start(case, results, Hook(point, number)).wait()
            problems = _not_killed(ended) + _lost(watch) + self._finish(case, results, watch)
            self.table.add(f"killed at a write: {point}", problems)

    # --- no space, no right to write

    def refuse_space(self, case: Case, sample: int | None = None) -> None:
        """Lets writes fail half way with the error of a full disk; all of them, or a random sample."""
        writes = self.reference(case).writes
        numbers = range(1, len(writes) + 1)
        for number in numbers if sample is None else self.random.sample(numbers, sample):
            results = self._fresh()
            watch = Watch(case, results)
            ended = self._start(case, results, Hook(NO_SPACE, number)).wait()
            problems = _refused(ended, results / writes[number - 1], "the disk is full; free some space")
            self.table.add("write refused: no space", problems + _lost(watch) + self._finish(case, results, watch))

    def fill_disk(self, case: Case, disk: Path, times: int) -> None:
        """Runs on a disk that becomes full, in every phase; then makes space and goes on. In a mount namespace only."""
        files = [path.stat().st_size for path in self.reference(case).folder.rglob("*") if path.is_file()]
        pages, writes = sum(-(-size // PAGE) for size in files), len(self.reference(case).writes)
        results, ballast = disk / "results", disk / "ballast"
        results.mkdir(exist_ok=True)
        for index in range(times):
            wipe(results)
            watch, place = Watch(case, results), (index + self.random.random()) / times
            if index % 2:  # by what the run itself writes
                free = int(pages * place)
            else:  # by others, at one of its writes
                free = self.random.randrange(2)
                self._stop_after(case, results, int(writes * place))
            _fill(ballast, free)
            ended = self._start(case, results).wait()
            phase = find_phase(case, results)
            problems = _refused(ended, results, "the disk is full; free some space") + _lost(watch)
            ballast.unlink()
            self.table.add(f"disk full: {phase}", problems + self._finish(case, results, watch))

    def forbid_writing(self, case: Case, disk: Path, times: int) -> None:
        """Makes a folder of a killed run read-only, then writable again. In a mount namespace only."""
        results = disk / "results"
        results.mkdir(exist_ok=True)
        parts = ["", "state", "teachers", *SET_FOLDERS, "runs"]
        for index in range(times):
            wipe(results)
            watch, part = Watch(case, results), parts[index % len(parts)]
            self._stop_after(case, results, self.random.randrange(len(self.reference(case).writes)))
            folder = results / part
            folder.mkdir(exist_ok=True)
            with _read_only(folder):
                ended = self._start(case, results).wait()
            if ended.code == 0:  # what it had to do, it had to do elsewhere
                problems = self._assess(case, results, ended, watch)
            else:
                problems = _refused(ended, folder, "make the folder writable") + _lost(watch)
            self.table.add(f"read-only: {part or 'results'}", problems + self._finish(case, results, watch))
        with _read_only(results):
            self.table.add("read-only: finished run", self._finish(case, results))

    def run_in_namespace(self, full: int, read_only: int) -> None:
        """Makes the faults that need a file system of their own, in a program with its own mounts."""
        self.reference(MTT)
        disk, found = self.folder / "disk", self.folder / "inside.json"
        disk.mkdir(exist_ok=True)
        options = ["--full", full, "--read-only", read_only, "--seed", self.random.randrange(2**31)]
        command = [*_unshare(), sys.executable, __file__, "--inside", self.folder, *options]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=_environment(), check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.table.merge(read_json(found))

    # --- damage

    @cached_property
    def damaged_folders(self) -> dict[str, Path]:
        """A run in its teachers, in stage 1, in stage 2, in its evaluation, and finished: with every kind of file in use."""
        writes = self.reference(MTT).writes
        state = f"state/{MTT.config.run_id}"
        places = {"teachers": next(path for path in writes if path.endswith("teacher-000.safetensors"))}
        places |= {"stage 1": f"{state}/stage-1.safetensors", "stage 2": f"{state}/stage-2.safetensors"}
        places |= {"networks": f"{state}/networks.safetensors", "evaluation": f"{state}/evaluation.json"}
        folders = {}
        for name, path in places.items():
            folders[name] = self._fresh(f"damaged {name}")
            second = [number for number, written in enumerate(writes, start=1) if written == path][1]
            self._stop_after(MTT, folders[name], second)
        return folders | {"finished": self.reference(MTT).folder}

    def flip_bytes(self, flips: int) -> None:
        """Changes a bit or a byte of every kind of file, `flips` times each, and reads the file as the library does."""
        files: dict[str, list[Path]] = {}
        for name, folder in self.damaged_folders.items():
            copy = self._fresh(f"flipped {name}")
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            for path in _files(copy):
                files.setdefault(_kind(path), []).append(path)
        for kind, paths in files.items():
            for index in range(flips):
                self._flip_once(kind, paths[index % len(paths)])

    def _flip_once(self, kind: str, path: Path) -> None:
        read, whole = self._reader(path), path.read_bytes()
        content = read()
        try:
            _replace(path, self._damage(whole))
            problems = _try_to_read(read, content, path)
        finally:
            _replace(path, whole)
        self.table.add(f"byte flipped, file read: {kind}", problems)

    def _damage(self, whole: bytes) -> bytes:
        """Returns the bytes of a file with one bit or one byte changed; two times in three in its head."""
        position = self.random.randrange(min(len(whole), self.random.choice((32, 512, len(whole)))))
        change = self.random.choice((1 << self.random.randrange(8), self.random.randrange(1, 256)))
        return whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :]

    def _reader(self, path: Path) -> Callable[[], Any]:
        """Returns the way in which the library reads a file, as a function that returns all of its content."""
        kind = _kind(path)
        if kind in ("teacher-*.safetensors", "networks.safetensors"):
            return lambda: [
                {name: x.numpy().tobytes() if torch.is_tensor(x) else x for name, x in part.items()}
                for part in load_tensors(path)
            ]
        if kind.startswith("teacher-"):
            count = len([one for one in path.parent.glob("teacher-*.json") if one.with_suffix(".npy").is_file()])
            return lambda: read_teachers(path.parent, count)
        if kind == "stage-*.safetensors":
            return lambda: self._read_checkpoint(path)
        if kind == "distilled set":
            return lambda: ((sequence := load_sequence(path)).sha256(), sequence.metadata)
        return lambda: asdict(load_record(path)) if kind == "record" else read_json(path)

    def _read_checkpoint(self, path: Path) -> list[Any]:
        index = int(path.stem.removeprefix("stage-"))
        stage = self._stages[index - 1]
        fresh = get_method("mtt")(MTT.config.options).initialise(stage)
        progress, state = StageCheckpoint(path, MTT.config.hash).load(fresh, stage.frozen.sha256())
        parts = {"images": fresh.images, "labels": fresh.labels, "lr": fresh.lr, **state}
        for name, optimizer in fresh.optimizers.items():
            parts |= {f"{name} {key}": value for key, value in optimizer.state[getattr(fresh, name)].items()}
        numbers = [fresh.iteration, fresh.losses, progress.scores, progress.seconds, progress.peak_memory_mb]
        best = progress.best and (progress.best.images.numpy().tobytes(), progress.best.lr)
        return [
            {name: part.detach().numpy().tobytes() for name, part in parts.items()},
            numbers,
            best,
            read_progress(path.parent),
        ]

    @cached_property
    def _stages(self) -> list[Any]:
        return open_run(MTT.config, self.reference(MTT).folder, "cpu")[2]

    def run_with_damage(self, sample: int | None = None) -> None:
        """Runs with one damaged file, does as it is told, and runs again; with each file, or a sample of each kind."""
        choices: dict[str, list[tuple[str, Path]]] = {}
        for name, folder in self.damaged_folders.items():
            for path in _files(folder):
                choices.setdefault(_kind(path), []).append((name, path.relative_to(folder)))
        for kind, places in choices.items():
            for name, path in places if sample is None else self.random.sample(places, sample):
                results = self._fresh()
                shutil.copytree(self.damaged_folders[name], results, dirs_exist_ok=True)
                self.table.add(f"byte flipped, run goes on: {kind}", self._run_with_one(results, results / path))

    def _run_with_one(self, results: Path, path: Path) -> list[Problem]:
        whole, read = path.read_bytes(), self._reader(path)
        while True:  # until the damage is one that counts: not a blank in a header
            _replace(path, self._damage(whole))
            try:
                read()
            except SeqMatchError as error:
                told = str(error)
                break
        ended = self._start(MTT, results).wait()
        if ended.code == 0 and _kind(path) != "distilled set":
            return self._assess(MTT, results, ended)  # the file was not needed any more
        if ended.code != 0:
            problems = _refused(ended, path, "delete it")
            told = " ".join(ended.errors)
        else:  # a finished run does not read its set; whoever does is told
            problems = [] if f"{path} " in told and "delete it" in told else [(OTHER, told)]
        for part in [path, *([path.with_suffix(".json")] if "its .json" in told else [])]:
            part.unlink(missing_ok=True)
        return problems + self._finish(MTT, results)

    # --- two at a time, and clocks

    def run_twice_at_once(self, times: int) -> None:
        """Lets a process wait at one of its writes, in any phase, while a second one is started on the same run."""
        writes = self.reference(MTT).writes
        for _ in range(times):
            results, journal, gate = self._fresh(), self.folder / "two.writes", self.folder / "gate"
            journal.unlink(missing_ok=True)
            first = self._start(MTT, results, Hook(WAIT, self.random.randint(1, len(writes)), journal=journal, gate=gate))
            while first.running and not gate.exists():
                time.sleep(0.003)
            refused = self._start(MTT, results, Hook(journal=journal)).wait()
            gate.unlink(missing_ok=True)
            problems = self._assess(MTT, results, first.wait())
            problems += _refused(refused, results / "state", "another process works on this run")
            self.table.add("two processes on one run", problems + _written_by_two(journal))

    def share_teachers(self, times: int) -> None:
        """Runs two seeds at once, which need the same teachers in stage 1."""
        cases = (MTT, Case(MTT.method, MTT.overrides, seed=1))
        for case in cases:
            self.reference(case)
        for _ in range(times):
            results, journal = self._fresh(), self.folder / "two.writes"
            journal.unlink(missing_ok=True)
            processes = [self._start(case, results, Hook(journal=journal)) for case in cases]
            ends = [process.wait() for process in processes]  # of both, before anything is taken for left over
            problems = [one for case, ended in zip(cases, ends, strict=True) for one in self._assess(case, results, ended)]
            written = [line.split(" ", 1)[1] for line in journal.read_text().splitlines() if "/teachers/" in line]
            written = [path for path in written if not path.endswith(".safetensors")]  # a checkpoint is written at each epoch
            problems += [(OTHER, f"{path} was written twice") for path in set(written) if written.count(path) > 1]
            self.table.add("two runs with the same teachers", problems + _written_by_two(journal))

    def turn_clock(self, case: Case, times: int) -> None:
        """Lets the wall clock jump by a year, during a run and between a killed one and the one that goes on with it."""
        for name, jumps in {"back": (-YEAR,), "forward": (YEAR,), "to and fro": (0.0, YEAR, -YEAR)}.items():
            for _ in range(times):
                self.table.add(f"clock jumps {name}", self._finish(case, self._fresh(), hook=Hook(clock=jumps)))
        for name, seconds in {"past": -YEAR, "future": YEAR}.items():
            for _ in range(times):
                results = self._fresh()
                self._stop_after(case, results, self.random.randrange(1, len(self.reference(case).writes)))
                age(results, seconds)
                self.table.add(f"files from the {name}", self._finish(case, results))


def _is_before(first: str, second: str, case: Case) -> bool:
    order = [*phases(case), "finished"]
    return order.index(first) < order.index(second)


def _lost(watch: Watch | None) -> list[Problem]:
    return [(LOSS, text) for text in watch.look()] if watch else []


def _not_killed(ended: Ended) -> list[Problem]:
    """Returns what is wrong with a process that was to be killed: that it had ended before."""
    if ended.code == -signal.SIGKILL:
        return []
    return [(CRASH if ended.traceback else OTHER, f"exit code {ended.code}: {ended.traceback or ended.errors}")]


def _refused(ended: Ended, path: Path, words: str) -> list[Problem]:
    """Returns what is wrong with a process that had to end with one line that names a path and a remedy."""
    if ended.traceback:
        return [(CRASH, ended.traceback)]
    right = ended.code == 2 and len(ended.errors) == 1 and str(path) in ended.errors[0] and words in ended.errors[0]
    return [] if right else [(OTHER, f"exit code {ended.code}: {ended.errors} instead of an error that tells {path}, {words}")]


def _written_by_two(journal: Path) -> list[Problem]:
    writers: dict[str, set[str]] = {}
    for line in journal.read_text().splitlines():
        process, path = line.split(" ", 1)
        writers.setdefault(path, set()).add(process)
    return [(OTHER, f"{path} was written by two processes") for path, found in writers.items() if len(found) > 1]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".npy", ".json", ".safetensors"))


def _kind(path: Path) -> str:
    """Returns what kind of file of a results folder this is."""
    if path.parent.name in SET_FOLDERS:
        return "distilled set"
    return "record" if path.parent.parent.name == "runs" else re.sub(r"\d+", "*", path.name)


def _replace(path: Path, content: bytes) -> None:
    """Puts another file in a file's place: what has mapped the old one into memory keeps it."""
    path.unlink()
    path.write_bytes(content)


def _try_to_read(read: Callable[[], Any], content: Any, path: Path) -> list[Problem]:
    """Returns what is wrong with reading a damaged file: either an error names it, or the content is what it was."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [] if read() == content else [(SILENT, f"{path} was read as something else")]
    except SeqMatchError as error:
        return [] if str(path) in str(error) else [(OTHER, f"an error that does not name {path}: {error}")]
    except Exception as error:  # any other is a traceback to the user
        return [(CRASH, f"{path}: {error!r}")]


def _fill(ballast: Path, free: int) -> None:
    """Fills a disk but for some pages."""
    with open(ballast, "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(PAGE))
        except OSError:
            handle.truncate(handle.tell() - free * PAGE)


class _read_only:  # noqa: N801 (used as a function)
    """Mounts a folder onto itself so that nobody, not even root, can write there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        subprocess.run(["mount", "--bind", self._folder, self._folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self._folder], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self._folder], check=True)


def _unshare() -> list[str]:
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def why_no_namespace(folder: Path) -> str:
    """Returns why a program cannot have mounts of its own here, or "" if it can."""
    try:
        command = [*_unshare(), "mount", "-t", "tmpfs", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return (done.stderr.strip() or "unshare failed") if done.returncode else ""


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def _run_inside(options: argparse.Namespace) -> None:
    """What the program in the namespace does."""
    folder = options.inside
    harness, disk = Harness(folder, options.seed, forkserver=False), folder / "disk"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
    harness.fill_disk(MTT, disk, options.full)
    harness.forbid_writing(MTT, disk, options.read_only)
    write_json(folder / "inside.json", harness.table.as_dict())


def run_all(folder: Path, seed: int, moments: int, flips: int) -> Table:
    """Makes all faults in their long form."""
    harness = Harness(folder, seed)
    parts: list[tuple[str, Callable[[], None]]] = [
        ("killed at random", lambda: _divide(moments, harness.kill_at_random_moments)),
        ("killed at every write", lambda: [harness.kill_at_writes(case) for case in CASES]),
        ("writes refused", lambda: [harness.refuse_space(case) for case in CASES]),
        ("bytes flipped", lambda: harness.flip_bytes(flips)),
        ("runs with a flipped byte", harness.run_with_damage),
        ("two at once", lambda: (harness.run_twice_at_once(10), harness.share_teachers(5))),
        ("clocks", lambda: [harness.turn_clock(case, 3) for case in CASES]),
    ]
    refusal = why_no_namespace(folder)
    if refusal:
        print(f"no full disk, no read-only folder: no mounts of its own here ({refusal})")
    else:
        parts.append(("full disks and read-only folders", lambda: harness.run_in_namespace(40, 30)))
    for name, part in parts:
        began = time.perf_counter()
        part()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return harness.table


def _divide(moments: int, kill: Callable[[Case, int], None]) -> None:
    """Two thirds of the kills hit MTT, which has teachers; the rest KRR, whose networks are state of its own."""
    rest = moments // 3
    kill(CASES[0], moments - rest)
    kill(CASES[1], rest)


def main() -> int:
    """Runs the program; its exit code is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description="make faults and count what becomes of them")
    parser.add_argument("--moments", type=int, default=100, help="random kills; default: 100")
    parser.add_argument("--flips", type=int, default=2000, help="of each kind of file; default: 2000")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--full", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--read-only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _run_inside(options)
        return 0
    print(f"random seed: {options.seed} (repeat with --seed {options.seed})", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        table = run_all(Path(folder), options.seed, options.moments, options.flips)
    print(table)
    if options.out:
        write_json(options.out, {"seed": options.seed, "moments": options.moments, "flips": options.flips, **table.as_dict()})
    return bool(table.problems)


if __name__ == "__main__":
    sys.exit(main())
