"""Base distillation methods: each optimises one subset, and `seqmatch_lib.seqmatch` puts any of them in sequence."""

from seqmatch_lib.methods import mtt as mtt  # registers itself
from seqmatch_lib.methods.base import (
    BaseMethod,
    Prepared,
    Stage,
    Trainable,
    get_method,
    method_names,
    register_method,
)

__all__ = ["BaseMethod", "Prepared", "Stage", "Trainable", "get_method", "method_names", "register_method"]
