"""QDMR-UDA stage: trains on source pairs, their s2t look-alikes and unlabelled target images."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdmr_ray.losses import squared_error_to
from qdmr_ray.nets import (
    QDMR,
    VQGAN,
    NetworkSettings,
    RestorationNetworkSettings,
    UNetDiscriminator,
)
from qdmr_ray.settings import setting
from qdmr_ray.stages.codebook import codebook_usage
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.objective import Batch, Losses, LossPass, by_name
from qdmr_ray.stages.settings import CodebookSettings, StageSettings
from qdmr_ray.stages.sizes import check_crop, check_image_terms
from qdmr_ray.stages.stage import NeededPass, Stage

DOMAINS = ("source", "s2t", "target")
# The alignment pulls logits to a label, which only the squared-error form has.
FEATURE_LOSS = "lsgan"


@dataclass(frozen=True, kw_only=True)
class UDASettings(CodebookSettings):
    """QDMR-UDA trains on source pairs, their s2t look-alikes, and target images."""

    iterations: int = setting(
        400_000, "generator steps (each with a discriminator step)", minimum=1
    )
    s2t: bool = setting(
        True, "also train on source images made to look like the target; off, an ablation"
    )
    s2t_codebook: float = setting(
        1.0, "weight of the s2t images' codebook loss (the authors' code fixes it at 1)", minimum=0
    )
    target_codebook: float = setting(
        0.1, "weight of the target images' codebook loss (fixed in the authors' code)", minimum=0
    )
    feature_gan: float = setting(
        0.01, "weight of the feature alignment; 0 leaves the feature discriminator out", minimum=0
    )
    target_feature: float = setting(
        0.1, "factor on feature_gan for target features (fixed in the authors' code)", minimum=0
    )
    feature_label: float = setting(
        0.5, "what the alignment pulls both domains' feature logits to", minimum=0, maximum=1
    )


class UDAStage(Stage):
    """Supervises source and s2t images, and pulls the features of source and target images
    together: both towards the label 0.5 of the feature discriminator."""

    name = "uda"
    label = "UDA"
    help = "restoration with s2t images and feature alignment"
    settings_type = UDASettings
    kind = "qdmr_uda"
    network_kinds = ("qdmr",)
    needs = ("vqgan",)
    domains = ("source", "ground_truth", "target")
    settings: UDASettings
    network: QDMR

    def __init__(self, settings: UDASettings, components: Components) -> None:
        self.vqgan = components.vqgan()
        self.network = QDMR(components.qdmr)
        self.network.take_codebook(self.vqgan)
        discriminators = components.image_discriminator(settings)
        if settings.feature_gan:
            width = components.qdmr.feature_width
            discriminators["feature"] = UNetDiscriminator(width, components.discriminator)
        super().__init__(
            settings,
            generator={"network": self.network},
            discriminators=discriminators,
            lpips=components.lpips(settings),
            auxiliary=[self.vqgan],
        )

    @classmethod
    def check_sizes(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        super().check_sizes(settings, network)
        check_image_terms(cls.name, settings)
        assert isinstance(settings, UDASettings)
        assert isinstance(network, NetworkSettings)
        if settings.feature_gan:
            multiple = network.downsampling * UNetDiscriminator.MULTIPLE
            why = "the network's downsampling x the feature discriminator's"
            check_crop(cls.name, settings, multiple, why, "feature_gan")

    def generator_loss(self, batch: Batch) -> LossPass:
        inputs = {"source": batch["source"], "target": batch["target"]}
        chosen: list[Tensor] = []
        if self.settings.s2t:
            inputs["s2t"], of_source = self.vqgan.translate(batch["source"])
            chosen = [of_source]
        inputs = {domain: inputs[domain] for domain in DOMAINS if domain in inputs}
        images, wanted = torch.cat(list(inputs.values())), None
        if self.settings.code_guidance:
            # The VQGAN has seen the source images, which come first, on the way to their s2t ones.
            unseen = images[sum(map(len, chosen)) :]
            wanted = torch.cat([*chosen, self.vqgan.encode_indices(unseen)])
        encoded = self.network.encode(images, wanted)
        assert encoded.indices is not None
        assert encoded.codebook_loss is not None
        features = by_name(inputs, encoded.features)
        # Nothing uses restored target images, so the decoder leaves them out.
        labelled = [domain for domain in inputs if domain != "target"]
        restored = self.network.decode(
            torch.cat([features[domain] for domain in labelled]),
            torch.cat([inputs[domain] for domain in labelled]),
        )
        outputs, settings = by_name(labelled, restored), self.settings
        weights = {
            "source": settings.codebook,
            "s2t": settings.s2t_codebook,
            "target": settings.target_codebook,
        }
        losses = by_name(inputs, encoded.codebook_loss)
        terms = {f"{name}/codebook": weights[name] * loss.mean() for name, loss in losses.items()}
        if encoded.guidance_loss is not None:
            guidance = by_name(inputs, encoded.guidance_loss)
            terms |= {
                f"{name}/code_guidance": self.settings.code_guidance * weights[name] * loss.mean()
                for name, loss in guidance.items()
            }
        terms |= self._alignment_terms(features)
        terms |= self.image_terms(outputs, dict.fromkeys(outputs, batch["ground_truth"]))
        terms |= self.gan_terms(outputs)
        indices = by_name(inputs, encoded.indices)
        logged = codebook_usage(indices, self.network.settings.codebook_size)
        seen = {
            "ground_truth": batch["ground_truth"],
            **{f"{domain}_output": image for domain, image in outputs.items()},
            "source_features": features["source"],
            "target_features": features["target"],
        }
        return LossPass(terms, logged, seen)

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

    def discriminator_loss(self, seen: Batch) -> LossPass:
        real, fake = {"target": seen["target_features"]}, {"source": seen["source_features"]}
        feature = self.discriminator_terms("feature", FEATURE_LOSS, real, fake)
        real = {"ground_truth": seen["ground_truth"]}
        fake = {d: seen[f"{d}_output"] for d in ("source", "s2t") if f"{d}_output" in seen}
        image = self.discriminator_terms("image", self.settings.gan_loss, real, fake)
        return LossPass(feature.terms | image.terms, {**feature.logged, **image.logged})

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        s2t = self.vqgan.translate(batch["source"])[0]
        return {
            "source": batch["source"],
            "source_output": self.network(batch["source"]).image,
            "s2t": s2t,
            "s2t_output": self.network(s2t).image,
            "ground_truth": batch["ground_truth"],
            "target": batch["target"],
            "target_output": self.network(batch["target"]).image,
        }

    @classmethod
    def needed_passes(
        cls, settings: StageSettings, components: Components, image: Tensor
    ) -> list[NeededPass]:
        assert isinstance(settings, UDASettings)
        sizes = components.qdmr
        network, vqgan = QDMR(sizes), VQGAN(sizes)
        labelled = 2 if settings.s2t else 1
        passes = [
            # Source and s2t images pass through all of it; the target images are encoded only.
            NeededPass(lambda x: network(x).image, image, to_weights=True, times=labelled),
            NeededPass(lambda x: network.encode(x).features, image, to_weights=True),
            *cls.discriminator_passes(settings, components, image, restored=labelled),
        ]
        if settings.s2t:
            passes.append(NeededPass(lambda x: vqgan(x).image, image))
        if settings.feature_gan:
            features = network.encode(image).features.detach()
            aligner = UNetDiscriminator(sizes.feature_width, components.discriminator)
            passes += [
                NeededPass(aligner, features, to_input=True, times=2),
                NeededPass(aligner, features, to_weights=True, times=2),
            ]
        return passes
