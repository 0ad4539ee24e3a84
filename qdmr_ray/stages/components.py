"""What stages are built from beside their own settings: sizes, earlier networks, frozen ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from qdmr_ray.nets import VQGAN, DiscriminatorSettings, NetworkSettings, UNetDiscriminator
from qdmr_ray.nets.lpips import LPIPS, build_lpips
from qdmr_ray.nets.vgg import VGG19Features, load_vgg19
from qdmr_ray.stages.settings import BackboneSettings, StageSettings


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What every stage is built from, beside its own settings.

    ``trained`` holds the networks of earlier stages by stage name.
    """

    network: NetworkSettings = NetworkSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    backbones: BackboneSettings = BackboneSettings()
    trained: Mapping[str, nn.Module] = field(default_factory=dict)

    def image_discriminator(self, settings: StageSettings) -> dict[str, UNetDiscriminator]:
        """The image discriminator, or nothing where its term is switched off."""
        return {"image": UNetDiscriminator(3, self.discriminator)} if settings.gan else {}

    def lpips(self, settings: StageSettings) -> LPIPS | None:
        """The LPIPS network, or None where its term is switched off."""
        return build_lpips("vgg", _path(self.backbones.vgg16)) if settings.lpips else None

    def vgg19(self) -> VGG19Features:
        """The network that the semantic term compares with."""
        return load_vgg19(_path(self.backbones.vgg19))

    def vqgan(self) -> VQGAN:
        """The trained VQGAN that Base and UDA start from."""
        trained = self.trained["vqgan"]
        assert isinstance(trained, VQGAN)
        return trained


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()
