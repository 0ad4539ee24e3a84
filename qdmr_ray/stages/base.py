"""QDMR-Base stage: source pairs, and the target only through the frozen codebook."""

from __future__ import annotations

from torch import Tensor

from qdmr_ray.nets import QDMR
from qdmr_ray.stages.components import Parts
from qdmr_ray.stages.objective import Losses
from qdmr_ray.stages.settings import BaseSettings
from qdmr_ray.stages.source_only import SourceOnlyStage
from qdmr_ray.stages.usage import codebook_usage


class BaseStage(SourceOnlyStage):
    """Adds the codebook fusion and the codebook loss to the source-only stage."""

    name = "base"
    needs = ("vqgan",)
    settings: BaseSettings

    def build_network(self, parts: Parts) -> QDMR:
        network = QDMR(parts.network)
        network.take_codebook(parts.vqgan())
        return network

    def codebook_terms(self, loss: Tensor | None, indices: Tensor | None) -> tuple[Losses, Losses]:
        assert loss is not None
        assert indices is not None
        terms = {"source/codebook": self.settings.codebook * loss.mean()}
        return terms, codebook_usage("source", indices, self.network.settings.codebook_size)
