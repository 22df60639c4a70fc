"""Runs for the fault harness: started in processes of their own that can be killed, and looked at from outside.

A process is forked from a server that has imported everything, so that it starts in milliseconds. Hooks around
`write_atomically`, the one way in which the library writes, kill it, refuse it disk space or turn its clock at a given write.
"""

import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import tqdm.std

from seqmatch_lib import __main__ as command_line
from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.methods import get_method
from seqmatch_lib.methods.teachers import TrajectorySet
from seqmatch_lib.runs import experiment
from seqmatch_lib.runs.config import RunConfig, parse_override
from seqmatch_lib.runs.experiment import run_experiment
from seqmatch_lib.runs.records import load_record, record_path
from seqmatch_lib.store import files as storage
from seqmatch_lib.store.files import load_tensors, read_json
from seqmatch_lib.subsets import load_sequence, set_path

PRELOADED = ["__main__", "seqmatch_lib.__main__", "sklearn.datasets", "higher"]
KILL_POINTS = ("before the write", "in the middle of it", "before the rename", "after the rename")
NO_SPACE = "no space"
WAIT = "wait"
YEAR = 365 * 24 * 3600.0


@dataclass(frozen=True)
class Case:
    """A small run on the built-in digits.

    Args:
        method: of the preset at ipc 10.
        overrides: `key=value`, as on the command line.
        seed: of the run.
    """

    method: str
    overrides: tuple[str, ...]
    seed: int = 0

    @property
    def preset(self) -> str:
        """Name of the preset."""
        return f"digits-ipc10-{self.method}"

    @functools.cached_property
    def config(self) -> RunConfig:
        """What is run."""
        return RunConfig.from_preset(self.preset, "smoke", self.seed, dict(map(parse_override, self.overrides)))

    def command(self, results: Path) -> list[str]:
        """Returns the arguments of the command line."""
        settings = [word for override in self.overrides for word in ("--set", override)]
        return ["run", self.preset, "--scale", "smoke", "--seed", str(self.seed), "--results", str(results), *settings]

    def state_dir(self, results: Path) -> Path:
        """Returns where the state is kept."""
        return results / "state" / self.config.run_id

    def outcome(self, results: Path) -> tuple[dict[str, Any], bytes]:
        """Returns what must be equal between two finished runs: the record, and the bytes of the last and the selected set."""
        record = load_record(record_path(results, self.config))
        sets = [set_path(results, self.config.run_id, selected).read_bytes() for selected in (False, True)]
        return record.comparable(), b"".join(sets)


_SHORT_TEACHERS = ("teachers.epochs=2", "teachers.later_epochs=2", "intervals=[[0,2],[0,2]]")
MTT = Case("seqmatch_mtt", ("mtt.iterations=3", "mtt.expert_epochs=1", "training.epochs=3", *_SHORT_TEACHERS))
KRR = Case("seqmatch_krr", ("krr.iterations=4", "training.epochs=3"))
CASES = (MTT, KRR)


@dataclass(frozen=True)
class Hook:
    """What happens at the writes of a process.

    Args:
        point: one of `KILL_POINTS`, `NO_SPACE` or `WAIT`, which happens at write `number`, counted from 1.
        number: 0 never.
        clock: seconds by which the wall clock has jumped after the first write, the second, … and so on, round and round.
        journal: file to which each write adds a line: process id, path.
        gate: file that a waiting process makes; it goes on when the file is removed.
    """

    point: str = ""
    number: int = 0
    clock: tuple[float, ...] = ()
    journal: Path | None = None
    gate: Path | None = None


