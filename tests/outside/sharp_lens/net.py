"""A network of three convolutions around a skip connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from qdmr_ray.nets import RestorationNetwork, RestorationNetworkSettings
from qdmr_ray.settings import setting


@dataclass(frozen=True, kw_only=True)
class SharpSettings(RestorationNetworkSettings):
    """Sizes of the network."""

    width: int = setting(8, "channels", minimum=1)


class SharpNet(RestorationNetwork):
    """Adds a correction of limited reach to the image (B, 3, H, W)."""

    settings_type = SharpSettings
    # Three 3 x 3 convolutions reach 3 pixels: tiles are exact.
    overlap = 12

    def __init__(self, settings: SharpSettings) -> None:
        super().__init__(settings)
        width = settings.width
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)

    @classmethod
    def from_foreign(cls, state: Mapping[str, Tensor], source: str) -> SharpNet:
        network = cls(SharpSettings(width=len(state["layers.0.weight"]), kind=KIND))
        network.load_state_dict({k.replace("layers", "body"): v for k, v in state.items()})
        return network


KIND = f"{__name__}:SharpNet"
