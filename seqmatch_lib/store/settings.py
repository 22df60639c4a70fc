"""What of a configuration names a run: its settings as JSON values, steady while the library grows; and names themselves."""

import json
import re
from dataclasses import field, fields, is_dataclass
from typing import Any


def is_file_name(name: Any, longest: int = 100) -> bool:
    """Whether a text from anywhere can become part of a path: it names one file, in place, on every system."""
    return isinstance(name, str) and len(name) <= longest and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII))


def omit_default(default: Any) -> Any:
    """Returns a dataclass field that was added after runs had been recorded.

    At its default it is left out of the settings, so that ids and teachers of earlier runs stay what they were.
    """
    return field(default=default, metadata={"omit_default": True})


def as_settings(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested JSON values, without later fields that have their default."""
    values = {
        one.name: as_settings(value) if is_dataclass(value) else value
        for one in fields(config)
        for value in [getattr(config, one.name)]
        if not (one.metadata.get("omit_default") and value == one.default)
    }
    return json.loads(json.dumps(values))  # tuples become lists, as they are in a file
