"""The moving average of a network's weights."""

import copy

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of a network's parameters (Polyak and Juditsky, 1992)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [parameter.detach().clone() for parameter in network.parameters()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Adds the network's present weights to the average."""
        now = [parameter.detach() for parameter in network.parameters()]
        torch._foreach_lerp_(self.weights, now, 1.0 - self.decay)

    @torch.no_grad()
    def network(self, like: nn.Module) -> nn.Module:
        """Returns a copy of ``like`` with the averaged weights."""
        averaged = copy.deepcopy(like)
        for parameter, weight in zip(averaged.parameters(), self.weights, strict=True):
            parameter.copy_(weight)
        return averaged
