"""The variables of ``viewer.html.j2``, which compares photographs with a slider and in detail."""

from collections.abc import Mapping
from typing import Any

from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import label
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sheets import map_colours
from qdmr_ray.report.evaluation import metrics_of, picture_kinds
from qdmr_ray.report.pictures import Photograph

# What the page's script needs of a photograph.
SHOWN = ("name", "width", "height", "scale", "focus", "pictures", "differences")


def viewer_content(
    evaluation: Evaluation | None,
    photographs: list[Photograph],
    amplification: int,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the template's variables; ``amplification`` is that of the difference maps."""
    viewer: dict[str, Any] = {"photographs": []}
    if evaluation is not None:
        by_name = {image.name: image.values for image in evaluation.per_image}
        styles = [(name, metric_info(name)) for name in metrics_of(evaluation)]
        kinds = picture_kinds(evaluation)
        viewer["labels"] = {kind: (labels or {}).get(kind) or label(kind) for kind in kinds}
        viewer["metrics"] = [style.full_label for _, style in styles]
        for photograph in photographs:
            metrics = {
                kind: [style.text(row.get(name)) for name, style in styles]
                for kind, row in by_name[photograph.name].items()
            }
            shown = {name: getattr(photograph, name) for name in SHOWN}
            viewer["photographs"].append({**shown, "metrics": metrics})
    return {
        "photographs": photographs,
        "viewer": viewer,
        "differences": any(photograph.differences for photograph in photographs),
        "amplification": amplification,
        "full_scale": round(255 / amplification),
        "map_colours": [tuple(map(int, tone)) for tone in map_colours()[::51]],
    }
