"""The two functions behind every fast loop: the gradient of one SGD step, and the adjoint of that gradient.

Both are pure functions of flat parameters and one batch, of fixed shape, so each is compiled once a shape; on a GPU the
compiled code is replayed as a CUDA graph.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.func import functional_call, grad_and_value, jvp, vmap

from seqmatch_lib.errors import require

PRECISIONS = ("float32", "tf32", "bfloat16")
# What the functions cost, in units of one forward pass: a gradient is a forward pass and two products backward for each one
# forward; the adjoint carries tangents through all three, which doubles and adds: 3 + 6; that of the images alone leaves out
# the products that would give the parameters' part.
GRADIENT_PASSES, ADJOINT_PASSES, IMAGE_ADJOINT_PASSES = 3, 9, 6
LOSSES = ("cross_entropy", "mse")
MAX_SHAPES = 64  # shapes and networks compiled in one process before torch would quietly stop compiling


def batch_loss(kind: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of a batch.

    Args:
        kind: "cross_entropy", or "mse": half the squared distance of the logits from the targets.
        logits: (B, classes).
        targets: (B,) int64 classes, or (B, classes): probabilities for "cross_entropy", any numbers for "mse", which
            takes a class as its one-hot vector minus 1 / classes.

    Source: "mse" with centred labels is the loss of the public FRePo code (`mean_squared_loss`, `y_transform`).
    """
    if kind == "cross_entropy":
        return F.cross_entropy(logits, targets)
    wanted = targets if targets.is_floating_point() else centred_one_hot(targets, logits.shape[1], logits.dtype)
    return 0.5 * (logits - wanted).square().sum(1).mean()


