"""Source-only stage: the restoration network without a codebook, which shows the domain gap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdmr_ray.nets import QDMR
from qdmr_ray.stages.components import Parts
from qdmr_ray.stages.objective import Batch, GeneratorPass, Losses
from qdmr_ray.stages.settings import StageSettings
from qdmr_ray.stages.stage import Stage


class SourceOnlyStage(Stage):
    """Source pairs only: L1, LPIPS and an adversarial term against the ground truth."""

    name = "source_only"
    domains = ("source", "ground_truth")
    network: QDMR

    def __init__(self, settings: StageSettings, parts: Parts) -> None:
        self.network = self.build_network(parts)
        super().__init__(
            settings,
            generator={"network": self.network},
            discriminators=parts.image_discriminator(settings),
            lpips=parts.lpips(settings),
        )

    def build_network(self, parts: Parts) -> QDMR:
        """The network to train, without the codebook."""
        return QDMR(parts.network, domain_mixing=False)

    def generator_loss(self, batch: Batch) -> GeneratorPass:
        out = self.network(batch["source"])
        truth = batch["ground_truth"]
        terms = self.image_terms({"source": out.image}, {"source": truth})
        terms |= self.gan_terms({"source": out.image})
        codebook_terms, figures = self.codebook_terms(out.codebook_loss, out.indices)
        seen = {"ground_truth": truth, "source_output": out.image}
        return GeneratorPass(terms | codebook_terms, seen, figures)

    def codebook_terms(self, loss: Tensor | None, indices: Tensor | None) -> tuple[Losses, Losses]:
        """Weighted codebook loss and the codebook's usage: none here."""
        return {}, {}

    def discriminator_loss(self, seen: Mapping[str, Tensor]) -> tuple[Losses, Losses]:
        return self.discriminator_terms(
            "image",
            self.settings.gan_loss,
            real={"ground_truth": seen["ground_truth"]},
            fake={"source": seen["source_output"]},
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {
            "source": batch["source"],
            "source_output": self.network(batch["source"]).image,
            "ground_truth": batch["ground_truth"],
        }
