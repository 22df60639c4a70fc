"""A pretended GPU: tensors that say they lie on it are computed by the CPU, and refuse to meet tensors of the CPU.

It shows, without a GPU, that everything a run makes lies on the device that was asked for. It says nothing about speed or
rounding, and `torch.compile` knows nothing of it. Importing this file registers the device with torch for the whole process,
so it is imported by processes of their own alone (`device_runs.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended:0")
aten = torch.ops.aten


class There(torch.Tensor):
    """A tensor on the pretended GPU, around the tensor of the CPU that holds its values."""

    held: torch.Tensor
    is_cuda = True  # so that what is written for a GPU is what runs
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "There":
        """Wraps a tensor of the CPU."""
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    def tolist(self) -> Any:
        """Returns the values; torch's own refuses subclasses."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Computes."""
        return compute(function, arguments, keywords or {})


class _Factories(TorchDispatchMode):
    """Sees the operations that make tensors from none."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Computes."""
        return compute(function, arguments, keywords or {})


def compute(function: Callable, arguments: Any, keywords: dict[str, Any]) -> Any:
    """Computes on the CPU and says of the result that it lies where a GPU would have put it.

    Raises:
        RuntimeError: tensors of both devices, or a generator of the CPU for a tensor that is not there.
    """
    tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    if there and function not in (aten._to_copy.default, aten.copy_.default):
        _refuse_strangers(function, tensors)
    if torch.Tag.inplace_view in function.tags:  # the wrapper has a shape of its own to change
        with no_dispatch():
            function(*arguments, **keywords)
    if keywords.get("device") is not None:
        there = torch.device(keywords["device"]).type == DEVICE.type
        keywords = {**keywords, "device": torch.device("cpu")}
    if there and keywords.get("generator") is not None:
        raise RuntimeError(f"{function} got a generator of the CPU for a tensor of the pretended GPU")
    if function is aten._efficientzerotensor.default:  # it has no memory, and only autograd could work with it
        function = aten.zeros.default
    wrappers = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, There)}
    held = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (arguments, keywords))
    result = function(*held[0], **held[1])
    if function is aten.copy_.default:
        there = id(result) in wrappers

    def place(leaf: Any) -> Any:
        if not there or not isinstance(leaf, torch.Tensor):
            return leaf
        return wrappers[id(leaf)] if id(leaf) in wrappers else There(leaf)

    return tree_map(place, result)


def _refuse_strangers(function: Callable, tensors: list[torch.Tensor]) -> None:
    """Raises as a GPU would; a single number on the CPU may take part where elements are taken one by one."""
    numbers_go = torch.Tag.pointwise in function.tags
    for tensor in tensors:
        if not isinstance(tensor, There) and (tensor.dim() or not numbers_go):
            raise RuntimeError(f"{function} got tensors of both devices; on the CPU: {tuple(tensor.shape)} {tensor.dtype}")


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Gives the device; outside of the context it does not work."""
    torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(…, device=…)` goes through `compute` too
    try:
        # in this thread: an exception in one of autograd's own would end the process
        with _Factories(), torch.autograd.set_multithreading_enabled(False):
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
