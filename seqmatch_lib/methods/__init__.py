"""Base distillation methods: each optimises one subset, and `seqmatch_lib.seqmatch` applies it to the subsets in turn."""

# Importing a method's module registers the method.
from seqmatch_lib.methods import dm as dm
from seqmatch_lib.methods import idc as idc
from seqmatch_lib.methods import krr as krr
from seqmatch_lib.methods import mtt as mtt
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
