"""An optimizer's objective: networks with their loss as one forward pass, and its terms."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class LossPass(NamedTuple):
    """The result of one forward pass of an objective, for generator and discriminators alike.

    The optimizer minimises the sum of the weighted ``terms``; ``logged`` scalars are only logged.
    The discriminators' pass reads the tensors ``seen`` after the generator's pass, and the stage's
    ``after_step`` reads those ``kept``.
    """

    terms: Losses
    logged: Losses = {}  # noqa: RUF012
    seen: Mapping[str, Tensor] = {}
    kept: Mapping[str, Tensor] = {}


class Objective(nn.Module):
    """The networks that one optimizer trains, with their loss as the forward pass."""

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
    """Lets parameters of ``module`` take no gradients inside the block."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def detached(tensors: Mapping[str, Tensor]) -> Losses:
    """Returns ``tensors`` without the history of their gradients."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def by_name(names: Iterable[str], joined: Tensor) -> dict[str, Tensor]:
    """Returns the equal, consecutive pieces of a batch by name."""
    keys = list(names)
    return dict(zip(keys, joined.chunk(len(keys)), strict=True))


def weighted_sum(rows: Sequence[Losses], weights: Sequence[float]) -> Losses:
    """Returns weighted sums of equally named scalars; leaves a single row of weight 1 as it is."""
    if tuple(weights) == (1,):
        return rows[0]
    weighted = list(zip(rows, weights, strict=True))
    return {
        name: torch.stack([row[name] * weight for row, weight in weighted]).sum()
        for name in rows[0]
    }
