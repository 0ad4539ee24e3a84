"""What an optimizer minimises: networks with their loss as one forward pass, and its terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class GeneratorPass(NamedTuple):
    """What the generator's objective gives: weighted ``terms``, tensors ``seen`` that the
    discriminator step needs, and ``figures`` that are only logged."""

    terms: Losses
    seen: dict[str, Tensor]
    figures: Losses


class Objective(nn.Module):
    """The networks that one optimizer trains, with their loss as the forward pass.

    One forward per step is what DistributedDataParallel and torch.compile can work with, although
    the loss runs several networks on several images.
    """

    def __init__(self, networks: dict[str, nn.Module], loss: Callable[..., Any]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self._loss = loss

    def forward(self, *args: Any) -> Any:
        return self._loss(*args)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters of ``module`` take no gradients inside the block."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def detached(tensors: Mapping[str, Tensor]) -> Losses:
    """``tensors`` without their gradients' history."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def weighted_sum(parts: Sequence[Losses], weights: Sequence[float]) -> Losses:
    """Weighted sums of scalars of the same names; a single part of weight 1 is left as it is."""
    if tuple(weights) == (1,):
        return parts[0]
    weighted = list(zip(parts, weights, strict=True))
    return {
        name: torch.stack([part[name] * weight for part, weight in weighted]).sum()
        for name in parts[0]
    }
