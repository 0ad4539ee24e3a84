"""Supervised stage: any restoration network on source pairs, which shows the domain gap."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from qdmr_ray.nets import RestorationNetworkSettings
from qdmr_ray.nets.registry import RestorationNetwork, image_of, restoration_class
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.objective import Batch, LossPass
from qdmr_ray.stages.settings import RestorationSettings, StageSettings
from qdmr_ray.stages.sizes import check_image_terms
from qdmr_ray.stages.stage import NeededPass, Stage


@dataclass(frozen=True, kw_only=True)
class SourceOnlySettings(RestorationSettings):
    """The restoration network without a codebook, on source pairs: the paper's comparison."""


class SourceOnlyStage(Stage):
    """Trains on source pairs only: L1, LPIPS and an adversarial term against the ground truth."""

    name = "source_only"
    label = "Source-only"
    help = "baseline without a codebook: any network on source pairs alone"
    settings_type: ClassVar[type[StageSettings]] = SourceOnlySettings
    domains = ("source", "ground_truth")
    # Sizes of the codebook, which the supervised network of kind qdmr lacks.
    unused_sizes: ClassVar[tuple[str, ...]] = ("codebook_size", "code_dim", "commitment", "fusion")
    network: RestorationNetwork

    def __init__(
        self,
        settings: RestorationSettings,
        components: Components,
        auxiliary: Iterable[nn.Module] = (),
    ) -> None:
        self.network = self.build_network(components)
        super().__init__(
            settings,
            generator={"network": self.network},
            discriminators=components.image_discriminator(settings),
            lpips=components.lpips(settings),
            auxiliary=auxiliary,
        )

    @classmethod
    def build_network(cls, components: Components) -> RestorationNetwork:
        """Returns the network to train."""
        sizes = components.network
        return restoration_class(sizes.kind).supervised()(sizes)

    @classmethod
    def check_sizes(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        super().check_sizes(settings, network)
        check_image_terms(cls.name, settings)

    def generator_loss(self, batch: Batch) -> LossPass:
        image = image_of(self.network(batch["source"]))
        truth = batch["ground_truth"]
        terms = self.image_terms({"source": image}, {"source": truth})
        terms |= self.gan_terms({"source": image})
        return LossPass(terms, seen={"ground_truth": truth, "source_output": image})

    def discriminator_loss(self, seen: Batch) -> LossPass:
        real, fake = {"ground_truth": seen["ground_truth"]}, {"source": seen["source_output"]}
        return self.discriminator_terms("image", self.settings.gan_loss, real, fake)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {
            "source": batch["source"],
            "source_output": image_of(self.network(batch["source"])),
            "ground_truth": batch["ground_truth"],
        }

    @classmethod
    def needed_passes(
        cls, settings: StageSettings, components: Components, image: torch.Tensor
    ) -> list[NeededPass]:
        network = cls.build_network(components)
        return [
            NeededPass(lambda x: image_of(network(x)), image, to_weights=True),
            *cls.discriminator_passes(settings, components, image),
        ]
