"""LAMB: Adam's direction, with steps in proportion to the norm of the tensor (You et al., ICLR 2020)."""

from collections.abc import Iterable

import torch

BETA1, BETA2 = 0.9, 0.999  # decay of the two moments
EPSILON = 1e-6  # added to the root of the second moment


class Lamb(torch.optim.Optimizer):
    """LAMB without weight decay, as `optax.lamb`; torch has no LAMB, and its Adam lacks the trust ratio.

    Args:
        parameters: leaves.
        lr: length of a step, relative to the norm of the tensor.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Changes every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # on the CPU, as in torch's optimisers
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                step = state["step"].item()
                state["exp_avg"].lerp_(parameter.grad, 1 - BETA1)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - BETA2)
                mean = state["exp_avg"] / (1 - BETA1**step)
                direction = mean / ((state["exp_avg_sq"] / (1 - BETA2**step)).sqrt() + EPSILON)
                norm, direction_norm = parameter.norm(), direction.norm()
                trust_ratio = torch.where((norm > 0) & (direction_norm > 0), norm / direction_norm, 1.0)
                parameter.sub_(group["lr"] * trust_ratio * direction)
