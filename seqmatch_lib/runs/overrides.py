"""How the settings of a run differ from those of its preset."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from seqmatch_lib.methods import method_names
from seqmatch_lib.runs.config import RunConfig, preset_names

if TYPE_CHECKING:  # records hold overrides, and so import this module
    from seqmatch_lib.runs.records import OrderRecord, RunRecord


def changes_of(record: "RunRecord | OrderRecord") -> dict[str, Any]:
    """Returns how a run differs from its preset: its overrides.

    If the preset has been edited since the run, a key `preset` with the run's commit is added, so that the run does not count
    as one of the edited preset.
    """
    is_edited = overrides_of(RunConfig.from_dict(record.config)) != record.overrides
    return record.overrides | ({"preset": f"as of {record.git_commit[:8]}"} if is_edited else {})


def overrides_of(config: RunConfig) -> dict[str, Any]:
    """Returns what differs from the run's preset as it stands: dotted key -> value, as `RunConfig.from_preset` takes them.

    Where all subsets have one interval, only that is compared, not how many they are. A configuration that was not made from
    a preset has no overrides.
    """
    if config.preset not in preset_names():
        return {}
    preset = _preset_settings(config.preset, config.scale, config.seed)
    changes = describe_changes(preset, _comparable_settings(config))
    others = tuple(f"{name}." for name in method_names() if name != config.base_method)  # of which the run has no settings
    return {key: value for key, value in changes.items() if not key.startswith(others)}


@cache
def _preset_settings(preset: str, scale: str, seed: int) -> dict[str, Any]:
    """Flat settings of a preset; many records ask for the same ones."""
    return _comparable_settings(RunConfig.from_preset(preset, scale, seed))


def _comparable_settings(config: RunConfig) -> dict[str, Any]:
    settings = flatten_settings(config.as_dict(with_defaults=True))
    intervals = settings["intervals"]
    return settings | {"intervals": intervals[:1] if all(interval == intervals[0] for interval in intervals) else intervals}


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flat settings that differ, with their values in `after`; one that is left out there has its default."""
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: after.get(key, "default") for key in changed}


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings under dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
