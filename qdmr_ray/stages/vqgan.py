"""VQGAN stage: learns the codebook on both domains, and to make source images look like target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import VQGAN, SemanticHead
from qdmr_ray.nets.blocks import at_least_float32
from qdmr_ray.nets.vgg import DOWNSAMPLING as VGG_DOWNSAMPLING
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.stages.codebook import CodeRevival
from qdmr_ray.stages.components import Parts
from qdmr_ray.stages.objective import Batch, GeneratorPass, Losses
from qdmr_ray.stages.settings import VQGANSettings
from qdmr_ray.stages.stage import Stage
from qdmr_ray.stages.usage import codebook_usage


class VQGANStage(Stage):
    """Reconstructs source and target; only the source reconstruction has an adversarial term, and
    its real images are target images. That is what turns ``VQGAN(source)`` into an s2t image."""

    name = "vqgan"
    domains = ("source", "target")
    settings: VQGANSettings
    network: VQGAN

    def __init__(self, settings: VQGANSettings, parts: Parts) -> None:
        self.network = VQGAN(parts.network)
        after = settings.revive_after
        self.revival = None if after is None else CodeRevival(self.network, after)
        self.semantic: SemanticHead | None = None
        self.vgg19: VGG19Features | None = None
        generator: dict[str, nn.Module] = {"network": self.network}
        if settings.semantic:
            if parts.network.downsampling != VGG_DOWNSAMPLING:
                raise SettingsError(
                    "stages.vqgan.semantic needs four network.widths, since VGG19's features are "
                    f"at 1/8; there are {len(parts.network.widths)}: set stages.vqgan.semantic=0"
                )
            self.semantic = generator["semantic"] = SemanticHead(parts.network.code_dim)
            self.vgg19 = parts.vgg19()
        super().__init__(
            settings,
            generator=generator,
            discriminators=parts.image_discriminator(settings),
            lpips=parts.lpips(settings),
            auxiliary=[self.vgg19] if self.vgg19 else [],
        )

    def _work(self, batch: Batch) -> Losses:
        self._chosen: list[Tensor] = []
        return super()._work(batch)

    def step(self, batch: Batch) -> Losses:
        logged = super().step(batch)
        if self.revival is not None:
            images = torch.cat([batch["source"], batch["target"]])
            chosen = torch.cat([indices.flatten() for indices in self._chosen])
            logged["codebook/revived"] = self.revival.step(
                chosen, images, self.iteration, self.generator_optimizer
            )
        return logged

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.revival is not None:
            state["idle_codes"] = self.revival.idle
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.revival is not None:
            self.revival.idle = state["idle_codes"].clone()

    def generator_loss(self, batch: Batch) -> GeneratorPass:
        images = torch.cat([batch["source"], batch["target"]])
        out = self.network(images)
        if self.revival is not None:
            self._chosen.append(out.indices)
        source, target = out.image.chunk(2)
        outputs = {"source": source, "target": target}
        terms = {
            f"{domain}/codebook": self.settings.codebook * loss.mean()
            for domain, loss in zip(outputs, out.codebook_loss.chunk(2), strict=True)
        }
        terms |= self._semantic_terms(outputs, out.code, images)
        terms |= self.image_terms(outputs, {name: batch[name] for name in outputs})
        terms |= self.gan_terms({"source": source})
        figures: Losses = {}
        for domain, indices in zip(outputs, out.indices.chunk(2), strict=True):
            figures |= codebook_usage(domain, indices, self.network.settings.codebook_size)
        return GeneratorPass(terms, {"target": batch["target"], "source_output": source}, figures)

    def _semantic_terms(
        self, outputs: Mapping[str, Tensor], code: Tensor, images: Tensor
    ) -> Losses:
        if self.semantic is None or self.vgg19 is None:
            return {}
        predicted, wanted = self.semantic(code), self.vgg19(images)
        errors = at_least_float32(predicted).sub(at_least_float32(wanted)).square().chunk(2)
        return {
            f"{domain}/semantic": self.settings.semantic * error.mean()
            for domain, error in zip(outputs, errors, strict=True)
        }

    def discriminator_loss(self, seen: Mapping[str, Tensor]) -> tuple[Losses, Losses]:
        return self.discriminator_terms(
            "image",
            self.settings.gan_loss,
            real={"target": seen["target"]},
            fake={"source": seen["source_output"]},
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {
            "source": batch["source"],
            "s2t": self.network(batch["source"]).image,
            "target": batch["target"],
            "target_reconstruction": self.network(batch["target"]).image,
            "codebook_atlas": self.network.decode_codes(),
        }
