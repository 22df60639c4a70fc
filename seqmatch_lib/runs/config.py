"""The configuration of a run: frozen dataclasses, built strictly from the layers of `presets.toml` and overrides."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from numbers import Real
from operator import index
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from seqmatch_lib.engine.evaluation import EvaluationConfig
from seqmatch_lib.engine.networks import NetworkConfig
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import ConfigError, NotRegisteredError, require
from seqmatch_lib.methods import get_method, method_names
from seqmatch_lib.methods.teachers import TeacherConfig
from seqmatch_lib.store.files import digest_json
from seqmatch_lib.store.settings import as_settings, is_file_name

SCALES = ("smoke", "reduced", "short", "paper")
SELECTIONS = ("validation", "test", "none")
SEQUENTIAL_PREFIX = "seqmatch_"
REFERENCES = ("random", "whole")  # methods that learn no images
_ITEMS = {int: "whole numbers, such as [5,5]", float: "numbers, such as [0.5,0.1]", str: 'texts, such as ["convnet"]'}
LARGEST_INT = 2**63 - 1  # that torch takes
LARGEST_FLOAT = 1e37  # beside tensors of float32, which hold 3.4e38, torch takes: Adam's first step is ten step sizes


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run.

    Args:
        preset: name of the preset, `<dataset>-ipc<n>-<method>`, or `<dataset>-whole`.
        scale: "paper", "short" (the published settings with fewer teachers and iterations, hours to days of a CPU), "reduced"
            (a rehearsal: two CPU cores, under an hour on real data) or "smoke" (seconds).
        seed: of initial images, teacher segments, batches and evaluation networks; at least 0.
        dataset: a name `load_dataset` knows.
        ipc: images per class in the whole distilled set; 0, for all that there are, if the method is "whole".
        method: a base method, `seqmatch_` and a base method, or a reference to compare them with: "random" (as many
            random real images) or "whole" (all real images).
        subset_ipcs: images per class of S_1 … S_K; they sum up to `ipc`. Empty means one subset.
        intervals: (first, end) teacher epochs of each subset; a single one given stands for all. Empty for methods without
            teachers.
        zca: whether images are ZCA whitened instead of normalised.
        select_on: images on which the best iterate of a stage is chosen: "validation" holds 10 % of the training
            images out, "test" is the published protocol, "none" keeps the last iterate.
        network: the network that is trained on the subsets.
        teachers: how teachers are trained.
        training: how networks are trained on a distilled set.
        evaluation: which networks the set is evaluated with.
        options: the base method's own configuration, in TOML under the method's name; None for references.
    """

    preset: str
    scale: str
    seed: int
    dataset: str
    ipc: int
    method: str
    subset_ipcs: tuple[int, ...]
    intervals: tuple[tuple[int, int], ...]
    zca: bool
    select_on: str
    network: NetworkConfig
    teachers: TeacherConfig
    training: TrainingRecipe
    evaluation: EvaluationConfig
    options: Any = None

    def __post_init__(self) -> None:
        require(self.scale in SCALES, f"scale {self.scale!r} is unknown; use one of {', '.join(SCALES)}")
        require(self.seed >= 0, f"seed {self.seed} must be at least 0")
        message = f"dataset {self.dataset!r:.120} must be a name of letters, digits, '_', '.' and '-', 100 at most"
        require(is_file_name(self.dataset), message)  # it becomes part of paths
        if self.method == "whole":
            remedy = "run a preset <dataset>-whole, or set ipc=0 and subset_ipcs=[]"
            require(self.ipc == 0, f"ipc {self.ipc} does not fit method 'whole', which takes all images; {remedy}")
        else:
            require(self.ipc >= 1, f"ipc {self.ipc} must be at least 1")
            require(min(self.subset_ipcs) >= 1, f"subset_ipcs {list(self.subset_ipcs)} must each be at least 1")
        message = f"subset_ipcs {list(self.subset_ipcs)} sum up to {sum(self.subset_ipcs)}, not to ipc {self.ipc}; set both"
        require(sum(self.subset_ipcs) == self.ipc, message)
        require(self.select_on in SELECTIONS, f"select_on {self.select_on!r} is unknown; use one of {', '.join(SELECTIONS)}")
        if self.options is None:
            return
        message = "evaluation.score_test needs scores, but select_on 'none' scores no iterate; set evaluation.score_test=false"
        require(self.select_on != "none" or not self.evaluation.score_test, message)
        problem = f"distils one subset, but subset_ipcs {list(self.subset_ipcs)} names {self.num_subsets}"
        remedy = f"use method '{SEQUENTIAL_PREFIX}{self.method}' or one subset"
        require(self.is_sequential or self.num_subsets == 1, f"method {self.method!r} {problem}; {remedy}")
        intervals = [list(interval) for interval in self.intervals]
        message = f"intervals {intervals} mean nothing to method {self.method!r}, which has no teachers; leave them out"
        require(self.uses_teachers or not intervals, message)
        message = f"intervals {intervals} and subset_ipcs {list(self.subset_ipcs)} must have one entry a subset; set both"
        require(len(intervals) == (self.num_subsets if self.uses_teachers else 0), message)
        get_method(self.base_method)(self.options).check(self.subset_ipcs, self.stage_intervals, self.teachers, self.training)

    @classmethod
    def from_preset(
        cls, preset: str, scale: str = "paper", seed: int = 0, overrides: Mapping[str, Any] | None = None
    ) -> "RunConfig":
        """Builds the configuration of a preset.

        Args:
            preset: a name of `preset_names()`.
            scale: one of `SCALES`.
            seed: at least 0.
            overrides: dotted key -> value, such as `{"mtt.syn_steps": 20, "subset_ipcs": [5, 5]}`.

        Raises:
            ConfigError: an unknown preset, scale or key, a value of another type or out of range.
        """
        table = _read_presets()
        require_known("preset", preset, table["preset"])
        settings = _read_name(preset)
        dataset, method = settings["dataset"], settings["method"]
        base, plain = method.removeprefix(SEQUENTIAL_PREFIX), preset.replace(SEQUENTIAL_PREFIX, "")
        layers = [(table, "defaults"), (table["method"], base), (table["dataset"], dataset), (table["preset"], plain)]
        if base != method:  # a sequence has what its base method has, and its own over that
            layers += [(table["method"], method), (table["preset"], preset)]
        scaled = table["scale"].get(scale, {})
        layers += [(scaled, name) for name in ("all", dataset, base, plain, preset)]
        for group, name in layers:
            settings = _merge(settings, _layer(group, name))
        if not _has_intervals(base):
            settings["intervals"] = []  # those of a scale are meant for the others
        return cls.from_dict({**_override(settings, overrides), "preset": preset, "scale": scale, "seed": seed})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Builds a configuration from nested dictionaries, as `as_dict` and records hold them; strict about keys.

        Raises:
            ConfigError: a key that is unknown or missing, a value of another type or out of range.
        """
        require(isinstance(settings, Mapping), f"settings must be a table, not {settings!r:.200}")
        values, base = dict(settings), _base_method(settings)
        message = "unknown key 'options'; the settings of a base method stand under its name, such as 'mtt'"
        require("options" not in values, message)
        sections = {name: values.pop(name, {}) for name in method_names()}
        for name, section in sections.items():
            if name != base and section:  # of another method, for example in settings whose method was changed
                _check_keys(get_method(name).config_class, section, name)
        options = None if base in REFERENCES else _build(get_method(base).config_class, sections[base], base)
        intervals, ipcs = values.get("intervals"), values.get("subset_ipcs")
        if ipcs is None or (isinstance(ipcs, list | tuple) and not ipcs):
            values["subset_ipcs"] = ipcs = [values.get("ipc", 0)]
        both = isinstance(intervals, list | tuple) and isinstance(ipcs, list | tuple)
        if both and len(intervals) == 1 and _has_intervals(base):
            values["intervals"] = list(intervals) * len(ipcs)
        return _build(cls, {**values, "options": options}, "")

    def changed(self, overrides: Mapping[str, Any]) -> "RunConfig":
        """Returns the configuration with some settings changed, by dotted keys as in `from_preset`.

        Raises:
            ConfigError: as `from_preset`.
        """
        return RunConfig.from_dict(_override(self.as_dict(), overrides))

    def as_dict(self, with_defaults: bool = False) -> dict[str, Any]:
        """Returns the configuration as nested JSON values; the base method's section stands under its name.

        Args:
            with_defaults: whether fields of `omit_default` are there also at their default; hashes and files leave them out.
        """
        values = as_settings(self, with_defaults)
        options = values.pop("options")
        return values if options is None else {**values, self.base_method: options}

    @property
    def num_subsets(self) -> int:
        """K."""
        return len(self.subset_ipcs)

    @property
    def is_sequential(self) -> bool:
        """Whether the method is a base method under SeqMatch."""
        return self.method.startswith(SEQUENTIAL_PREFIX)

    @property
    def base_method(self) -> str:
        """The name of the base method A, or of the reference."""
        return self.method.removeprefix(SEQUENTIAL_PREFIX)

    @property
    def uses_teachers(self) -> bool:
        """Whether the run needs teachers, networks that were trained on real data."""
        return self.options is not None and get_method(self.base_method).uses_teachers

    @property
    def stage_intervals(self) -> tuple[tuple[int, int] | None, ...]:
        """Teacher epochs of each subset; None for each where there are no teachers."""
        return self.intervals or (None,) * self.num_subsets

    @property
    def hash(self) -> str:
        """The sha256 of all settings."""
        return digest_json(self.as_dict())

    @property
    def run_id(self) -> str:
        """`<dataset>-<method>-ipc<N>-k<K>-seed<S>-<8 hex of the settings>`."""
        return f"{self.dataset}-{self.method}-ipc{self.ipc}-k{self.num_subsets}-seed{self.seed}-{self.hash[:8]}"


def config_asked_for(preset: str, scale: str, seed: int, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns `RunConfig.from_preset` of what a user asks for, and refuses two requests that are probably mistakes.

    Raises:
        ConfigError: another method than the preset's, although a preset has that method, with settings chosen for it; a
            sequence of one subset, which is the base method under another name; or as `RunConfig.from_preset`.
    """
    method = overrides.get("method")
    other = "-".join([*str(preset).split("-")[:-1], str(method)])
    message = f"method {method!r} is that of preset {other}; run this preset, whose settings are meant for it"
    require(other == preset or other not in preset_names(), message)
    config = RunConfig.from_preset(preset, scale, seed, overrides)
    problem = f"method {config.method!r} takes two subsets or more, but subset_ipcs is {list(config.subset_ipcs)}"
    remedy = f"set subset_ipcs to a list such as {even_subsets(max(config.ipc, 2), 2)}, or use method {config.base_method!r}"
    require(not config.is_sequential or config.num_subsets > 1, f"{problem}; {remedy}")
    return config


