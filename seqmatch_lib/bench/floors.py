"""What no inner step can do without: the time of its convolutions alone, and of its passes over memory alone."""

from collections.abc import Callable
from typing import Any

import torch

from seqmatch_lib.engine.networks import OperationLog, flatten_parameters
from seqmatch_lib.engine.step_functions import StepFunctions

Call = Callable[[], torch.Tensor | tuple[torch.Tensor | None, ...]]
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def list_convolutions(network: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> list[Call]:
    """Returns the convolutions of one inner step and of its adjoint, to be called again, each with its own tensors.

    Args:
        network: the architecture.
        images: (B, C, H, W) of the step.
        targets: (B,) int64.
        dtype: that they compute in; tensors are laid out channels last, as in compiled steps.
    """
    functions, start = StepFunctions(network, compiled=False), flatten_parameters(network)
    with OperationLog(CONVOLUTIONS.__contains__) as log:
        functions.gradient(start, images, targets)
        functions.adjoint(start, images, targets, torch.randn_like(start))

    def convert(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        return value.detach().to(dtype).contiguous(memory_format=layout)

    kept = [(function, [convert(value) for value in arguments]) for function, arguments in log.found]
    return [lambda function=function, arguments=arguments: function(*arguments) for function, arguments in kept]


def list_copies(convolutions: list[Call]) -> list[Call]:
    """Returns copies of what each of the convolutions gives: the least that norm, ReLU and pooling must read and write.

    It is enough where they are fused into one pass.
    """
    results = [result if isinstance(result, tuple) else (result,) for result in (call() for call in convolutions)]
    return [part.clone for result in results for part in result if part is not None]