class _Hooked:
    """`write_atomically` with a hook around it."""

    def __init__(self, original: Callable[..., None], hook: Hook) -> None:
        self._original = original
        self._hook = hook
        self._count = 0

    def __call__(self, path: Path, write: Callable[[Path], None]) -> None:
        self._count += 1
        point = self._hook.point if self._count == self._hook.number else ""
        if self._hook.journal is not None:
            with open(self._hook.journal, "a") as handle:
                handle.write(f"{os.getpid()} {path}\n")
        if point == "before the write":
            _kill_self()
        if point == WAIT:
            self._hook.gate.touch()
            while self._hook.gate.exists():
                time.sleep(0.003)

        def hooked(temporary: Path) -> None:
            write(temporary)
            if point in ("in the middle of it", NO_SPACE):
                os.truncate(temporary, temporary.stat().st_size // 2)
            if point == NO_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if point in ("in the middle of it", "before the rename"):
                _kill_self()

        self._original(path, hooked)
        if point == "after the rename":
            _kill_self()
        if self._hook.clock:
            _Clock.offset = self._hook.clock[self._count % len(self._hook.clock)]


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Clock(datetime):
    """A wall clock that jumps."""

    offset = 0.0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromtimestamp(time.time(), tz)


def _install(hook: Hook) -> None:
    original, real_time = storage.write_atomically, time.time
    hooked = _Hooked(original, hook)
    for name, module in list(sys.modules.items()):
        if name.startswith("seqmatch_lib") and getattr(module, "write_atomically", None) is original:
            module.write_atomically = hooked
    if hook.clock:
        time.time = tqdm.std.time = lambda: real_time() + _Clock.offset
        experiment.datetime = _Clock


def _process(command: list[str], hook: Hook, output: Path) -> None:
    """What a process does: the command line, with a checkpoint after every iteration."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    _install(hook)
    tqdm.std.tqdm.set_lock(threading.RLock())  # the default is shared by processes, and the killed would leave theirs behind
    experiment.describe_code = lambda: ("faults", False)  # the same whatever happens to the checkout meanwhile
    command_line.run_experiment = functools.partial(run_experiment, save_seconds=0)
    sys.exit(command_line.main(command))


@functools.cache
def _context(forkserver: bool) -> Any:
    """Returns the way to start processes: from a server, or in a program that has imported everything by forking itself."""
    if not forkserver:
        for name in PRELOADED[1:]:
            import_module(name)
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # a process with more threads could not be forked safely
    multiprocessing.forkserver.ensure_running()
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before
    return context


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: exit code; -9 if it was killed.
        errors: its lines that begin with "error: ".
        traceback: the end of its output if it ended in a traceback, else "".
    """

    code: int
    errors: list[str]
    traceback: str


class Process:
    """A run in a process of its own.

    Args:
        case: what is run.
        results: its results folder.
        scratch: where its output goes.
        hook: around its writes.
        forkserver: see `_context`.
    """

    _count = 0

    def __init__(self, case: Case, results: Path, scratch: Path, hook: Hook | None = None, forkserver: bool = True) -> None:
        Process._count += 1
        self._output = scratch / f"output-{os.getpid()}-{Process._count}.txt"
        arguments = (case.command(results), hook or Hook(), self._output)
        self._process = _context(forkserver).Process(target=_process, args=arguments, daemon=True)
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def kill(self) -> Ended:
        """Sends SIGKILL."""
        self._process.kill()
        return self.wait()

    def wait(self) -> Ended:
        """Waits for the end."""
        self._process.join(300)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process.close()
        text = self._output.read_text() if self._output.exists() else ""
        self._output.unlink(missing_ok=True)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        return Ended(code, errors, text[-2000:] if "Traceback" in text or code not in (0, 2, -signal.SIGKILL) else "")


def iteration(checkpoint: Path) -> int | None:
    """Returns the iteration that a checkpoint has reached, by its header alone; None if there is none, 0 if it is damaged."""
    if not checkpoint.is_file():
        return None
    try:
        with open(checkpoint, "rb") as handle:  # opened once, as the run may replace it at any moment
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        return json.loads(header["__metadata__"]["metadata"])["iteration"]
    except (ValueError, KeyError):
        return 0


def phases(case: Case) -> list[str]:
    """Returns the phases of a run in their order."""
    teachers = get_method(case.config.base_method).uses_teachers
    stages = [(f"teachers of stage {k}",) * teachers + (f"stage {k}",) for k in range(1, case.config.num_subsets + 1)]
    return ["before the start", *(phase for stage in stages for phase in stage), "evaluation"]


def find_phase(case: Case, results: Path) -> str:
    """Returns the phase that a run is in, or was in when it was killed, by its files."""
    state, config = case.state_dir(results), case.config
    if record_path(results, config).is_file():
        return "finished"
    if not (state / "start.json").is_file():
        return "before the start"
    method = get_method(config.base_method)(config.options)
    for k in range(1, config.num_subsets + 1):
        reached = iteration(state / f"stage-{k}.safetensors")
        teachers = len(list(results.glob(f"teachers/*/*-stage{k}-*/teacher-*.json")))
        if reached is None and method.uses_teachers and teachers < config.teachers.num_teachers:
            return f"teachers of stage {k}"
        if reached is None or reached < method.num_iterations(k):
            return f"stage {k}"
    return "evaluation"


def read_teachers(folder: Path, count: int) -> list[Any]:
    """Returns everything that the library reads of a folder's teachers."""
    teachers = TrajectorySet(folder, count)
    rows = [
        [row.numpy().tobytes() for epoch in range(len(teachers.train_losses(teacher)) + 1)
         for row in teachers.segment(teacher, epoch, epoch)[:1]]
        for teacher in range(count)
    ]  # fmt: skip
    return [rows, teachers.seconds, [teachers.train_losses(teacher) for teacher in range(count)]]


@dataclass
class Watch:
    """What a run has finished so far, which must never be lost, changed or damaged.

    Args:
        case: the run.
        results: its results folder.
    """

    case: Case
    results: Path
    _teachers: dict[Path, tuple[int, bytes]] = field(default_factory=dict)
    _iterations: dict[Path, int] = field(default_factory=dict)
    _epochs: dict[str, tuple[int, int]] = field(default_factory=dict)
    _networks: dict[str, Any] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Returns what is lost or damaged since the last look, a line each."""
        lost = []
        checks = (self._look_at_checkpoints, self._look_at_training, self._look_at_evaluation, self._read_the_rest)
        for check in (self._look_at_teachers, *checks):
            try:
                lost += check()
            except (SeqMatchError, OSError) as error:
                lost.append(f"cannot be read: {error}")
        return lost

    def _look_at_teachers(self) -> Iterator[str]:
        for path, before in self._teachers.items():
            if not path.is_file() or (path.stat().st_mtime_ns, path.read_bytes()) != before:
                yield f"{path} was lost, changed or written again"
        for path in self.results.glob("teachers/*/*/teacher-*.json"):
            for part in (path, path.with_suffix(".npy")):
                self._teachers[part] = (part.stat().st_mtime_ns, part.read_bytes())
        for folder in self.results.glob("teachers/*/*"):
            finished = [(folder / f"teacher-{teacher:03d}.json").is_file() for teacher in range(99)]
            read_teachers(folder, finished.index(False))

    def _look_at_checkpoints(self) -> Iterator[str]:
        paths = self.case.state_dir(self.results).glob("stage-*.safetensors")
        found = {path: load_tensors(path)[1]["iteration"] for path in paths}
        for path, before in self._iterations.items():
            if found.get(path, -1) < before:
                yield f"{path} went back from iteration {before} to {found.get(path)}"
        self._iterations = found

    def _look_at_training(self) -> Iterator[str]:
        paths = [*self.results.glob("teachers/*/*/*.safetensors"), *self.results.glob("state/*/networks.safetensors")]
        for path in paths:
            notes = load_tensors(path)[1]
            networks, reached = f"{path} {notes['owner']}", (notes["stage"], notes["epoch"])
            if reached < self._epochs.get(networks, (0, 0)):
                yield f"{networks} went back from stage and epoch {self._epochs[networks]} to {reached}"
            self._epochs[networks] = reached

    def _look_at_evaluation(self) -> Iterator[str]:
        path = self.case.state_dir(self.results) / "evaluation.json"
        found = read_json(path) if path.is_file() else {}
        if {key: found.get(key) for key in self._networks} != self._networks:
            yield f"{path} has lost a network"
        self._networks = found

    def _read_the_rest(self) -> list[str]:
        for path in self.results.rglob("*.json"):
            read_json(path)
        if (path := set_path(self.results, self.case.config.run_id)).is_file():
            load_sequence(path)
        return []


def leftovers(results: Path) -> list[Path]:
    """Returns what is no whole file of a run."""
    return [path for path in results.rglob("*") if path.is_file() and (path.suffix == ".tmp" or path.name.startswith("."))]


def age(results: Path, seconds: float) -> None:
    """Moves the times of all files."""
    for path in results.rglob("*"):
        status = path.stat()
        os.utime(path, (status.st_atime + seconds, status.st_mtime + seconds))


def wipe(results: Path) -> None:
    """Empties a folder."""
    for path in results.glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
