"""VQGAN stage: learns the codebook on both domains, and to make source images look like target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdmr_ray.errors import SettingsError
from qdmr_ray.losses import GAN_LOSSES
from qdmr_ray.nets import VQGAN, NetworkSettings, RestorationNetworkSettings, SemanticHead
from qdmr_ray.nets.blocks import at_least_float32
from qdmr_ray.nets.vgg import DOWNSAMPLING as VGG_DOWNSAMPLING
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.settings import setting
from qdmr_ray.stages.codebook import CodeAverages, CodeRevival, codebook_usage
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.objective import Batch, Losses, LossPass, by_name
from qdmr_ray.stages.settings import StageSettings
from qdmr_ray.stages.sizes import check_image_terms
from qdmr_ray.stages.stage import NeededPass, Stage


@dataclass(frozen=True, kw_only=True)
class VQGANSettings(StageSettings):
    """Learns the codebook on both domains."""

    batch_size: int = setting(8, "samples per worker and iteration", minimum=1)
    same_place_crops: bool = setting(
        True, "cut source and target at the same place in the lens's field of view"
    )
    codebook: float = setting(1.0, "weight of the codebook loss", minimum=0)
    semantic: float = setting(
        0.1, "weight of the semantic term; 0 switches it off, and no VGG19 is needed", minimum=0
    )
    code_decay: float | None = setting(
        None,
        "a code is the moving average, with this decay, of the encoder outputs that choose it; the "
        "paper has none: the codebook loss trains the codes",
        above=0,
        maximum=1,
    )
    revive_after: int | None = setting(
        None,
        "a code that is not chosen for so long moves to an encoder output; the paper has none",
        unit="iterations",
        minimum=1,
    )
    gan: float = setting(0.1, "weight of the adversarial term (source reconstruction)", minimum=0)
    gan_loss: str = setting("lsgan", "form of the adversarial term", choices=GAN_LOSSES)


class VQGANStage(Stage):
    """Reconstructs source and target; only the source reconstruction has an adversarial term, and
    its real images are target images. This turns ``VQGAN(source)`` into an s2t image."""

    name = "vqgan"
    label = "VQGAN"
    help = "learns the codebook on both domains"
    settings_type = VQGANSettings
    network_kinds = ("qdmr",)
    restores = False
    domains = ("source", "target")
    backbones = Stage.backbones | {"semantic": "vgg19"}
    # Runs that differ only in these sizes share one VQGAN.
    unused_sizes = ("swin", "fusion", "global_residual")
    settings: VQGANSettings
    network: VQGAN

    def __init__(self, settings: VQGANSettings, components: Components) -> None:
        sizes = components.qdmr
        self.network = VQGAN(sizes)
        decay, after = settings.code_decay, settings.revive_after
        self.averages = None if decay is None else CodeAverages(self.network, decay)
        self.revival = None if after is None else CodeRevival(self.network, after)
        self.semantic: SemanticHead | None = None
        self.vgg19: VGG19Features | None = None
        generator: dict[str, nn.Module] = {"network": self.network}
        self.check_backbones(settings, sizes)
        if settings.semantic:
            self.semantic = generator["semantic"] = SemanticHead(sizes.code_dim)
            self.vgg19 = components.vgg19()
        super().__init__(
            settings,
            generator=generator,
            discriminators=components.image_discriminator(settings),
            lpips=components.lpips(settings),
            auxiliary=[self.vgg19] if self.vgg19 else [],
        )

    @classmethod
    def check_sizes(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        super().check_sizes(settings, network)
        check_image_terms(cls.name, settings)

    @classmethod
    def check_backbones(cls, settings: StageSettings, network: RestorationNetworkSettings) -> None:
        assert isinstance(settings, VQGANSettings)
        assert isinstance(network, NetworkSettings)
        if settings.semantic and network.downsampling != VGG_DOWNSAMPLING:
            raise SettingsError(
                "stages.vqgan.semantic needs four network.widths, since VGG19's features are at "
                f"1/8; there are {len(network.widths)}: set stages.vqgan.semantic=0"
            )

    def after_step(self, batch: Batch, kept: Sequence[Mapping[str, Tensor]]) -> Losses:
        if self.averages is None and self.revival is None:
            return {}
        chosen = torch.cat([tensors["indices"].flatten() for tensors in kept])
        if self.averages is not None:
            rows = [tensors["z"].movedim(1, -1).flatten(0, -2) for tensors in kept]
            self.averages.step(chosen, torch.cat(rows))
        if self.revival is None:
            return {}
        images = torch.cat([batch["source"], batch["target"]])
        revived = self.revival.step(chosen, images, self.iteration, self.generator_optimizer)
        if self.averages is not None:
            self.averages.forget(revived)
        return {"codebook/revived": torch.full((), float(len(revived)), device=revived.device)}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.revival is not None:
            state["idle_codes"] = self.revival.idle
        if self.averages is not None:
            state["code_counts"], state["code_sums"] = self.averages.counts, self.averages.sums
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.revival is not None:
            self.revival.resume(state["idle_codes"].clone())
        if self.averages is not None:
            self.averages.counts = state["code_counts"].clone()
            self.averages.sums = state["code_sums"].clone()

    def generator_loss(self, batch: Batch) -> LossPass:
        images = torch.cat([batch[domain] for domain in self.domains])
        out = self.network(images)
        outputs, weights = by_name(self.domains, out.image), self.settings
        losses = by_name(self.domains, out.codebook_loss)
        terms = {f"{d}/codebook": weights.codebook * loss.mean() for d, loss in losses.items()}
        if self.semantic is not None and self.vgg19 is not None:
            predicted, wanted = self.semantic(out.code), self.vgg19(images)
            squares = at_least_float32(predicted).sub(at_least_float32(wanted)).square()
            errors = by_name(self.domains, squares)
            terms |= {f"{d}/semantic": weights.semantic * e.mean() for d, e in errors.items()}
        terms |= self.image_terms(outputs, {name: batch[name] for name in outputs})
        terms |= self.gan_terms({"source": outputs["source"]})
        indices = by_name(self.domains, out.indices)
        logged = codebook_usage(indices, self.network.settings.codebook_size)
        seen = {"target": batch["target"], "source_output": outputs["source"]}
        kept = {"indices": out.indices} if self.averages or self.revival else {}
        if self.averages:
            kept["z"] = out.z.detach()
        return LossPass(terms, logged, seen, kept)

    def discriminator_loss(self, seen: Batch) -> LossPass:
        real, fake = {"target": seen["target"]}, {"source": seen["source_output"]}
        return self.discriminator_terms("image", self.settings.gan_loss, real, fake)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {
            "source": batch["source"],
            "s2t": self.network(batch["source"]).image,
            "target": batch["target"],
            "target_reconstruction": self.network(batch["target"]).image,
            "codebook_atlas": self.network.decode_codes(),
        }

    @classmethod
    def needed_passes(
        cls, settings: StageSettings, components: Components, image: Tensor
    ) -> list[NeededPass]:
        both = torch.cat([image, image])
        vqgan = VQGAN(components.qdmr)
        return [
            NeededPass(lambda x: vqgan(x).image, both, to_weights=True),
            *cls.discriminator_passes(settings, components, image),
        ]
