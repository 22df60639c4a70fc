"""SeqMatch: sequential subset matching for dataset distillation. The names below are its interface, see `front`.

`import seqmatch_lib as sm` is quick: everything, even torch, is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that editors know them
    from seqmatch_lib.data.datasets import ImageDataset
    from seqmatch_lib.engine.inner_loop import unroll
    from seqmatch_lib.errors import OutOfTime, SeqMatchError
    from seqmatch_lib.front import Run, distill, evaluate, load, presets, records, reevaluations, run
    from seqmatch_lib.methods import BaseMethod, method_names, register_method
    from seqmatch_lib.results import Results
    from seqmatch_lib.runs.config import RunConfig
    from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset

_NAMES = {
    "front": ("Run", "distill", "evaluate", "load", "presets", "records", "reevaluations", "run"),
    "results": ("Results",),
    "methods": ("BaseMethod", "method_names", "register_method"),
    "runs.config": ("RunConfig",),
    "subsets": ("SubsetSequence", "SyntheticSubset"),
    "data.datasets": ("ImageDataset",),
    "engine.inner_loop": ("unroll",),
    "errors": ("OutOfTime", "SeqMatchError"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = [
    "BaseMethod", "ImageDataset", "OutOfTime", "Results", "Run", "RunConfig", "SeqMatchError", "SubsetSequence",
    "SyntheticSubset", "distill", "evaluate", "load", "method_names", "presets", "records", "reevaluations", "register_method",
    "run", "unroll",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seqmatch_lib' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"seqmatch_lib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
