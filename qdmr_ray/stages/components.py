"""The components that stages are built from: sizes, earlier networks and frozen networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import (
    VQGAN,
    DiscriminatorSettings,
    NetworkSettings,
    RestorationNetworkSettings,
    UNetDiscriminator,
)
from qdmr_ray.nets.lpips import LPIPS, build_lpips
from qdmr_ray.nets.settings import DEFAULT_KIND
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.nets.weights import load_backbone
from qdmr_ray.stages.settings import BackboneSettings, StageSettings


@dataclass(frozen=True, kw_only=True)
class Components:
    """What every stage is built from beside its own settings.

    ``network`` holds the restoration network's settings, whose ``kind`` names the network;
    ``trained`` holds the networks of earlier stages by stage name.
    """

    network: RestorationNetworkSettings = NetworkSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    backbones: BackboneSettings = BackboneSettings()
    trained: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def qdmr(self) -> NetworkSettings:
        """The sizes of QDMR and its VQGAN, for the stages that train these; raises SettingsError
        where the network is of another kind."""
        if not isinstance(self.network, NetworkSettings):
            raise SettingsError(
                f"network.kind is {self.network.kind!r}; this stage trains networks of kind "
                f"{DEFAULT_KIND}"
            )
        return self.network

    def image_discriminator(self, settings: StageSettings) -> dict[str, UNetDiscriminator]:
        """Returns the image discriminator, or nothing where its term is switched off."""
        return {"image": UNetDiscriminator(3, self.discriminator)} if settings.gan else {}

    def lpips(self, settings: StageSettings) -> LPIPS | None:
        """Returns the LPIPS network, or None where its term is switched off."""
        return build_lpips("vgg", self.backbones.vgg16) if settings.lpips else None

    def vgg19(self) -> VGG19Features:
        """Returns the network whose features the semantic term predicts."""
        network = VGG19Features()
        load_backbone("vgg19", self.backbones.vgg19, network)
        return network

    def vqgan(self) -> VQGAN:
        """Returns the trained VQGAN that Base and UDA start from."""
        trained = self.trained["vqgan"]
        assert isinstance(trained, VQGAN)
        return trained


# The backbones by the setting in ``weights`` that names their file.
BACKBONE_OF = {"vgg16": "vgg", "vgg19": "vgg19"}
