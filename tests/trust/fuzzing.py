"""Fuzzing of everything that reads what others may have written: files, settings, and what is typed.

    PYTHONPATH=tests python tests/trust/fuzzing.py --inputs 100000

gives that many damaged and hostile inputs to the readers of the library, and prints what came of them, reader by reader. The
same seed gives the same inputs. `fuzz_engine.py` says what counts as a fault.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path

from fuzz_data import DATA_FILES
from fuzz_engine import count_faults, format_table, fuzz_apart
from fuzz_layouts import LAYOUTS
from fuzz_own_files import CHECKED_VALUES, OUR_FILES
from fuzz_settings import SETTINGS

from seqmatch_lib.store.files import write_json

TARGETS = {target.name: target for target in (*OUR_FILES, *CHECKED_VALUES, *DATA_FILES, *LAYOUTS, *SETTINGS)}


def main() -> int:
    """Runs from the command line; the exit code is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="fuzzing of every reader")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets; default: 100000")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="default: drawn, and printed")
    parser.add_argument("--target", action="append", choices=TARGETS, metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the counts as JSON")
    options = parser.parse_args()
    targets = [TARGETS[name] for name in options.target or TARGETS]
    print(f"seed: {options.seed}")
    began = time.perf_counter()
    tallies = fuzz_apart(targets, options.inputs, options.seed)
    print("\n" + format_table(tallies))
    if options.out is not None:
        counts = {name: {**tally.counts, "examples": tally.examples} for name, tally in tallies.items()}
        inputs = sum(tally.counts.total() for tally in tallies.values())
        seconds = round(time.perf_counter() - began)
        value = {
            "seed": options.seed,
            "inputs": inputs,
            "faults": count_faults(tallies),
            "seconds": seconds,
            "targets": counts,
        }
        write_json(options.out, value)
    return 1 if count_faults(tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
