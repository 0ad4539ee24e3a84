"""LPIPS-Alex between two photographs; the network is ``nets.lpips``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qdmr_ray.evaluate.metrics.metric import Measure, Metric, MetricInfo, file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from qdmr_ray.config import Experiment


@dataclass(frozen=True, kw_only=True)
class LPIPS(Metric):
    """LPIPS with AlexNet's weights, on the whole image: neither a border nor Y applies to it."""

    info = MetricInfo(
        name="lpips",
        label="LPIPS",
        better=-1,
        digits=4,
        reference="lpips_weights",
        reference_label="AlexNet's weights",
    )
    weights: str | None
    reference: str

    @classmethod
    def from_settings(cls, experiment: Experiment) -> LPIPS | None:
        """Returns None without ``evaluation.lpips``; raises QdmrError without AlexNet's weights."""
        if not experiment.evaluation.lpips:
            return None
        from qdmr_ray.nets.weights import find_backbone_weights

        weights = experiment.weights.alexnet
        path = find_backbone_weights("alex", Path(weights) if weights else None)
        return cls(weights=weights, reference=file_digest(path))

    def open(self, device: str) -> Measure:
        """Measures in float32 on ``device``."""
        import torch

        from qdmr_ray.nets.lpips import build_lpips
        from qdmr_ray.stages.compute import ComputeSettings, tensor_float_32

        network = build_lpips("alex", Path(self.weights) if self.weights else None).to(device)

        @torch.inference_mode()
        def measure(image: np.ndarray, truth: np.ndarray | None) -> float:
            assert truth is not None
            a, b = (_tensor(pixels).to(device) for pixels in (image, truth))
            # Without TensorFloat-32, values of a GPU compare with those of a CPU.
            with tensor_float_32(ComputeSettings(), a.device):
                return float(network(a, b).item())

        return measure


def _tensor(image: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255
