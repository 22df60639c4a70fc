"""How a named set is drawn: one colour and one marker, the same in every figure of every notebook."""

import re
from typing import Any

import seaborn as sns

from seqmatch_lib.errors import require

PALETTE = "colorblind"
LOOKS = {  # what the name of a set holds -> number in the palette or colour, and marker; the first that fits
    r"random real": (7, "v"),
    r"^real (data|training)": ("black", "p"),
    r"independent halves": (2, "D"),
    r"selected iterate": (3, "P"),
    r"S_1\$ repeated": ("#6b3e12", "*"),
    r"^sequence|^SeqMatch|\\cup|^stage [2-9]": (1, "s"),
    r"^\$S_1\$|^stage 1": (4, "X"),
    r"epochs$": (9, "^"),  # one set, on which networks train for longer
    r"one set|^MTT": (0, "o"),
}
VARIATION = r"jointly|unseen teachers|step size of \$S_1\$|^real training, after"  # drawn beside the set itself


def look_of(name: str) -> dict[str, Any]:
    """Returns how matplotlib is to draw a set; a variation of it has open markers and dashes, for want of a look of its own.

    Args:
        name: as `controls` and the coupling measurements call it; what stands around the name does not matter.
    """
    found = next((look for part, look in LOOKS.items() if re.search(part, name)), None)
    require(found is not None, f"no colour is known for the set {name!r:.120}; add it to LOOKS")
    color, marker = found
    color = sns.color_palette(PALETTE)[color] if isinstance(color, int) else color
    is_variation = bool(re.search(VARIATION, name))
    look = {"color": color, "marker": marker, "linestyle": "--" if is_variation else "-"}
    return look | {"markerfacecolor": "white" if is_variation else color}
