"""The training stages: which networks, which losses, one ``step(batch)``. Pure PyTorch.

>>> from qdmr_ray.stages import Parts, build_stage
>>> stage = build_stage("vqgan", VQGANSettings(lpips=0, semantic=0), Parts()).to("cpu")
>>> losses = stage.step({"source": source, "target": target})
"""

from qdmr_ray.stages.base import BaseStage
from qdmr_ray.stages.batch_share import Share, share_of
from qdmr_ray.stages.components import Parts
from qdmr_ray.stages.compute import ComputeSettings, flush_denormals
from qdmr_ray.stages.settings import (
    BackboneSettings,
    BaseSettings,
    OptimizerSettings,
    SourceOnlySettings,
    StageSettings,
    UDASettings,
    VQGANSettings,
)
from qdmr_ray.stages.source_only import SourceOnlyStage
from qdmr_ray.stages.stage import Stage
from qdmr_ray.stages.uda import UDAStage
from qdmr_ray.stages.vqgan import VQGANStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (VQGANStage, SourceOnlyStage, BaseStage, UDAStage)
}


def build_stage(name: str, settings: StageSettings, parts: Parts) -> Stage:
    """The stage called ``name``; call ``.to(device)`` before its first step.

    From here on the calling thread flushes denormal numbers to zero (``flush_denormals``).
    """
    flush_denormals()
    return STAGES[name](settings, parts)  # type: ignore[call-arg, arg-type]


__all__ = [
    "STAGES",
    "BackboneSettings",
    "BaseSettings",
    "BaseStage",
    "ComputeSettings",
    "OptimizerSettings",
    "Parts",
    "Share",
    "SourceOnlySettings",
    "SourceOnlyStage",
    "Stage",
    "StageSettings",
    "UDASettings",
    "UDAStage",
    "VQGANSettings",
    "VQGANStage",
    "build_stage",
    "flush_denormals",
    "share_of",
]
