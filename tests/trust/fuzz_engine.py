"""How readers are fuzzed: inputs are drawn with hypothesis, tried one by one, and what comes of them is counted.

Allowed are an error of ours that names the file; the undamaged value, from a format with a checksum; any value of the
promised shape, from a format without one. All else is a fault: another exception or a warning ("crash"), other content from
a checksummed file ("silent"), more than five seconds ("hang"), more than a gibibyte ("memory"). `fuzzing.py` has the readers.
"""

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import string
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from seqmatch_lib.errors import SeqMatchError
from seqmatch_lib.runs.listing import format_columns

SECONDS, WALL_SECONDS = 5.0, 60.0  # of this process's own time, and of a clock, as others may be at the same cores
MEMORY, ADDRESSES = 2**30, 3 * 2**30  # bytes that one input may touch, and that it may ask for at all
PART = 500  # inputs drawn together; what follows a death of the process begins a new part
ATTEMPT_PARTS = 40  # parts without a new input before a target counts as exhausted
FAULTS = ("crash", "silent", "hang", "memory")
EXAMPLES = 5  # faults of a target that are told in words


class Overdue(BaseException):
    """An input took too long; no `except Exception` of a reader swallows it."""


@dataclass(frozen=True)
class Target:
    """One reader, with what it is given.

    Args:
        name: in the table.
        strategy: draws one input.
        read: (folder, input) -> a value, told apart by its `repr`.
        write: writes valid files into the empty folder; None where there are none.
        expected: of a format with a checksum: the undamaged value.
        accepts: of the others: whether a value is one that was promised.
        share: how many inputs it gets, relative to others.
        named: whether errors must name the folder or a file in it.
    """

    name: str
    strategy: st.SearchStrategy[Any]
    read: Callable[[Path, Any], Any]
    write: Callable[[Path], None] | None = None
    expected: Callable[[], str] | None = None
    accepts: Callable[[Any], bool] = lambda value: True
    share: float = 1.0
    named: bool = True


@dataclass
class Tally:
    """What came of a target's inputs: counts by outcome, and some faults in words."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, outcome: str, detail: str) -> None:
        """Counts one input."""
        self.counts[outcome] += 1
        if outcome in FAULTS and len(self.examples) < EXAMPLES and detail not in self.examples:
            self.examples.append(detail)

    def join(self, other: "Tally") -> None:
        """Adds the counts of another part of the same target."""
        self.counts += other.counts
        for detail in other.examples:
            if len(self.examples) < EXAMPLES and detail not in self.examples:
                self.examples.append(detail)


def run_part(target: Target, seed: int, part: int, count: int, notice: Callable[[], None] = lambda: None) -> Tally:
    """Gives a target up to `count` inputs, which follow from the seed and the number of the part.

    Args:
        target: the reader.
        seed: of the whole run.
        part: of the target.
        count: most inputs; fewer if there are not so many different ones.
        notice: called after each input.
    """
    tally = Tally()
    with sandbox(target) as folder:

        @seeded(int.from_bytes(hashlib.sha256(f"{seed} {target.name} {part}".encode()).digest()[:8], "big"))
        @settings(
            max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(target.strategy)
        def attempt(drawn: Any) -> None:
            tally.add(*try_input(target, folder, drawn))
            notice()

        attempt()
    return tally


@contextmanager
def sandbox(target: Target) -> Iterator[Path]:
    """Makes a folder with the target's valid files, and nothing beside it, where a hostile path could lead to."""
    outer = Path(tempfile.mkdtemp(prefix="fuzzing-"))
    folder = outer / "one" / "two" / "inside"
    folder.mkdir(parents=True)
    try:
        # no power fails here, and flushing to disk would take most of the time
        with patch.object(os, "fsync", lambda handle: None):
            if target.write is not None:
                target.write(folder)
            yield folder
    finally:
        shutil.rmtree(outer)


