"""Canonical settings, from which run ids are hashed: configurations as JSON values; and what may become a file name."""

import json
import re
from dataclasses import field, fields, is_dataclass
from typing import Any


def is_file_name(name: Any, longest: int = 100) -> bool:
    """Whether a text from anywhere can become part of a path: it names one file, in place, on every system."""
    return isinstance(name, str) and len(name) <= longest and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII))


def omit_default(default: Any) -> Any:
    """Returns a dataclass field that settings leave out at its default, for fields added after runs had been recorded.

    So ids and teachers of earlier runs stay what they were.
    """
    return field(default=default, metadata={"omit_default": True})


def as_settings(config: Any, with_defaults: bool = False) -> dict[str, Any]:
    """Returns a configuration as nested JSON values; fields of `omit_default` at their default only if asked for."""
    values = {
        one.name: as_settings(value, with_defaults) if is_dataclass(value) else value
        for one in fields(config)
        for value in [getattr(config, one.name)]
        if with_defaults or not (one.metadata.get("omit_default") and value == one.default)
    }
    return json.loads(json.dumps(values))  # tuples become lists, as they are in a file
