"""Configurations as JSON values, from which run ids are hashed; and the rule for names of files."""

import json
import re
from dataclasses import field, fields, is_dataclass
from typing import Any


def is_file_name(name: Any, longest: int = 100) -> bool:
    """Whether a name is safe in a path on every system: of letters, digits, "_", "-" and ".", with a letter or digit first."""
    return isinstance(name, str) and len(name) <= longest and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII))


def omit_default(default: Any) -> Any:
    """Returns a dataclass field that `as_settings` leaves out at its default.

    It is for fields that are added after runs have been recorded, so that the run ids and teachers of these runs stay valid.
    """
    return field(default=default, metadata={"omit_default": True})


def as_settings(config: Any, with_defaults: bool = False) -> dict[str, Any]:
    """Returns a configuration as nested JSON values, `with_defaults` including all fields of `omit_default`."""
    values = {
        setting.name: as_settings(value, with_defaults) if is_dataclass(value) else value
        for setting in fields(config)
        for value in [getattr(config, setting.name)]
        if with_defaults or not (setting.metadata.get("omit_default") and value == setting.default)
    }
    return json.loads(json.dumps(values))  # tuples become lists, as in a file
