"""All metrics, in the order in which evaluations and tables show them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qdmr_ray.evaluate.metrics.lpips import LPIPS
from qdmr_ray.evaluate.metrics.metric import Metric, MetricInfo
from qdmr_ray.evaluate.metrics.niqe import NIQE
from qdmr_ray.evaluate.metrics.psnr import PSNR
from qdmr_ray.evaluate.metrics.ssim import SSIM

if TYPE_CHECKING:
    from qdmr_ray.config import Experiment

METRICS: dict[str, type[Metric]] = {
    metric.info.name: metric for metric in (PSNR, SSIM, LPIPS, NIQE)
}
# A table or a headline shows this metric first, where it was measured.
PRIMARY = PSNR.info.name


def metrics_for(experiment: Experiment) -> list[Metric]:
    """Returns the metrics that an experiment's settings want; raises QdmrError where a file that
    one of them needs is missing or unreadable."""
    chosen = (metric.from_settings(experiment) for metric in METRICS.values())
    return [metric for metric in chosen if metric is not None]


def metric_info(name: str) -> MetricInfo:
    """Returns the info of the metric ``name``, which may be a variant (``psnr_y``, ``lpips_vgg``)
    of the metric before the first ``_``. An unknown name is its own label and has no direction."""
    head, _, variant = name.partition("_")
    known = METRICS.get(head)
    if known is None:
        return MetricInfo(name=name, label=name.replace("_", " "))
    variant = variant.upper() if len(variant) == 1 else variant.replace("_", " ")
    return replace(known.info, name=name, label=f"{known.info.label} {variant}".rstrip())
