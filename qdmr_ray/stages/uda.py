"""QDMR-UDA stage: trains on source pairs, their s2t look-alikes and unlabelled target images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdmr_ray.losses import squared_error_to
from qdmr_ray.nets import QDMR, UNetDiscriminator
from qdmr_ray.stages.settings import UDASettings
from qdmr_ray.stages.stage import Batch, GeneratorPass, Losses, Parts, Stage, codebook_usage

DOMAINS = ("source", "s2t", "target")
# The alignment pulls logits to a label, which only the squared-error form has.
FEATURE_LOSS = "lsgan"


class UDAStage(Stage):
    """Supervised on source and s2t images, with the features of target images pulled to those of
    source images: both towards the label 0.5 of the feature discriminator."""

    name = "uda"
    needs = ("vqgan",)
    domains = ("source", "ground_truth", "target")
    settings: UDASettings
    network: QDMR

    def __init__(self, settings: UDASettings, parts: Parts) -> None:
        self.vqgan = parts.vqgan()
        self.network = QDMR(parts.network)
        self.network.take_codebook(self.vqgan)
        discriminators = parts.image_discriminator(settings)
        if settings.feature_gan:
            width = parts.network.feature_width
            discriminators["feature"] = UNetDiscriminator(width, parts.discriminator)
        super().__init__(
            settings,
            generator={"network": self.network},
            discriminators=discriminators,
            lpips=parts.lpips(settings),
            auxiliary=[self.vqgan],
        )

    @torch.no_grad()
    def to_target_style(self, source: Tensor) -> Tensor:
        """s2t images (B, 3, H, W), unclamped, of source images."""
        image: Tensor = self.vqgan(source).image
        return image

    def generator_loss(self, batch: Batch) -> GeneratorPass:
        inputs = [batch["source"], self.to_target_style(batch["source"]), batch["target"]]
        encoded = self.network.encode(torch.cat(inputs))
        assert encoded.indices is not None
        assert encoded.codebook_loss is not None
        features = dict(zip(DOMAINS, encoded.features.chunk(3), strict=True))
        # Nothing uses restored target images, so the decoder leaves them out.
        labelled = torch.cat([features["source"], features["s2t"]])
        source, s2t = self.network.decode(labelled, torch.cat(inputs[:2])).chunk(2)
        outputs = {"source": source, "s2t": s2t}
        terms = self._codebook_terms(encoded.codebook_loss)
        terms |= self._alignment_terms(features)
        terms |= self.image_terms(outputs, dict.fromkeys(outputs, batch["ground_truth"]))
        terms |= self.gan_terms(outputs)
        figures: Losses = {}
        for domain, indices in zip(DOMAINS, encoded.indices.chunk(3), strict=True):
            figures |= codebook_usage(domain, indices, self.network.settings.codebook_size)
        seen = {
            "ground_truth": batch["ground_truth"],
            "source_output": source,
            "s2t_output": s2t,
            "source_features": features["source"],
            "target_features": features["target"],
        }
        return GeneratorPass(terms, seen, figures)

    def _codebook_terms(self, losses: Tensor) -> Losses:
        weights = self.settings
        by_domain = (weights.codebook, weights.s2t_codebook, weights.target_codebook)
        return {
            f"{domain}/codebook": weight * loss.mean()
            for domain, weight, loss in zip(DOMAINS, by_domain, losses.chunk(3), strict=True)
        }

    def _alignment_terms(self, features: Mapping[str, Tensor]) -> Losses:
        if not self.settings.feature_gan:
            return {}
        weights = self.settings
        by_domain = {
            "source": weights.feature_gan,
            "target": weights.target_feature * weights.feature_gan,
        }
        logits = self.discriminate("feature", {name: features[name] for name in by_domain})
        return {
            f"{name}/feature": weight * squared_error_to(logits[name], weights.feature_label)
            for name, weight in by_domain.items()
        }

    def discriminator_loss(self, seen: Mapping[str, Tensor]) -> tuple[Losses, Losses]:
        terms, figures = self.discriminator_terms(
            "feature",
            FEATURE_LOSS,
            real={"target": seen["target_features"]},
            fake={"source": seen["source_features"]},
        )
        image_terms, image_figures = self.discriminator_terms(
            "image",
            self.settings.gan_loss,
            real={"ground_truth": seen["ground_truth"]},
            fake={"source": seen["source_output"], "s2t": seen["s2t_output"]},
        )
        return terms | image_terms, figures | image_figures

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        s2t = self.to_target_style(batch["source"])
        return {
            "source": batch["source"],
            "source_output": self.network(batch["source"]).image,
            "s2t": s2t,
            "s2t_output": self.network(s2t).image,
            "ground_truth": batch["ground_truth"],
            "target": batch["target"],
            "target_output": self.network(batch["target"]).image,
        }
