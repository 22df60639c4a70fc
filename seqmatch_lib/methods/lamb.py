"""LAMB: Adam's direction, with steps in proportion to the size of what is changed (You et al., ICLR 2020)."""

from collections.abc import Iterable

import torch


class Lamb(torch.optim.Optimizer):
    """LAMB without weight decay, as `optax.lamb`: each tensor moves by `lr` times its own norm.

    torch has none; its Adam lacks the trust ratio, which FRePo's learning rate is given for.

    Args:
        parameters: leaves.
        lr: of a step, relative to the norm of the tensor.
        betas: decay of the two moments.
        eps: added to the root of the second.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        """Changes every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # on the CPU, as in torch's own optimisers
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                step = state["step"].item()
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - second)
                mean = state["exp_avg"] / (1 - first**step)
                direction = mean / ((state["exp_avg_sq"] / (1 - second**step)).sqrt() + group["eps"])
                size, length = parameter.norm(), direction.norm()
                ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
                parameter.sub_(group["lr"] * ratio * direction)
