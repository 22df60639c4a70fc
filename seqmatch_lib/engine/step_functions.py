"""The two functions of the compiled engines: the gradient of one SGD step, and the adjoint of that gradient.

Both are pure functions of flat parameters and one batch. Each is compiled once for each shape of its arguments; on a GPU the
compiled code is replayed as a CUDA graph.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.func import functional_call, grad_and_value, jvp, vmap

from seqmatch_lib.engine.networks import flatten_parameters
from seqmatch_lib.errors import first_line, require

PRECISIONS = ("float32", "tf32", "bfloat16")
# Costs in units of one forward pass. A gradient takes a forward pass, and a backward pass with two products for each forward
# product. The adjoint carries tangents through all of that: 3 + 6. The adjoint of the images alone leaves out the products
# that give the derivative in the parameters.
GRADIENT_PASSES, ADJOINT_PASSES, IMAGE_ADJOINT_PASSES = 3, 9, 6
INEXACT = (nn.LayerNorm, nn.InstanceNorm2d)  # torch's forward mode takes their mean and variance for constants
LOSSES = ("cross_entropy", "mse")
# More than the shapes that a process compiles. Torch counts them together for all networks, losses and precisions, because
# functions that `grad_and_value` returns share their code; at its own limits, 8 and 256, a compiled function fails.
NO_LIMIT = {"recompile_limit": 10**6, "accumulated_recompile_limit": 10**6}
# why functions of this run had to run uncompiled; a run in the same process begins by clearing it
UNCOMPILED: set[str] = set()


def batch_loss(kind: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of a batch.

    Args:
        kind: "cross_entropy", or "mse", which is half the squared distance of the logits from the targets.
        logits: (B, classes).
        targets: (B,) int64 classes, which "mse" turns into one-hot vectors minus 1 / classes; or (B, classes), probabilities
            for "cross_entropy" and any numbers for "mse".

    Source: "mse" with centred labels is the loss of the public FRePo code (`mean_squared_loss`, `y_transform`).
    """
    if kind == "cross_entropy":
        return F.cross_entropy(logits, targets)
    if not targets.is_floating_point():
        targets = centred_one_hot(targets, logits.shape[1], logits.dtype)
    return 0.5 * (logits - targets).square().sum(1).mean()


