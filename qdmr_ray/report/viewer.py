"""The variables of ``viewer.html.j2``, which compares photographs with a slider and in detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT, label
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sheets import map_colours
from qdmr_ray.report.evaluation import metrics_of
from qdmr_ray.report.pictures import Photograph


def viewer_content(
    evaluation: Evaluation | None,
    photographs: list[Photograph],
    amplification: int,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the template's variables; ``amplification`` is that of the difference maps."""
    return {
        "photographs": photographs,
        "viewer": _data(evaluation, photographs, labels or {}),
        "differences": any(photograph.differences for photograph in photographs),
        "amplification": amplification,
        "full_scale": round(255 / amplification),
        "map_colours": [tuple(map(int, tone)) for tone in map_colours()[::51]],
    }


def _data(
    evaluation: Evaluation | None, photographs: list[Photograph], labels: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what the page's script needs to compare the photographs; JSON only."""
    if evaluation is None:
        return {"photographs": []}
    by_name = {image.name: image.values for image in evaluation.per_image}
    styles = [(name, metric_info(name)) for name in metrics_of(evaluation)]
    return {
        "labels": {
            kind: labels.get(kind) or label(kind)
            for kind in (INPUT, *evaluation.stages, GROUND_TRUTH)
        },
        "metrics": [style.full_label for _, style in styles],
        "photographs": [
            {
                "name": photograph.name,
                "width": photograph.width,
                "height": photograph.height,
                "scale": photograph.scale,
                "focus": photograph.focus,
                "pictures": photograph.pictures,
                "differences": photograph.differences,
                "figures": {
                    kind: [style.text(row.get(name)) for name, style in styles]
                    for kind, row in by_name[photograph.name].items()
                },
            }
            for photograph in photographs
        ],
    }
