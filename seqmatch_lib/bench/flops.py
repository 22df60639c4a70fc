"""Operations, activations and parameters of a network, counted without computing anything."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from seqmatch_lib.engine.networks import NetworkConfig, count_parameters, make_network


class Counts(NamedTuple):
    """Size of a network.

    Args:
        flops: floating-point operations of one image's forward pass: products and convolutions, two a multiply-add.
        activations: numbers that this pass produces, over all layers.
        parameters: P.
    """

    flops: int
    activations: int
    parameters: int


@lru_cache(maxsize=64)
def count_network(config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> Counts:
    """Returns the counts of an architecture."""
    network = make_network(config, image_shape, num_classes, torch.Generator()).to("meta")
    activations: list[int] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: activations.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return Counts(counter.get_total_flops(), sum(activations), count_parameters(network))
