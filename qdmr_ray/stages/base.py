"""QDMR-Base stage: trains on source pairs; the frozen codebook alone represents the target."""

from dataclasses import dataclass

from qdmr_ray.nets import QDMR
from qdmr_ray.settings import setting
from qdmr_ray.stages.codebook import codebook_usage
from qdmr_ray.stages.components import Components
from qdmr_ray.stages.objective import Batch, LossPass
from qdmr_ray.stages.settings import RestorationSettings
from qdmr_ray.stages.source_only import SourceOnlyStage


@dataclass(frozen=True, kw_only=True)
class BaseSettings(RestorationSettings):
    """QDMR-Base trains on source pairs; the frozen codebook alone represents the target."""

    codebook: float = setting(1.0, "weight of the codebook loss", minimum=0)


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

    @classmethod
    def build_network(cls, components: Components) -> QDMR:
        network = QDMR(components.qdmr)
        network.take_codebook(components.vqgan())
        return network

    def generator_loss(self, batch: Batch) -> LossPass:
        out = self.network(batch["source"])
        assert out.codebook_loss is not None
        assert out.indices is not None
        truth = batch["ground_truth"]
        terms = self.image_terms({"source": out.image}, {"source": truth})
        terms |= self.gan_terms({"source": out.image})
        terms["source/codebook"] = self.settings.codebook * out.codebook_loss.mean()
        return LossPass(
            terms,
            codebook_usage({"source": out.indices}, self.network.settings.codebook_size),
            seen={"ground_truth": truth, "source_output": out.image},
        )
