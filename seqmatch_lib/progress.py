"""Progress bars: they show while something runs and leave nothing behind where output is kept."""

import sys

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, done: int = 0) -> tqdm:
    """Returns a bar for stderr, to be used in a `with` statement.

    The finished bar stays on a terminal. In a notebook or a log file it is wiped, since those are kept and read later.

    Args:
        total: number of units.
        what: is being done.
        unit: what is counted.
        done: units that were finished before.
    """
    return tqdm(total=total, initial=done, desc=what, unit=unit, leave=sys.stderr.isatty())