def centred_one_hot(labels: torch.Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns (N, classes) rows that are 1 - 1 / classes at the label and -1 / classes elsewhere."""
    return (torch.eye(num_classes, dtype=dtype, device=labels.device) - 1 / num_classes)[labels]


class StepFunctions:
    """Gradient and adjoint of the loss of a network, as functions of its (P,) flat parameters.

    Args:
        network: the architecture, without buffers; its own parameter values are never used.
        loss: one of `LOSSES`.
        compiled: whether the functions are compiled, or called as they are.
        precision: "float32": the dtype of the tensors, in full; "tf32": the same with TF32 products on a GPU;
            "bfloat16": convolutions and products in bfloat16 (autocast), parameters and sums as they are.
    """

    def __init__(
        self, network: nn.Module, precision: str = "float32", loss: str = "cross_entropy", compiled: bool = True
    ) -> None:
        check_precision(precision)
        check_loss(loss)
        require(
            not any(type(module) is nn.LayerNorm for module in network.modules()),
            "torch.nn.LayerNorm has wrong second derivatives in forward mode; use seqmatch_lib.engine.networks.LayerNorm",
        )
        self._network = network
        self._loss = loss
        self._precision = precision
        self._names = [name for name, _ in network.named_parameters()]
        self._shapes = [parameter.shape for parameter in network.parameters()]
        self._sizes = [shape.numel() for shape in self._shapes]
        compile_ = partial(_Compiled, precision=precision) if compiled else lambda function: function
        self._gradient = compile_(grad_and_value(self.loss))
        self._stacked_gradient = compile_(vmap(grad_and_value(partial(self.loss, channels_last=False))))
        self._adjoint_of_classes = compile_(self._differentiate((0, 1)))
        self._adjoint_of_probabilities = compile_(self._differentiate((0, 1, 2)))
        self._adjoint_of_images = compile_(self._differentiate((1,)))

    def loss(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, channels_last: bool = True
    ) -> torch.Tensor:
        """Returns the mean loss; images (B, C, H, W), targets (B,) int64 or (B, classes) as in `batch_loss`."""
        parts = [part.view(shape) for part, shape in zip(parameters.split(self._sizes), self._shapes, strict=True)]
        if not torch.compiler.is_compiling():
            # torch's derivatives of group norm take rows of pixels for granted. `contiguous` would leave one channel as it is.
            images = images.clone(memory_format=torch.contiguous_format)
        elif channels_last and images.device.type == "cpu":  # a GPU's compiler does so itself
            images, *parts = [_channels_last(tensor) for tensor in (images, *parts)]
        named = dict(zip(self._names, parts, strict=True))
        with self._autocast(images.device.type):
            logits = functional_call(self._network, named, (images,))
        return batch_loss(self._loss, logits.to(parameters.dtype), targets)

    def gradient(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the (P,) gradient with respect to the parameters, and the scalar loss.

        With parameters (M, P), images (M, B, C, H, W) and targets (M, B), M networks at once: (M, P) and (M,).
        On a GPU the next call of any compiled function frees the results of this one: use them before, or copy them.
        """
        function = self._stacked_gradient if parameters.dim() == 2 else self._gradient
        with _tf32(self._precision == "tf32"):
            return function(parameters, images, targets)

    def adjoint(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Returns the derivatives of <gradient, direction>, for a constant (P,) direction, and that product itself.

        <gradient, direction> is the derivative of the loss along the direction: one forward-mode pass gives it, and one
        backward pass over that its own derivatives.

        Returns:
            d/d parameters (P,); d/d images; d/d targets if they are probabilities; and the scalar product.
        """
        soft = targets.is_floating_point()
        with _tf32(self._precision == "tf32"):
            return (self._adjoint_of_probabilities if soft else self._adjoint_of_classes)(
                parameters, images, targets, direction
            )

    def image_adjoint(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
    ) -> torch.Tensor:
        """Returns the derivative of <gradient, direction> with respect to the images alone, at half the cost of `adjoint`.

        It is what matching of gradients needs: for a distance D of the gradient from another, `direction` is the
        derivative of D with respect to the gradient, and the result that of D with respect to the images.
        """
        with _tf32(self._precision == "tf32"):
            return self._adjoint_of_images(parameters, images, targets, direction)[0]

    def _differentiate(self, arguments: tuple[int, ...]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def slope(
            parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
        ) -> torch.Tensor:
            return jvp(lambda moved: self.loss(moved, images, targets), (parameters,), (direction,))[1]

        # the forward-mode pass inside, so that the gradient itself, which nobody asks for here, is not computed
        derivatives_and_slope = grad_and_value(slope, argnums=arguments)

        def adjoint(
            parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            derivatives, product = derivatives_and_slope(parameters, images, targets, direction)
            return (*derivatives, product)

        return adjoint

    def _autocast(self, device: str) -> AbstractContextManager:
        """Uncompiled, bfloat16 is left out: autocast does not go with forward mode there, nor would it be faster."""
        if self._precision != "bfloat16" or not torch.compiler.is_compiling():
            return nullcontext()
        return torch.autocast(device, torch.bfloat16)


_CACHE: dict[tuple[Hashable, str, str, bool], StepFunctions] = {}


def step_functions(network: nn.Module, precision: str, loss: str = "cross_entropy", compiled: bool = True) -> StepFunctions:
    """Returns the step functions of a network; networks of equal architecture share them, so each is compiled once."""
    key = (getattr(network, "architecture", network), precision, loss, compiled)
    if key not in _CACHE:
        _CACHE[key] = StepFunctions(network, precision, loss, compiled)
    return _CACHE[key]


def check_precision(precision: str) -> None:
    """Raises ConfigError unless the precision is one of `PRECISIONS`."""
    require(precision in PRECISIONS, f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")


def check_loss(loss: str) -> None:
    """Raises ConfigError unless the loss is one of `LOSSES`."""
    require(loss in LOSSES, f"loss {loss!r} is unknown; use one of {', '.join(LOSSES)}")


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32 in convolutions and products on a GPU, whatever the process says otherwise."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class _Compiled:
    """A function that is compiled at its first call, or called as it is where that is not possible.

    bfloat16 is refused there: uncompiled it would be computed in float32, under the name of a run that asks for bfloat16.
    """

    enabled = True
    reasons: ClassVar[set[str]] = set()  # why something was left uncompiled since the last `forget_uncompiled`

    def __init__(self, function: Callable, precision: str = "float32") -> None:
        mode = "reduce-overhead" if torch.cuda.is_available() else "default"  # the former replays CUDA graphs
        self._function = function
        self._precision = precision
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
        self._failure, self._remedy = "", ""

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.enabled:
            return self._function(*arguments)
        if self._compiled is self._function or torch._dynamo.config.disable:  # of which torch says nothing
            self._note("torch.compile is turned off", "unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE")
        if not self._failure:
            try:
                with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
                    if arguments[0].is_cuda:
                        torch.compiler.cudagraph_mark_step_begin()
                    return self._compiled(*arguments)
            except (BackendCompilerFailed, OSError) as error:
                cause = getattr(error, "inner_exception", error)
                remedy = "a missing compiler is the usual cause: install g++"
                if isinstance(cause, OSError):  # compiled code is kept in a folder, and there is no way without
                    remedy = "set TORCHINDUCTOR_CACHE_DIR to a folder that can be written to"
                self._note(f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}", remedy)
        require(
            self._precision != "bfloat16",
            f"precision 'bfloat16' needs compiled code, and compiling failed ({self._failure}); {self._remedy}, or set "
            "float32 in every section that has bfloat16: --set teachers.precision=float32 --set training.precision=float32",
        )
        if self._failure not in self.reasons:
            self.reasons.add(self._failure)
            warnings.warn(
                f"running uncompiled, which is slower, because compiling failed ({self._failure}); {self._remedy}",
                stacklevel=3,
            )
        return self._function(*arguments)

    def _note(self, failure: str, remedy: str) -> None:
        self._failure, self._remedy = failure, remedy


def uncompiled_reasons() -> list[str]:
    """Returns why code that was to be compiled ran uncompiled, since the last `forget_uncompiled`; empty if none did."""
    return sorted(_Compiled.reasons)


def note_uncompiled(reasons: Iterable[str]) -> None:
    """Takes over the reasons of an earlier process, whose work this one goes on with."""
    _Compiled.reasons.update(reasons)


def forget_uncompiled() -> None:
    """Begins the list of `uncompiled_reasons` anew, for a new run in the same process."""
    _Compiled.reasons.clear()
