"""Base distillation methods: each optimises one subset, and `seqmatch_lib.seqmatch` applies it to the subsets in turn."""

# Importing a method's module registers the method.
from seqmatch_lib.methods import dm, idc, krr, mtt  # noqa: F401
from seqmatch_lib.methods.base import (
    BaseConfig,
    BaseMethod,
    MethodState,
    Stage,
    Trainable,
    get_method,
    method_names,
    register_method,
)

__all__ = ["BaseConfig", "BaseMethod", "MethodState", "Stage", "Trainable", "get_method", "method_names", "register_method"]