def try_input(target: Target, folder: Path, drawn: Any) -> tuple[str, str]:
    """Returns what came of one input, "refused", "read" or a fault, and a fault in words."""
    before = resident()
    began = time.process_time()
    with warnings.catch_warnings(record=True) as warned, redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        try:
            with limits():
                value = target.read(folder, drawn)
            outcome, detail = _check_value(target, value)
        except Overdue:
            outcome, detail = "hang", f"{drawn!r:.300}"
        except SeqMatchError as error:
            outcome, detail = _check_error(target, folder, error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome, detail = "crash", f"{_describe(error)} from {drawn!r:.300}"
    if warned and outcome not in FAULTS:
        outcome, detail = "crash", f"warns: {warned[0].message!s:.200}"
    if time.process_time() - began > SECONDS:
        outcome, detail = "hang", f"{drawn!r:.300}"
    if peak() - before > MEMORY:
        outcome, detail = "memory", f"{drawn!r:.300}"
    beside = [
        path for path in folder.parents[2].rglob("*") if folder not in (path, *path.parents) and path not in folder.parents
    ]
    if beside:
        outcome, detail = "crash", f"wrote {beside[0]} from {drawn!r:.300}"
    return outcome, detail


def _check_value(target: Target, value: Any) -> tuple[str, str]:
    if target.expected is not None and describe(value) != target.expected():
        return "silent", f"{describe(value):.300}"
    if not target.accepts(value):
        return "silent", f"not what was promised: {describe(value):.300}"
    return "read", ""


def _check_error(target: Target, folder: Path, error: SeqMatchError) -> tuple[str, str]:
    chain = list(_chain(error))
    if any(isinstance(one, MemoryError) for one in chain):
        return "memory", _describe(chain[-1])
    if target.named and str(folder) not in str(error):
        return "crash", f"names no file: {error!s:.300}"
    return "refused", ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return f"{type(error).__name__}: {error!s:.200}{place}"


@contextmanager
def limits() -> Iterator[None]:
    """Ends what waits too long, and refuses memory beyond what one input can need."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _end)
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, hard))
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _end(signal_number: int, frame: Any) -> None:
    raise Overdue


def resident() -> int:
    """Returns the memory of this process in bytes, and begins a new measurement of its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Returns the most memory since then, in bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def describe(value: Any) -> str:
    """Returns a text that two values share only if they are equal to the last bit; NaN equals itself."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous()
        digest = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        return f"tensor({plain.dtype}, {tuple(plain.shape)}, {digest})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {describe(one)}" for key, one in sorted(value.items())) + "}"
    if isinstance(value, list | tuple):
        return type(value).__name__ + "[" + ", ".join(map(describe, value)) + "]"
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__ + describe({name: getattr(value, name) for name in value.__dataclass_fields__})
    return repr(value)


# --- what is drawn

POSITIONS = st.integers(0, 2**31)
LENGTHS = st.sampled_from([0, 1, 2, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1])
WORDS = (
    "", ".", "..", "../../evil", "/tmp/evil", "a/b", "a\\b", "a b", "~", "evil\n", "\0", "nan", "inf", "-1", "{x}", "con",
    "{0.__class__}", "${HOME}", "$(touch evil)", "'; import os #", '"""', "\\", "\ud800", "é" * 40, "x" * 10_000, "digits",
    "mtt", "whole",
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
NUMBERS = st.one_of(
    st.integers(-3, 300), st.sampled_from([10**30, -(10**30), 10**400, 2**31, 2**63, 0.5, 1e308, -0.0]), st.floats()
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)), max_leaves=8
)
NESTED = "[" * 100_000  # deeper than any parser that calls itself can go


DAMAGES = (
    "flip",
    "set",
    "letter",
    "cut",
    "insert",
    "delete",
    "repeat",
    "splice",
    "length",
    "swap",
    "number",
    "random",
    "nest",
)


@st.composite
def damage(draw: st.DrawFn, data: bytes, others: Sequence[bytes]) -> bytes:
    """Draws one damage to the content of a file."""
    kind = draw(st.sampled_from(DAMAGES))
    at = draw(POSITIONS) % (len(data) + 1)
    size = draw(st.integers(1, 64))
    head, tail = data[:at], data[at:]
    match kind:
        case "flip":
            changed = bytes([tail[0] ^ 1 << draw(st.integers(0, 7))]) if tail else b""
            return head + changed + tail[1:]
        case "set":
            return head + draw(st.binary(min_size=1, max_size=8)) + tail[size:]
        case "letter":  # what is text stays text
            return head + draw(st.sampled_from(string.ascii_letters + string.digits)).encode() + tail[1:]
        case "cut":
            return head
        case "insert":
            return head + draw(st.binary(min_size=1, max_size=64)) + tail
        case "delete":
            return head + tail[size:]
        case "repeat":
            return head + tail[:size] * draw(st.integers(2, 50)) + tail[size:]
        case "splice":
            other = others[draw(st.integers(0, len(others) - 1))]
            start = draw(POSITIONS) % (len(other) + 1)
            return head + other[start : start + draw(st.sampled_from([8, 64, 512, 10**6]))] + tail[size:]
        case "length":
            width = draw(st.sampled_from([4, 8]))
            number = draw(LENGTHS) % 2 ** (8 * width)
            return head + number.to_bytes(width, "little") + tail[width:]
        case "swap":
            width = draw(st.sampled_from([4, 8]))
            start = draw(POSITIONS) % (len(data) + 1)
            return _swap(data, *sorted((at, start)), width)
        case "number":
            return _change_number(data, at, str(draw(st.one_of(LENGTHS, st.integers(-3, 99)))).encode())
        case "nest":
            return head + NESTED.encode() + tail
    return draw(st.binary(max_size=300))


