"""Operations, activations and parameters of a network, counted without computing anything."""

from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seqmatch_lib.engine.networks import NetworkConfig, count_parameters, make_network


@lru_cache(maxsize=64)
def count_forward_flops(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns the floating-point operations of one image's forward pass: products and convolutions, two a multiply-add."""
    network = make_network(config, image_shape, num_classes, torch.Generator()).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return counter.get_total_flops()


@lru_cache(maxsize=64)
def count_activations(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns the numbers that one image's forward pass produces, over all layers."""
    network = make_network(config, image_shape, num_classes, torch.Generator()).to("meta")
    total = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return total


@lru_cache(maxsize=64)
def count_parameters_of(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Returns P of an architecture."""
    return count_parameters(make_network(config, image_shape, num_classes, torch.Generator()))
