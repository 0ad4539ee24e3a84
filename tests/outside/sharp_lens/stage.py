"""A stage that looks at the gradients of the image as well as at its values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qdmr_ray.settings import setting
from qdmr_ray.stages import SourceOnlySettings, SourceOnlyStage
from qdmr_ray.stages.objective import Batch, LossPass


@dataclass(frozen=True, kw_only=True)
class EdgesSettings(SourceOnlySettings):
    """The supervised stage's settings, and the weight of the edges."""

    edges: float = setting(0.5, "weight of the L1 term of the image's gradients", minimum=0)


class EdgesStage(SourceOnlyStage):
    """The supervised stage with a term for edges."""

    name = "edges"
    label = "Edges"
    settings_type = EdgesSettings
    settings: EdgesSettings

    def generator_loss(self, batch: Batch) -> LossPass:
        out = super().generator_loss(batch)
        difference = slope(out.seen["source_output"]) - slope(batch["ground_truth"])
        edges = self.settings.edges * difference.abs().mean()
        return out._replace(terms={**out.terms, "source/edges": edges})


def slope(image: Tensor) -> Tensor:
    """Differences of neighbouring columns (B, 3, H, W - 1)."""
    return image[..., 1:] - image[..., :-1]