def _swap(data: bytes, first: int, second: int, width: int) -> bytes:
    """Exchanges two fields of `width` bytes; fields that overlap are turned round instead, as another byte order is."""
    if second - first < width:
        return data[:first] + data[first : first + width][::-1] + data[first + width :]
    one, other = data[first : first + width], data[second : second + width]
    return data[:first] + other + data[first + width : second] + one + data[second + width :]


def _change_number(data: bytes, at: int, number: bytes) -> bytes:
    """Puts another number in place of the first one in digits after a position: the lengths of text formats."""
    start = next((place for place in range(at, len(data)) if data[place : place + 1].isdigit()), len(data))
    end = next((place for place in range(start, len(data)) if not data[place : place + 1].isdigit()), len(data))
    return data[:start] + number + data[end:]


@st.composite
def damaged_file(draw: st.DrawFn, target: str, names: Sequence[str] = ()) -> tuple[str, bytes | None]:
    """Draws a file of a target, and its content after up to three damages; None takes the file away."""
    contents = VALID_FILES[target]()
    name = draw(st.sampled_from(list(names) or sorted(contents)))
    if draw(st.integers(0, 99)) == 99:
        return name, None
    data, others = contents[name], all_files()
    for _ in range(draw(st.integers(0, 3))):
        data = draw(damage(data, others))
    return name, data


VALID_FILES: dict[str, Callable[[], dict[str, bytes]]] = {}  # of the targets that read files: name -> content


@cache
def all_files() -> tuple[bytes, ...]:
    """Returns the valid files of all targets, from which slices find their way into the wrong places."""
    return tuple(sorted({content for files in VALID_FILES.values() for content in files().values()}))


def file_target(
    name: str,
    write: Callable[[Path], None],
    read: Callable[[Path], Any],
    checksummed: bool = False,
    accepts: Callable[[Any], bool] = lambda value: True,
    share: float = 1.0,
    names: Sequence[str] = (),
) -> Target:
    """Returns a target whose inputs are its own files, damaged.

    Args:
        name: in the table.
        write: writes the valid files into an empty folder.
        read: what reads them.
        checksummed: whether nothing but the undamaged value may be read.
        accepts: whether a value is one that was promised, in formats without a checksum.
        share: how many inputs it gets, relative to others.
        names: of the files that are damaged; all by default.
    """

    @cache
    def valid() -> tuple[dict[str, bytes], str]:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            return files, describe(read(Path(folder)))

    def read_damaged(folder: Path, drawn: tuple[str, bytes | None]) -> Any:
        path, content = folder / drawn[0], drawn[1]
        try:
            path.unlink() if content is None else path.write_bytes(content)
            return read(folder)
        finally:
            path.write_bytes(valid()[0][drawn[0]])

    VALID_FILES[name] = lambda: valid()[0]
    expected = (lambda: valid()[1]) if checksummed else None
    return Target(name, damaged_file(name, names), read_damaged, write, expected, accepts, share)


@st.composite
def changed(draw: st.DrawFn, value: Any, junk: st.SearchStrategy[Any] = VALUES) -> Any:
    """Draws a nested value like the given one, with up to three places changed."""
    value = _copy(value)
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(value))
        if not places:
            return draw(junk)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["replace", "remove", "add", "rename"])):
            case "replace":
                holder[key] = draw(junk)
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(TEXTS)] = draw(junk)
            case "rename" if isinstance(holder, dict):
                holder[draw(TEXTS)] = holder.pop(key)
            case _:
                holder.insert(0, draw(junk))
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list | tuple) else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every (holder, key) in nested dictionaries and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