def even_subsets(ipc: int, num_subsets: int) -> list[int]:
    """Returns `subset_ipcs` for K subsets as equal as can be, the larger ones first: 50 and 3 give 17, 17, 16.

    Raises:
        ConfigError: there are more subsets than images per class.
    """
    require(1 <= num_subsets <= ipc, f"{num_subsets} subsets do not fit ipc {ipc}; take between 1 and {ipc}")
    return [ipc // num_subsets + (k < ipc % num_subsets) for k in range(num_subsets)]


def config_of_subsets(dataset: str, base: str, subset_ipcs: Sequence[int], scale: str, seed: int = 0) -> RunConfig:
    """Returns the run of a base method on subsets of these sizes, as its records are named.

    One subset is the base method alone. The preset is that of as many images per class where there is one, else that of ten.

    Args:
        dataset: of the preset.
        base: base method, such as "mtt".
        subset_ipcs: images per class of S_1 … S_K.
        scale: one of `SCALES`.
        seed: at least 0.

    Raises:
        ConfigError: as `RunConfig.from_preset`.
    """
    method = base if len(subset_ipcs) == 1 else f"{SEQUENTIAL_PREFIX}{base}"
    preset = f"{dataset}-ipc{sum(subset_ipcs)}-{method}"
    config = RunConfig.from_preset(preset if preset in preset_names() else f"{dataset}-ipc10-{method}", scale, seed)
    if config.subset_ipcs == tuple(subset_ipcs):
        return config
    changes: dict[str, Any] = {"ipc": sum(subset_ipcs), "subset_ipcs": list(subset_ipcs)}
    if config.intervals:
        changes["intervals"] = [list(config.intervals[0])]  # for all subsets
    return config.changed(changes)


def _read_name(preset: str) -> dict[str, Any]:
    """Returns what the name of a preset says: data set, images per class (0: all real images) and method."""
    dataset, *cell = preset.split("-")
    ipc, method = cell if len(cell) == 2 else ("ipc0", *cell)
    return {"dataset": dataset, "ipc": int(ipc.removeprefix("ipc")), "method": method}


def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets."""
    return tuple(_read_presets()["preset"])


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parses several `key=value` of the command line.

    Raises:
        ConfigError: one is not of this form, or a key is given twice.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        key, value = parse_override(text)
        require(key not in overrides, f"--set {key} is given twice; give one value")
        overrides[key] = value
    return overrides


def parse_override(text: str) -> tuple[str, Any]:
    """Parses `key=value` of the command line; the value is read as TOML, as Python's True or False, or as a plain word.

    Raises:
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    require(bool(equals and key), f"--set {text!r} is not of the form key=value")
    value = value.lower() if value in ("True", "False") else value
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
        repr(parsed)  # no number of more digits than Python prints
    except (ValueError, RecursionError):  # a TOMLDecodeError, or what is too long or too deep for Python
        words = re.fullmatch(r"\[([\w.+-]+(?:,\s*[\w.+-]+)*)\]", value)  # a list of texts of which a shell took the quotes
        return key, re.split(r",\s*", words[1]) if words else value
    return key, parsed


def _has_intervals(base: str) -> bool:
    """Whether settings of a method name intervals of teacher epochs; references keep those of the methods beside them."""
    return base in REFERENCES or get_method(base).uses_teachers


@cache
def _read_presets() -> dict[str, Any]:
    return tomllib.loads(files("seqmatch_lib.runs").joinpath("presets.toml").read_text(encoding="utf-8"))


def _layer(group: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the layer of a name, over the one that it is `like`; an empty one if there is none."""
    layer = dict(group.get(name, {}))
    like = layer.pop("like", None)
    return _merge(_layer(group, like), layer) if like else layer


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _base_method(settings: Mapping[str, Any]) -> str:
    """Returns the base method of settings, or their reference; raises NotRegisteredError if there is none of that name."""
    method = settings.get("method")
    base = str(method).removeprefix(SEQUENTIAL_PREFIX)
    known = f"use {' or '.join(REFERENCES)}, or {', '.join(method_names())}, alone or after '{SEQUENTIAL_PREFIX}'"
    remedy = f"{known}; if it is one of your own, import the module that registers it, or install its package"
    is_known = isinstance(method, str) and (base in method_names() or method in REFERENCES)
    require(is_known, f"method {method!r:.120} is unknown; {remedy}", NotRegisteredError)
    return base


def as_overrides(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns changed settings as a dictionary, empty for None; raises ConfigError for anything but a mapping."""
    example = '{"mtt.syn_steps": 20, "subset_ipcs": [5, 5]}'
    require(given is None or isinstance(given, Mapping), f"settings {given!r:.120} must be a dictionary, such as {example}")
    return dict(given or {})


def _override(settings: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns settings with overrides, by dotted keys; if the method is overridden, these are keys of the new one."""
    overrides = as_overrides(overrides)
    apart = [key for key in ("preset", "scale", "seed") if key in overrides]
    remedy = "give it on the command line as PRESET, --scale or --seed, in Python to run() or RunConfig.from_preset()"
    require(not apart, f"{' and '.join(apart)} cannot be set like a setting; {remedy}")
    for key, value in sorted(overrides.items(), key=lambda override: override[0] != "method"):
        require_known("key", key, _known_keys(settings))
        for part in reversed(key.split(".")):
            value = {part: value}
        settings = _merge(settings, value)
    if "method" in overrides and "intervals" not in overrides and not _has_intervals(_base_method(settings)):
        return {**settings, "intervals": []}  # those that the method before had
    return settings


def _known_keys(settings: Mapping[str, Any]) -> list[str]:
    """Returns the dotted keys of a run: those of RunConfig, of its sections and of the base method's section."""
    base = _base_method(settings)
    sections = {
        field.name: field.type for field in fields(RunConfig) if field.name not in ("preset", "scale", "seed", "options")
    }
    if base in method_names():
        sections[base] = get_method(base).config_class
    keys = []
    for name, kind in sections.items():
        keys += [f"{name}.{field.name}" for field in fields(kind)] if is_dataclass(kind) else [name]
    return keys


def require_known(what: str, name: str, known: Any) -> None:
    """Raises a ConfigError for an unknown name, with the known ones that are spelled or end alike."""
    known = list(known)  # a list can also be asked for what has no hash
    if name in known:
        return
    ends_alike = [other for other in known if other.rpartition(".")[2] == name]
    alike = ends_alike or get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(alike)}?" if alike else f"known are {', '.join(known)}"
    raise ConfigError(f"unknown {what} {name!r:.120}; {hint}")


def _build(kind: type, values: Mapping[str, Any], section: str) -> Any:
    """Builds a dataclass from a mapping: every key known, every value of the field's type."""
    _check_keys(kind, values, section)
    prefix = f"{section}." if section else ""
    kinds = get_type_hints(kind)  # also of a module in which annotations are texts
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    missing = [f"{prefix}{name}" for name in needed if name not in values]
    require(not missing, f"the settings lack {', '.join(missing)}; take those of a preset and change them")
    return kind(**{name: _coerce(value, kinds[name], f"{prefix}{name}") for name, value in values.items()})


def _check_keys(kind: type, values: Mapping[str, Any], section: str) -> None:
    """Raises ConfigError unless the values are a mapping whose keys are fields of the dataclass."""
    require(isinstance(values, Mapping), f"{section} must be a table of settings, not {values!r:.200}")
    prefix = f"{section}." if section else ""
    for key in values:
        require_known("key", f"{prefix}{key}", [f"{prefix}{field.name}" for field in fields(kind)])


def _coerce(value: Any, kind: Any, key: str) -> Any:
    """Returns the value as the field's type: lists become tuples and whole numbers floats, nothing else is converted."""
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _build(kind, value, key)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for member in inner:
            with suppress(ConfigError):
                return _coerce(value, member, key)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        repeated = origin is list or inner[-1] is Ellipsis
        if repeated or len(value) == len(inner):
            kinds = [inner[0]] * len(value) if repeated else inner
            return origin(_coerce(item, item_kind, key) for item, item_kind in zip(value, kinds, strict=True))
    if kind is int and type(value) is not bool:
        with suppress(TypeError):  # no whole number
            value = index(value)  # also of numpy's
    if kind is int and type(value) is int:
        require(abs(value) <= LARGEST_INT, f"{key} = {value!r:.40} must be a number of at most 63 bits")
    if kind is float and isinstance(value, Real) and hasattr(value, "item"):
        value = value.item()  # of numpy
    if kind is float and type(value) in (int, float):
        message = (
            f"{key} = {value!r:.40} must be a finite number of size {LARGEST_FLOAT:g} at most, for float32 to hold its steps"
        )
        require(abs(value) <= LARGEST_FLOAT, message)
        return float(value)
    if kind is Any or type(value) is kind or (origin is Literal and value in inner) or origin is type(value) is dict:
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    if origin in (tuple, list):
        count = "" if origin is list or inner[-1] is Ellipsis else f"{len(inner)} "
        expected = f"a list of {count}{_ITEMS.get(inner[0], 'lists, such as [[0,4]]')}"
    raise ConfigError(f"{key} = {value!r:.200} has the wrong type; it must be {expected}")
