"""Small networks, as models and on photographs, for the tests of restoring."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qdmr_ray.models.files import LoadedModel
from qdmr_ray.nets import (
    NetworkSettings,
    RestorationNetwork,
    RestorationNetworkSettings,
    SwinSettings,
)

SMALL = NetworkSettings(
    widths=(8, 8, 8, 8),
    residual_blocks=1,
    codebook_size=4,
    code_dim=8,
    swin=SwinSettings(groups=1, blocks=1, heads=2, window=2),
)


class Output(NamedTuple):
    image: Tensor


class Brighten(RestorationNetwork):
    """Adds an amount to every pixel, and remembers the sizes and the mode that it was run in."""

    multiple = 16

    def __init__(self, amount: float = 0.0) -> None:
        super().__init__(RestorationNetworkSettings())
        self.amount = nn.Parameter(torch.tensor(amount))
        self.sizes: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Output:
        self.sizes.append(tuple(x.shape[-2:]))
        self.modes.append(self.training)
        return Output(x + self.amount)


def loaded(network: nn.Module) -> LoadedModel:
    return LoadedModel(network=network, kind="qdmr_base", step=1, digest="", source="")


def photograph(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