def centred_one_hot(labels: torch.Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns (N, classes) rows that are 1 - 1 / classes at the label and -1 / classes elsewhere."""
    return (torch.eye(num_classes, dtype=dtype, device=labels.device) - 1 / num_classes)[labels]


class StepFunctions:
    """Gradient and adjoint of the loss of a network, as functions of its (P,) flat parameters.

    Args:
        network: the architecture, without buffers; its own parameter values are not used.
        loss: one of `LOSSES`.
        compiled: whether the functions are compiled.
        precision: "float32" computes in the dtype of the tensors, "tf32" also, but with TF32 products on a GPU; "bfloat16"
            computes convolutions and products in bfloat16 (autocast), and keeps the dtype of parameters and sums.
    """

    def __init__(
        self, network: nn.Module, precision: str = "float32", loss: str = "cross_entropy", compiled: bool = True
    ) -> None:
        self._network = network
        self._inexact = [type(module).__name__ for module in network.modules() if type(module) in INEXACT]
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
        if channels_last and torch.compiler.is_compiling() and images.device.type == "cpu":  # for GPUs the compiler does this
            images, *parts = [
                part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part for part in (images, *parts)
            ]
        # autocast does not work with forward mode in uncompiled code, and is not faster there
        bfloat16 = self._precision == "bfloat16" and torch.compiler.is_compiling()
        with torch.autocast(images.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            logits = functional_call(self._network, dict(zip(self._names, parts, strict=True)), (images,))
        return batch_loss(self._loss, logits.to(parameters.dtype), targets)

    def gradient(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the (P,) gradient with respect to the parameters, and the scalar loss.

        For M networks at once, with parameters (M, P), images (M, B, C, H, W) and targets (M, B), the results are (M, P) and
        (M,). On a GPU the next call of any compiled function overwrites the results: use or copy them first.
        """
        function = self._stacked_gradient if parameters.dim() == 2 else self._gradient
        with _tf32(self._precision == "tf32"):
            return function(parameters, images, targets)

    def adjoint(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Returns the derivatives of <gradient, direction>, for a constant (P,) direction, and this product.

        <gradient, direction> is the derivative of the loss along the direction. One forward-mode pass computes it, and one
        backward pass over that its derivatives.

        Returns:
            d/d parameters (P,); d/d images; d/d targets if they are probabilities; and the scalar product.
        """
        self._check_norms()
        function = self._adjoint_of_probabilities if targets.is_floating_point() else self._adjoint_of_classes
        with _tf32(self._precision == "tf32"):
            return function(parameters, images, targets, direction)

    def image_adjoint(
        self, parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
    ) -> torch.Tensor:
        """Returns the derivative of <gradient, direction> with respect to the images, at less cost than `adjoint`.

        Gradient matching uses it. If `direction` is the derivative of a distance D with respect to the gradient, the result is
        the derivative of D with respect to the images.
        """
        self._check_norms()
        with _tf32(self._precision == "tf32"):
            return self._adjoint_of_images(parameters, images, targets, direction)[0]

    def _check_norms(self) -> None:
        problem = f"torch.nn.{''.join(self._inexact[:1])} has wrong second derivatives in forward mode"
        require(not self._inexact, f"{problem}; use a norm of seqmatch_lib.engine.networks")

    def _differentiate(self, arguments: tuple[int, ...]) -> Callable[..., tuple[torch.Tensor, ...]]:
        """Returns the adjoint with respect to the arguments of these indices."""

        def product(
            parameters: torch.Tensor, images: torch.Tensor, targets: torch.Tensor, direction: torch.Tensor
        ) -> torch.Tensor:
            if not torch.compiler.is_compiling():
                # torch's forward mode of group norm takes rows of pixels for granted; `contiguous` leaves one channel as it is
                images = images.clone(memory_format=torch.contiguous_format)
            return jvp(lambda point: self.loss(point, images, targets), (parameters,), (direction,))[1]

        # forward mode is the inner pass, so that the gradient itself is not computed
        derivatives_and_product = grad_and_value(product, argnums=arguments)

        def adjoint(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            derivatives, value = derivatives_and_product(*inputs)
            return (*derivatives, value)

        return adjoint


def adjoint_error(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, forward_mode: bool = True) -> float:
    """Returns the relative error of the adjoint of the loss's gradient, against two backward passes, in float64.

    Args:
        network: it is converted to float64.
        images: (B, C, H, W).
        labels: (B,) int64, or those of pixels.
        forward_mode: without it, the result is 0 wherever the two backward passes are possible.

    Raises:
        RuntimeError: PyTorch lacks a derivative of one of the network's operations.
    """
    functions = StepFunctions(network.double(), compiled=False)
    parameters, images = flatten_parameters(network).requires_grad_(), images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(functions.loss(parameters, images, labels), parameters, create_graph=True)
    direction = gradient.detach()
    expected = torch.autograd.grad(gradient @ direction, (parameters, images), materialize_grads=True)
    if not forward_mode:
        return 0.0
    found = functions.adjoint(parameters.detach(), images.detach(), labels, direction)
    errors = [(one - other).norm() / other.norm().clamp(min=1e-30) for one, other in zip(found, expected, strict=False)]
    return torch.stack(errors).nan_to_num(torch.inf).max().item()


_CACHE: dict[tuple[Hashable, str, str, bool], StepFunctions] = {}


def step_functions(network: nn.Module, precision: str, loss: str = "cross_entropy", compiled: bool = True) -> StepFunctions:
    """Returns the step functions of a network; networks of equal architecture share them."""
    key = (getattr(network, "architecture", network), precision, loss, compiled)
    if key not in _CACHE:
        _CACHE[key] = StepFunctions(network, precision, loss, compiled)
    return _CACHE[key]


def check_engine(engine: str, precision: str, engines: Sequence[str]) -> None:
    """Raises ConfigError unless the engine is one of `engines` and has that precision: only "compiled" has more than one."""
    require(engine in engines, f"engine {engine!r} is unknown; use one of {', '.join(engines)}")
    require(precision in PRECISIONS, f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    require(engine == "compiled" or precision == "float32", f"engine {engine!r} has no precision {precision!r}; use 'float32'")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32 in convolutions and products on a GPU, and restores the process's own settings afterwards.

    Parts of torch's compiler read the older setting, `allow_tf32`, and fail where the newer one, `fp32_precision`, says
    something else. So the older one is used, which sets both. Only where the process has set the newer one so that the older
    cannot even be read, the newer one is used.
    """
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    operations = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    newer = [operation.fp32_precision for operation in operations]
    try:
        older = [backend.allow_tf32 for backend in backends]
    except RuntimeError:
        older = []
    for backend, operation in zip(backends, operations, strict=True):
        if older:
            backend.allow_tf32 = allowed
        else:
            operation.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for backend, value in zip(backends, older, strict=False):  # none if the older setting could not be read
            backend.allow_tf32 = value
        for operation, value in zip(operations, newer, strict=True):
            operation.fp32_precision = value


class _Compiled:
    """A function that is compiled at its first call; if compiling fails, it runs uncompiled.

    With bfloat16 a failure is an error, because uncompiled code would compute in float32.
    """

    enabled = True

    def __init__(self, function: Callable, precision: str = "float32") -> None:
        mode = "reduce-overhead" if torch.cuda.is_available() else "default"  # "reduce-overhead" replays CUDA graphs
        self._function = function
        self._precision = precision
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
        self._failure, self._remedy = "", ""

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.enabled:
            return self._function(*arguments)
        if self._compiled is self._function or torch._dynamo.config.disable:  # of which torch says nothing
            self._failure = "torch.compile is turned off"
            self._remedy = "unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE"
        if not self._failure:
            try:
                with torch._dynamo.config.patch(NO_LIMIT):
                    if arguments[0].is_cuda:
                        torch.compiler.cudagraph_mark_step_begin()
                    return self._compiled(*arguments)
            except (BackendCompilerFailed, OSError) as error:
                cause = getattr(error, "inner_exception", error)
                self._failure = f"{type(cause).__name__}: {first_line(cause)}"
                self._remedy = "a missing compiler is the usual cause: install g++"
                if isinstance(cause, OSError):  # compiled code is kept in a folder, and there is no way without
                    self._remedy = "set TORCHINDUCTOR_CACHE_DIR to a folder that can be written to"
        settings = "--set teachers.precision=float32 --set training.precision=float32"
        remedy = f"{self._remedy}, or set float32 in every section that has bfloat16: {settings}"
        problem = f"precision 'bfloat16' needs compiled code, and compiling failed ({self._failure})"
        require(self._precision != "bfloat16", f"{problem}; {remedy}")
        if self._failure not in UNCOMPILED:
            UNCOMPILED.add(self._failure)
            warnings.warn(
                f"running uncompiled, which is slower, because compiling failed ({self._failure}); {self._remedy}",
                stacklevel=3,
            )
        return self._function(*arguments)
