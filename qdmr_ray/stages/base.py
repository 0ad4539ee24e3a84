"""QDMR-Base stage: trains on source pairs; the frozen codebook alone represents the target."""

from dataclasses import dataclass

from qdmr_ray.nets import QDMR
from qdmr_ray.stages.codebook import codebook_usage
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.objective import Batch, LossPass
from qdmr_ray.stages.settings import CodebookSettings
from qdmr_ray.stages.source_only import SourceOnlyStage


@dataclass(frozen=True, kw_only=True)
class BaseSettings(CodebookSettings):
    """QDMR-Base trains on source pairs; the frozen codebook alone represents the target."""


class BaseStage(SourceOnlyStage):
    """Adds the codebook fusion and the codebook loss to the supervised stage."""

    name = "base"
    label = "Base"
    help = "restoration with the frozen codebook"
    settings_type = BaseSettings
    kind = "qdmr_base"
    network_kinds = ("qdmr",)
    needs = ("vqgan",)
    unused_sizes = ()
    settings: BaseSettings
    network: QDMR

    def __init__(self, settings: BaseSettings, components: Components) -> None:
        self.vqgan = components.vqgan() if settings.code_guidance else None
        super().__init__(settings, components, [self.vqgan] if self.vqgan else [])

    @classmethod
    def build_network(cls, components: Components) -> QDMR:
        network = QDMR(components.qdmr)
        network.take_codebook(components.vqgan())
        return network

    def generator_loss(self, batch: Batch) -> LossPass:
        source, wanted = batch["source"], None
        if self.vqgan is not None:
            wanted = self.vqgan.encode_indices(source)
        out = self.network(source, wanted)
        assert out.codebook_loss is not None
        assert out.indices is not None
        truth = batch["ground_truth"]
        terms = self.image_terms({"source": out.image}, {"source": truth})
        terms |= self.gan_terms({"source": out.image})
        terms["source/codebook"] = self.settings.codebook * out.codebook_loss.mean()
        if out.guidance_loss is not None:
            weight = self.settings.codebook * self.settings.code_guidance
            terms["source/code_guidance"] = weight * out.guidance_loss.mean()
        return LossPass(
            terms,
            codebook_usage({"source": out.indices}, self.network.settings.codebook_size),
            seen={"ground_truth": truth, "source_output": out.image},
        )
