"""What an optimizer minimises: networks with their loss as one forward pass, and its terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class LossPass(NamedTuple):
    """What one forward pass of an objective returns, for generator and discriminators alike.

    The sum of the weighted ``terms`` is minimised; ``logged`` holds scalars that are only logged.
    ``seen`` holds the tensors that the discriminators' pass reads after the generator's, and
    ``kept`` those that the stage's ``after_step`` reads.
    """

    terms: Losses
    logged: Losses = {}  # noqa: RUF012
    seen: Mapping[str, Tensor] = {}
    kept: Mapping[str, Tensor] = {}


class Objective(nn.Module):
    """The networks that one optimizer trains, with their loss as the forward pass.

    One forward per step is what DistributedDataParallel and torch.compile can work with, although
    the loss runs several networks on several images.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], loss: Callable[[Batch], LossPass]
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(dict(networks))
        self._loss = loss

    def forward(self, inputs: Batch) -> LossPass:
        return self._loss(inputs)


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


def weighted_sum(rows: Sequence[Losses], weights: Sequence[float]) -> Losses:
    """Weighted sums of scalars of the same names; a single row of weight 1 is left as it is."""
    if tuple(weights) == (1,):
        return rows[0]
    weighted = list(zip(rows, weights, strict=True))
    return {
        name: torch.stack([row[name] * weight for row, weight in weighted]).sum()
        for name in rows[0]
    }