# --- many inputs


def share_out(targets: Sequence[Target], inputs: int) -> dict[str, int]:
    """Returns how many inputs each target gets: at least as many as asked for together."""
    whole = sum(target.share for target in targets)
    return {target.name: ceil(round(inputs * target.share / whole, 6)) for target in targets}


def fuzz(targets: Sequence[Target], inputs: int, seed: int) -> dict[str, Tally]:
    """Runs all targets in this process, as a short test does."""
    tallies = {}
    for target in targets:
        wanted = share_out(targets, inputs)[target.name]
        tallies[target.name] = tally = Tally()
        for part in range(ATTEMPT_PARTS):
            tally.join(run_part(target, seed, part, min(PART, wanted - tally.counts.total())))
            if tally.counts.total() >= wanted:
                break
    return tallies


def _serve(jobs: list[tuple[str, int, int]], seed: int, module: str, results: Any, progress: Any) -> None:
    """Runs parts in a process of their own, which an input may kill, and sends what came of each."""
    targets = import_module(module).TARGETS
    for name, part, count in jobs:
        progress.value = 0

        def notice() -> None:
            progress.value += 1

        results.send((name, run_part(targets[name], seed, part, count, notice)))
    results.send(None)


def fuzz_apart(targets: Sequence[Target], inputs: int, seed: int, module: str = "fuzzing") -> dict[str, Tally]:
    """Runs targets in another process: if that dies it is a crash of the part it was at, and another one goes on.

    A part that is cut short, and one that has no more different inputs, leaves a rest, which the next round shares out.

    Args:
        targets: all or some of the module's `TARGETS`.
        inputs: over all targets.
        seed: of all that is drawn.
        module: where the other process finds them.
    """
    context = multiprocessing.get_context("spawn")
    wanted = share_out(targets, inputs)
    tallies = {name: Tally() for name in wanted}
    parts: Counter[str] = Counter()
    for _ in range(ATTEMPT_PARTS):
        jobs = []
        for name, tally in tallies.items():
            rest = wanted[name] - tally.counts.total()
            for first in range(0, max(rest, 0), PART):
                jobs.append((name, parts[name], min(PART, rest - first)))
                parts[name] += 1
        if not jobs:
            break
        while jobs:
            jobs = _run_jobs(context, jobs, seed, module, tallies)
    return tallies


def _run_jobs(
    context: Any, jobs: list[tuple[str, int, int]], seed: int, module: str, tallies: dict[str, Tally]
) -> list[tuple[str, int, int]]:
    """Runs jobs until all are done, or one has killed the process; returns those that are left."""
    receiver, sender = context.Pipe(duplex=False)
    progress = context.Value("l", 0, lock=False)
    process = context.Process(target=_serve, args=(jobs, seed, module, sender, progress))
    process.start()
    sender.close()
    left = list(jobs)
    with suppress(EOFError):
        while (result := receiver.recv()) is not None:
            name, tally = result
            tallies[name].join(tally)
            left.pop(0)
    process.join()
    if left and process.exitcode >= 0:
        raise RuntimeError(f"the strategy or the harness failed at {left[0]}")
    if left:
        name, part, _ = left.pop(0)
        tally = Tally(Counter(refused=progress.value))  # nobody is left to tell which of them were read
        tally.add("crash", f"the process ended with code {process.exitcode} in part {part}, input {progress.value + 1}")
        tallies[name].join(tally)
    return left


def format_table(tallies: dict[str, Tally]) -> str:
    """Returns the table of all targets, its total, and the faults in words."""
    counts = {name: tally.counts for name, tally in tallies.items()}
    counts["total"] = sum(counts.values(), Counter())
    kinds = ("refused", "read", *FAULTS)
    rows = [(name, *(f"{number:,}" for number in (one.total(), *map(one.__getitem__, kinds)))) for name, one in counts.items()]
    faults = [f"{name}: {detail}" for name, tally in tallies.items() for detail in tally.examples]
    return "\n".join([format_columns([("target", "inputs", *kinds), *rows], left=1), *faults])


def count_faults(tallies: dict[str, Tally]) -> int:
    """Returns how many inputs had an outcome that is not allowed."""
    return sum(tally.counts[kind] for tally in tallies.values() for kind in FAULTS)
